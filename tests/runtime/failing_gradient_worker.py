# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the tests of failures in backward passes: ``python failing_gradient_worker.py RANK RANKS FOLDER``.

``FOLDER/<rank>.json`` has, by name, what this rank raised. In the last case rank 1 kills itself.
"""

import contextlib
import json
import os
import signal
import sys
import warnings
from pathlib import Path

import torch
from gradient_cases import Chain, Waves
from processes import join

from pyparareal import MGRIT, Adjoint, distributed, solve

LIMIT, SHORT = 30.0, 3.0  # seconds; the short one is for the rank that does not come


class Trap(Waves):
    """Does ``act()`` in the backward pass, when a step is to be transposed or differentiated in its parameters."""

    act, armed = None, None

    def step(self, u, points):
        if self.armed == ("transposed" if u.grad_fn is not None else "parameters") and torch.is_grad_enabled():
            self.act()
        return super().step(u, points)


def boom():
    raise ArithmeticError("boom going back")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def rejecting(went):
    raise LookupError("no such pass")


def loss(u, scale=1.0):
    return scale * torch.sin(u).sum()


def backward(problem, solution, inputs=("u0", "rhs", "a", "b"), scale=1.0):
    known = problem.exact | problem.summed
    torch.autograd.grad(loss(solution.u, scale), [known[name] for name in inputs])


def chain(**more):
    return Chain(50, m=4, kind=Trap, **more)


def mistakes(rank, runtime):
    """What is told before the first state is sent, so that the runtime goes on: name, and what to do."""

    def gradient():
        problem = chain()
        backward(problem, solve(**problem.arguments, runtime=runtime), scale=1.0 + (rank == 1) * 1e-15)

    def needed():
        problem = chain()
        problem.rhs.requires_grad_(rank != 2)
        backward(problem, solve(**problem.arguments, runtime=runtime), ("u0",))

    def adjoint():
        solve(**chain(adjoint="serial" if rank == 1 else None).arguments, runtime=runtime)

    def option():
        solve(**chain(adjoint=MGRIT(nu=2 if rank == 2 else 1)).arguments, runtime=runtime)

    def accept():
        solve(**chain(adjoint=Adjoint(accept=rejecting if rank else None)).arguments, runtime=runtime)

    def graph():
        with torch.no_grad() if rank == 1 else contextlib.nullcontext():
            solve(**chain().arguments, runtime=runtime)

    def other_operation():
        problem = chain()
        solution = solve(**problem.arguments, runtime=runtime)
        if rank == 1:
            solve(**problem.arguments, runtime=runtime)
        else:
            backward(problem, solution)

    def order():
        one, other = chain(), chain()
        solutions = [solve(**problem.arguments, runtime=runtime) for problem in (one, other)]
        for n in (1, 0) if rank == 1 else (0, 1):
            backward((one, other)[n], solutions[n])

    def norm():
        def size(u):
            return (1 + (rank == 2)) * u.flatten(1).norm(dim=1)

        problem = chain(method=MGRIT(), norm=size)
        backward(problem, solve(**problem.arguments, runtime=runtime))

    return {
        one.__name__: one for one in (order, norm, gradient, needed, adjoint, option, accept, graph, other_operation)
    }


def accidents(rank):
    """What happens on the way and ends the runtime: name, and what to do with it."""

    def trapped(at, when, act, **more):
        def run(runtime):
            problem = chain(**more)
            solution = solve(**problem.arguments, runtime=runtime)
            if rank == at:
                problem.fine.act, problem.fine.armed = act, when
            backward(problem, solution)

        return run

    def rejected(runtime):
        problem = chain(adjoint=Adjoint(accept=rejecting if rank == 0 else bool))
        backward(problem, solve(**problem.arguments, runtime=runtime))

    def absent(runtime):
        problem = chain()
        solution = solve(**problem.arguments, runtime=runtime)
        if rank != 1:
            backward(problem, solution)

    yield "parareal on 0", trapped(0, "transposed", boom)
    yield "parareal on 2", trapped(2, "transposed", boom)
    yield "MGRIT on 1", trapped(1, "transposed", boom, adjoint=MGRIT(), save="end")
    yield "a chain on 1", trapped(1, "transposed", boom, adjoint="serial")
    yield "parameters on 2", trapped(2, "parameters", boom)
    yield "accept on 0", rejected
    yield "absent", absent
    yield "dead", trapped(1, "transposed", die)


def outcome(call, *arguments):
    try:
        call(*arguments)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["", ""]


def main(rank, ranks, folder):
    warnings.simplefilter("ignore", RuntimeWarning)
    join(rank, ranks, folder)
    found, runtime = {}, distributed(timeout=20)

    def well():
        problem = chain()
        backward(problem, solve(**problem.arguments, runtime=runtime))

    def note(name, what):
        found[name] = what
        (folder / f"{rank}.json").write_text(json.dumps(found))

    for name, mistake in mistakes(rank, runtime).items():
        note(name, outcome(mistake))
        note(f"after {name}", outcome(well))
    for name, accident in accidents(rank):
        torch.distributed.barrier()  # until those have raised who waited for one that did not come
        runtime = distributed(timeout=SHORT if name == "absent" else LIMIT)
        note(name, outcome(accident, runtime))
        if name != "absent":
            note(f"after {name}", outcome(well))
    if rank != 1:
        os._exit(0)  # without rank 1 there is no orderly end


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
