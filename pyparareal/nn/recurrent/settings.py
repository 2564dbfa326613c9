# SPDX-License-Identifier: BSD-3-Clause
"""How a recurrence is solved: one immutable value, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ... import checks
from ...adjoint import Adjoint
from ...mgrit import MGRIT
from ...newton import Newton
from ...newton_run import check_options

METHODS = ("auto", "serial", "mgrit", "newton", "hybrid")
ON_FAILURE = ("serial", "raise", "return")
BACKWARD = ("mgrit", "newton", "serial")
JACOBIANS = ("auto", "full", "block", "diagonal", "none")


@dataclass(frozen=True)
class Settings:
    """How ``u[i+1] = cell(u[i], x[i])`` is solved.

    Attributes
    ----------
    method : {"auto", "serial", "mgrit", "newton", "hybrid"} or MGRIT
        "serial": one step after the other. "mgrit": chunks relaxed side by side, a coarser recurrence between them
        (:mod:`pyparareal.mgrit`; with an :class:`.MGRIT` of your own, these options as they are). "newton": Newton's
        method on every step. "hybrid": chunks relaxed side by side, Newton's method between them. "auto": what was
        measured to be fastest for this cell and shape.
    chunk : int, optional
        Steps per chunk; default near the square root of the length, "newton": 1.
    tol : float, None or "auto"
        Converged when no chunk ends further than ``tol`` times the largest state from the start of the next (largest
        entries; an ``MGRIT`` of your own compares with what it says; with Jacobians, it is times the largest entry of
        the initial state, or 1 if that is more). "auto": :func:`tolerance_of` the dtype. None:
        ``max_iterations`` iterations, compared with nothing (``Status.FIXED``).
    max_iterations : int, optional
        Default: as many as make every chunk exact; without a Jacobian a quarter of that, since then one chunk after
        the other is as fast.
    warm_up : int, optional
        Without a Jacobian: steps before a chunk that are taken, from any state, to guess where it starts. Default: a
        quarter of a chunk.
    levels, nu : int
        Of "mgrit": levels, and extra C- and F-relaxations of a cycle.
    jacobian : {"auto", "full", "block", "diagonal", "none"}
        Of "newton" and "hybrid": what of a chunk's Jacobian carries corrections on (:class:`pyparareal.Newton`).
        "none": nothing, as for cells that forget what lies a chunk back. "auto": "full" for states of at most 8
        numbers, else "none" for chunks and "diagonal" for single steps.
    damping : float from 0 to 1, or "adaptive"
        Of "newton" and "hybrid": see :class:`pyparareal.Newton`.
    trust : float, optional
        Of "newton" and "hybrid" with Jacobians: no update is larger than ``trust`` times the largest state
        (:class:`pyparareal.Newton`). 1 costs no iteration where none is needed and stops updates that overflow; 0.25
        may save many where differences grow for a while, and costs one where they do not; None: no bound, for states
        that grow all along the sequence.
    on_failure : {"serial", "raise", "return"}
        When the method does not converge: solve serially with a RuntimeWarning that names the chunk; raise
        :class:`pyparareal.ConvergenceError`; or use the states as they are, with a RuntimeWarning.
    backward : Adjoint, MGRIT or {"mgrit", "newton", "serial"}, optional
        How the backward pass solves the reversed, linear recurrence (:class:`pyparareal.Adjoint`); default: with the
        method of the forward pass, and in any case with its ``on_failure``. Chunks without a Jacobian between them take
        its ``tol``, ``max_iterations`` and ``on_failure``, and the method "serial", one chunk after the other.
    memory : int, optional
        Bytes that the states and what is computed of them may take at once; longer sequences are solved in windows, one
        after the other. Default: half of what is free on the device.
    exponent : bool
        Estimate the exponent of the report; it takes a few dozen steps.
    """

    method: str | MGRIT = "auto"
    chunk: int | None = None
    tol: float | str | None = "auto"
    max_iterations: int | None = None
    warm_up: int | None = None
    levels: int = 2
    nu: int = 0
    jacobian: str = "auto"
    damping: float | str = 0.0
    trust: float | None = 1.0
    on_failure: str = "serial"
    backward: Adjoint | MGRIT | str | None = None
    memory: int | None = None
    exponent: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.method, MGRIT):
            checks.choose("method", self.method, METHODS)
        checks.choose("jacobian", self.jacobian, JACOBIANS)
        check_options(Newton("none", self.damping, self.trust))
        checks.choose("on_failure", self.on_failure, ON_FAILURE)
        for name, least in (
            ("chunk", 1),
            ("max_iterations", 1),
            ("warm_up", 0),
            ("levels", 2),
            ("nu", 0),
            ("memory", 1),
        ):
            _integer(name, getattr(self, name), least, optional=name not in ("levels", "nu"))
        if not isinstance(self.exponent, bool):
            raise TypeError(f"exponent: got {self.exponent!r}, expected True or False")
        if self.tol is None and self.max_iterations is None:
            raise ValueError("max_iterations: got None with tol=None, expected how many iterations to run")
        if isinstance(self.tol, str):
            if self.tol != "auto":
                raise ValueError(f'tol: got {self.tol!r}, expected a number, None or "auto"')
        elif self.tol is not None:
            checks.tolerance(self.tol)
        if isinstance(self.backward, str):
            checks.choose("backward", self.backward, BACKWARD)
        elif not isinstance(self.backward, Adjoint | MGRIT | Newton | None):
            expected = f"an Adjoint, an MGRIT or one of {', '.join(BACKWARD)}"
            raise TypeError(f"backward: got {type(self.backward).__name__}, expected {expected}")
        if self.method in ("mgrit", "hybrid") and self.chunk == 1:
            raise ValueError(f"chunk: got 1 with method={self.method!r}, expected at least 2")

    def backward_options(self, dtype: torch.dtype, limit: int) -> tuple[float | None, int, str]:
        """Of a backward pass in chunks without a Jacobian: tolerance, passes at most (0: serial), ``on_failure``."""
        given = self.backward if isinstance(self.backward, Adjoint) else Adjoint(self.backward)
        if given.method not in (None, "serial"):
            raise ValueError(
                f"backward: got the method {given.method!r} for chunks without a Jacobian between them, "
                'expected "serial" or none'
            )
        tol = self.tolerance(dtype) if given.tol is None else given.tol
        most = 0 if given.method == "serial" else given.max_iterations or limit
        return tol, most, given.on_failure or self.on_failure

    def tolerance(self, dtype: torch.dtype) -> float | None:
        return tolerance_of(dtype) if isinstance(self.tol, str) else self.tol


def settings_of(settings: Any, options: dict[str, Any]) -> Settings:
    """``settings``, or those made of ``options``: one or the other."""
    if settings is None:
        return Settings(**options)
    if options:
        raise ValueError(f"settings: got them and {', '.join(options)} besides, expected one or the other")
    if not isinstance(settings, Settings):
        raise TypeError(f"settings: got {type(settings).__name__}, expected Settings; its fields are keywords too")
    return settings


def tolerance_of(dtype: torch.dtype) -> float:
    """``eps^(3/4)`` of the dtype: 2e-12 for float64, 6e-6 for float32.

    Between what rounding leaves of a residual, some ``eps``, and what training notices.
    """
    return math.pow(torch.finfo(dtype).eps, 0.75)


def _integer(name: str, value: Any, least: int, *, optional: bool) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r}, expected an integer{' or None' if optional else ''}")
    if value < least:
        raise ValueError(f"{name}: got {value}, expected at least {least}")
