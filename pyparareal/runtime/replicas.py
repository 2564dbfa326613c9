# SPDX-License-Identifier: BSD-3-Clause
"""A propagator once more: for another device, or for another thread of the same one.

A replica is made anew whenever it is needed, so that it is never older than its original: modules are copied, and
objects, lists and closures that hold modules or tensors; all others are shared. Tensors are copied when they are first
met, and again when their version has changed. Those not on the device of the states are shared, and so are parameters
where the device is the same, for no step writes to them. What a step changes in a replica is lost.

A propagator (or operator) of your own that knows better has a method ``on(device)``, which is asked once per solve for
each entry of ``devices``, and returns one for that entry alone; :func:`per_device` makes one of a function. An object
that can be used by several threads and on every device at once returns itself. ``per_step`` of a class names tensors
``[steps, ...]`` that are only read, row ``i`` by step ``i``: of these another device gets the rows that it needs.
"""

from __future__ import annotations

import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable
from copy import copy as copied
from functools import lru_cache, partial
from typing import Any

from .. import arrays

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, types.ModuleType, types.BuiltinFunctionType)
_MODULE_PARTS = ("_parameters", "_buffers", "_modules")


def per_device(make: Callable[[str], Any], device: str) -> Any:
    """``make(device)``, the propagator where the states are, that can be made for other devices in the same way.

    Parameters
    ----------
    make : callable
        A propagator, callable or torch module for the name of a device, such as "cuda:1"; each time another one.
    device : str
        That of the states.
    """
    if not callable(make):
        raise TypeError(f"make: got {type(make).__name__}, expected a function of the name of a device")
    phi = make(device)
    phi.on = make
    return phi


class Replicas:
    """The replicas for one entry of ``devices``.

    Parameters
    ----------
    device : str
        Of the entry.
    here : str
        Of the states, whose tensors are to be on ``device``.
    used_on : callable
        Called with every tensor that was copied, to say which streams will use it.
    """

    def __init__(self, device: str, here: str, used_on: Callable[[Any], None] | None = None) -> None:
        self.device, self.here, self.used_on = device, here, used_on
        self._tensors = _Known()
        self._own = _Known()

    def forget(self) -> None:
        """Copy everything anew, where it is needed next: writes through ``.data`` change no version."""
        self._tensors, self._own = _Known(), _Known()

    def of(self, phi: Any, rows: range) -> Any:
        """``phi`` for this entry, and for the steps ``rows`` of its grid."""
        return _Copy(self, rows).of(phi)

    def own(self, value: Any) -> Any:
        """What ``value.on`` returned for this entry."""
        return self._own.get(value, lambda: (value.on(self.device), None))[0]

    def tensor(self, source: Any) -> Any:
        """``source`` for this entry."""
        torch: Any = sys.modules["torch"]
        if str(source.device) != self.here:
            return source
        if self.device == self.here and (source.requires_grad or isinstance(source, torch.nn.Parameter)):
            return source

        def afresh() -> tuple[Any, Any]:
            copy = source.detach().to(self.device, copy=True)
            if self.used_on is not None:
                self.used_on(copy)
            return copy, _state_of(source)

        copy, state = self._tensors.get(source, afresh)
        if state is None or state != _state_of(source):
            return self._tensors.put(source, afresh())[0]
        return copy

    def part(self, source: Any, rows: range) -> Any:
        """``source [steps, ...]``, which is only read, with ``rows`` at the least."""
        torch: Any = sys.modules["torch"]
        if self.device == self.here or str(source.device) != self.here:
            return source
        there = torch.empty(source.shape, dtype=source.dtype, device=self.device)
        here = slice(rows.start, min(rows.stop, len(source)))
        there[here].copy_(source.detach()[here], non_blocking=True)
        if self.used_on is not None:
            self.used_on(there)
        return there


def _state_of(source: Any) -> Any:
    """What changes when the tensor is written to or gets other memory; None where torch does not tell."""
    return None if source.is_inference() else (source._version, source.data_ptr(), source.shape)


class _Known:
    """What was made for objects, as long as these live."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, Any]] = {}

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        found = self._made.get(id(key))
        if found is not None and found[0]() is key:
            return found[1]
        return self.put(key, make())

    def put(self, key: Any, made: Any) -> Any:
        here, made_of = id(key), self._made
        try:
            alive: Any = weakref.ref(key, lambda _: made_of.pop(here, None))
        except TypeError:  # then it lives as long as this
            alive = partial(_itself, key)
        self._made[here] = alive, made
        return made


def _itself(value: Any) -> Any:
    return value


class _Copy:
    """One replica on its way: every part is copied once, or shared if there is nothing in it that is not."""

    def __init__(self, replicas: Replicas, rows: range) -> None:
        self.replicas, self.rows = replicas, rows
        self._done: dict[int, tuple[Any, Any]] = {}
        self._open: dict[int, _Shell] = {}

    def of(self, value: Any) -> Any:
        if isinstance(value, _PLAIN):
            return value
        if id(value) in self._done:
            return self._done[id(value)][0]
        if id(value) in self._open:
            return self._open[id(value)].made()
        made = self._made(value)
        self._done[id(value)] = made, value  # kept: its id is no one else's meanwhile
        return made

    def _made(self, value: Any) -> Any:
        if arrays.is_torch(value):
            return self.replicas.tensor(value)
        kind: Any = type(value)
        if kind in (list, tuple, dict, OrderedDict):
            return self._container(value)
        if _decides(value):
            return self.replicas.own(value)
        if kind is types.MethodType:
            owner = self.of(value.__self__)
            return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
        if kind is partial:
            parts = value.func, value.args, value.keywords
            new = [self.of(one) for one in parts]
            same = all(a is b for a, b in zip(parts, new, strict=True))
            return value if same else partial(new[0], *new[1], **new[2])
        if kind is types.FunctionType:
            return self._function(value)
        return self._object(value) if hasattr(value, "__dict__") and _copyable(kind) else value

    def _container(self, value: Any) -> Any:
        self._open[id(value)] = shell = _Shell(value, shared=True)
        parts = value.values() if isinstance(value, dict) else value
        new = [self.of(one) for one in parts]
        del self._open[id(shell.original)]
        if all(a is b for a, b in zip(parts, new, strict=True)):
            return value
        return type(value)(zip(value, new, strict=True)) if isinstance(value, dict) else type(value)(new)

    def _function(self, value: types.FunctionType) -> Any:
        """Lists and dicts in its closure are shared: functions write to these to tell something."""
        cells = value.__closure__ or ()
        if not cells:
            return value
        copies = tuple(types.CellType() for _ in cells)
        copy = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, copies)
        self._open[id(value)] = shell = _Shell(value, copy)
        changed = False
        for old, new in zip(cells, copies, strict=True):
            try:
                held = old.cell_contents
            except ValueError:  # empty, so far
                continue
            new.cell_contents = held if isinstance(held, list | dict | set) else self.of(held)
            changed |= new.cell_contents is not held
        del self._open[id(value)]
        if not (changed or shell.used):
            return value
        copy.__kwdefaults__, copy.__dict__ = value.__kwdefaults__, dict(value.__dict__)
        return copy

    def _object(self, value: Any) -> Any:
        _require_plain(value)
        if getattr(type(value), "one_device", False) and self.replicas.device != self.replicas.here:
            raise ValueError(f"devices: got {self.replicas.device} for storage='all', whose states stay on one device")
        self._open[id(value)] = shell = _Shell(value)
        held = vars(value)
        module = _is_module(value)  # never shared: torch.func puts other weights into them while it calls them
        skip = _common_to_modules() if module else frozenset()
        read = getattr(type(value), "per_step", ())
        changed = {}
        for name, part in list(held.items()):
            if name in skip:
                continue
            whole = name not in read or not arrays.is_torch(part)
            new = self.of(part) if whole else self.replicas.part(part, self.rows)
            if new is not part:
                changed[name] = new
        del self._open[id(value)]
        if not (changed or shell.used or module):
            return value
        copy = shell.made()
        copy.__dict__.update(held)
        if module:
            copy.__dict__.update((name, copied(held[name])) for name in _MODULE_PARTS)
        copy.__dict__.update(changed)
        return copy


class _Shell:
    """An object under way, for those that it holds and that hold it."""

    def __init__(self, original: Any, copy: Any = None, *, shared: bool = False) -> None:
        self.original, self.copy, self.shared, self.used = original, copy, shared, False

    def made(self) -> Any:
        if self.shared:
            return self.original
        self.used = True
        if self.copy is None:
            self.copy = object.__new__(type(self.original))
        return self.copy


@lru_cache(maxsize=1024)
def _copyable(kind: Any) -> bool:
    """Whether an instance is nothing but its ``__dict__``."""
    try:
        object.__new__(kind)
    except TypeError:
        return False
    return True


def _decides(value: Any) -> bool:
    """Whether it has an ``on`` that is meant here."""
    step = hasattr(value, "step") or hasattr(value, "solve") or isinstance(value, types.FunctionType)
    return (step or _is_module(value)) and callable(getattr(value, "on", None))


def _is_module(value: Any) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _common_to_modules() -> frozenset[str]:
    """What every module has, and a replica shares: hooks and flags."""
    global _common
    if _common is None:
        _common = frozenset(vars(sys.modules["torch"].nn.Module())) - frozenset(_MODULE_PARTS)
    return _common


_common: frozenset[str] | None = None


def _require_plain(value: Any) -> None:
    kind = type(value).__name__
    if _is_module(value) and (kind == "OptimizedModule" or isinstance(value, sys.modules["torch"].jit.ScriptModule)):
        raise TypeError(
            f"devices: got a compiled module ({kind}), of which no replica can be made, expected one with on(device), "
            "see pyparareal.per_device"
        )
