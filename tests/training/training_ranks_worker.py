# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the tests of training runs over ranks: ``python training_ranks_worker.py RANK RANKS FOLDER``.

Writes ``FOLDER/<rank>.json``: for the first 1, 2, ... ranks what differs from one process, and what errors say.
"""

import faulthandler
import json
import math
import sys
import time
import warnings
from pathlib import Path

import torch
from networks import examples, largest, mlp
from processes import join

import pyparareal
from pyparareal.training import HalfSquaredError, TrainingRuns

NAIVE = {"rules": "naive", "lr": 0.3}
EXACT = {"tol": 0.0, "stagnation": None, "divergence": 1e300}
KERNEL = {
    "until exact": {"steps": 27, **NAIVE, **EXACT},
    "two levels": {"steps": 96, "lr": 0.1, "guess": "constant"},
    "three levels, V": {"steps": 100, "levels": 3, "m": 3, "lr": 0.05},
    "F-cycles": {"steps": 90, "levels": None, "cycle": "F", "max_coarse": 5, "lr": 0.05, "stagnation": None},
    "W-cycles": {"steps": 64, "levels": None, "cycle": "W", "max_coarse": 5, "lr": 0.05, "stagnation": None},
    "F-relaxation": {"steps": 41, "nu": 0, "lr": 0.05, "stagnation": None},
    "up first": {"steps": 64, "levels": None, "cycle": "F", "max_coarse": 4, "guess": "coarse", "lr": 0.05},
    "windows": {"steps": 103, "window": 24, "lr": 0.05},
    "fewer slices than ranks": {"steps": 5, "lr": 0.1},
    "serial": {"steps": 30, "levels": 1, "window": 8, "lr": 0.1},
    "fallback": {"steps": 61, **NAIVE, "max_iterations": 4, "window": 32},
    "stagnates": {"steps": 60, **NAIVE, "stagnation": 1, "window": 32},
    "rounds off": {"steps": 48, "lr": 0.02, "tol": 0.0, "stagnation": 3, "levels": None, "cycle": "F", "max_coarse": 2},
    "diverges": {"steps": 60, "rules": "naive", "lr": 400.0, "divergence": 1.01, "on_failure": "return"},
    "too late": {"steps": 60, **NAIVE, "max_iterations": 3, "on_failure": "return"},
}  # fmt: skip
TORCH = {
    "adam": {"steps": 45, "optimiser": "adam", "lr": 0.01, "window": 30},
    "momentum, until exact": {"steps": 27, "optimiser": "momentum", "rules": "naive", "lr": 0.1, **EXACT},
}
# Long enough to be stopped in the middle of its second window.
LONG = {"steps": 90, "window": 40, "rules": "naive", "lr": 0.05, "stagnation": None}

WAIT = 240  # seconds: the last rank waits for all cases of fewer ranks


def make(runtime=None, net=None, **options):
    kernel = options.pop("kernel", True)
    loss = HalfSquaredError() if kernel else torch.nn.MSELoss()
    return TrainingRuns(net or mlp(), loss, examples(), runtime=runtime, **options)


def told(options, runtime=None, **how):
    net = mlp()
    result = make(runtime, net, **options).run(**how)
    windows = [{**window.__dict__, "seconds": 0} for window in result.windows]
    found = {name: result.weights[name].tolist() for name in result.weights}
    found |= {name: {n: m.tolist() for n, m in moments.items()} for name, moments in result.moments.items()}
    found |= {"module": [p.tolist() for p in net.parameters()]}
    return found | {"status": result.status.name, "windows": repr(windows), "steps": repr(result.steps_taken)}


ALONE = {}


def different(options, runtime):
    key = repr(options)
    if key not in ALONE:
        ALONE[key] = told(options)
    alone, ours = ALONE[key], told(options, runtime)
    return [name for name in alone if alone[name] != ours[name]]


def bits(runtime):
    for name, options in KERNEL.items():
        yield name, different(options, runtime)
    for name, options in TORCH.items():
        yield name, different({**options, "kernel": False, "deterministic": True}, runtime)


def to_rounding(runtime):
    """Largest difference of the weights from those of one process, over the tolerance that the test derives."""
    options = {"steps": 80, "lr": 0.05, "kernel": False, "optimiser": "adam"}
    ours, alone = make(runtime, **options).run(), make(**options).run()
    return largest(ours.weights, alone.weights) / (2 * 100 * 1e-9 * math.sqrt(80)), ours.status.name


def stops_after(count, rank, asking):
    """Asked for the ``count``-th time, one rank wants to stop."""
    asked = []

    def stop():
        asked.append(True)
        return len(asked) == count and rank == asking

    return stop


def resumed(runtime, others, rank, path):
    """Stopped on some ranks, going on with ``others``: what differs from a run that is not stopped."""
    alone = told(LONG)
    for runs, count, asking in ((runtime, 4, runtime.size - 1), (others, 12, 0), (runtime, 5, 0)):
        if runs is not None and rank < runs.size:
            how = {"checkpoint": path, "stop": stops_after(count, rank, asking)}
            assert told(LONG, runs, **how)["status"] == "STOPPED"
        torch.distributed.barrier()
    if rank == 0:
        ours = told(LONG, checkpoint=path)  # and in one process
        return [name for name in alone if name != "steps" and alone[name] != ours[name]]
    return []


def error_of(work):
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def wrong(runtime, rank, path):
    """What every rank says to arguments that are wrong on rank 1; the runtime works on."""
    last = rank == 1
    base = {"steps": 30, "lr": 0.1}
    broken = path.with_name("broken.npz")
    if rank == 0:
        broken.write_bytes(b"no archive")
    torch.distributed.barrier()
    cases = {
        "lr": lambda: make(runtime, **base | {"lr": 0.2 if last else 0.1}),
        "weights": lambda: make(runtime, mlp(seed=rank), **base),
        "m": lambda: make(runtime, **base, m=1 if last else 2),
        "loss": lambda: make(runtime, **base, kernel=False) if last else make(runtime, **base, fused=False),
        "memory": lambda: make(runtime, **base, memory=10 if last else None),
        "stop": lambda: make(runtime, **base).run(stop=3 if last else None),
        "checkpoint": lambda: make(runtime, **base).run(checkpoint=path if last else None),
        "broken": lambda: make(runtime, **base).run(checkpoint=broken),
        "no folder": lambda: make(runtime, **base).run(checkpoint=path.parent / "none" / "run.npz"),
    }
    found = {name: error_of(case) for name, case in cases.items()}
    found["windows"] = make(runtime, **base | {"steps": 200}, memory=20_000 if last else 10**9).window
    found["windows alone"] = make(**base | {"steps": 200}, memory=20_000).window
    found["runtime"] = error_of(lambda: make("x", **base))
    found["bits"] = different(KERNEL["two levels"], runtime)
    return found


def failing(rank, path):
    """A rank raises in the middle of a window: what all say, and what differs when they go on."""
    begin, cycles = time.monotonic(), []

    def callback(first, k, residual):
        cycles.append(k)
        if rank == 2 and len(cycles) == 5:
            raise OverflowError("too much")

    runtime = pyparareal.distributed(timeout=60)
    found = {"error": error_of(lambda: told(LONG, runtime, checkpoint=path, callback=callback))}
    found["seconds"], found["again"] = time.monotonic() - begin, error_of(lambda: make(runtime, **LONG))
    torch.distributed.barrier()
    seen = []
    ours = told(LONG, pyparareal.distributed(timeout=60), checkpoint=path, callback=lambda *at: seen.append(at))
    alone = told(LONG)
    return found | {"first": seen[0][1], "bits": [n for n in alone if n != "steps" and alone[n] != ours[n]]}


def excluded(group, rank):
    if rank == 0:
        return ""
    return error_of(lambda: pyparareal.distributed(group))


def main(rank, ranks, folder):
    faulthandler.dump_traceback_later(270, exit=True)  # before the test gives up, and says less
    warnings.simplefilter("ignore", RuntimeWarning)  # learning rates that diverge overflow
    join(rank, ranks, folder)
    groups = {count: torch.distributed.new_group(range(count)) for count in range(1, ranks + 1)}
    runtimes = {n: pyparareal.distributed(group, timeout=WAIT) for n, group in groups.items() if rank < n}
    found = {"excluded": excluded(groups[1], rank)}
    for count, runtime in runtimes.items():
        found[count] = dict(bits(runtime))
        found[f"{count}, to rounding"] = to_rounding(runtime)
    found["resumed"] = resumed(runtimes[ranks], runtimes.get(2), rank, folder / "run.npz")
    found["wrong"] = wrong(runtimes[ranks], rank, folder / "wrong.npz")
    found["failing"] = failing(rank, folder / "failing.npz")
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
