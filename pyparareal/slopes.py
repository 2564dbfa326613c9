# SPDX-License-Identifier: BSD-3-Clause
"""Right-hand sides of one's own as C functions, for :func:`pyparareal.ops.relax_rk` on the CPU.

With ``T`` double or float, the dtype of the state, such a function is::

    void slope(T t, const T* u, T* du, const T* parameters);

``u`` and ``du`` are ``[components]``. One that takes several columns at once, ``u`` and ``du`` ``[components, lanes]``,
lets its compiler use vector instructions::

    void slope(int64_t lanes, const T* t, const T* u, T* du, const T* parameters);

It is called from several threads at once and without the GIL, must not raise, and writes ``du`` from its arguments
alone. States and slopes do not overlap.
"""

from __future__ import annotations

import ctypes
import importlib
import operator
import re
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import numpy as np

Array = Any

DTYPES = ("float64", "float32")
_C_NAMES = {"float64": "double", "float32": "float"}
_FUNCTION_POINTER: Any = ctypes.CFUNCTYPE(None).__mro__[1]  # what all prototypes are made of
_C_TYPES: dict[str, Any] = {"float64": ctypes.c_double, "float32": ctypes.c_float}
_RESERVED = 64  # numbers a function may read of its parameters at the least: zeros after those given


class SlopeFunction:
    """A C function ``du = slope(t, u, parameters)`` of one dtype, for states of ``components`` numbers.

    Parameters
    ----------
    source : Numba cfunc, PyCapsule, ctypes function pointer, or int
        What a cfunc, a capsule of Cython's ``__pyx_capi__`` or a ctypes prototype says of itself is checked against
        the two forms above; of an address nothing is known, so ``dtype`` must be given. The source is kept alive.
    components : int
        Of the state: what ``u`` and ``du`` have room for.
    dtype : {"float64", "float32"}, optional
        Of every number. Needed for an address; elsewhere it must agree.
    lanes : bool, optional
        Whether an address takes lanes; elsewhere it must agree.
    parameters : int, optional
        How many numbers it reads there: a call with another count is then refused. Unknown otherwise, and zeros follow
        the numbers given, up to 64.
    """

    def __init__(
        self,
        source: Any,
        components: int,
        *,
        dtype: str | None = None,
        lanes: bool | None = None,
        parameters: int | None = None,
    ) -> None:
        self.components = integer("components", components, 1)
        self.parameters = None if parameters is None else integer("parameters", parameters, 0)
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
        self.address, found = _address_of(source)
        if not 0 < self.address < 1 << 64:
            raise ValueError(f"source: got {self.address}, expected the address of a function")
        if found is None and dtype is None:
            raise ValueError("dtype: got None, expected float64 or float32, because an address does not tell it")
        self.dtype, self.lanes = found or (str(dtype), bool(lanes))
        if dtype not in (None, self.dtype):
            raise TypeError(f"source: got a function of {self.dtype}, expected {dtype}")
        if lanes not in (None, self.lanes):
            raise TypeError(f"source: got a function with{'' if self.lanes else 'out'} lanes, expected lanes={lanes}")
        self._source = source  # its code lives as long as it does

    def __repr__(self) -> str:
        said = [f"{self.components} components", self.dtype, *["lanes"] * self.lanes]
        if self.parameters is not None:
            said.insert(1, f"{self.parameters} parameters")
        return f"SlopeFunction({', '.join(said)})"

    def check_parameters(self, count: int) -> None:
        """ValueError unless it reads so many parameters, as far as is known."""
        if self.parameters not in (None, count):
            raise ValueError(f"parameters: got {count} numbers, expected {self.parameters} for {self!r}")

    def __call__(self, t: Array, u: Array, parameters: Sequence[float] = ()) -> Array:
        """``du`` at the NumPy states ``u [..., components]`` and times that broadcast to ``u[..., :1]``."""
        dtype, number = np.dtype(self.dtype), _C_TYPES[self.dtype]
        if u.dtype != dtype or u.shape[-1] != self.components:
            raise ValueError(f"u: got {u.dtype} of shape {u.shape}, expected {dtype} with {self.components} components")
        columns = np.ascontiguousarray(u).reshape(-1, self.components)
        times = np.broadcast_to(np.asarray(t, dtype), (*u.shape[:-1], 1)).reshape(-1)
        given = numbers_of("parameters", parameters)
        self.check_parameters(len(given))
        numbers = np.array(given + (0.0,) * (_RESERVED - len(given)), dtype)
        slopes = np.empty_like(columns)
        leading = [ctypes.c_int64, ctypes.c_void_p] if self.lanes else [number]
        function = ctypes.CFUNCTYPE(None, *leading, *[ctypes.c_void_p] * 3)(self.address)
        for i in range(len(columns)):
            when = (1, times[i : i + 1].ctypes.data) if self.lanes else (number(times[i]),)
            function(*when, columns[i].ctypes.data, slopes[i].ctypes.data, numbers.ctypes.data)
        return slopes.reshape(u.shape)


def integer(name: str, value: Any, least: int) -> int:
    """``value`` as an int of at least ``least``, or the error that names the argument."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: got {type(value).__name__}, expected an int") from None
    if number < least:
        raise ValueError(f"{name}: got {number}, expected {least} or more")
    return number


def length(name: str, values: Any) -> int:
    """How many numbers there are, or the error that names the argument."""
    try:
        return len(values)
    except TypeError:
        raise TypeError(f"{name}: got {type(values).__name__}, expected a sequence of floats") from None


def numbers_of(name: str, values: Any) -> tuple[float, ...]:
    """``values`` as floats, or the error that names the argument."""
    if isinstance(values, str | bytes | dict | set):
        raise TypeError(f"{name}: got {type(values).__name__}, expected a sequence of floats")
    length(name, values)
    return tuple(_float(name, value) for value in values)


def _float(name: str, value: Any) -> float:
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a float") from None


def _expected(got: str) -> TypeError:
    return TypeError(
        f"source: got {got}, expected void (T, const T*, T*, const T*) or "
        "void (int64_t, const T*, const T*, T*, const T*) with T double or float"
    )


def _address_of(source: Any) -> tuple[int, tuple[str, bool] | None]:
    """The address, and dtype and lanes where the source tells them."""
    if isinstance(source, int) and not isinstance(source, bool):
        return source, None
    if type(source).__name__ == "PyCapsule":
        return _of_capsule(source)
    if isinstance(getattr(source, "address", None), int) and hasattr(source, "ctypes"):
        return source.address, _signature_of(source.ctypes)
    if isinstance(source, _FUNCTION_POINTER):
        kept = (getattr(source, "_objects", None) or {}).values()
        if any(type(one).__name__ == "CThunkObject" for one in kept):
            raise TypeError("source: got a Python function behind ctypes, expected compiled code; give it as rhs")
        return int(ctypes.cast(source, ctypes.c_void_p).value or 0), _signature_of(source)
    raise TypeError(
        f"source: got {type(source).__name__}, expected a Numba cfunc, a PyCapsule, a ctypes function pointer or the "
        "address of a C function"
    )


def _signature_of(function: Any) -> tuple[str, bool]:
    """Dtype and lanes from a ctypes prototype."""
    kinds, result = list(function.argtypes or ()), function.restype
    name = f"{getattr(result, '__name__', result)} ({', '.join(getattr(k, '__name__', str(k)) for k in kinds)})"
    if result is not None:
        raise _expected(name)
    for dtype, number in _C_TYPES.items():
        pointers = [ctypes.POINTER(number)] * 3
        if kinds == [number, *pointers]:
            return dtype, False
        if kinds == [ctypes.c_int64, ctypes.POINTER(number), *pointers]:
            return dtype, True
    raise _expected(name)


def _of_capsule(capsule: Any) -> tuple[int, tuple[str, bool]]:
    """Address, dtype and lanes from a capsule whose name is the signature, as Cython writes it."""
    api = ctypes.pythonapi
    get_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", api))
    get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", api))
    name = get_name(capsule)
    if name is None:
        raise _expected("a capsule without a name")
    text = name.decode("utf-8", "replace")
    plain = re.sub(r"\b(const|noexcept|nogil)\b|\s", "", text)
    for dtype, number in _C_NAMES.items():
        tail = f"{number}*,{number}*,{number}*)"
        if plain == f"void({number},{tail}":
            return get_pointer(capsule, name), (dtype, False)
        if plain in (f"void({integer},{number}*,{tail}" for integer in ("int64_t", "longlong", "long")):
            return get_pointer(capsule, name), (dtype, True)
    raise _expected(f"a capsule named {text!r}")


def numba_slope(
    function: Callable[[Any, Any, Any, Any], None],
    components: int,
    parameters: int = 0,
    *,
    dtype: str = "float64",
    lanes: bool = True,
    cache: bool = False,
) -> SlopeFunction:
    """``function(t, u, du, p)``, compiled by Numba: it writes the slope of one state to ``du [components]``.

    With lanes, which is the default, the function is inlined in a loop over columns that LLVM turns into vector
    instructions where it can; the bits are those of the function either way, as nothing is contracted or reordered.

    Parameters
    ----------
    function : callable
        In the part of Python that Numba compiles, of ``t``, ``u [components]``, ``du [components]`` and ``p
        [parameters]``. A literal such as ``0.5`` is a float64 for Numba: with float32 states, arithmetic with it is
        done in float64 and rounded when stored. A division by zero gives an infinity, and nothing may be raised. Of
        a function that is compiled already, its Python code is taken.
    components, parameters : int
        Lengths of ``u`` and ``p``; every call must give so many parameters.
    dtype : {"float64", "float32"}
    lanes : bool
        False: one column per call.
    cache : bool
        Keep the compiled function on the disk, as ``numba.njit(cache=True)`` does; it must then come from a file.

    Raises
    ------
    ImportError
        If Numba is not installed.
    ValueError
        If Numba cannot compile the function; the cause is Numba's own error.
    """
    function = getattr(function, "py_func", function)
    if not isinstance(function, FunctionType):
        raise TypeError(f"function: got {type(function).__name__}, expected a Python function of t, u, du and p")
    components, parameters = integer("components", components, 1), integer("parameters", parameters, 0)
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
    try:
        numba: Any = importlib.import_module("numba")
    except ImportError:
        raise ImportError("numba_slope needs Numba, which is not installed: pip install 'pyparareal[numba]'") from None
    number = getattr(numba.types, dtype)
    pointer, carray = numba.types.CPointer(number), numba.carray
    # The error model of NumPy: Python's would raise where something is divided by zero.
    slope = numba.njit(error_model="numpy", forceinline=True, cache=cache)(function)

    def one(t: Any, u: Any, du: Any, p: Any) -> None:
        slope(t, carray(u, (components,)), carray(du, (components,)), carray(p, (parameters,)))

    def many(count: Any, t: Any, u: Any, du: Any, p: Any) -> None:
        times, numbers = carray(t, (count,)), carray(p, (parameters,))
        states, slopes = carray(u, (components, count)), carray(du, (components, count))
        for lane in range(count):
            slope(times[lane], states[:, lane], slopes[:, lane], numbers)

    arguments = (numba.types.int64, pointer) if lanes else (number,)
    signature = numba.types.void(*arguments, pointer, pointer, pointer)
    try:
        code = numba.cfunc(signature, error_model="numpy")(many if lanes else one)
    except numba.core.errors.NumbaError as error:
        raise ValueError(
            f"function: got {function.__name__}, expected what Numba compiles; it says:\n{error}"
        ) from error
    return SlopeFunction(code, components, parameters=parameters)
