# SPDX-License-Identifier: BSD-3-Clause
"""The mutants of one source file: each is one token of its code replaced, never a comment, string or message."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

FLIPS = {
    "+": "-", "-": "+", "*": "+", "/": "*", "//": "*", "%": "*", "+=": "-=", "-=": "+=",
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==",
    "&&": "||", "||": "&&", "and": "or", "or": "and",
    "0": "1", "1": "0", "2": "3",
}  # fmt: skip

# Lines of C++ that decide how fast a result is made, never which: sizes of teams, cache hints, vector widths.
SPEED = re.compile(r"bytes_per_thread|streaming|team_size|alignas|in_place = ")
CPP = re.compile(
    r"//[^\n]*|^\s*#(?:[^\n]*\\\n)*[^\n]*|'[^']'|\"(?:\\.|[^\"\\])*\"|\bint64_t\{[^}]*\}"  # passed over
    r"|(?<= )(?P<op>\+=|-=|<=|>=|==|!=|&&|\|\||[-+*/%<>])(?= )"
    r"|(?<![\w.])(?P<number>[012])(?![\w.])",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Mutant:
    """``old`` at ``offset`` of ``path`` becomes ``new``; ``nth`` counts equal tokens in lines of this text."""

    path: str
    line: int
    text: str
    old: str
    nth: int
    offset: int

    @property
    def new(self) -> str:
        return FLIPS[self.old]

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What names this mutant wherever its line has moved to."""
        return (self.path, self.text, self.old, self.nth)

    def applied_to(self, source: str) -> str:
        return source[: self.offset] + self.new + source[self.offset + len(self.old) :]

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.old} -> {self.new} (number {self.nth}) in: {self.text}"


def mutants_of(path: str, source: str) -> list[Mutant]:
    tokens = _python(source) if path.endswith(".py") else _cpp(source)
    lines = source.splitlines()
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for offset, token in tokens:
        line = source.count("\n", 0, offset) + 1
        text = lines[line - 1].strip()
        seen[text, token] += 1
        found.append(Mutant(path, line, text, token, seen[text, token], offset))
    return found


def _cpp(source: str) -> Iterator[tuple[int, str]]:
    lines = source.splitlines()
    for match in CPP.finditer(source):
        token = match["op"] or match["number"]
        if token and not SPEED.search(lines[source.count("\n", 0, match.start())]):
            yield match.start(), token


def _python(source: str) -> Iterator[tuple[int, str]]:
    """Operators and the numbers 0, 1, 2 of the code; what a raise statement says is left alone."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    silent = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Raise)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.string not in FLIPS or token.start[0] in silent:
            continue
        offset = starts[token.start[0] - 1] + token.start[1]
        try:
            ast.parse(source[:offset] + FLIPS[token.string] + source[offset + len(token.string) :])
        except SyntaxError:
            continue  # a lone * among parameters, for instance
        yield offset, token.string
