# SPDX-License-Identifier: BSD-3-Clause
"""The entry: what was given, and who verifies it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ..time_grid import TimeGrid
from .chain import Chain
from .result import Verification
from .solves import SolveVerifier

Array = Any

_SOLVE = {field.name for field in dataclasses.fields(Chain)} - {"fine", "u0"}
_IGNORED = {"initial", "freeze", "keep_going", "save", "on_failure", "callback"}  # of solve: of no matter here


def verify(
    model_or_problem: Any,
    data: Any = None,
    *,
    serial: Any = None,
    gradients: bool | None = None,
    quick: bool = True,
    progress: Callable[[str, float], None] | None = None,
    **options: Any,
) -> Verification:
    """Is my chain solved rightly in parallel, and if not, what is wrong and where?

    Nothing of the model is changed when this returns: parameters, gradients, buffers, training mode, attributes, and
    random states are as they were.

    Parameters
    ----------
    model_or_problem
        * a model problem of :mod:`pyparareal.problems`, a mapping of the arguments of :func:`pyparareal.solve`, or a
          fine step (any propagator, callable or torch module) with ``grid=`` and ``m=``: the solve, slice by slice;
        * :class:`pyparareal.nn.PararealNetwork`: its execution modes against each other;
        * :class:`pyparareal.nn.LayerParallel`: against its layers one after the other;
        * :class:`pyparareal.nn.Recurrence`, ``GRU``, ``LSTM``, ``ImplicitGRU``: against the loop over the cell;
        * a list, ``ModuleList`` or ``Sequential`` of blocks of one shape: could these be made parallel?
        * :class:`pyparareal.training.TrainingRuns`: its weights against serial training.
    data : array, tensor or tuple
        The initial value ``[batch, features...]`` of a solve; a batch for a network; a sequence ``x`` or ``(x, h0)``.
    serial : module, optional
        Networks: the network that this one was made from. Tied parameters are looked for there.
    gradients : bool, optional
        Compare gradients too. Default: for networks always, for a solve if ``data`` or a parameter requires grad.
    quick : bool
        Probe some of the steps of a slice that share their code. False: all of them.
    progress : callable, optional
        ``progress(what, fraction)``.
    **options
        For a solve: ``grid, m, coarse, rhs, method, tol, max_iterations, deterministic, parameters, adjoint, norm,
        runtime`` as :func:`pyparareal.solve` takes them.

    Returns
    -------
    Verification
        ``ok``, ``findings``, ``slices``, ``text()``, ``as_dict()``, ``raise_if_bad()``.

    Raises
    ------
    TypeError, ValueError
        For arguments that say no chain. What a step raises is a finding, not an error.
    """
    for name, value in (("gradients", gradients), ("quick", quick)):
        if not (isinstance(value, bool) or (name == "gradients" and value is None)):
            raise TypeError(f"{name}: got {value!r}, expected True or False")
    if progress is not None and not callable(progress):
        raise TypeError(f"progress: got {type(progress).__name__}, expected a callable or None")
    tell = progress or _silent
    torch = sys.modules.get("torch")
    if torch is not None and "grid" not in options:
        from .networks import verifier_of

        work = verifier_of(model_or_problem, data, serial, gradients, quick, tell)
        if work is not None:
            if options:
                kind = type(model_or_problem).__name__
                raise TypeError(f"{sorted(options)[0]}: got it for a {kind}, expected it for a solve only")
            return work.run()
    if serial is not None:
        raise TypeError(f"serial: got {type(serial).__name__} for a solve, expected it for networks only")
    chain = _chain(model_or_problem, data, options)
    return SolveVerifier(chain, quick, gradients, tell).run()


def _chain(given: Any, data: Any, options: dict[str, Any]) -> Chain:
    if isinstance(given, Chain):
        return dataclasses.replace(given, **_known(options)) if options else given
    if hasattr(given, "arguments") and hasattr(given, "u0"):  # a model problem
        arguments = dict(given.arguments())
        method = {"method": given.method} if hasattr(given, "method") else {}
        if getattr(given, "levels", 2) != 2:
            from ..mgrit import MGRIT

            method = {"method": MGRIT(levels=given.levels)}
        given = {"what": getattr(given, "name", "solve")} | method | arguments
    if hasattr(given, "parareal") and hasattr(given, "grid"):  # the set-up of a published run
        given = {"what": getattr(given, "name", "solve"), "tol": 1e-6, **given.parareal()}
    if isinstance(given, Mapping):
        arguments = {**given, **options}
        if data is not None:
            arguments["u0"] = data
        for name in ("fine", "u0", "grid", "m"):
            if arguments.get(name) is None:
                raise ValueError(f"{name}: got nothing, expected the arguments of solve: fine, u0, grid and m")
        fine, u0 = arguments.pop("fine"), arguments.pop("u0")
        return Chain(fine, u0, **_known(arguments))
    if "grid" not in options or "m" not in options:
        raise TypeError(
            f"model_or_problem: got {type(given).__name__} without grid= and m=, expected a step with them, a model "
            "problem, the arguments of solve as a dict, a network of pyparareal.nn, or a list of blocks"
        )
    if data is None:
        raise ValueError("data: got None, expected the initial value [batch, features...]")
    return Chain(given, data, **_known(options))


def _known(options: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in options.items() if name not in _IGNORED}
    for name in known:
        if name not in _SOLVE:
            raise TypeError(f"{name}: got an unknown option, expected one of {', '.join(sorted(_SOLVE))}")
    if not isinstance(known.get("grid"), TimeGrid):
        raise TypeError(f"grid: got {type(known.get('grid')).__name__}, expected a TimeGrid")
    return known


def _silent(what: str, fraction: float) -> None:
    pass
