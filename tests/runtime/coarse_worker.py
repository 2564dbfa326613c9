# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the tests of coarse levels over ranks: ``python coarse_worker.py RANK RANKS FOLDER``.

Writes ``FOLDER/<rank>.json``: for 1, 2, ... ranks, each choice of where coarse levels are solved and each case the
names of what differs from one process; and what is sent.
"""

import faulthandler
import json
import sys
import warnings
from pathlib import Path

import torch
from distributed_cases import CASES, guess, in_space, in_torch, random_case, with_residual
from distributed_worker import different, volume
from mgrit_cases import decay
from processes import join
from test_kept_cycles import heat

from pyparareal import distributed, solve
from pyparareal.runtime.model import RankCosts

SEEDS = (20, 21, 24)
CHOICES = {1: ["redundant"], 2: ["gathered"], 3: ["redundant"], 4: ["redundant", "gathered"]}


def deep(**options):
    """75 steps on levels of 75, 37, 18, 9, 4 and 2: with 4 ranks the last two are not cut, with 3 the last."""
    common = {"steps": 75, "m": 2, "tol": 0.0, "max_iterations": 4, "on_failure": "return", "levels": 6}
    return decay(**common | {"stagnation": None} | options)


DEEP = {
    "V": deep,
    "F": lambda: deep(cycle="F"),
    "W": lambda: deep(cycle="W", nu=0),
    "nested": lambda: deep(nested=True),
    "relaxed to the end": lambda: deep(coarsest_sweeps=2, cycle="F"),
    "nested, relaxed to the end": lambda: deep(coarsest_sweeps=1, nested=True),
    "weighted": lambda: deep(omega=0.8, nu=[1, 2, 0], cycle="W"),
    "down first": lambda: deep(skip_first_down=False, measure="end"),
    "guessed": lambda: deep() | {"initial": guess(37)},
    "local": lambda: deep(scope="local", tol=1e-9, relative="first"),
    "other factors": lambda: deep(levels=4) | {"m": [5, 2, 3]},
    "one slice": lambda: deep(steps=7, levels=2) | {"m": 5},
    "every point": lambda: deep(levels=5) | {"save": "all"},
    "kernels": lambda: heat(levels=4, cycle="F") | {"m": 2},
    "kernels in torch": lambda: in_torch(heat(levels=4)) | {"m": 2},
    "space": lambda: in_space(4) | {"coarse": CASES["three levels"]()["coarse"] + CASES["F"]()["coarse"]},
    "residual": with_residual,
    "three levels": CASES["three levels"],
    "modules": CASES["FCF, modules"],
}


def differences(group, coarse):
    runtime = distributed(group, timeout=60, coarse=coarse)
    for name, case in DEEP.items():
        yield name, different(case(), runtime)
    for seed in SEEDS:
        case, size = random_case(seed)
        small = distributed(group, timeout=60, slices_per_call=size, coarse=coarse) if size else runtime
        yield f"random {seed}", different(case, small)


def chosen(group):
    """By default: what differs, and what is sent, where steps take long, and where bytes do."""
    found = {}
    for name, costs in (("steps", RankCosts(0.0, 1e12, 1e-3)), ("bytes", RankCosts(0.0, 1e3, 0.0))):
        runtime = distributed(group, timeout=60, costs=costs)
        found[name] = [different(deep(), runtime), dict(volume(deep(), runtime))]
    return found


def volumes():
    found = {}
    for coarse in ("chain", "redundant", "gathered"):
        runtime = distributed(timeout=60, coarse=coarse)
        cases = {name: DEEP[name]() for name in ("V", "three levels", "residual")}
        found[coarse] = {name: dict(volume(case | {"tol": 0.0}, runtime)) for name, case in cases.items()}
    return found


def refusals():
    found = []
    for arguments in ({"coarse": "all"}, {"costs": 3.0}):
        try:
            distributed(**arguments)
        except (TypeError, ValueError) as error:
            found.append(str(error))
    return found


def disagreement(rank):
    try:
        solve(**deep(), runtime=distributed(timeout=60, coarse="chain" if rank == 1 else "gathered"))
    except ValueError as error:
        return str(error)
    return ""


def main(rank, ranks, folder):
    faulthandler.dump_traceback_later(280, exit=True)
    warnings.simplefilter("ignore", RuntimeWarning)
    join(rank, ranks, folder)
    groups = {count: torch.distributed.new_group(range(count)) for count in range(1, ranks + 1)}
    found = {"refusals": refusals(), "disagreement": disagreement(rank)}
    for count, group in groups.items():
        if rank < count:
            found[count] = {coarse: dict(differences(group, coarse)) for coarse in CHOICES[count]}
    found |= {"chosen": chosen(groups[ranks]), "volume": volumes()}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
