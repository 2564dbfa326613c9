# SPDX-License-Identifier: BSD-3-Clause
"""Ops under the roof of the machine: Williams, Waterman and Patterson, Communications of the ACM 52 (2009), 65-76."""

from __future__ import annotations

from collections.abc import Sequence

from .results import OpRow, Point, Roof, Roofline


def roofline(roofs: Sequence[Roof], by_op: Sequence[OpRow]) -> Roofline:
    """A point for each op whose bytes and operations are known and that has a roof."""
    points, unknown = [], []
    for row in by_op:
        if row["bytes"] is None or row["flops"] is None:
            unknown += [] if row["encloses"] else [row["op"]]
            continue
        roof = _above(roofs, row)
        if roof is not None and row["bytes"] > 0 and row["seconds"] > 0:
            points.append(_point(row, roof))
    return Roofline(roofs=list(roofs), points=points, unknown=sorted(set(unknown)))


def _above(roofs: Sequence[Roof], row: OpRow) -> Roof | None:
    """That of all threads: an op takes as many as there are unless it is told."""
    mine = [roof for roof in roofs if (roof["device"], roof["dtype"]) == (row["device"], row["dtype"])]
    return max(mine, key=lambda roof: roof["threads"] or 0, default=None)


def _point(row: OpRow, roof: Roof) -> Point:
    nbytes, flops, seconds = row["bytes"] or 0.0, row["flops"] or 0.0, row["seconds"]
    of_bytes, of_flops = nbytes / roof["bytes_per_second"], flops / roof["flops_per_second"]
    return Point(
        op=row["op"],
        device=row["device"],
        dtype=str(row["dtype"]),
        calls=row["calls"],
        seconds=seconds,
        intensity=flops / nbytes,
        flops_per_second=flops / seconds,
        bytes_per_second=nbytes / seconds,
        bound="flops" if of_flops >= of_bytes else "bytes",
        fraction=max(of_flops, of_bytes) / seconds,
        in_caches=nbytes / seconds > roof["bytes_per_second"],
        threads=roof["threads"],
    )
