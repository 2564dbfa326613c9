# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the tests of gradients over ranks: ``python gradient_worker.py RANK RANKS FOLDER``.

Writes ``FOLDER/<rank>.json``: for 1, 2, ... ranks and each case the names of what differs from one process; and what
the rank did and said in the cases of its own.
"""

import faulthandler
import functools
import json
import sys
import warnings
from pathlib import Path

import torch
from gradient_cases import CASES, DEEP, Chain, random_case
from processes import join

from pyparareal import MGRIT, Adjoint, ConvergenceError, LocalRuntime, distributed, serial_solve, solve

RANDOM = [functools.partial(random_case, seed) for seed in range(12)]


def bits(tensor):
    return None if tensor is None else tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


def loss(u, points, steps):
    """Every state that is kept enters, each in its own way and not linearly."""
    weights = 1.0 + torch.as_tensor(points).to(u.dtype).reshape(-1, *[1] * (u.ndim - 1)) / steps
    return (weights * torch.sin(u)).sum()


def passes_of(solution):
    return [repr(went) for went in solution.adjoint]


def differentiated(problem, runtime):
    """What a solve and two backward passes through it find, by name; the sums of which the order is free apart."""
    solution = solve(**problem.arguments, runtime=runtime)
    inputs = [*problem.exact.values(), *problem.summed.values()]
    of_loss = loss(solution.u, solution.points, solution.grid.steps)
    first = torch.autograd.grad(of_loss, inputs, retain_graph=True, allow_unused=True)
    again = torch.autograd.grad((solution.u[-1] ** 2).sum(), inputs, allow_unused=True)
    found = {"u": bits(solution.u), "points": solution.points.tobytes(), "status": solution.status.name}
    found |= {"residuals": repr(solution.residuals), "adjoint": passes_of(solution)}
    names, exact = [*problem.exact, *problem.summed], len(problem.exact)
    for what, gradients in (("loss", first), ("end", again)):
        found |= {f"{what}/{name}": bits(g) for name, g in zip(names[:exact], gradients, strict=False)}
    return found, dict(zip(names, first, strict=True))


def beyond_rounding(problem, one, many):
    """Which sums differ by more than two orders of the same terms can: ``2 n eps sum |terms|`` of ``n`` terms."""
    for name in problem.summed:
        states = serial_solve(**{k: problem.arguments[k] for k in ("fine", "u0", "grid", "rhs")}, save="all").u
        terms = problem.terms(one["rhs"], states[:-1]).detach().abs()
        most = 2 * terms.numel() * torch.finfo(terms.dtype).eps * float(terms.sum())
        # The states may be inexact by more than rounding, the same in both: their size is what counts.
        if not abs(float(one[name] - many[name])) <= most or not float(one[name]):
            yield f"{name}: {float(one[name])}, {float(many[name])}, {most}"


@functools.cache
def of_one_process(make):
    return differentiated(make(), LocalRuntime())


def different(make, runtime):
    alone, one = of_one_process(make)
    problem = make()
    ours, many = differentiated(problem, runtime)
    return [name for name in alone if alone[name] != ours[name]] + list(beyond_rounding(problem, one, many))


def differences(runtime, group):
    """Of all cases on four ranks, of every second on two and the others on three, of every fourth on one."""
    cases = list(CASES.items()) + [(f"random {seed}", make) for seed, make in enumerate(RANDOM)]
    first, stride = {1: (2, 4), 2: (0, 2), 3: (1, 2), 4: (0, 1)}[runtime.size]
    for name, make in cases[first::stride]:
        yield name, different(make, runtime)
    if how := {3: "gathered", 4: "redundant"}.get(runtime.size):
        other = distributed(group, timeout=60, coarse=how)
        for name, make in DEEP.items():
            yield f"{name}, {how}", different(make, other)
    yield "serial_solve", serial_chain(runtime)


def serial_chain(runtime):
    found = []
    for save in ("coarse", "all", "end"):
        bits_of = []
        for one in (LocalRuntime(), runtime):
            problem = Chain(50)
            known = {k: problem.arguments[k] for k in ("fine", "u0", "grid", "rhs")}
            solution = serial_solve(**known, m=4, save=save, runtime=one)
            gradients = torch.autograd.grad(loss(solution.u, solution.points, 50), list(problem.exact.values()))
            bits_of.append([bits(solution.u), passes_of(solution), *map(bits, gradients)])
        found += [save] if bits_of[0] != bits_of[1] else []
    return found


def rows_backward(make, runtime):
    """Rows that the steps of the finest level took in one backward pass, on this rank."""
    problem = make()
    solution = solve(**problem.arguments, runtime=runtime)
    of_loss, before = loss(solution.u, solution.points, solution.grid.steps), problem.fine.taken
    torch.autograd.grad(of_loss, [*problem.exact.values(), *problem.summed.values()])
    return problem.fine.taken - before


FIXED = Adjoint(MGRIT(nu=1), max_iterations=3, fixed=True)
SHARES = {
    "to one step": DEEP["to one step"],  # 45 steps: no more than one unit, were every level in blocks
    "serial": lambda: Chain(72, m=4, adjoint="serial"),
    "three cycles": lambda: Chain(72, m=4, adjoint=FIXED, save="end"),
    "a slice each": lambda: Chain(18, m=4, adjoint="serial", save="end"),
}


def shares(runtime):
    return {name: [rows_backward(make, runtime), rows_backward(make, LocalRuntime())] for name, make in SHARES.items()}


def failing_adjoint(runtime):
    """The error of an adjoint that does not converge: what it says, and its bits."""
    problem = Chain(50, m=4, adjoint=Adjoint("parareal", tol=0.0, max_iterations=2, on_failure="raise"))
    solution = solve(**problem.arguments, runtime=runtime)
    try:
        torch.autograd.grad(loss(solution.u, solution.points, 50), [problem.u0])
    except ConvergenceError as error:
        found = error.solution
        return [str(error), found.u.tolist(), found.points.tolist(), found.stats.fine_steps, list(found.residuals)]
    return []


def other_backward_passes(runtime, rank):
    """A rank that does not accept; second derivatives; and gradients of nothing."""

    def picky(went):
        return rank != 1

    found = {}
    problem = Chain(50, m=4, adjoint=Adjoint(accept=picky))
    solution = solve(**problem.arguments, runtime=runtime)
    torch.autograd.grad(loss(solution.u, solution.points, 50), [problem.u0])
    found["rejected"] = solution.adjoint[0].failure.name
    problem = Chain(50, m=4)
    solution = solve(**problem.arguments, runtime=runtime)
    (gradient,) = torch.autograd.grad(solution.u.square().sum(), [problem.u0], create_graph=True)
    try:
        gradient.sum().backward()
    except NotImplementedError as error:
        found["twice"] = str(error)
    zero = torch.autograd.grad(0 * solution.u.sum(), [problem.u0, problem.rhs, problem.b])
    found["zero"] = [float(g.abs().max()) for g in zero]
    with torch.no_grad():
        found["no grad"] = solve(**problem.arguments, runtime=runtime).u.requires_grad
    return found


def main(rank, ranks, folder):
    faulthandler.dump_traceback_later(280, exit=True)
    warnings.simplefilter("ignore", RuntimeWarning)
    join(rank, ranks, folder)
    found = {}
    groups = {count: torch.distributed.new_group(range(count)) for count in range(1, ranks + 1)}
    for make in [*CASES.values(), *DEEP.values(), *RANDOM]:
        of_one_process(make)
    for count, group in groups.items():
        torch.distributed.barrier()  # whoever is not among them waits here, which has a longer limit
        if rank < count:
            found[count] = dict(differences(distributed(group, timeout=60), group))
    runtime = distributed(timeout=60)
    found["shares"] = shares(distributed(timeout=60, coarse="redundant"))
    found["failing"] = [failing_adjoint(one) for one in (LocalRuntime(), runtime)]
    found["others"] = other_backward_passes(runtime, rank)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
