# SPDX-License-Identifier: BSD-3-Clause
"""One step of the serial chain, batched over slices: the protocol, and adapters for what users have.

A propagator lives on one grid. ``step(u, points)`` takes the states ``u[j]`` at the grid points
``points[j]`` and returns the states at ``points[j] + 1``: every slice advances by one step of that
grid, all of them in one call. The stride of ``points`` is the distance between neighbouring slices,
also when only one slice is passed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from . import _trace, arrays, ops
from .compiled import CompiledRhs, Form, Rhs
from .reference import UniformTimes
from .tableaux import RK4, Tableau
from .time_grid import TimeGrid, count_points, part_of_points, shift_points
from .traced_ops import launch

Array = Any


@runtime_checkable
class Propagator(Protocol):
    """``u[i+1] = Phi_i(u[i])`` for a set of points at once.

    ``batch_invariant`` promises that the bits of one slice do not depend on how many slices share the
    call, nor on its position among them. Where both propagators keep the promise, the exactness
    theorems hold bit for bit; where not, to rounding, or with ``deterministic=True``.

    Two methods are optional. ``relax(u, points, m, out)`` takes ``m`` steps in one call and writes the
    end states to ``out`` (which may be ``u``); its bits are those of ``m`` calls of ``step``.
    ``rediscretise(m)`` returns the same scheme on ``grid.coarsen(m)``.

    A propagator with ``fused = True`` has more to its ``relax`` (:class:`FusedPropagator`). One with ``capturable =
    True`` starts the same kernels on the same memory at every call, and no more (:class:`pyparareal.GraphRuntime`).
    """

    batch_invariant: bool

    def step(self, u: Array, points: slice) -> Array:
        """``[slices, batch, features...]`` at ``points`` to the same shape at ``points + 1``."""
        ...


class FusedPropagator(Protocol):
    """A propagator whose relaxation is one kernel, whatever is added to the steps or kept of them."""

    batch_invariant: bool
    fused: bool

    def step(self, u: Array, points: slice) -> Array: ...

    def relax(
        self,
        u: Array,
        points: slice,
        m: int,
        out: Array | None,
        *,
        f: Array | None = None,
        g: Array | None = None,
        every: Array | None = None,
        **compared: Any,
    ) -> None:
        """``m`` steps from ``u [slices, batch, features...]``, the last state of each slice to ``out`` if there is one.

        ``f`` and ``g`` are ``[slices, m, batch, features...]``: ``f[n, j]`` is added to step ``j`` of slice ``n``, or
        the pair makes it ``f[n, j] + (Phi - g[n, j])``. ``every``, of the same shape, gets the state after each step.

        If it says ``compares = True``, it takes ``target`` (like ``u``), ``norms`` (float64 ``[slices]``) and ``norm``
        too: ``norms`` gets ``ops.slice_norms(end states, target, norm=norm)``.
        """
        ...


def is_fused(phi: Any) -> bool:
    """Whether ``phi`` is a :class:`FusedPropagator`."""
    return getattr(phi, "fused", False) is True


def compares(phi: Any) -> bool:
    """Whether ``phi`` is a :class:`FusedPropagator` that finds the norms of a difference to its end states."""
    return is_fused(phi) and getattr(phi, "compares", False) is True


def advance(phi: Propagator, u: Array, points: slice, m: int = 1, *, out: Array) -> None:
    """``out[j] = Phi^m(u[j])`` from ``points[j]``; ``u`` is never handed out for writing.

    The step gets a copy: a step that works in place must not change the state it was given, and
    one that returns the same buffer at every call must not change an earlier result.
    """
    if _trace.listener is None:
        _advance(phi, u, points, m, out)
        return
    with launch(phi, u, m):
        _advance(phi, u, points, m, out)


def _advance(phi: Propagator, u: Array, points: slice, m: int, out: Array) -> None:
    if is_fused(phi):
        phi.relax(u, points, m, out)  # type: ignore[attr-defined]
        return
    out[...] = u
    if hasattr(phi, "relax"):
        phi.relax(out, points, m, out)
        return
    v = out
    for j in range(m):
        v = require_like(phi.step(v, shift_points(points, j)), out, phi)
    out[...] = v


def advance_all(phi: Propagator, u: Array, steps: int, stride: int) -> None:
    """``u[i+1] = Phi_i(u[i])`` for all rows of ``u [steps + 1, ...]`` from the first, one after the other."""
    if is_fused(phi) and steps:
        first = slice(0, 1, stride)
        every = arrays.windows(u, first, steps, shift=1)
        if _trace.listener is None:
            phi.relax(u[:1], first, steps, None, every=every)  # type: ignore[attr-defined]
            return
        with launch(phi, u[:1], steps):
            phi.relax(u[:1], first, steps, None, every=every)  # type: ignore[attr-defined]
        return
    for i in range(steps):
        advance(phi, u[i : i + 1], slice(i, i + 1, stride), out=u[i + 1 : i + 2])


def relax_by_steps(
    phi: Propagator,
    u: Array,
    points: slice,
    m: int,
    out: Array | None,
    *,
    f: Array | None = None,
    g: Array | None = None,
    every: Array | None = None,
    target: Array | None = None,
    norms: Array | None = None,
    norm: str = "sum_squares",
) -> None:
    """What :meth:`FusedPropagator.relax` does, step by step."""
    v = u
    for j in range(m):
        v = require_like(phi.step(v, shift_points(points, j)), u, phi)
        if f is not None:
            v = v + f[:, j] if g is None else ops.parareal_update(f[:, j], v, g[:, j])
        if every is not None:
            every[:, j] = v
    if out is not None:
        out[...] = v
    if target is not None:
        ops.slice_norms(v, target, norm=norm, out=norms)


def require_like(u_next: Array, u: Array, phi: Propagator) -> Array:
    """``u_next``, or the error that it does not have the shape, dtype and device of ``u``."""
    for what in ("shape", "dtype", "device"):
        got, expected = getattr(u_next, what, None), getattr(u, what, None)
        if got != expected:
            raise ValueError(
                f"{type(phi).__name__}.step: returned {what} {got}, expected {expected}: "
                "a step keeps shape, dtype and device"
            )
    return u_next


class Map:
    """A plain callable ``phi(u) -> u_next``, or ``phi(u, points)`` with ``pass_points=True``, as propagator.

    Parameters
    ----------
    phi : callable
        Batched over the leading slice axis.
    batch_invariant : bool
        Your promise about ``phi`` (see :class:`Propagator`). Element-wise arithmetic keeps it, matrix
        products and convolutions usually do not.
    """

    def __init__(self, phi: Callable[..., Array], *, pass_points: bool = False, batch_invariant: bool = False) -> None:
        if not callable(phi):
            raise TypeError(f"phi: got {type(phi).__name__}, expected a callable")
        self._phi, self._pass_points, self.batch_invariant = phi, pass_points, batch_invariant

    @property
    def works(self) -> Any:
        """Whose name a timeline tells."""
        return self._phi

    def step(self, u: Array, points: slice) -> Array:
        return self._phi(u, points) if self._pass_points else self._phi(u)


class RungeKutta:
    """Explicit Runge-Kutta steps of ``u' = rhs(t, u)``; every step of the grid is cut into ``substeps``.

    Parameters
    ----------
    rhs : callable
        ``rhs(t, u)`` with ``u [slices, batch, features...]`` and ``t`` broadcastable to it; a :class:`.CompiledRhs` or
        :class:`.Rhs` is stepped by a kernel.
    grid : TimeGrid
        The grid whose steps are taken.
    tableau : Tableau
        From :mod:`pyparareal.tableaux`; classic RK4 by default.
    batch_invariant : bool
        Your promise about ``rhs``; the scheme itself is element-wise.
    """

    def __init__(
        self,
        rhs: Callable[[Array, Array], Array],
        grid: TimeGrid,
        tableau: Tableau = RK4,
        *,
        substeps: int = 1,
        batch_invariant: bool = False,
    ) -> None:
        if not callable(rhs):
            raise TypeError(f"rhs: got {type(rhs).__name__}, expected a callable rhs(t, u)")
        if not isinstance(grid, TimeGrid):
            raise TypeError(f"grid: got {type(grid).__name__}, expected a TimeGrid")
        if not isinstance(substeps, int) or isinstance(substeps, bool) or substeps < 1:
            raise ValueError(f"substeps: got {substeps!r}, expected an integer of at least 1")
        self.rhs, self.grid, self.tableau, self.substeps = rhs, grid, tableau, substeps
        ours = all(is_of(RungeKutta, self, name) for name in ("step", "_step", "_substep", "_relax"))
        self.fused = ours and isinstance(rhs, CompiledRhs | Rhs) and rhs.has_kernels
        # Of an Rhs not every dtype and device may have a kernel.
        self.batch_invariant = batch_invariant or (self.fused and isinstance(rhs, CompiledRhs))

    def step(self, u: Array, points: slice) -> Array:
        if form := self._form_for(u, points):
            return self._relax_compiled(form, u, points, 1, None)
        return self._step(column(self.grid.times(points), u), u, points)

    def relax(self, u: Array, points: slice, m: int, out: Array | None, **more: Any) -> None:
        """``m`` steps: one kernel if ``rhs`` has one for ``u`` (:class:`FusedPropagator`), else one by one."""
        if form := self._form_for(u, points):
            self._relax_compiled(form, u, points, m, out, **more)
        elif more or out is None or type(self).step is not RungeKutta.step:
            relax_by_steps(self, u, points, m, out, **more)
        else:
            self._relax(u, points, m, out)

    def _form_for(self, u: Array, points: slice) -> Form | None:
        """What the kernel runs on states like ``u``; None: it is not to be used."""
        rhs = self.rhs
        if not self.fused or not isinstance(rhs, CompiledRhs | Rhs) or not arrays.kernel_takes(u):
            return None
        if tuple(u.shape[-1:]) != (rhs.components,):
            raise ValueError(f"u: got {tuple(u.shape[-1:])} components, expected {rhs.components} for {rhs.name}")
        return rhs.form_for(u, lambda: float(self.grid.times(part_of_points(points, 0, 1))[0]))

    def _relax_compiled(self, form: Form, u: Array, points: slice, m: int, out: Array | None, **more: Any) -> Array:
        rhs: Any = self.rhs
        h = self.grid.dt()
        dt = h if isinstance(h, float) else arrays.float64_like(arrays.windows(h, points, m), u)
        if rhs.timed:
            more["times"] = self._times(u, points, m)
        return ops.relax_rk(u, form, rhs.parameters, self.tableau, dt, m, substeps=self.substeps, out=out, **more)

    def _times(self, u: Array, points: slice, m: int) -> Any:
        """Where the steps start, for a kernel."""
        grid = self.grid
        if grid.uniform:
            return UniformTimes(grid.t0, grid.t1 - grid.t0, grid.steps, points.start, points.step)
        times = arrays.windows(grid.times(), points, m)
        return times if isinstance(u, np.ndarray) else arrays.float64_like(times.copy(), u)

    def _relax(self, u: Array, points: slice, m: int, out: Array) -> None:
        # All times of the relaxation at once: row j of the strided view below is times(points + j).
        last = points.start + (count_points(points) - 1) * points.step + m
        t = column(self.grid.times(slice(points.start, last)), u)
        v = u
        for j in range(m):
            v = self._step(t[j : last - points.start - m + 1 + j : points.step], v, shift_points(points, j))
            if j == 0:
                require_like(v, u, self)
        out[...] = v

    def rediscretise(self, m: int) -> RungeKutta:
        """The same scheme with steps ``m`` times as long."""
        return RungeKutta(
            self.rhs, self.grid.coarsen(m), self.tableau, substeps=self.substeps, batch_invariant=self.batch_invariant
        )

    @property
    def compares(self) -> bool:
        """See :class:`FusedPropagator`; a ``relax`` of a subclass need not take what it takes."""
        return is_of(RungeKutta, self, "relax")

    @property
    def capturable(self) -> bool:
        """See :class:`.GraphRuntime`; step sizes that differ are copied from the host at every call.

        An :class:`.Rhs` is compiled, and compared at its first state, in the cycle before the one that is recorded.
        """
        return self.fused and self.grid.uniform and getattr(self.rhs, "has_cuda", False)

    def _step(self, t: Array, u: Array, points: slice) -> Array:
        h: Any = self.grid.dt(points)
        h = h / self.substeps if isinstance(h, float) else column(h / self.substeps, u)
        for s in range(self.substeps):
            u = self._substep(t + s * h if s else t, u, h)
        return u

    def _substep(self, t: Array, u: Array, h: Any) -> Array:
        """``k_i = rhs(t + c_i h, u + h sum_j a_ij k_j)`` and ``u + h sum_i b_i k_i``."""
        stages: list[Array] = []
        for c, row in self.tableau.stages:
            v = u
            for a, j in row:
                v = v + (a * h) * stages[j]
            stages.append(self.rhs(t + c * h if c else t, v))
        for b, j in self.tableau.weights:
            u = u + (b * h) * stages[j]
        return u


def is_of(kind: type, one: Any, name: str) -> bool:
    """Whether ``one`` has the method ``name`` from ``kind`` itself, and not from a subclass that does it otherwise."""
    return getattr(type(one), name) is getattr(kind, name)


class Blocks:
    """torch modules as steps: one module for all steps, or a list with the module of step ``i`` at index ``i``.

    A shared module sees ``[slices * batch, features...]`` in one call, or ``[slices, features]`` for states without
    a batch axis. ``batch_invariant`` is false: matrix products and convolutions round differently for different
    batch sizes.
    """

    batch_invariant = False

    def __init__(self, modules: Any) -> None:
        # A ModuleList is callable, but only raises when called.
        several = isinstance(modules, Sequence) or type(modules).__name__ == "ModuleList"
        self._shared = None if several else modules
        self._list = list(modules) if several else []
        self.steps = len(self._list) if several else None
        if several and not self._list:
            raise ValueError("modules: got an empty list, expected one module per step")

    @property
    def works(self) -> Any:
        """Whose name a timeline tells, if it is one module."""
        return self._shared

    def step(self, u: Array, points: slice) -> Array:
        if self._shared is not None and u.ndim < 3:
            return self._shared(u)
        if self._shared is not None:
            flat = self._shared(u.reshape(u.shape[0] * u.shape[1], *u.shape[2:]))
            return flat.reshape(u.shape[:2] + flat.shape[1:])
        steps = range(points.start, points.stop, points.step)
        return arrays.namespace(u).stack([self._list[i](u[n]) for n, i in enumerate(steps)])


class Blocked:
    """``phi`` in fixed, padded blocks of slices: the bits of a slice no longer depend on its company.

    A matrix product may round a row differently when the number of rows changes. Here every call has
    the same number of slices, and slice ``n`` always sits at the same place of the same block; the
    places of slices that are not there are filled with copies of one that is.

    Parameters
    ----------
    phi : Propagator
    steps : int
        Steps of the grid that ``phi`` lives on.
    block : int
        Slices per call; a single slice costs as much as a block.
    """

    batch_invariant = True

    def __init__(self, phi: Propagator, steps: int, *, block: int = 8) -> None:
        if block < 1:
            raise ValueError(f"block: got {block}, expected at least 1")
        self.phi, self.steps, self.block = phi, steps, block

    def step(self, u: Array, points: slice) -> Array:
        offset, m = points.start % points.step, points.step
        all_points = slice(offset, self.steps, m)  # slice n of the grid starts its step at all_points[n]
        slices, first = count_points(all_points), points.start // m
        last, size = first + count_points(points), min(self.block, slices)
        u_next = arrays.empty_like(u)
        for home in range(first - first % size, last, size):
            begin, end = max(first, home), min(last, home + size)
            left = min(home, slices - size)  # the last block is moved left, onto the grid
            members = [min(max(n, begin), end - 1) - first for n in range(left, left + size)]
            padded = self.phi.step(u[members], part_of_points(all_points, left, left + size))
            require_like(padded, u[members], self.phi)
            u_next[begin - first : end - first] = padded[begin - left : end - left]
        return u_next


def padding(phi: Any) -> int:
    """How many slices a call of ``phi`` with a single one costs besides it."""
    while not isinstance(phi, Blocked):
        if (phi := getattr(phi, "phi", None)) is None:
            return 0
    return phi.block - 1


def column(values: Any, u: Array) -> Array:
    """Per-slice numbers ``[slices]``, like ``u`` and shaped to broadcast against it."""
    return like(values.reshape((len(values),) + (1,) * (u.ndim - 1)), u)


def like(values: Any, u: Array) -> Array:
    """A NumPy array in the library, dtype and device of ``u``."""
    if isinstance(u, np.ndarray):
        return values.astype(u.dtype, copy=False)
    if arrays.is_torch(u):
        values = values if values.flags.writeable else values.copy()  # torch warns of memory it may not write to
        return arrays.namespace(u).as_tensor(values, dtype=u.dtype, device=u.device)
    return arrays.namespace(u).asarray(values, dtype=u.dtype)
