# SPDX-License-Identifier: BSD-3-Clause
"""How the network was cut: preprocessing maps, parts side by side, interface residuals, coarse chain, head."""

from __future__ import annotations

from typing import Any

from ....pages import svg
from .timeline import SUPERSCRIPT, wrapped

MINUS, TIMES = "\u2212", "\u00d7"
COLUMN, GUTTER, MARGIN = 142, 52, 8
INPUT, MAP, PART, CHAIN = 8, 58, 209, 377  # upper edges of the rows
INPUT_HEIGHT, MAP_HEIGHT, PART_HEIGHT, CHAIN_HEIGHT = 26, 113, 106, 113
LETTERS = 20  # in a line of a box
JOIN = PART + PART_HEIGHT + 24  # where the residuals are taken


def partition_picture(result: dict[str, Any]) -> str:
    """Notation of the paper: ``x_j = C^j(x)``, ``y_j = g^j(x_j)``, ``r_j = y_j - x_{j+1}``; sums are circles."""
    body, count = result["body"], len(result["body"]["parts"])
    maps = {cost["name"]: cost for cost in body["maps"]}
    residual = result["settings"]["correction"] == "residual"
    width = 2 * MARGIN + (count + 1) * COLUMN + count * GUTTER
    drawn = [
        svg.box(MARGIN, INPUT, count * (COLUMN + GUTTER) - GUTTER, INPUT_HEIGHT, css="plain", radius=4),
        svg.text(MARGIN + 10, INPUT + 17, f"input x   {_shape(body['shapes']['input'])}", anchor="start", css="bold"),
    ]
    for j in range(count):
        drawn += _column(j, body, maps)
        if j:
            drawn += _coarse_net(j, maps[f"F^{j}"])
        drawn += _interface(j, count, residual)
    x = _left(count)
    drawn += _box(x, CHAIN, CHAIN_HEIGHT, "head", "h", _head_lines(result))
    return svg.picture(width, CHAIN + CHAIN_HEIGHT + 10, drawn, "How the network is cut into parts", css="natural")


def _left(j: int) -> float:
    return MARGIN + j * (COLUMN + GUTTER)


def _column(j: int, body: dict[str, Any], maps: dict[str, Any]) -> list[str]:
    x, middle = _left(j), _left(j) + COLUMN / 2
    part, cost = body["parts"][j], maps[f"C^{j + 1}"]
    largest = max(p["flops"] for p in body["parts"]) or 1
    words = part["first"] if part["blocks"] == 1 else f"{part['first']} … {part['last']}"
    lines = [
        words if len(words) <= LETTERS else f"{words[: LETTERS - 1]}…",
        f"{part['parameters']:,} parameters",
        _flops(part["flops"]),
        f"output {_shape(part['shape'])}",
    ]
    blocks = f"{part['blocks']} block{'s' * (part['blocks'] != 1)}"
    bottom = PART + PART_HEIGHT
    return [
        svg.line([(middle, INPUT + INPUT_HEIGHT), (middle, MAP)], css="wire", arrow=True),
        *_box(x, MAP, MAP_HEIGHT, "preprocess", _name("C", j + 1), _map_lines(cost)),
        svg.line([(middle, MAP + MAP_HEIGHT), (middle, PART)], css="wire", arrow=True),
        svg.text(middle + 6, PART - 14, f"x{_sub(j + 1)}", anchor="start"),
        *_box(x, PART, PART_HEIGHT, "fine", f"{_name('g', j + 1)}   {blocks}", lines),
        svg.box(x + 10, bottom - 10, (COLUMN - 20) * part["flops"] / largest, 4, css="bar fine"),
    ]


def _coarse_net(j: int, cost: dict[str, Any]) -> list[str]:
    return _box(_left(j), CHAIN, CHAIN_HEIGHT, "coarse", _name("F", j), _map_lines(cost))


def _interface(j: int, count: int, residual: bool) -> list[str]:
    """Everything in the gutter behind part ``j + 1``: its output, the next guess, the sums."""
    middle, out = _left(j) + COLUMN / 2, _left(j) + COLUMN
    plus, tap, into = out + 18, out + 36, out + GUTTER
    chain = CHAIN + CHAIN_HEIGHT / 2
    last = j == count - 1
    drawn = [
        svg.line(
            [(middle, PART + PART_HEIGHT), (middle, JOIN), (plus - 8 * (residual and not last), JOIN)], css="wire"
        ),
        svg.text(middle + 6, JOIN - 6, f"y{_sub(j + 1)}", anchor="start"),
    ]
    if residual and not last:
        # The guess that the next part started from is taken away from what it should have been.
        tapped = [(_left(j + 1) + COLUMN / 2, PART - 18), (tap, PART - 18), (tap, JOIN), (plus + 8, JOIN)]
        drawn += [svg.line(tapped, css="wire thin", arrow=True), *_sum(plus, JOIN, MINUS)]
        drawn.append(svg.text(plus - 6, JOIN + 26, f"r{_sub(j + 1)}", anchor="end"))
        drawn.append(svg.line([(plus, JOIN + 8), (plus, chain - 8 * (j > 0))], css="wire", arrow=j > 0))
    else:
        drawn.append(svg.line([(plus, JOIN), (plus, chain - 8 * (j > 0))], css="wire", arrow=j > 0))
    if not residual and not last:
        tapped = [(_left(j + 1) + COLUMN / 2, PART - 18), (tap, PART - 18), (tap, CHAIN + 14), (into, CHAIN + 14)]
        drawn.append(svg.line(tapped, css="wire thin", arrow=True))
    if j:
        drawn += [svg.line([(out, chain), (plus - 8, chain)], css="wire chain", arrow=True), *_sum(plus, chain, "+")]
    start = plus + 8 if j else plus
    drawn.append(svg.line([(start, chain), (into, chain)], css="wire chain", arrow=True))
    return drawn


def _sum(x: float, y: float, sign: str) -> list[str]:
    return [svg.circle(x, y, 8, css="sum"), svg.text(x, y + 4.5, sign, css="bold")]


def _box(x: float, y: float, height: float, css: str, title: str, lines: list[str]) -> list[str]:
    drawn = [svg.box(x, y, COLUMN, height, css=f"piece {css}", radius=5)]
    drawn.append(svg.text(x + 10, y + 17, title, anchor="start", css="bold"))
    return drawn + [svg.text(x + 10, y + 34 + 15 * i, words, anchor="start") for i, words in enumerate(lines)]


def _map_lines(cost: dict[str, Any]) -> list[str]:
    share = [] if cost["relative"] is None else [f"{cost['relative']:.1%} of a part"]
    return [
        *wrapped(cost["what"], LETTERS)[:2],
        f"{cost['parameters']:,} parameters",
        _flops(cost["flops"]),
        *share,
    ]


def _head_lines(result: dict[str, Any]) -> list[str]:
    body, classes = result["body"], len(result["networks"]["parareal"]["confusion"])
    return ["pooling, classifier", f"{body['head']['parameters']:,} parameters", f"output {classes} classes"]


def _flops(count: float) -> str:
    return f"{count / 1e9:,.3g} GFLOP" if count >= 1e9 else f"{count / 1e6:,.3g} MFLOP"


def _shape(shape: list[int]) -> str:
    return TIMES.join(map(str, shape))


def _name(letter: str, number: int) -> str:
    return letter + str(number).translate(SUPERSCRIPT)


def _sub(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
