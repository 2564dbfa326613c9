# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the tests of solves over ranks: ``python distributed_worker.py RANK RANKS FOLDER``.

Every case of ``distributed_cases`` on the first 1, 2, ... ranks and in this process alone; writes
``FOLDER/<rank>.json``: for each number of ranks and case the names of what differs.
"""

import faulthandler
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from distributed_cases import CASES, random_case
from processes import join
from torch.distributed.device_mesh import init_device_mesh

from pyparareal import MGRIT, LocalRuntime, arrays, distributed, solve

COSTS = (
    "slices", "m", "fine_steps", "coarse_steps", "critical_fine_steps", "critical_coarse_steps", "serial_steps",
    "converged_slices", "failure", "levels", "steps_per_level", "critical_steps_per_level", "final_residual",
)  # fmt: skip
SEEDS = 8


def told(case, runtime, callback=None):
    solution = solve(**case, runtime=runtime, callback=callback)
    u = solution.u if isinstance(solution.u, np.ndarray) else arrays.to_numpy(solution.u.double())
    found = {"u": u.tobytes(), "points": solution.points.tobytes(), "residuals": repr(solution.residuals)}
    found |= {"status": solution.status.name, "iterations": solution.iterations}
    return found | {name: repr(getattr(solution.stats, name)) for name in COSTS}


def different(case, runtime, callback=None, alone=None):
    alone, ours = told(case, LocalRuntime(), alone), told(case, runtime, callback)
    return [name for name in alone if alone[name] != ours[name]]


def after_three(k, u, residual):
    return k == 3


def never(k, u, residual):
    return False


def differences(runtime, group, rank):
    for name, case in CASES.items():
        yield name, different(case(), runtime)
    ours = after_three if rank == runtime.size - 1 else never  # one rank asks, all stop
    for name in ("FCF", "parareal"):
        yield f"{name}, stopped", different(CASES[name](), runtime, ours, after_three)
    for seed in range(SEEDS):
        case, size = random_case(seed)
        yield (
            f"random {seed}",
            different(case, distributed(group, timeout=60, slices_per_call=size) if size else runtime),
        )


def volume(case, runtime):
    """What the fourth iteration sends: the difference of four and three."""
    sent = []
    for iterations in (3, 4):
        before = runtime.volume
        solve(**case | {"max_iterations": iterations}, runtime=runtime)
        sent.append(runtime.volume - before)
    return sent[1] - sent[0]


def gradients(runtime):
    """Of the solve of a chain of modules, with respect to its initial value and its weights."""
    case = CASES["parareal, modules"]() | {"method": MGRIT(), "on_failure": "raise"}
    weights = list(case["fine"].requires_grad_(True).parameters())
    u0 = case["u0"].requires_grad_(True)
    solution = solve(**case, runtime=runtime)
    return torch.autograd.grad(solution.u.square().sum(), [u0, *weights])


def on_a_mesh(rank):
    """Two solves at the same time, on two ranks each: what differs, and what a wrong dimension says."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "pint"))
    case = CASES["FCF"]()
    found = {"bits": different(case | {"u0": case["u0"] + 0.01 * (rank // 2)}, distributed(mesh, timeout=60))}
    try:
        distributed(mesh, dim="time")
    except ValueError as error:
        return found | {"dim": str(error)}
    return found


VOLUMES = ("parareal", "F", "FCF", "FCFCF", "three levels", "three levels, other factors", "four levels, relaxed")


def volumes(runtime):
    cases = CASES | {"four levels, relaxed": CASES["four levels, relaxed to the end"]}
    return {name: volume(cases[name](), runtime) for name in VOLUMES}


def main(rank, ranks, folder):
    faulthandler.dump_traceback_later(280, exit=True)  # before the test gives up, and says less
    warnings.simplefilter("ignore", RuntimeWarning)  # poor coarse propagators overflow on their way
    join(rank, ranks, folder)
    found = {"mesh": on_a_mesh(rank)}  # first: torch names its groups after how many there are, on each rank
    groups = {count: torch.distributed.new_group(range(count)) for count in range(1, ranks + 1)}
    for count, group in groups.items():
        if rank < count:
            found[count] = dict(differences(distributed(group, timeout=60), group, rank))
    runtime = distributed(timeout=60)
    found["volume"] = volumes(runtime)
    ours, alone = gradients(runtime), gradients(LocalRuntime())
    found["gradients"] = [bool((a == b).all() and a.abs().sum() > 0) for a, b in zip(ours, alone, strict=True)]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
