# SPDX-License-Identifier: BSD-3-Clause
"""Every op a ``launch`` span, while somebody listens: ``_core`` then has wrappers in the place of its functions.

All callers say ``_core.name(...)``, so that an op costs nothing more when nobody does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from . import _core, _trace


class Form(NamedTuple):
    """Where an op has its arrays, the first state array among them, and the numbers that say how much work it is."""

    arrays: tuple[int, ...]
    state: int
    numbers: tuple[tuple[str, int], ...] = ()


def _relaxation(arrays: tuple[int, ...], m: int, sides: int, state: int = 1) -> Form:
    """Of ``out, ..., m, ..., f, g, every, target, norms``; ``sides`` is where ``f`` is."""
    return Form((*arrays, *range(sides, sides + 5)), state, (("m", m),))


FORMS = {
    "parareal_update": Form((0, 1, 2, 3, 4, 5), 1),
    "slice_norms": Form((0, 1, 2), 1),
    "extract": Form((0, 0), 0, (("step", 3),)),  # reads as much as it writes
    "inject": Form((1, 1), 1, (("step", 3),)),
    "c_relax": Form((0, 1, 2), 1),
    "relax_diagonal": _relaxation((0, 1, 2), 3, 4),
    "relax_tridiagonal": _relaxation((0, 1, 2, 3, 4), 5, 6),
    "relax_stencil": _relaxation((0, 1, 2), 4, 5),
    "relax_rk": _relaxation((0, 1), 6, 9),
    "relax_mlp_sgd": _relaxation((0, 1, 3, 4, 5), 11, 12),
    "relax_gru": _relaxation((0, 1, 2, 3, 4), 5, 6),
    "relax_gru_adjoint": Form(tuple(range(9)), 3),
    "newton_gru": Form(tuple(range(9)), 4),
    "relax_dense": _relaxation((0, 1, 2, 3, 7), 6, 8),
    "relax_dense_adjoint": _relaxation((0, 1, 2, 3), 5, 6),
    "scan_diag": Form((0, 1, 2, 3), 2),
    "scan_block": Form((0, 1, 2, 3), 2),
}
"""The arguments of ``_core`` by position: those of ``_core.pyi``."""


def facts_of(op: str, form: Form, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """What a launch is known to do: "op", "shape" and "dtype" of the states, "slices", "bytes" of all arrays, "m"."""
    state = arguments[form.state]
    shape = getattr(state, "shape", ())
    nbytes = 0
    for n in form.arrays:
        array = arguments[n]
        if array is not None:
            nbytes += getattr(array, "nbytes", 0)
    facts = {"op": op, "shape": shape, "dtype": getattr(state, "dtype", None), "bytes": nbytes}
    for name, n in form.numbers:
        facts[name] = arguments[n]
    return facts


def _traced(op: str, call: Callable[..., None]) -> Callable[..., None]:
    form = FORMS[op]

    def traced(*arguments: Any) -> None:
        listener = _trace.listener
        if listener is None:
            call(*arguments)
            return
        with listener.span("launch", op, facts_of(op, form, arguments)):
            call(*arguments)

    return traced


_lock = threading.Lock()
_plain: dict[str, Callable[..., None]] = {}
_wanted = 0


def want() -> None:
    """Trace the ops, until as many :func:`no_more` as this."""
    global _wanted
    with _lock:
        _wanted += 1
        if _wanted == 1:
            for op in FORMS:
                _plain[op] = getattr(_core, op)
                setattr(_core, op, _traced(op, _plain[op]))


def no_more() -> None:
    """One listener less."""
    global _wanted
    with _lock:
        _wanted -= 1
        if _wanted == 0:
            for op, call in _plain.items():
                setattr(_core, op, call)
            _plain.clear()
