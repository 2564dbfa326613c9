# SPDX-License-Identifier: BSD-3-Clause
"""A record as JSON values and back, every bit of it: columns of numbers, and each text and each set of facts once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from typing import Any, NoReturn

from .events import Event, RankClock, Record, Sample, Solve

FORMAT = 1
_FLOAT, _DICT = "$float", "$dict"  # JSON has no NaN; a dictionary that looks like one of these is wrapped
_CALLED: dict[Any, str] = {dict: "an object", list: "a list", str: "a text"}
_TEXTS, _MAYBE_TEXTS = ("kind", "name", "device", "stream", "region"), ("flow",)


def plain(value: Any, where: str) -> Any:
    """``value`` as JSON can hold it: NaN and infinity named, NumPy scalars as numbers, tuples as lists.

    Raises
    ------
    TypeError
        For anything else, naming ``where`` it is.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_FLOAT: repr(float(value))}
    if isinstance(value, list | tuple):
        return [plain(one, f"{where}[{i}]") for i, one in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: got a key {key!r}, expected a text")
        inside = {key: plain(one, f"{where}.{key}") for key, one in value.items()}
        return {_DICT: inside} if set(inside) in ({_FLOAT}, {_DICT}) else inside
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return plain(value.item(), where)
    raise TypeError(f"{where}: got {type(value).__name__}, expected a number, a text, None, a list or a dictionary")


def restored(value: Any) -> Any:
    """What :func:`plain` was given."""
    if isinstance(value, list):
        return [restored(one) for one in value]
    if isinstance(value, dict):
        if set(value) == {_FLOAT}:
            return float(value[_FLOAT])
        inside = value[_DICT] if set(value) == {_DICT} else value
        return {key: restored(one) for key, one in inside.items()}
    return value


class _Table:
    """Values by number, each held once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[str, int] = {}

    def number(self, value: Any, key: str) -> int:
        if key not in self._numbers:
            self._numbers[key] = len(self.values)
            self.values.append(value)
        return self._numbers[key]


def packed(record: Record) -> dict[str, Any]:
    """``record`` as JSON values, in ``FORMAT``."""
    texts, facts = _Table(), _Table()

    def text(value: str | None) -> int | None:
        return None if value is None else texts.number(value, value)

    def known(i: int, event: Event) -> int:
        value = plain(event.facts, f"events[{i}].facts")
        return facts.number(value, json.dumps(value))

    def columns(rows: Iterable[Any], kind: type, of: dict[str, Callable[[int, Any], Any]]) -> dict[str, list[Any]]:
        rows = list(rows)
        return {
            one.name: [of.get(one.name, lambda i, row, at=one.name: plain(getattr(row, at), f"[{i}].{at}"))(i, row)
                       for i, row in enumerate(rows)]
            for one in fields(kind)
        }  # fmt: skip

    as_text: dict[str, Any] = {at: lambda i, e, at=at: text(getattr(e, at)) for at in (*_TEXTS, *_MAYBE_TEXTS)}
    events = columns(record.events, Event, as_text | {"facts": known})
    samples = columns(record.samples, Sample, {"counter": lambda i, one: text(one.counter)})
    return {
        "format": FORMAT,
        "events": events,
        "samples": samples,
        "clocks": [plain(asdict(one), f"clocks[{i}]") for i, one in enumerate(record.clocks)],
        "solves": [plain(asdict(one), f"solves[{i}]") for i, one in enumerate(record.solves)],
        "about": plain(record.about, "about"),
        "texts": texts.values,
        "facts": facts.values,
    }


def unpacked(data: Any, source: str) -> Record:
    """The record that :func:`packed` was given.

    Raises
    ------
    ValueError
        ``data`` is none of its results: names ``source`` and the field.
    """
    read = _Reader(source)
    read.kind("pyparareal", data, dict)
    if data.get("format") != FORMAT:
        read.refuse("pyparareal.format", data.get("format"), f"{FORMAT}, the format of this version")
    texts = read.listed("texts", read.field(data, "texts", list), str)
    facts = read.listed("facts", read.field(data, "facts", list), dict)
    events = read.columns(data, "events", Event, texts, facts)
    samples = read.columns(data, "samples", Sample, texts, facts)
    return Record(
        [Event(**row) for row in events],
        [Sample(**row) for row in samples],
        [RankClock(**row) for row in read.rows(data, "clocks", RankClock)],
        [Solve(**row) for row in read.rows(data, "solves", Solve)],
        restored(read.field(data, "about", dict)),
    )


class _Reader:
    """Checks what a file holds, and says where it is wrong."""

    def __init__(self, source: str) -> None:
        self.source = source

    def refuse(self, field: str, got: Any, expected: str) -> NoReturn:
        said = repr(got)
        raise ValueError(f"{self.source}: {field}: got {said[:60]}, expected {expected}")

    def kind(self, field: str, value: Any, kind: type) -> Any:
        if not isinstance(value, kind):
            self.refuse(field, value, _CALLED[kind])
        return value

    def field(self, data: dict[str, Any], name: str, kind: type) -> Any:
        return self.kind(f"pyparareal.{name}", data.get(name), kind)

    def listed(self, name: str, values: list[Any], kind: type) -> list[Any]:
        for i, one in enumerate(values):
            self.kind(f"pyparareal.{name}[{i}]", one, kind)
        return values

    def columns(
        self, data: dict[str, Any], name: str, kind: type, texts: list[str], facts: list[Any]
    ) -> list[dict[str, Any]]:
        table, whole = self.field(data, name, dict), {}
        for one in fields(kind):
            at = f"pyparareal.{name}.{one.name}"
            column = self.kind(at, table.get(one.name), list)
            if one.name in (*_TEXTS, *_MAYBE_TEXTS, "counter"):
                whole[one.name] = [self._entry(at, i, v, texts, one.name in _MAYBE_TEXTS) for i, v in enumerate(column)]
            elif one.name == "facts":
                whole[one.name] = [restored(self._entry(at, i, v, facts, False)) for i, v in enumerate(column)]
            elif one.name in ("rank", "level"):
                whole[one.name] = [self._whole(at, i, v, one.name == "level") for i, v in enumerate(column)]
            else:
                whole[one.name] = [self._number(f"{at}[{i}]", v) for i, v in enumerate(column)]
        lengths = {at: len(column) for at, column in whole.items()}
        first = next(iter(lengths))
        for at, count in lengths.items():
            if count != lengths[first]:
                self.refuse(f"pyparareal.{name}.{at}", count, f"{lengths[first]} entries as in {first}")
        return [dict(zip(whole, row, strict=True)) for row in zip(*whole.values(), strict=True)]

    def _entry(self, at: str, i: int, number: Any, table: list[Any], maybe: bool) -> Any:
        if number is None and maybe:
            return None
        if type(number) is not int or not 0 <= number < len(table):
            self.refuse(f"{at}[{i}]", number, f"a number below {len(table)}")
        return table[number]

    def _whole(self, at: str, i: int, value: Any, maybe: bool) -> int | None:
        if type(value) is not int and not (maybe and value is None):
            self.refuse(f"{at}[{i}]", value, "an integer")
        return value

    def _number(self, at: str, value: Any) -> float:
        number = value
        if isinstance(value, dict):
            try:
                number = restored(value)
            except (TypeError, ValueError):
                self.refuse(at, value, "a number")
        if isinstance(number, bool) or not isinstance(number, int | float):
            self.refuse(at, value, "a number")
        return number

    def rows(self, data: dict[str, Any], name: str, kind: type) -> list[dict[str, Any]]:
        found = []
        for i, row in enumerate(self.field(data, name, list)):
            at = f"pyparareal.{name}[{i}]"
            self.kind(at, row, dict)
            names = {one.name for one in fields(kind)}
            if set(row) != names:
                self.refuse(at, sorted(row), f"the fields {', '.join(sorted(names))}")
            whole = {key: restored(value) for key, value in row.items()}
            for key in {"rank", "offset", "error", "start", "end", "iterations"} & names:
                self._number(f"{at}.{key}", whole[key])
            for key in {"how", "method", "status"} & names:
                self.kind(f"{at}.{key}", whole[key], str)
            for key, expected in {"residuals": list, "facts": dict}.items():
                if key in names:
                    self.kind(f"{at}.{key}", whole[key], expected)
            found.append(whole)
        return found
