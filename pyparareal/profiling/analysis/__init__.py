# SPDX-License-Identifier: BSD-3-Clause
"""What a record says: tables, a roofline, prices, and findings in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from ..events import Record
from . import tables
from .critical import critical_path
from .findings import findings
from .predicted import predicted
from .results import Analysis as Analysis
from .results import Roof
from .roofline import roofline
from .work import work_of


def analyse(record: Record, *, roofs: Sequence[Roof] | None = None) -> Analysis:
    """Everything that can be said of ``record``, which is not changed.

    Parameters
    ----------
    roofs : sequence of Roof, optional
        What the machine can do at most, as :func:`pyparareal.profiling.roofs.of_record` measures it. Default: those
        in ``record.about["roofs"]``, none if it has none.

    Raises
    ------
    TypeError
        ``record`` is no Record, but for instance the Timeline that has one.
    """
    if not isinstance(record, Record):
        raise TypeError(f"record: got {type(record).__name__}, expected a Record, such as timeline.record")
    work = work_of(record)
    ops = tables.by_op(work)
    found = Analysis(
        summary=tables.summary(record, work),
        by_op=ops,
        by_level=tables.by_level(work),
        by_region=tables.by_region(record, work),
        devices=tables.devices(work),
        host_overhead=tables.host_overhead(record, work),
        critical_path=critical_path(record, work),
        roofline=roofline(record.about.get("roofs", []) if roofs is None else roofs, ops),
        predicted=predicted(record, work),
        solves=tables.solves(record),
        memory=tables.memory(record),
    )
    found.findings = findings(found)
    return found
