# SPDX-License-Identifier: BSD-3-Clause
"""All that a model holds, kept and put back: what verification calls twice must not remember that it was called.

What is found are attributes, lists and dicts of objects, closures and globals of functions, arrays, tensors with their
gradients, and random generators; besides these the global random states of Python, NumPy and torch.
"""

from __future__ import annotations

import collections
import functools
import random
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_METHODS = ("forward", "step", "relax", "rhs", "__call__")
MOST = 50_000  # things looked at; a model has thousands
_PLAIN = (int, float, complex, bool, str, bytes, type(None))
_LIBRARIES = ("torch", "numpy", "builtins", "scipy", "cupy", "threading", "concurrent", "logging", "functools")


class Held:
    """What ``roots`` (name -> object) hold now; :meth:`restore` puts it back, :meth:`changes` says what has changed."""

    def __init__(self, roots: dict[str, Any]) -> None:
        self._seen: set[int] = set()
        self._kept: list[tuple[str, Any, Any, _Kind]] = []
        self._globals: list[tuple[str, dict[str, Any], Any]] = []
        self._cells: list[tuple[str, Any, Any]] = []
        self._class_values: list[tuple[str, type, Any]] = []
        self._grads: list[tuple[Any, Any, Any]] = []
        todo = collections.deque(roots.items())
        while todo and len(self._seen) < MOST:
            todo.extend(self._look(*todo.popleft()))
        self.random = RandomStates()

    def restore(self) -> None:
        """All as it was when this was made."""
        for _, thing, value, kind in self._kept:
            kind.put(thing, value)
        for _, home, (name, value) in self._globals:
            if home.get(name) is not value:
                home[name] = value
        for _, cls, (name, value) in self._class_values:
            if vars(cls).get(name) is not value:
                setattr(cls, name, value)
        for _, cell, value in self._cells:
            if cell.cell_contents is not value:
                cell.cell_contents = value
        for tensor, grad, value in self._grads:
            tensor.grad = grad
            if grad is not None and not _equal(grad.detach(), value):
                with sys.modules["torch"].no_grad():
                    grad.copy_(value)
        self.random.restore()

    def changes(self) -> list[str]:
        """Names of what is not as it was, random generators left out."""
        return [name for name, generator in self._changes() if not generator]

    def drawn(self) -> list[str]:
        """Names of the random generators, global or held, that are not as they were."""
        return [*self.random.changed(), *(name for name, generator in self._changes() if generator)]

    def _changes(self) -> Iterator[tuple[str, bool]]:
        for name, thing, value, kind in self._kept:
            for key in kind.differing(thing, value):
                yield f"{name}{key}", kind is _GENERATOR
        for name, home, (key, value) in self._globals:
            if home.get(key) is not value and not _same_plain(home.get(key), value):
                yield name, False
        for name, cls, (key, value) in self._class_values:
            if not _same_plain(vars(cls).get(key), value):
                yield name, False
        for name, cell, value in self._cells:
            if cell.cell_contents is not value and not _same_plain(cell.cell_contents, value):
                yield name, False

    def _look(self, name: str, thing: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(thing, (*_PLAIN, type, types.ModuleType, types.BuiltinFunctionType)) or id(thing) in self._seen:
            return
        self._seen.add(id(thing))
        if isinstance(thing, types.MethodType):
            yield name, thing.__self__
            yield name, thing.__func__
        elif isinstance(thing, types.FunctionType):
            yield from self._function(name, thing)
        elif isinstance(thing, functools.partial):
            yield from [(name, thing.func), *((name, x) for x in (*thing.args, *thing.keywords.values()))]
        elif isinstance(thing, tuple | frozenset):
            yield from ((f"{name}[{i}]", x) for i, x in enumerate(thing))
        else:
            kind = _kind_of(thing)
            if kind is None:
                return
            self._kept.append((name, thing, kind.get(thing), kind))
            if kind is _TENSOR and thing.is_leaf and thing.requires_grad:
                self._grads.append((thing, thing.grad, None if thing.grad is None else thing.grad.detach().clone()))
            yield from kind.inside(name, thing)
            if kind is _OBJECT:
                yield from self._classes(thing)
            for method in _METHODS:
                function = getattr(type(thing), method, None)
                if isinstance(function, types.FunctionType):
                    yield name, function

    def _classes(self, thing: Any) -> Iterator[tuple[str, Any]]:
        """What the classes of ``thing`` hold, if they are the user's: a counter may be the class's."""
        for cls in type(thing).__mro__:
            if cls.__module__.partition(".")[0] in (*_LIBRARIES, "pyparareal") or id(cls) in self._seen:
                continue
            self._seen.add(id(cls))
            for key, value in list(vars(cls).items()):
                if key.startswith("__") or callable(value) or isinstance(value, property | staticmethod | classmethod):
                    continue
                if isinstance(value, _PLAIN):
                    self._class_values.append((f"{cls.__name__}.{key}", cls, (key, value)))
                else:
                    yield f"{cls.__name__}.{key}", value

    def _function(self, name: str, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
        if str(function.__module__).partition(".")[0] in (*_LIBRARIES, "pyparareal"):
            return
        yield name, function.__dict__
        variables = function.__code__.co_freevars
        for variable, cell in zip(variables, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # not yet set
                continue
            self._cells.append((f"{name}: {variable}", cell, value))
            yield _joined(name, variable), value
        codes = [function.__code__, *(c for c in function.__code__.co_consts if isinstance(c, types.CodeType))]
        for variable in sorted({v for code in codes for v in code.co_names}):
            if variable in function.__globals__:
                value = function.__globals__[variable]
                if isinstance(value, _PLAIN):
                    self._globals.append((f"the global {variable}", function.__globals__, (variable, value)))
                yield f"the global {variable}", value
        yield from ((name, value) for value in function.__defaults__ or ())


class _Kind:
    """How to keep one kind of things: ``get``, ``put`` back, ``differing`` keys, and the things ``inside``."""

    def __init__(self, get: Callable[[Any], Any], put: Any, differing: Any, inside: Any = None) -> None:
        self.get, self.put, self.differing = get, put, differing
        self.inside = inside or (lambda name, thing: ())


def _kind_of(thing: Any) -> _Kind | None:
    torch = sys.modules.get("torch")
    if isinstance(thing, np.ndarray):
        return _ARRAY if thing.dtype != object else None
    if torch is not None and isinstance(thing, torch.Tensor):
        return _TENSOR if not thing.is_meta else None
    if isinstance(thing, np.random.Generator | np.random.RandomState | random.Random):
        return _GENERATOR
    if torch is not None and isinstance(thing, torch.Generator):
        return _GENERATOR
    if isinstance(thing, dict):
        return _DICT
    if isinstance(thing, list | set | collections.deque | bytearray):
        return _LIST
    if isinstance(getattr(thing, "__dict__", None), dict):
        return _OBJECT
    return _SLOTS if _slots(thing) else None


def _slots(thing: Any) -> dict[str, Any]:
    """The attributes of an object of the user's without a ``__dict__``; those that are not set have no entry."""
    classes = [c for c in type(thing).__mro__ if c.__module__.partition(".")[0] not in (*_LIBRARIES, "pyparareal")]
    given = [vars(c).get("__slots__", ()) for c in classes]
    names = [name for slots in given for name in ((slots,) if isinstance(slots, str) else slots)]
    return {name: getattr(thing, name) if hasattr(thing, name) else _UNSET for name in names if name != "__weakref__"}


def _put_slots(thing: Any, then: dict[str, Any]) -> None:
    for name, value in then.items():
        if getattr(thing, name, _UNSET) is not value:
            delattr(thing, name) if value is _UNSET else setattr(thing, name, value)


_UNSET = type("Unset", (), {"__slots__": ()})()


def _put_dict(now: Any, then: dict[Any, Any]) -> None:
    if list(now) != list(then) or any(now[key] is not value for key, value in then.items()):
        for key in [key for key in now if key not in then]:
            del now[key]
        now.update(then)


def _keys_differing(now: Any, then: dict[Any, Any]) -> list[str]:
    keys = [*then, *(key for key in now if key not in then)]
    return [
        f".{key}" for key in keys if now.get(key) is not then.get(key) and not _same_plain(now.get(key), then.get(key))
    ]


def _same_plain(a: Any, b: Any) -> bool:
    return isinstance(a, _PLAIN) and isinstance(b, _PLAIN) and type(a) is type(b) and a == b


def _put_list(now: Any, then: Any) -> None:
    if len(now) != len(then) or any(a is not b for a, b in zip(now, then, strict=True)):
        now.clear()
        now.update(then) if isinstance(now, set) else now.extend(then)


def _list_differs(now: Any, then: Any) -> list[str]:
    same = len(now) == len(then) and all(a is b or _same_plain(a, b) for a, b in zip(now, then, strict=True))
    return [] if same else [""]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return a.shape == b.shape and a.tobytes() == b.tobytes()
    torch = sys.modules["torch"]
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.dtype.is_floating_point or a.dtype.is_complex):
        return bool(torch.equal(a, b))
    return bool(torch.equal(a, b) or ((a == b) | ((a != a) & (b != b))).all())


def _put_array(now: np.ndarray[Any, Any], then: np.ndarray[Any, Any]) -> None:
    if not _equal(now, then):
        now[...] = then


def _put_tensor(now: Any, then: Any) -> None:
    if not _equal(now.detach(), then):
        with sys.modules["torch"].no_grad():
            now.data.copy_(then) if now.is_leaf else now.copy_(then)


def _get_random(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _put_random(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _random_differs(generator: Any, state: Any) -> list[str]:
    now = _get_random(generator)
    return [] if _same_state(now, state) else [""]


def _same_state(a: Any, b: Any) -> bool:
    """Of generators: nested dicts and tuples with arrays, or a tensor of bytes."""
    if isinstance(a, dict):
        return all(_same_state(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return all(_same_state(x, y) for x, y in zip(a, b, strict=True))
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


def _joined(name: str, key: Any) -> str:
    """``name.key``, without the dicts in which torch keeps modules, parameters and buffers."""
    return name if key in ("_modules", "_parameters", "_buffers") else f"{name}.{key}"


def _inside_object(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    yield from ((_joined(name, key), value) for key, value in list(vars(thing).items()))


_ARRAY = _Kind(np.copy, _put_array, lambda now, then: [] if _equal(now, then) else [""])
_TENSOR = _Kind(lambda t: t.detach().clone(), _put_tensor, lambda now, then: [] if _equal(now.detach(), then) else [""])
_GENERATOR = _Kind(_get_random, _put_random, _random_differs)
_DICT = _Kind(dict, _put_dict, _keys_differing, lambda n, d: [(f"{n}.{k}", v) for k, v in list(d.items())])
_LIST = _Kind(
    lambda x: list(x), _put_list, _list_differs, lambda n, x: [(f"{n}[{i}]", v) for i, v in enumerate(list(x)[:4096])]
)
_SLOTS = _Kind(
    _slots,
    _put_slots,
    lambda x, then: _keys_differing(_slots(x), then),
    lambda n, x: [(f"{n}.{k}", v) for k, v in _slots(x).items()],
)
_OBJECT = _Kind(
    lambda x: dict(vars(x)),
    lambda x, then: _put_dict(vars(x), then),
    lambda x, then: _keys_differing(vars(x), then),
    _inside_object,
)


class RandomStates:
    """The global random states of Python, NumPy and, where it is loaded, torch."""

    def __init__(self) -> None:
        self._then = _global_states()

    def restore(self) -> None:
        random.setstate(self._then["Python's random"])
        np.random.set_state(self._then["NumPy's np.random"])  # noqa: NPY002 - it is the user's
        self.restore_torch()

    def restore_torch(self) -> None:
        """Torch's alone: what it draws in training mode the package fixes."""
        torch = sys.modules.get("torch")
        if torch is None:
            return
        torch.set_rng_state(self._then["torch's default generator"])
        for name, state in self._then.items():
            if name.startswith("torch's generator of cuda:"):
                torch.cuda.set_rng_state(state, int(name.rpartition(":")[2]))

    def changed(self) -> list[str]:
        now = _global_states()
        return [name for name, then in self._then.items() if not _same_state(then, now[name])]


def _global_states() -> dict[str, Any]:
    legacy = np.random.get_state()  # noqa: NPY002 - it is the user's
    states: dict[str, Any] = {"Python's random": random.getstate(), "NumPy's np.random": legacy}
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch's default generator"] = torch.get_rng_state()
        if torch.cuda.is_initialized():
            for i in range(torch.cuda.device_count()):
                states[f"torch's generator of cuda:{i}"] = torch.cuda.get_rng_state(i)
    return states
