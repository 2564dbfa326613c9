# SPDX-License-Identifier: BSD-3-Clause
"""A solve of ``u[i+1] = Phi_i(u[i]) + rhs[i]`` verified: its steps by themselves, then the whole against the loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import arrays, checks
from ..forcing import forced
from ..propagators import Propagator
from ..time_grid import TimeGrid
from .calls import Call, guarded
from .faults import SPOILED, Fault, Finding, Findings, Place
from .held import Held
from .measures import copy, differences, digits, epsilon, finite_rows, per_row, sizes
from .precision import precision
from .probes import UNITS, probes, sample, tolerance

Array = Any
Progress = Callable[[str, float], None]


@dataclass
class Chain:
    """The arguments of a solve, as :func:`pyparareal.solve` takes them; ``verify(Chain(...))``.

    Attributes
    ----------
    fine, u0, grid, m, coarse, rhs, method, deterministic, parameters, adjoint, runtime, norm
        See :func:`pyparareal.solve`.
    tol : float, optional
        Default: 0 where all steps are batch-invariant, so that everything has to be bit for bit; else what the dtype
        lets a method reach.
    max_iterations : int, optional
    what : str
        Its name in the result.
    """

    fine: Any
    u0: Array
    grid: TimeGrid
    m: Any
    coarse: Any = None
    rhs: Array | None = None
    method: Any = "parareal"
    tol: float | None = None
    max_iterations: int | None = None
    deterministic: bool = False
    parameters: Any = None
    adjoint: Any = None
    runtime: Any = None
    norm: Any = None
    what: str = "solve"


class ChainVerifier:
    """The steps of one :class:`Chain`: the serial states, and the probes along them.

    Attributes
    ----------
    u : array ``[steps + 1, batch, features...]``
        The serial states, once :meth:`serial_states` has found them.
    """

    u: Array
    word = "slice"  # what places are called

    def __init__(self, chain: Chain, quick: bool, gradients: bool | None, progress: Progress) -> None:
        if chain.parameters is not None:
            chain = dataclasses.replace(chain, parameters=list(chain.parameters))
        self.chain, self.quick, self.progress = chain, quick, progress
        u0, grid = checks.initial_value(chain.u0), checks.grid(chain.grid)
        if not isinstance(chain.deterministic, bool):
            raise TypeError(f"deterministic: got {chain.deterministic!r}, expected True or False")
        if 0 in u0.shape:
            raise ValueError(f"u0: got shape {tuple(u0.shape)}, expected at least one number")
        self.given, self.start, self.grid = u0, arrays.detached(u0), grid
        self.m = chain.m[0] if isinstance(chain.m, list | tuple) and chain.m else chain.m
        self.slices = grid.slices(self.m)
        self.phi: Propagator = checks.propagator(
            "fine", forced(chain.fine, chain.rhs, self.start, grid), grid, chain.deterministic
        )
        roots = {"fine": chain.fine, "coarse": chain.coarse, "rhs": chain.rhs, "u0": chain.u0}
        self.held = Held(roots | {"parameters": chain.parameters})
        self.found = Findings()
        self.facts: dict[str, Any] = {
            "steps": grid.steps, "slices": self.slices, "m": self.m,
            "dtype": str(self.start.dtype).removeprefix("torch."), "state": list(self.start.shape),
        }  # fmt: skip
        self.parameters = self._parameters() if arrays.is_torch(u0) else {}
        wanted = any(t.requires_grad for t in [u0, *self.parameters.values()]) if arrays.is_torch(u0) else False
        if gradients and not arrays.is_torch(u0):
            raise ValueError(f"gradients: got True for states of {type(u0).__name__}, expected torch tensors")
        self.gradients = wanted if gradients is None else gradients

    # The serial chain

    def place(self, i: int) -> Place:
        n, j = min(i // self.m, self.slices), i - min(i // self.m, self.slices) * self.m
        return Place(n, j, f"{self.word} {n}, step {j} (point {i})")

    def one(self, i: int, v: Array) -> Array:
        return self.phi.step(v, slice(i, i + 1, self.m))

    def serial_states(self) -> Array | None:
        """All states by the loop; None, with the finding, where that cannot be."""
        u = arrays.empty_like(self.start[None], slices=self.grid.steps + 1)
        u[0] = self.start
        for i in range(self.grid.steps):
            v = guarded(self.one, self.place(i), i, copy(u[i : i + 1]))
            if tuple(getattr(v, "shape", ())) != tuple(u[:1].shape) or v.dtype != u.dtype:
                self.found.add(*probes(self.call(i % self.m if i else 0, u[i : i + 1], [i])))
                return None
            u[i + 1 : i + 2] = v.detach() if arrays.is_torch(v) else v
            if not finite_rows(u[i + 1 : i + 2])[0]:
                size = digits(sizes(u[i : i + 1])[0])
                text = f"The serial chain itself makes NaN or infinity there, from a state of size {size}."
                self.found.add(Finding(Fault.NON_FINITE, self.place(i), text))
                return None
        self.held.restore()
        return u

    # Probes

    def call(self, j: int, rows: Array, points: list[int] | None = None) -> Call:
        """Step ``j`` of all slices in one call, or that of the ``points`` given."""
        whole = self.grid.starts(self.m, j=j)
        if points is None:
            points = list(range(whole.start, whole.stop, whole.step))
        else:
            whole = slice(points[0], points[-1] + 1, self.m)
        return Call(
            run=lambda u: self.phi.step(u, whole),
            rows=rows,
            places=[self.place(i) for i in points],
            alone=lambda k, row: self.one(points[k], row),
            held=self.held,
            promises=bool(self.phi.batch_invariant),
            points=points,
            step_at=self.one,
            parameters=self.parameters,
        )

    def probe_steps(self) -> None:
        """All slices at once, at some or all of the ``m`` steps; and every step against the serial chain."""
        many = getattr(self.phi, "steps", None) is not None or not self.quick
        chosen = range(self.m) if many else sample(self.m, 4)
        for k, j in enumerate(chosen):
            self.progress("probes", 0.1 + 0.3 * k / len(chosen))
            call = self.call(j, self.u[j : j + (self.slices - 1) * self.m + 1 : self.m])
            for finding in self._of_call(call):
                self.found.add(finding)
            self.held.restore()
        self._defects()
        if hasattr(self.phi, "relax"):
            self.found.add(*self._relaxation())

    def _of_call(self, call: Call) -> Iterator[Finding]:
        found = list(probes(call))
        yield from found
        if any(f.fault in SPOILED for f in found):
            return
        out = call(copy(call.rows))
        yield from precision(call, out)
        if self.gradients and not any(f.fault is Fault.BATCH_NEIGHBOURS for f in found):
            from .chain_gradients import of_steps

            yield from of_steps(self, call)

    def _defects(self) -> None:
        """``Phi`` of the serial states, all slices at once, must be the next serial states; what differs is probed."""
        worst = 0.0
        for j in range(self.m):
            rows = self.u[j : j + (self.slices - 1) * self.m + 1 : self.m]
            after = self.u[j + 1 : j + 2 + (self.slices - 1) * self.m : self.m]
            call = self.call(j, rows)
            d = per_row(differences(call(copy(rows)), after))
            worst = max(worst, float(d.max()))
            if d.max() > UNITS * epsilon(rows) * sizes(after).max() and not self.found.has(*_EXPLAIN):
                bad = d > tolerance(call, rows, after)
                if bad.any():
                    self.held.restore()
                    explained = list(probes(call)) or [self._unlike(call, int(np.argmax(bad)), float(d.max()))]
                    self.found.add(*explained)
            self.held.restore()
        self.facts["largest difference of one step, batched and serial"] = worst

    def _unlike(self, call: Call, j: int, d: float) -> Finding:
        """A step that gave another result within the serial chain than now, from the same state."""
        fresh = guarded(self.one, call.places[j], call.points[j], copy(call.rows[j : j + 1]))
        off = float(differences(fresh, self.u[call.points[j] + 1][None]).max(initial=0.0))
        if off > 0:
            text = (
                f"Within the serial chain this step gave another result than now that it is called first, from the "
                f"same state: they differ by {digits(off)}."
            )
            return Finding(Fault.HIDDEN_STATE, call.places[j], text, numbers={"error": off})
        text = f"Taken together with the other slices it differs by {digits(d)} from the serial chain."
        return Finding(Fault.BATCH_NEIGHBOURS, call.places[j], text, numbers={"error": d})

    def _relaxation(self) -> Iterator[Finding]:
        """``relax`` of all slices is ``m`` steps of each; if not, of which."""
        m, points = self.m, self.grid.starts(self.m)
        starts, ends = self.u[: (self.slices - 1) * m + 1 : m], self.u[m : self.slices * m + 1 : m]

        def relax(rows: Array) -> Array:
            out = copy(rows)
            self.phi.relax(out, points, m, out)  # type: ignore[attr-defined]
            return out

        found = guarded(relax, self.place(0), starts)
        call = self.call(0, starts)
        small = tolerance(lambda rows: guarded(relax, self.place(0), rows), starts, ends) * np.sqrt(m)
        d = per_row(differences(found, ends))
        if not (d > small).any():
            return
        n = int(np.argmax(d > small))
        text = f"relax of {m} steps differs from {m} steps by {digits(d[n])} (rounding: {digits(small[n])})."
        numbers: dict[str, Any] = {"error": float(d[n])}
        for shift, count in ((1, m), (-1, m), (0, m - 1), (0, m + 1), (m, m), (-m, m)):
            other = self._steps_from(n, shift, count)
            if other is not None and differences(other, found[n : n + 1]).max() <= small[n]:
                what = f"steps that start {shift} points later" if shift else f"{count} steps"
                text += f" It is what {what} give."
                yield Finding(
                    Fault.OFF_BY_ONE, call.places[n], text, numbers=numbers | {"shift": shift, "steps": count}
                )
                return
        yield Finding(Fault.RELAX_DIFFERS, call.places[n], text, numbers=numbers)

    def _steps_from(self, n: int, shift: int, count: int) -> Array | None:
        first = n * self.m + shift
        if first < 0 or first + count > self.grid.steps:
            return None
        v = copy(self.u[n * self.m : n * self.m + 1])
        for i in range(first, first + count):
            v = guarded(self.one, self.place(n * self.m), i, v)
        return v

    def _parameters(self) -> dict[str, Any]:
        from .chain_gradients import parameters_of

        return parameters_of(self)


_EXPLAIN = (
    Fault.HIDDEN_STATE, Fault.UNFIXED_RANDOMNESS, Fault.BATCH_NEIGHBOURS, Fault.OFF_BY_ONE, Fault.NOT_REPEATABLE,
    Fault.NON_FINITE, Fault.RAISED,
)  # fmt: skip
