# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the tests of failures: ``python failing_worker.py RANK RANKS FOLDER``.

Each case makes a runtime of its own and lets something go wrong on one rank; ``FOLDER/<rank>.json`` has, by name, what
this rank raised. In the last case rank 1 kills itself.
"""

import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from distributed_cases import CASES, guess, in_torch
from mgrit_cases import LOGISTIC
from processes import join

from pyparareal import MGRIT, TimeGrid, distributed, solve
from pyparareal.propagators import Map

LIMIT, SHORT = 30.0, 3.0  # seconds; the short one is for the rank that is late


def step(act):
    """The chaotic step, which does ``act()`` at its sixth call."""
    calls = iter(range(1, 10**9))

    def phi(u):
        if next(calls) == 6:
            act()
        return LOGISTIC.step(u, slice(0, 1, 1))

    return Map(phi, batch_invariant=True)


def scaled(a):
    return Map(lambda u: a * LOGISTIC.step(u, slice(0, 1, 1)), batch_invariant=True)


def linear(seed):
    torch.manual_seed(seed)
    return torch.nn.Linear(5, 5).requires_grad_(False)


def boom():
    raise ArithmeticError("boom at the step of this rank")


def raising(k, u, residual):
    raise LookupError("no such callback")


def on_rank(one, rank, name, **change):
    """The case ``name`` on every rank, with another argument on rank ``one``."""
    return CASES[name]() | (change if rank == one else {})


def mistakes(rank):
    """What is told before the first state is sent, so that the runtime goes on: name, and arguments of ``solve``."""
    yield "shape", on_rank(2, rank, "FCF", u0=np.full((1, 3), 0.3))
    yield "dtype", on_rank(0, rank, "FCF", u0=np.array([[0.37, 0.2]], np.float32))
    yield "value", on_rank(1, rank, "FCF", u0=np.array([[0.37, 0.2 + 1e-16 * 2]]))
    yield "library", in_torch(CASES["FCF"]()) if rank == 1 else CASES["FCF"]()
    yield "grid", on_rank(1, rank, "parareal", grid=TimeGrid(0, 2, 50))
    yield "m", on_rank(1, rank, "parareal", m=5)
    yield "option", on_rank(2, rank, "FCF", method=MGRIT(nu=2, stagnation=None, divergence=float("inf")))
    yield "method", on_rank(1, rank, "FCF", method="parareal")
    yield "callback", on_rank(1, rank, "FCF", callback=raising)
    yield "forced", on_rank(2, rank, "parareal, forced", rhs=1e-3 * guess(49, seed=4))
    yield "guess", on_rank(1, rank, "FCF, guessed", initial=guess(12, seed=4))
    yield "weights", CASES["parareal, modules"]() | {"fine": linear(seed=rank // 2)}
    yield "constant", CASES["FCF"]() | {"fine": scaled(1.0 + 1e-15 * (rank == 1))}
    yield "own mistake", on_rank(1, rank, "FCF", tol=-1.0)
    yield "everyone's mistake", CASES["FCF"]() | {"tol": -1.0}


def accidents(rank, runtime):
    """What happens on the way and ends the runtime, which is in the list ``runtime``."""
    for name, at in (("parareal", 0), ("parareal", 2), ("FCF", 1), ("three levels, nested", 2)):
        yield f"raise in {name} on {at}", on_rank(at, rank, name, fine=step(boom))
    yield "raise in the callback", on_rank(2, rank, "FCF", callback=raising) | ({} if rank == 2 else quiet())
    yield "nested", CASES["parareal"]() | {"fine": step(lambda: solve(**CASES["parareal"](), runtime=runtime[0]))}
    yield "interrupted", on_rank(1, rank, "parareal", fine=Interrupted())
    yield "late", on_rank(1, rank, "FCF", fine=step(lambda: time.sleep(2 * SHORT)))
    yield "dead", on_rank(1, rank, "FCF", fine=step(lambda: os.kill(os.getpid(), signal.SIGKILL)))


class Interrupted:
    """As by Ctrl-C, while the arguments are looked at."""

    @property
    def step(self):
        raise KeyboardInterrupt


def quiet():
    return {"callback": lambda k, u, residual: None}


def outcome(case, runtime):
    try:
        solve(**case, runtime=runtime)
    except (Exception, KeyboardInterrupt) as error:
        return [type(error).__name__, str(error)]
    return ["", ""]


def main(rank, ranks, folder):
    warnings.simplefilter("ignore", RuntimeWarning)
    join(rank, ranks, folder)
    found, runtime = {}, distributed(timeout=20)

    def note(name, what):
        found[name] = what
        (folder / f"{rank}.json").write_text(json.dumps(found))

    for name, case in mistakes(rank):
        note(name, outcome(case, runtime))
        note(f"after {name}", outcome(CASES["parareal"](), runtime))
    at_work = [runtime]
    for name, case in accidents(rank, at_work):
        torch.distributed.barrier()  # until the sleeper has raised, too
        at_work[0] = runtime = distributed(timeout=SHORT if name == "late" else LIMIT)
        note(name, outcome(case, runtime))
        note(f"after {name}", outcome(CASES["parareal"](), runtime))
    if rank != 1:
        os._exit(0)  # without rank 1 there is no orderly end


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
