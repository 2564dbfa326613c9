# SPDX-License-Identifier: BSD-3-Clause
"""Gradients of a solve: the derivative of its steps, and the whole backward pass against the loop under autograd."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .calls import Call
from .faults import Fault, Finding, Place
from .measures import differences, epsilon, numbers
from .result import Comparison, SliceErrors

Array = Any


def parameters_of(work: Any) -> dict[str, Any]:
    """The tensors that the steps of ``work`` hold and that require grad, by name."""
    from ..vjp import held_by

    given = work.chain.parameters
    if given is not None:
        return {f"parameters[{i}]": p for i, p in enumerate(given)}
    modules, tensors = held_by(work.chain.fine)
    found: dict[int, tuple[str, Any]] = {}
    for k, module in enumerate(modules):
        prefix = f"modules[{k}]." if len(modules) > 1 else ""
        for name, p in module.named_parameters():
            found.setdefault(id(p), (f"{prefix}{name}", p))
    names = {id(v): k for k, v in getattr(work.chain.fine, "__dict__", {}).items()}
    for k, t in enumerate(tensors):
        if t.is_leaf:
            found.setdefault(id(t), (names.get(id(t), f"tensor {k}"), t))
    return {name: p for name, p in found.values() if p.requires_grad}


def of_steps(work: Any, call: Call) -> Iterator[Finding]:
    """Of the steps in ``call``, by autograd or by what the propagator brings along."""
    from ..adjoint_step import adjoint_step
    from .derivatives import derivatives

    if not hasattr(work.phi, "adjoint"):
        yield from derivatives(call)
        return
    steps, first, last = work.grid.steps, call.points[0], call.points[-1]

    def adjoint(u: Any, w: Any) -> Any:
        states = work.u.clone()
        states[call.points] = u
        own = adjoint_step(work.phi, states, steps)
        stride = call.points[1] - first if len(call.points) > 1 else 1
        # Point steps - 1 - i of the reversed grid is the step from point i, and slices come the other way round.
        return own.step(w.flip(0).clone(), slice(steps - 1 - last, steps - first, stride)).flip(0)

    yield from derivatives(call, adjoint)


def compared(work: Any) -> list[Comparison]:
    """Gradients of a random functional of all states, through the solve and through the loop."""
    import torch

    parameters = list(work.parameters.values())
    w = torch.as_tensor(np.random.default_rng(11).standard_normal(tuple(work.u.shape))).to(work.u)
    more = {} if work.chain.adjoint is None else {"adjoint": work.chain.adjoint}
    place = Place(words="the backward pass")

    def gradients(of: Any) -> list[Any]:
        work.held.restore()
        for p in parameters:
            p.grad = None
        u0 = work.start.clone().requires_grad_()
        with torch.enable_grad():
            (of(u0) * w).sum().backward(inputs=[u0, *parameters])
        return [u0.grad, *(None if p.grad is None else p.grad.clone() for p in parameters)]

    try:
        parallel = gradients(lambda u0: work.solved(u0, work.tol, parameters=work.chain.parameters, **more).u)
        serial = gradients(lambda u0: _loop(work, u0))
    except Exception as error:  # of the steps, of torch, or a refusal of the solve
        text = f"{type(error).__name__}: {error}"
        work.found.add(Finding(Fault.RAISED, place, f"It raised {text[:400]}."))
        return []
    finally:
        work.held.restore()  # the gradients of the parameters too
    names = ["u0", *work.parameters]
    made = [_comparison(work, *row) for row in zip(names, parallel, serial, strict=True)]
    for name, c in zip(names, made, strict=True):
        if not c.ok and not work.found.blames():
            row = c.rows[0]
            work.found.add(_differs(work, name, row, float(w.flatten(1).norm(dim=1).sum()), place), group="gradients")
    return made


def _differs(work: Any, name: str, row: SliceErrors, incoming: float, place: Place) -> Finding:
    """``incoming`` is what the tolerance of an adjoint solve is multiplied by, see :class:`pyparareal.Adjoint`."""
    text = f"With respect to {name} it differs from the loop by {row.largest:.2g} (allowed: {row.allowed:.2g})."
    own = getattr(work.chain.adjoint, "tol", None)
    tol = work.tol if own is None else own
    if tol < row.largest:
        return Finding(Fault.UNEXPLAINED, place, text)
    text += (
        f" Its iterations end at an error of {tol:.2g} times the gradients that come in ({incoming:.2g}), more than "
        "that: the tolerance suits states of their size, not the gradients."
    )
    advice = "Give the backward pass a tolerance of its own: adjoint=Adjoint(tol=...), about 1e-10 in float64."
    return Finding(Fault.NOT_CONVERGED, place, text, suggestion=advice, numbers={"tolerance": tol})


def _loop(work: Any, u0: Any) -> Any:
    import torch

    states = [u0[None]]
    for i in range(work.grid.steps):
        states.append(work.phi.step(states[-1].clone(), slice(i, i + 1, work.m)))
    return torch.cat(states)


def _comparison(work: Any, name: str, parallel: Any, serial: Any) -> Comparison:
    if parallel is None or serial is None:
        none = parallel is None and serial is None
        return Comparison(
            f"gradient of {name}", "the same tensors get gradients",
            (SliceErrors(0, 0.0 if none else float("inf"), 0.0, 0.0),),
        )  # fmt: skip
    eps, scale = epsilon(serial), float(np.abs(numbers(serial)).max(initial=0.0))
    size = max(float(np.abs(numbers(work.u)).max(initial=0.0)), 1e-300)
    # What the states miss, and the adjoint chain, which grows as the chain does.
    relative = float(work.growth.carried(np.full(work.slices, 4 * eps * work.m + work.tol / size)).max())
    allowed = 64 * relative * max(scale, 1e-300) * max(1.0, np.sqrt(work.grid.steps / work.m))
    d = differences(parallel, serial)
    text = f"tolerance: {allowed:.2g}, from the method's tolerance, rounding, and the growth of differences"
    return Comparison(f"gradient of {name}", text, (SliceErrors(0, float(d.max()), float(d.mean()), float(allowed)),))
