# SPDX-License-Identifier: BSD-3-Clause
"""MGRIT, multigrid reduction in time: parareal with the serial coarse chain replaced by a coarser MGRIT.

Level ``l`` solves ``u[i+1] = A_l(u[i])``. Its C-points ``c`` are every ``m``-th point, and one cycle does

    relax      c[n+1] = omega A_l^m(c[n]) + (1 - omega) c[n+1]                 nu times; then f[n] = A_l^m(c[n])
    restrict   A_{l+1}(u[n]) = f[n] + (Phi_{l+1}(u[n]) - Phi_{l+1}(c[n]))      the FAS equation, as a pair
    correct    c = the solution of u[n+1] = A_{l+1}(u[n]), u[0] = c[0]         by a cycle of level l+1, or serially

with ``A_0 = Phi_0``. F-points are never stored on the finest level: relaxation needs only what a slice ends in.
Because the coarse equation is kept as a pair and its solution assigned, not added, a C-point is bitwise final as soon
as everything left of it is, on every level. Two levels with ``nu = 0`` are parareal, bit for bit.

R. D. Falgout, S. Friedhoff, T. V. Kolev, S. P. MacLachlan, J. B. Schroder, "Parallel time integration with multigrid",
SIAM J. Sci. Comput. 36 (2014), C635-C661, Algorithm 1; with the full approximation scheme as in J. B. Schroder,
"Parallelizing over artificial neural network training runs with multigrid", arXiv 1708.02276, Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from . import arrays, ops
from .equations import Stored, WithResidual, has_residual, pair
from .hierarchy import Level, Transfer, coarse_rows, obstacle, only_calls
from .norms import NORMS
from .parareal import Callback
from .propagators import Propagator, advance, advance_all, compares, is_fused
from .relaxation import Ends, c_relax, every_point
from .runtime import Runtime
from .solution import Status
from .stopping import Monitor, SpatialNorm, raw_norms, spatial_norms, temporal_norm

Array = Any


@dataclass(frozen=True)
class MGRIT:
    """Options of the method; ``solve(..., method=MGRIT(levels=3, cycle="F"))``.

    Attributes
    ----------
    levels : int or None
        At most so many, the finest included; None: as many as ``min_coarse`` allows.
    min_coarse : int
        A level has at least so many steps.
    nu : int or sequence
        Extra C- and F-relaxations, per level from the finest or the same for all: 0 is F-, 1 FCF-, 2 FCFCF-relaxation.
    omega : float or sequence
        Weight of the C-relaxation, per level or the same for all.
    cycle : {"V", "F", "W"}
        How often a level is visited from the one above: once; by an F- and then a V-cycle; twice.
    nested : bool
        Before the first cycle solve on the coarsest level and go up, with one V-cycle on every level between.
    skip_first_down : bool, optional
        The first cycle only goes up from a solve on the coarsest level, with a V-cycle on every level between
        if ``cycle="F"``; it needs no guess and has no residual (NaN). Default: where no guess is given.
    coarsest_sweeps : int, optional
        Relax the coarsest level so often instead of solving it serially.
    measure : {"descent", "end"}
        The residual of a cycle is that after its relaxation, before its correction, and costs nothing; or that
        after its end, which an F-relaxation finds that the next cycle then starts with.
    stopping : {"residual", "jump"}
        What must be small: ``A(u[i]) - u[i+1]`` at the C-points, or their change in a cycle.
    relative : {"first", "state"}, optional
        Compare with the first residual, or with the norm of the states; default: with nothing.
    scope : {"global", "local"}
        Compare the ``temporal_norm`` over all C-points with the tolerance, or every C-point by itself.
    temporal_norm : {"l2", "l1", "inf"}
    lag : int
        Judge a cycle only when so many more have been launched, so that a device never waits for the host.
    divergence, stagnation : see :class:`pyparareal.stopping.Limits`
    transfer : Transfer or sequence, optional
        Coarsening in space, per level from the finest or the same for all.
    storage : {"c", "all"}
        Keep the C-points of the finest level, or all its points between the cycles: as starting guesses for a
        propagator with ``step_from`` (:class:`pyparareal.equations.GuessedPropagator`), otherwise for nothing.
    final_residual : bool
        Measure the residual of what is returned: one more sweep, in ``stats.final_residual``.
    """

    levels: int | None = 2
    min_coarse: int = 2
    nu: int | Sequence[int] = 1
    omega: float | Sequence[float] = 1.0
    cycle: str = "V"
    nested: bool = False
    skip_first_down: bool | None = None
    coarsest_sweeps: int | None = None
    measure: str = "descent"
    stopping: str = "residual"
    relative: str | None = None
    scope: str = "global"
    temporal_norm: str = "l2"
    lag: int = 0
    divergence: float = 1e10
    stagnation: int | None = 10
    transfer: Transfer | Sequence[Transfer | None] | None = None
    storage: str = "c"
    final_residual: bool = False


@dataclass
class Cycles:
    """The method at work on ``levels``; :meth:`run` iterates.

    Attributes
    ----------
    steps, critical : list of int
        Steps taken per level, and those of them that had to wait for one another.
    mode : str
        How the runtime repeated the cycles.
    """

    levels: list[Level]
    options: MGRIT
    monitor: Monitor
    max_iterations: int
    norm: SpatialNorm
    runtime: Runtime
    callback: Callback | None = None
    cycles: int = 0
    steps: list[int] = field(default_factory=list)
    critical: list[int] = field(default_factory=list)
    mode: str = "eager"
    _taken: list[tuple[int, int, int]] = field(default_factory=list)
    _rooms: dict[tuple[str, int], Array] = field(default_factory=dict)
    _pool: arrays.Pool | None = None

    def run(self, c: Array, *, guessed: bool) -> tuple[Status, Array]:
        """Iterate on the C-points ``c [S + 1, batch, features...]`` of the finest level: how it ended, and with what.

        ``c`` is one of the two arrays that relaxation goes to and fro between, so it is overwritten.
        """
        options, top = self.options, self._finest(c)
        self._rooms["c", 0] = c
        self._pool = arrays.Pool(c, coarse_rows(self.levels, relaxed=bool(options.coarsest_sweeps)))
        self.steps, self.critical = [0] * len(self.levels), [0] * len(self.levels)
        skip = not (guessed or options.nested) if options.skip_first_down is None else options.skip_first_down
        if options.nested:
            self._from_coarser(0, c, visit=True)
            self._tally(self._taken)
        fixed = only_calls(self.levels, self.norm)
        again, ends = self.runtime.repeat(c, partial(obstacle, self.levels, self.norm, c), fixed=fixed), None
        for k in range(self.max_iterations):
            up = k == 0 and skip
            kind, place = (up, ends is None), c is self._rooms["c", 0]
            done: Done = again(kind, place, partial(self._once, top, c, ends, up=up))
            c, ends = done.c, done.ends
            self.cycles, self.mode = k + 1, again.mode
            self._tally(done.taken)
            if status := self._judge(done):
                return status, c
        known = len(self.monitor.history)
        status = self.monitor.judge(lambda: self._round_off(c), all_of_them=True)
        self._tell(known, c)
        return status or (Status.FIXED if self.monitor.rule.tol is None else Status.MAX_ITERATIONS), c

    def residual(self, c: Array) -> float:
        """The temporal norm of ``A_0(u[i]) - u[i+1]`` at the C-points, from one more relaxation."""
        top, self._taken = _equation(self.levels[0]), []
        norms = self.monitor.finish(self._residual(top, self._ends(0, top, c)))
        self._tally(self._taken)
        return temporal_norm(self.options.temporal_norm, norms, self.runtime)

    def _finest(self, c: Array) -> Any:
        """The finest level's equation, with a store for its points if one is asked for."""
        level = self.levels[0]
        if self.options.storage == "c" or has_residual(level.phi):
            return _equation(level)
        store, whole = arrays.empty_like(c, slices=level.grid.steps + 1), level.slices * level.m
        # Every point is guessed to be like the C-point before it.
        store[:whole].reshape(level.slices, level.m, *c.shape[1:])[...] = c[:-1, None]
        store[whole:] = c[-1:]
        return Stored(level.phi, store)

    # One cycle: relax, correct

    def _once(self, top: Propagator, c: Array, ends: Ends | None, *, up: bool) -> Done:
        """One cycle from the C-points ``c``, and what their slices end in if that is known; or only ``up``."""
        options, norms, self._taken = self.options, None, []
        measure = options.measure if options.stopping == "residual" else "jump"
        before = None
        if measure == "jump" and not up:  # going up is no change of a solution
            before = self.runtime.do(ops.extract, c, step=1, out=self._room("before", 0, c, len(c)))
        if up:
            self._from_coarser(0, c, visit=options.cycle == "F")
        else:
            ends = self._relax(0, top, c, ends, compare=measure == "descent")
            norms = self._residual(top, ends) if measure == "descent" else None
            c = self._correct(0, top, ends, options.cycle)
        ends = None
        if measure == "end":
            ends = self._ends(0, top, c, compare=True)
            norms = self._residual(top, ends)
        if before is not None:
            norms = self._norms("norms", c[1:], before[1:])
        states = self._norms("states", c[1:]) if options.relative == "state" else None
        return Done(c, ends, norms, states, self._taken)

    def _cycle(self, at: int, equation: Propagator, c: Array, kind: str) -> Array:
        return self._correct(at, equation, self._relax(at, equation, c), kind)

    def _relax(
        self, at: int, equation: Propagator, c: Array, ends: Ends | None = None, *, compare: bool = False
    ) -> Ends:
        """``nu`` times F- and C-relaxation of ``c``, and what its slices then end in."""
        nu, omega = self.levels[at].nu, self.levels[at].omega
        ends = ends or self._ends(at, equation, c, compare=compare and nu == 0, again=nu > 0 and omega == 1)
        for i in range(1, nu + 1):
            more = i < nu and omega == 1
            ends = self._ends(at, equation, c_relax(self.runtime, ends, omega), compare=compare and i == nu, again=more)
        return ends

    def _correct(self, at: int, equation: Propagator, ends: Ends, kind: str) -> Array:
        """The C-points become the solution of level ``l + 1``; in a coarser space, they get its prolonged change."""
        transfer, below, c = self.levels[at].transfer, self.levels[at + 1], ends.c
        restrict = transfer.restrict if transfer else _identity
        v = restrict(c)
        if isinstance(equation, WithResidual) and has_residual(below.phi):
            r = equation.defect(c[1:], ends.last, self.levels[at].last_steps)
            rhs = restrict(r) + below.phi.residual(v[1:], v[:-1], slice(0, below.grid.steps, 1))
            coarse: Propagator = WithResidual(below.phi, rhs)
        else:
            coarse = pair(below.phi, restrict(ends.f[1:]), self._step_all(at + 1, v))
        if transfer is None:
            self._solve(at + 1, coarse, c, kind)
        else:
            u = arrays.copy(v)
            self._solve(at + 1, coarse, u, kind)
            c[1:] += transfer.up(u - v, c)[1:]
        return c

    def _solve(self, at: int, equation: Propagator, u: Array, kind: str) -> None:
        """``u[i+1] = A_l(u[i])`` at every point of level ``l``, in place: serially on the coarsest, else by cycles."""
        coarsest, sweeps = at + 1 == len(self.levels), self.options.coarsest_sweeps
        if coarsest and sweeps is None:
            self._chain(at, equation, u)
            return
        c = self._c_points(at, u)
        if coarsest:
            for _ in range(sweeps or 0):
                c = c_relax(self.runtime, self._ends(at, equation, c, again=True), 1.0)
        else:
            c = self._cycle(at, equation, c, kind)
            if kind != "V":
                c = self._cycle(at, equation, c, "V" if kind == "F" else kind)
        self._every_point(at, equation, c, u)

    def _from_coarser(self, at: int, c: Array, *, visit: bool) -> None:
        """A guess for ``c`` from the levels below, solved with their own propagators; ``visit``: a V-cycle on each."""
        transfer = self.levels[at].transfer
        v = transfer.restrict(c) if transfer else c
        u = arrays.copy(v) if transfer else c  # v may be a view of c
        self._solve_anew(at + 1, u, visit=visit)
        if transfer and self.options.nested:
            c[1:] = transfer.up(u, c)[1:]
        elif transfer:  # what the coarse space cannot hold stays as it was guessed
            c[1:] += transfer.up(u - v, c)[1:]

    def _solve_anew(self, at: int, u: Array, *, visit: bool) -> None:
        """``u[i+1] = Phi_l(u[i])``, the level's own chain, from the levels below and, to ``visit``, a V-cycle."""
        equation = _equation(self.levels[at])
        if at + 1 == len(self.levels):
            self._solve(at, equation, u, "V")
            return
        c = self._c_points(at, u)
        self._from_coarser(at, c, visit=visit)
        if visit:
            c = self._cycle(at, equation, c, "V")
        self._every_point(at, equation, c, u)

    # What a cycle is made of

    def _ends(self, at: int, equation: Propagator, c: Array, *, compare: bool = False, again: bool = False) -> Ends:
        """An F-relaxation; ``compare`` its ends with the C-points in the same pass, if the propagator can.

        ``again``: the next thing done is another from these ends, or all points between them.
        """
        level, f = self.levels[at], self._other(at, c)
        shifted = f if again else None
        with self.runtime.mark(f"mgrit.relax.{at}"):
            self._count(at, level.slices * level.m, level.m)
            if compare and isinstance(self.norm, str) and compares(equation):
                found = {"target": c[1:], "norms": self._room_of_norms("norms"), "norm": NORMS[self.norm].op}
                self.runtime.map(equation, self.runtime.shift(c), level.starts, level.m, out=f[1:], **found)
                return Ends(c, f, norms=found["norms"])
            if not isinstance(equation, WithResidual):
                self.runtime.map(equation, self.runtime.shift(c), level.starts, level.m, out=f[1:], shifted=shifted)
                return Ends(c, f)
            last = self._room("last", at, c, len(c) - 1)
            self.runtime.map(equation, self.runtime.shift(c), level.starts, level.m - 1, out=last)
            self.runtime.map(equation, last, level.last_steps, out=f[1:], shifted=shifted)
            return Ends(c, f, last)

    def _step_all(self, at: int, v: Array) -> Array:
        """``Phi_l(v[i])`` for every step of level ``l``."""
        with self.runtime.mark(f"mgrit.restrict.{at}"):
            g = self._room("g", at, v, len(v) - 1)
            self.runtime.map(self.levels[at].phi, self.runtime.shift(v), slice(0, len(g), 1), out=g)
            self._count(at, len(g), 1)
            return g

    def _c_points(self, at: int, u: Array) -> Array:
        level = self.levels[at]
        return self.runtime.do(ops.extract, u, step=level.m, out=self._room("c", at, u, level.slices + 1))

    def _room(self, name: str, at: int, like: Array, rows: int) -> Array:
        """The same memory in every cycle: fresh pages cost more than the arithmetic that fills them."""
        if (name, at) not in self._rooms:
            pool = self._pool if at else None  # what is on the finest level may be handed out
            self._rooms[name, at] = pool.take(like, rows) if pool else arrays.empty_like(like, slices=rows)
        return self._rooms[name, at]

    def _other(self, at: int, c: Array) -> Array:
        """The array that the C-points ``c`` of a level are not in; it has the initial value too."""
        if c is not self._rooms["c", at]:
            return self._rooms["c", at]
        if ("f", at) not in self._rooms:
            self._room("f", at, c, len(c))[:1] = c[:1]
        return self._rooms["f", at]

    def _chain(self, at: int, equation: Any, u: Array) -> None:
        def step(i: int, start: Array, end: Array) -> None:
            advance(equation, start, slice(i, i + 1, 1), out=end)

        def whole(u: Array) -> None:
            advance_all(equation, u, len(u) - 1, 1)

        with self.runtime.mark(f"mgrit.coarsest.{at}"):
            self.runtime.chain(step, u, 0, whole=whole if is_fused(equation) else None)
            self._count(at, self.levels[at].grid.steps, self.levels[at].grid.steps)

    def _every_point(self, at: int, equation: Propagator, c: Array, u: Array) -> None:
        with self.runtime.mark(f"mgrit.interpolate.{at}"):
            self._count(at, *every_point(self.runtime, equation, self.levels[at].grid, self.levels[at].m, c, u))

    # Measuring

    def _residual(self, equation: Propagator, ends: Ends) -> Array:
        """Per C-point what makes the norm of ``A(u[i]) - u[i+1]``, or of what the propagator calls its residual."""
        if ends.norms is not None:
            return ends.norms
        with self.runtime.mark("mgrit.residual.0"):
            if isinstance(equation, WithResidual):
                return self._norms("norms", equation.defect(ends.c[1:], ends.last, self.levels[0].last_steps))
            return self._norms("norms", ends.f[1:], ends.c[1:])

    def _norms(self, name: str, u: Array, v: Array | None = None) -> Array:
        return self.runtime.do(raw_norms, self.norm, u, v, out=self._room_of_norms(name))

    def _room_of_norms(self, name: str) -> Array:
        if (name, 0) not in self._rooms:
            self._rooms[name, 0] = arrays.empty(self._rooms["c", 0], (self.levels[0].slices,), "float64")
        return self._rooms[name, 0]

    def _judge(self, done: Done) -> Status | None:
        known = len(self.monitor.history)
        self.monitor.record(done.norms, done.states)
        status = self.monitor.judge(lambda: self._round_off(done.c))
        stop = self._tell(known, done.c)
        return Status.STOPPED if stop and status is None else status

    def _tell(self, known: int, c: Array) -> bool:
        """Call back for every judged cycle after the first ``known``; whether one of them asks to stop."""
        if self.callback is None:
            return False
        stop = False
        for k, residual in enumerate(self.monitor.history[known:], start=known + 1):
            stop = bool(self.callback(k, c, residual)) or stop
        return stop

    def _round_off(self, c: Array) -> float:
        """The residual that rounding explains: 10 units in the last place per step of a slice."""
        unit = arrays.epsilon(c)
        states = temporal_norm(self.options.temporal_norm, spatial_norms(self.norm, c[1:]), self.runtime)
        return 10 * unit * math.sqrt(self.levels[0].m) * states

    def _count(self, at: int, steps: int, critical: int) -> None:
        self._taken.append((at, steps, critical))

    def _tally(self, taken: list[tuple[int, int, int]]) -> None:
        for at, steps, critical in taken:
            self.steps[at] += steps
            self.critical[at] += critical


class Done(NamedTuple):
    """What a cycle leaves: C-points, the ``ends`` that the next can start with, norms per C-point, steps ``taken``."""

    c: Array
    ends: Ends | None
    norms: Array | None
    states: Array | None
    taken: list[tuple[int, int, int]]


def _equation(level: Level) -> Any:
    """The level's own chain."""
    return WithResidual(level.phi) if has_residual(level.phi) else level.phi


def _identity(u: Array) -> Array:
    return u
