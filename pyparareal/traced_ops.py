# SPDX-License-Identifier: BSD-3-Clause
"""Every op a ``launch`` span, while somebody listens: ``_core`` then has wrappers in the place of its functions.

All callers say ``_core.name(...)``, so that an op costs nothing more when nobody does.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from . import _core, _trace


class Form(NamedTuple):
    """Where an op has its arrays, the first state array among them, those that it may do without, and what says how
    much work it is: name, position, and what is read from the argument."""

    arrays: tuple[int, ...]
    state: int
    numbers: tuple[tuple[str, int, Callable[[Any], Any] | None], ...] = ()
    optional: tuple[tuple[str, int], ...] = ()


def _relaxation(arrays: tuple[int, ...], m: int, sides: int, *numbers: Any, optional: Any = ()) -> Form:
    """Of ``out, ..., m, ..., f, g, every, target, norms, norm``; ``sides`` is where ``f`` is."""
    names = (("out", 0), *((name, sides + n) for n, name in enumerate(("f", "g", "every", "target"))), *optional)
    numbers = (("m", m, None), ("norm", sides + 5, None), *numbers)
    return Form((*arrays, *range(sides, sides + 5)), 1, numbers, names)


def _numbers_in(array: Any) -> int:
    return math.prod(getattr(array, "shape", ()))


def _code(rhs: Any) -> int | None:
    """Of a right-hand side that is compiled in."""
    return rhs if isinstance(rhs, int) else None


def _stages_and_terms(scheme: Any) -> tuple[int, int]:
    """Stages, and coefficients that are not zero, of Butcher's ``(a, b, c)``."""
    a, b = scheme[:2]
    known = _schemes.get(id(b))
    if known is None or known[0] is not a or known[1] is not b:
        terms = sum(c != 0 for row in (*a, b) for c in row)
        known = _schemes[id(b)] = a, b, (len(b), terms)
    return known[2]


_schemes: dict[int, Any] = {}
"""By the weights that they belong to; there are as many as there are tableaux."""

_OMEGA, _START = (("omega", 3, None),), (("start", 3),)
_RK = (("substeps", 7, None), ("rhs", 2, _code), ("tableau", 4, _stages_and_terms))
_MLP = (("sizes", 2, tuple), ("count", 7, None), ("hidden", 8, None), ("last", 9, None), ("biases", 10, None))
_COEFFICIENTS = (("coefficients", 2, _numbers_in),)

FORMS = {
    "parareal_update": Form((0, 1, 2, 3, 4, 5), 1, (("norm", 6, None),), (("u_old", 4),)),
    "slice_norms": Form((0, 1, 2), 1, (("norm", 3, None),), (("u_old", 2),)),
    "extract": Form((0, 0), 0, (("step", 3, None),)),  # reads as much as it writes
    "inject": Form((1, 1), 1, (("step", 3, None),)),
    "c_relax": Form((0, 1, 2), 1, _OMEGA),
    "relax_diagonal": _relaxation((0, 1, 2), 3, 4, *_COEFFICIENTS),
    "relax_tridiagonal": _relaxation((0, 1, 2, 3, 4), 5, 6),
    "relax_stencil": _relaxation((0, 1, 2), 4, 5, *_COEFFICIENTS),
    "relax_rk": _relaxation((0, 1), 6, 9, *_RK),
    "relax_mlp_sgd": _relaxation((0, 1, 3, 4, 5), 11, 12, *_MLP, optional=(("first", 6),)),
    "relax_gru": _relaxation((0, 1, 2, 3, 4), 5, 6, optional=(("bias", 4),)),
    "relax_gru_adjoint": Form(tuple(range(9)), 3, (), (("d_gates", 1), ("bias", 6), ("d_every", 8))),
    "newton_gru": Form(tuple(range(9)), 4, (), (("jacobians", 1), ("residuals", 2), ("updates", 3), ("bias", 8))),
    "relax_dense": _relaxation((0, 1, 2, 3, 7), 6, 8, ("activation", 5, None), optional=(("bias", 3), ("slopes", 7))),
    "relax_dense_adjoint": _relaxation((0, 1, 2, 3), 5, 6),
    "scan_diag": Form((0, 1, 2, 3), 2, (), _START),
    "scan_block": Form((0, 1, 2, 3), 2, (), _START),
}
"""The arguments of ``_core`` by position: those of ``_core.pyi``."""

_GIVEN: dict[str, dict[int, tuple[str, ...]]] = {
    op: {
        mask: tuple(name for bit, (name, _) in enumerate(form.optional) if mask >> bit & 1)
        for mask in range(1 << len(form.optional))
    }
    for op, form in FORMS.items()
}
"""Which optional arrays there are, one bit each."""


def facts_of(op: str, form: Form, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """What a launch is known to do: "op", "shape" and "dtype" of the states, "bytes" of all arrays, "given" of those
    that it may do without, and its numbers."""
    state = arguments[form.state]
    nbytes = mask = 0
    for n in form.arrays:
        array = arguments[n]
        if array is not None:
            nbytes += getattr(array, "nbytes", 0)
    for bit, (_, n) in enumerate(form.optional):
        if arguments[n] is not None:
            mask |= 1 << bit
    facts = {
        "op": op,
        "shape": getattr(state, "shape", ()),
        "dtype": getattr(state, "dtype", None),
        "bytes": nbytes,
        "given": _GIVEN[op][mask],
    }
    for name, n, read in form.numbers:
        facts[name] = arguments[n] if read is None else read(arguments[n])
    return facts


def placed(facts: dict[str, Any], u: Any, stream: Any = None) -> dict[str, Any]:
    """With "device", "library" and "on", the stream that was given, where ``u`` is an array on a CUDA device."""
    kind = type(u)
    if kind is np.ndarray:
        return facts
    if getattr(u, "is_cuda", False):
        return facts | {"device": str(u.device), "library": "torch", "on": stream}
    if kind.__module__.partition(".")[0] == "cupy":
        return facts | {"device": f"cuda:{u.device.id}", "library": "cupy", "on": stream}
    return facts


def launch(phi: Any, u: Any, m: int) -> AbstractContextManager[None]:
    """The span of ``m`` steps from ``u``, with the name of the propagator that takes them, not of what wraps it."""
    if _trace.listener is None:
        return _trace.mark("")
    while (inner := getattr(phi, "phi", None)) is not None and _is_ours(phi):
        phi = inner
    facts = {"shape": getattr(u, "shape", ()), "dtype": getattr(u, "dtype", None), "slices": len(u), "steps": m}
    named = getattr(phi, "works", None)
    works = named if named is not None and _is_ours(phi) else phi
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(works, torch.nn.Module):
        facts["module"] = _number_of(works)
    name = getattr(works, "__name__", type(works).__name__)
    return _trace.mark(name, "launch", placed(facts, u))


def _is_ours(phi: Any) -> bool:
    """Whether ``phi`` and ``works`` of it are what we mean by them: a rotation of one's own has an angle ``phi``."""
    return type(phi).__module__.partition(".")[0] == __package__


def _number_of(module: Any) -> int:
    """By which a launch names a module: what it costs is found out afterwards, if it still lives."""
    number = modules.get(module)
    if number is None:
        number = modules[module] = next(_numbers)
    return number


modules: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
_numbers = itertools.count()


def _position(call: Callable[..., None], name: str) -> int:
    """Of an argument, in the signature that pybind11 writes first."""
    signature = (call.__doc__ or "").partition("(")[2].partition(") ->")[0]
    return [one.partition(":")[0].strip() for one in signature.split(",")].index(name)


def _traced(op: str, call: Callable[..., None]) -> Callable[..., None]:
    form, stream = FORMS[op], _position(call, "stream")

    def traced(*arguments: Any) -> None:
        listener = _trace.listener
        around = _around.get(op)
        run = call if around is None else partial(around, call)
        if listener is None:
            run(*arguments)
            return
        facts, state = facts_of(op, form, arguments), arguments[form.state]
        if type(state) is not np.ndarray:
            facts = placed(facts, state, arguments[stream])
        with listener.span("launch", op, facts):
            run(*arguments)

    return traced


def elsewhere(op: str, arguments: tuple[Any, ...], stream: Any) -> AbstractContextManager[None]:
    """The span of an op with the ``arguments`` of ``_core``'s that another library launches on ``stream``."""
    if _trace.listener is None:
        return _trace.NOTHING
    form = FORMS[op]
    return _trace.mark(op, "launch", placed(facts_of(op, form, arguments), arguments[form.state], stream))


_lock = threading.Lock()
_plain: dict[str, Callable[..., None]] = {}
_ours: dict[str, Callable[..., None]] = {}
_around: dict[str, Callable[..., None]] = {}
_wanted = 0


def want() -> None:
    """Trace the ops, until as many :func:`no_more` as this."""
    global _wanted
    with _lock:
        _wanted += 1
        if _wanted == 1:
            for op in FORMS:
                _plain[op] = getattr(_core, op)
                _ours[op] = _traced(op, _plain[op])
                setattr(_core, op, _ours[op])


def no_more() -> None:
    """One listener less."""
    global _wanted
    with _lock:
        _wanted = max(_wanted - 1, 0)  # in a child of a fork it was 0
        if _wanted == 0:
            _restore()


def surround(op: str, around: Callable[..., None]) -> None:
    """Have ``around(call, *arguments)`` called in the place of ``call(*arguments)``, until :func:`leave_alone`.

    ``call`` is the op itself.

    Raises
    ------
    RuntimeError
        Somebody else does so with this op.
    """
    with _lock:
        if op in _around:
            raise RuntimeError(f"op: {op} is surrounded already; one at a time")
        _around[op] = around
    want()


def leave_alone(op: str) -> None:
    """Have it called as it is."""
    with _lock:
        _around.pop(op, None)
    no_more()


def plain(op: str) -> Callable[..., None]:
    """The op itself, whoever listens."""
    return _plain.get(op) or getattr(_core, op)


def _restore() -> None:
    for op, call in _plain.items():
        if getattr(_core, op) is _ours[op]:  # or somebody has put another in its place
            setattr(_core, op, call)
    _plain.clear()
    _ours.clear()


def _after_fork() -> None:
    """In a child nobody listens any more."""
    global _wanted, _lock
    _wanted, _lock = 0, threading.Lock()
    _around.clear()
    _restore()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
