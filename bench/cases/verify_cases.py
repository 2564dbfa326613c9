# SPDX-License-Identifier: BSD-3-Clause
"""Whether ``verify`` finds what is wrong, by name and place, and keeps quiet where nothing is."""

from __future__ import annotations

from . import Result, case


@case("verify.planted_faults", suite="full")
def planted_faults() -> Result:
    """``found`` of ``planted`` faults got the right name at the right place; ``false_alarms`` of the chains without.

    A chain counts as a false alarm if ``ok`` is false or ``verify`` raises. ``checked``: what was verified is what was
    made, none was left out.
    """
    from ..verify import CLEAN, PLANTED
    from ..verify.trial import alarm, found

    missed = [one.name for one in PLANTED if not found(one)[0]]
    alarms = [name for name, make in CLEAN.items() if alarm(name, make)]
    return Result(
        metrics={
            "found": float(len(PLANTED) - len(missed)),
            "planted": float(len(PLANTED)),
            "clean": float(len(CLEAN)),
            "false_alarms": float(len(alarms)),
        },
        checked=len({one.name for one in PLANTED}) == len(PLANTED) >= 30 and len(CLEAN) >= 30,
        notes=f"missed: {', '.join(missed) or 'none'}; false alarms: {', '.join(alarms) or 'none'}",
    )
