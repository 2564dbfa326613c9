# SPDX-License-Identifier: BSD-3-Clause
"""Right-hand sides the kernels know: plain functions ``rhs(t, u)`` that also say what they are called there, or bring
their own code."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import arrays, ops
from .cuda_slopes import CudaSlope
from .reference import RIGHT_HAND_SIDES
from .slopes import SlopeFunction, integer, numbers_of
from .tableaux import EULER

Array = Any
Form = str | SlopeFunction | CudaSlope


class CompiledRhs:
    """``rhs(t, u)``, known to :func:`pyparareal.ops.relax_rk` as ``name``, the same bits either way.

    But for square roots of torch in float32, which are not always correctly rounded (Arenstorf).

    A :class:`.RungeKutta` made of it takes all steps of all slices in one kernel.

    Parameters
    ----------
    name : str
        One of :data:`pyparareal.reference.RIGHT_HAND_SIDES`.
    parameters : sequence of float
    rhs : callable
        The same equations for any array library, in the order of operations of the reference.
    """

    def __init__(self, name: str, parameters: Sequence[float], rhs: Callable[[Array, Array], Array]) -> None:
        if name not in RIGHT_HAND_SIDES:
            raise ValueError(f"name: got {name!r}, expected one of {', '.join(RIGHT_HAND_SIDES)}")
        components, count, _ = RIGHT_HAND_SIDES[name]
        self.name, self.parameters, self.components = name, numbers_of("parameters", parameters), components
        if len(self.parameters) != count:
            raise ValueError(f"parameters: got {len(self.parameters)} numbers, expected {count} for {name}")
        self.timed, self.has_kernels, self.has_cuda = False, True, True
        self._rhs = rhs

    def __call__(self, t: Array, u: Array) -> Array:
        return self._rhs(t, u)

    def form_for(self, u: Array, time: Callable[[], float]) -> Form:
        """The name in the kernels."""
        return self.name


def compiled(name: str, *parameters: float) -> Callable[[Callable[[Array, Array], Array]], CompiledRhs]:
    """Decorate ``rhs(t, u)`` as :class:`CompiledRhs`."""
    return lambda rhs: CompiledRhs(name, parameters, rhs)


class Rhs:
    """``rhs(t, u)`` of one's own, with what kernels run instead: the same equations as compiled code.

    A :class:`.RungeKutta` made of it takes all steps of all slices in one kernel where there is a form for the device
    and the dtype of the states; elsewhere, and for gradients, it calls ``rhs``, step by step. With the same operations
    in the same order the bits are the same either way.

    Parameters
    ----------
    rhs : callable
        ``rhs(t, u)`` with ``u [..., components]`` of any array library, and ``t`` broadcastable to it.
    components : int
        Of the last axis of the state.
    parameters : sequence of float
        What the forms get as ``p``, as many as each reads; ``rhs`` has them already.
    cpu : SlopeFunction, or what one is made of, or a sequence with one for each dtype, optional
        See :class:`pyparareal.slopes.SlopeFunction`; :func:`pyparareal.slopes.numba_slope` makes one of Python code.
    cuda : str or CudaSlope, optional
        Statements in CUDA C++: see :class:`pyparareal.cuda_slopes.CudaSlope`.

    Notes
    -----
    Before a form is used it is compared with ``rhs`` at the first finite state that comes by, of those that are first
    in the batch of the first slice. Slopes of all components must agree to the root of the machine epsilon times the
    largest magnitude in the state and its slope, or a ``ValueError`` tells which form and component does not, and both
    values. One state is no proof: a term that is zero there is not seen.
    """

    def __init__(
        self,
        rhs: Callable[[Array, Array], Array],
        components: int,
        *,
        parameters: Sequence[float] = (),
        cpu: Any = None,
        cuda: str | CudaSlope | None = None,
    ) -> None:
        if not callable(rhs):
            raise TypeError(f"rhs: got {type(rhs).__name__}, expected a callable rhs(t, u)")
        self.components, self.name = integer("components", components, 1), getattr(rhs, "__name__", "rhs")
        self.parameters, self.timed = numbers_of("parameters", parameters), True
        self._rhs, self._compared = rhs, set[str]()
        self._cpu = self._functions(cpu)
        self._cuda = CudaSlope(cuda, self.components) if isinstance(cuda, str) else cuda
        if not isinstance(self._cuda, CudaSlope | None):
            raise TypeError(f"cuda: got {type(cuda).__name__}, expected CUDA C++ statements or a CudaSlope")
        if self._cuda is not None and self._cuda.components != self.components:
            raise ValueError(f"cuda: got {self._cuda.components} components, expected {self.components}")
        for form in (*self._cpu.values(), *(() if self._cuda is None else (self._cuda,))):
            form.check_parameters(len(self.parameters))
        self.has_cuda = self._cuda is not None
        self.has_kernels = bool(self._cpu) or self.has_cuda

    def _functions(self, cpu: Any) -> dict[str, SlopeFunction]:
        found: dict[str, SlopeFunction] = {}
        several = cpu if isinstance(cpu, list | tuple) else () if cpu is None else (cpu,)
        for one in several:
            function = one if isinstance(one, SlopeFunction) else SlopeFunction(one, self.components)
            if function.components != self.components:
                raise ValueError(f"cpu: got {function.components} components, expected {self.components}")
            if function.dtype in found:
                raise ValueError(f"cpu: got two functions of {function.dtype}, expected one of each dtype")
            found[function.dtype] = function
        return found

    def __call__(self, t: Array, u: Array) -> Array:
        return self._rhs(t, u)

    def form_for(self, u: Array, time: Callable[[], float]) -> Form | None:
        """What the kernels run for states like ``u``, compared with ``rhs`` the first time, at the time given.

        None where there is no such form.
        """
        dtype = str(u.dtype).rpartition(".")[2]
        place = "cpu" if arrays.on_cpu(u) else "cuda"
        form = self._cpu.get(dtype) if place == "cpu" else self._cuda
        if form is None or f"{place} {dtype}" in self._compared or math.prod(u.shape) == 0:
            return form
        if self._compared_at(place, form, u, time()):
            self._compared.add(f"{place} {dtype}")
        return form

    def _compared_at(self, place: str, form: Form, u: Array, t: float) -> bool:
        """Whether there was a finite state to compare them at."""
        state = arrays.copy(u[(slice(0, 1),) * (u.ndim - 1)])
        if not np.isfinite(arrays.to_numpy(state)).all():
            return False
        when = arrays.float64_like(np.array([[t]]), u)
        zero = state - state
        # An Euler step of length 1 in the form of a pair: 0 + ((u + 1 * du) - u).
        pair = {"f": zero[:, None], "g": state[:, None]}
        got = arrays.to_numpy(ops.relax_rk(state, form, self.parameters, EULER, 1.0, 1, times=when, **pair))
        begin = arrays.copy(zero[..., :1])
        begin[...] = t
        expected = self._rhs(begin, state)
        shape = tuple(getattr(expected, "shape", ()))
        if shape != tuple(state.shape):
            raise ValueError(f"rhs: returned shape {shape}, expected {tuple(state.shape)}")
        expected, size = arrays.to_numpy(expected).reshape(-1), arrays.to_numpy(state).reshape(-1)
        got = got.reshape(-1)
        sizes = np.abs(np.concatenate([expected, size]))
        tolerance = math.sqrt(arrays.epsilon(u)) * sizes[np.isfinite(sizes)].max(initial=0.0)
        with np.errstate(invalid="ignore"):
            same = (np.abs(got - expected) <= tolerance) | (got == expected) | (np.isnan(got) & np.isnan(expected))
        if not same.all():
            d = int(np.argmin(same))
            raise ValueError(
                f"{place}: at t = {t:g} component {d} of the slope is {got[d]!s}, but rhs says {expected[d]!s}; "
                f"expected forms of one right-hand side, the same to {tolerance:.1e}"
            )
        return True
