# SPDX-License-Identifier: BSD-3-Clause
"""Right-hand sides the kernels know: plain functions ``rhs(t, u)`` that also say what they are called there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .reference import RIGHT_HAND_SIDES

Array = Any


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
        if len(parameters) != count:
            raise ValueError(f"parameters: got {len(parameters)} numbers, expected {count} for {name}")
        self.name, self.parameters, self.components = name, tuple(map(float, parameters)), components
        self._rhs = rhs

    def __call__(self, t: Array, u: Array) -> Array:
        return self._rhs(t, u)


def compiled(name: str, *parameters: float) -> Callable[[Callable[[Array, Array], Array]], CompiledRhs]:
    """Decorate ``rhs(t, u)`` as :class:`CompiledRhs`."""
    return lambda rhs: CompiledRhs(name, parameters, rhs)
