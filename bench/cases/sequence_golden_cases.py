# SPDX-License-Identifier: BSD-3-Clause
"""The implicit GRU against the stored histories of an independent program: counts of what is right."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

from bench.cases import Result, case

TESTS = Path(__file__).parents[2] / "tests" / "nn" / "recurrent"


@case("sequence.golden", suite="quick")
def golden() -> Result:
    """Histories of TorchBraid's implicit GRU reproduced, forward and backward, its norms, and its acceptance cases."""
    sys.path.append(str(TESTS))  # what is compared, and how closely, is test code
    try:
        import test_sequence_golden as stored
    finally:
        sys.path.remove(str(TESTS))

    checks = {"serial norms": stored.test_serial_norms}
    for row in stored.GOLDEN["histories"]:
        name = f"{row['levels']} levels, m = {row['m']}, nu = {row['nu']}"
        checks[f"forward, {name}"] = partial(stored.test_forward_history, row)
        checks[f"backward, {name}"] = partial(stored.test_backward_history, row)
    for levels in (1, 3):
        for steps, tolerance in ((24, 1e-6), (6, 1e-6), (27, 1e-5)):
            checks[f"{steps} steps, {levels} levels"] = partial(stored.test_acceptance_case, levels, steps, tolerance)

    differing, seconds = {}, {}
    for name, check in checks.items():
        begin = time.perf_counter()
        try:
            check()
        except AssertionError as error:
            differing[name] = str(error).strip().splitlines()[0]
        seconds[name] = [time.perf_counter() - begin]
    return Result(
        metrics={"matched": len(checks) - len(differing), "total": len(checks)},
        checked=not differing,
        samples=seconds,
        notes="; ".join(f"{name}: {difference}" for name, difference in differing.items()),
    )
