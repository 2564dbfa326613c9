# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the tests of Newton's method over ranks: ``python distributed_newton_worker.py RANK RANKS FOLDER``.

Writes ``FOLDER/<rank>.json``: for 1, 2, ... ranks and each case the names of what differs from one process.
"""

import faulthandler
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from newton_rank_cases import CASES, cell, logistic, modules, rotor
from processes import join

from pyparareal import LocalRuntime, arrays, distributed, solve

STATS = (
    "slices", "m", "fine_steps", "coarse_steps", "critical_fine_steps", "critical_coarse_steps", "serial_steps",
    "converged_slices", "failure", "levels", "jacobian", "exponent", "worst_slice",
)  # fmt: skip


def states(solution):
    return solution.u if isinstance(solution.u, np.ndarray) else arrays.to_numpy(solution.u.double())


def told(case, runtime, callback=None):
    solution = solve(**case, runtime=runtime, callback=callback)
    found = {"u": states(solution).tobytes(), "points": solution.points.tobytes()}
    found |= {"residuals": repr(solution.residuals), "status": solution.status.name}
    return found | {name: repr(getattr(solution.stats, name)) for name in STATS}, solution.stats.chain_exponent


def different(case, runtime, callback=None, alone=None, local=None):
    (alone, one), (ours, many) = told(case, local or LocalRuntime(), alone), told(case, runtime, callback)
    found = [name for name in alone if alone[name] != ours[name]]
    if one == many:
        return found
    # The logarithm of a product of Jacobians, per step: up to 1200 roundings of numbers of its size, in another order.
    most = 1200 * arrays.epsilon(case["u0"]) * max(1.0, abs(one or 0.0))
    return found + ([] if None not in (one, many) and abs(one - many) < most else [f"chain_exponent {one} {many}"])


def after_three(k, u, residual):
    return k == 3


def never(k, u, residual):
    return False


def differences(runtime, group, rank):
    for name, case in CASES.items():
        small = distributed(group, timeout=60, slices_per_call=2) if name == "slices per call" else runtime
        yield name, different(case(), small)
    ours = after_three if rank == runtime.size - 1 else never  # one rank asks, all stop
    yield "stopped", different(logistic(), runtime, ours, after_three)


def volume(case, runtime):
    """What the fourth iteration sends: the difference of four and three."""
    sent = []
    for iterations in (3, 4):
        before = runtime.volume
        solve(**case | {"max_iterations": iterations}, runtime=runtime)
        sent.append(runtime.volume - before)
    return sent[1] - sent[0]


def volumes(runtime):
    """Of blocks of 3 x 3, of a diagonal, of larger blocks, of none, and with ``trust``; 240 or 69 slices."""
    return {
        "blocks": volume(rotor(tol=0.0), runtime),
        "diagonal": volume(cell(steps=69, m=1, kind="diagonal", tol=0.0), runtime),
        "large": volume(cell(steps=69, m=1, features=6, tol=0.0), runtime),
        "none": volume(cell(steps=69, m=1, kind="none", tol=0.0), runtime),
        "trust": volume(cell(steps=69, m=1, kind="diagonal", tol=0.0, options={"trust": 0.5}), runtime),
    }


def with_modules(runtime):
    """Autograd's Jacobians may round by how many there are: exact in the end, and to the tolerance before."""
    alone, ours = told(modules(), LocalRuntime())[0], told(modules(), runtime)[0]
    exact = [name for name in ("u", "status") if alone[name] != ours[name]]
    case = modules(tol=1e-9, on_failure="raise")
    one, many = (states(solve(**case, runtime=each)) for each in (LocalRuntime(), runtime))
    return {"exact": exact, "error": float(np.abs(one - many).max())}


def main(rank, ranks, folder):
    faulthandler.dump_traceback_later(280, exit=True)
    warnings.simplefilter("ignore", RuntimeWarning)  # wrong slopes overflow on their way
    join(rank, ranks, folder)
    found = {}
    groups = {count: torch.distributed.new_group(range(count)) for count in range(1, ranks + 1)}
    for count, group in groups.items():
        if rank < count:
            found[count] = dict(differences(distributed(group, timeout=60), group, rank))
    runtime = distributed(timeout=60)
    found |= {"volume": volumes(runtime), "modules": with_modules(runtime)}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
