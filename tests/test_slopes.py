# SPDX-License-Identifier: BSD-3-Clause
"""Right-hand sides of one's own as C functions: relax_rk gives the bits of the reference, whose slope is NumPy."""

import ctypes
import itertools
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from ops_backends import assert_same_bits, simd
from own_slopes import (
    COMPONENTS,
    DTYPES,
    PARAMETERS,
    PYTHON,
    c_function,
    c_library,
    compiler,
    numpy_slope,
    slope,
    states,
)

from pyparareal import ops, reference, tableaux
from pyparareal.reference import UniformTimes
from pyparareal.slopes import SlopeFunction, numba_slope

NAMES = tuple(PYTHON)
SCHEMES = (tableaux.EULER, tableaux.MIDPOINT, tableaux.HEUN, tableaux.RK4, tableaux.COOPER_VERNER_8)
TABLEAUX = {tableau.name: tableau for tableau in SCHEMES}
both_abis = pytest.mark.parametrize("lanes", [False, True], ids=["one column", "lanes"])
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return c_library(tmp_path_factory.mktemp("slopes"))


def arguments(name, shape, dtype, m, rng, mode="", **choices):
    """Arguments of both functions: non-uniform step sizes and times unless chosen otherwise."""
    u = states(rng, name, shape, dtype)
    dt = choices.get("dt", 0.02 * (0.5 + rng.random((shape[0], m))))
    times = choices.get("times", rng.random((shape[0], m)))
    keywords = {"times": times, "substeps": choices.get("substeps", 1)}
    keywords |= {key: rng.standard_normal((shape[0], m, *u.shape[1:])).astype(dtype) for key in "fg" if key in mode}
    return u, PARAMETERS[name], choices.get("tableau", tableaux.RK4), dt, m, keywords


def agree(function, name, u, parameters, tableau, dt, m, keywords, every=False, **more):
    kept = [np.full((len(u), m, *u.shape[1:]), 7, u.dtype) if every else None for _ in range(2)]
    expected = reference.relax_rk(u, numpy_slope(name), parameters, tableau, dt, m, every=kept[1], **keywords)
    out = np.full_like(u, 7)
    assert ops.relax_rk(u, function, parameters, tableau, dt, m, every=kept[0], out=out, **keywords, **more) is out
    assert_same_bits(out, expected)
    if every:
        assert_same_bits(*kept)


@every_name
@every_dtype
@both_abis
@pytest.mark.parametrize("tableau", TABLEAUX.values(), ids=TABLEAUX)
def test_the_bits_of_the_reference(library, name, dtype, lanes, tableau):
    rng, function = np.random.default_rng(1), slope(library, name, dtype, lanes)
    for shape, substeps, mode in itertools.product([(1,), (2,), (5, 3), (33,)], (1, 3), ("", "f", "fg")):
        for choices in ({}, {"dt": 0.01}):  # step sizes of their own, and one for all
            call = arguments(name, shape, dtype, 3, rng, mode, tableau=tableau, substeps=substeps, **choices)
            agree(function, name, *call, every=mode != "f")


@every_dtype
@both_abis
def test_no_thread_count_and_no_instruction_set_changes_a_bit(library, dtype, lanes):
    # States of 9 numbers, 16 steps: more than two shares of the work a thread takes. 1501 leaves a tail everywhere.
    rng, function = np.random.default_rng(2), slope(library, "ring", dtype, lanes)
    call = arguments("ring", (1501,), dtype, 16, rng, "fg")
    for instructions in ("baseline", "avx2", "avx512"):
        try:
            with simd(instructions):
                for threads in (1, 2, 5):
                    agree(function, "ring", *call, every=True, threads=threads)
        except pytest.skip.Exception:
            assert instructions != "baseline"


@every_dtype
@both_abis
def test_one_s_own_lorenz_is_the_one_compiled_in(library, dtype, lanes):
    rng = np.random.default_rng(3)
    u, parameters, tableau, dt, m, _ = arguments("lorenz", (37, 2), dtype, 5, rng)
    for steps in (dt, 0.01):
        expected = ops.relax_rk(u, "lorenz", parameters, tableau, steps, m, substeps=2)
        own = ops.relax_rk(u, slope(library, "lorenz", dtype, lanes), parameters, tableau, steps, m, substeps=2)
        assert_same_bits(own, expected)


@both_abis
def test_times_of_a_uniform_grid_are_those_of_its_points(library, lanes):
    rng, function = np.random.default_rng(4), slope(library, "forced", lanes=lanes)
    uniform = UniformTimes(0.3, 1.9, 60, 4, 7)
    call = arguments("forced", (6,), "float64", 3, rng, times=uniform, dt=0.03)
    agree(function, "forced", *call)
    points = 4 + 7 * np.arange(6)[:, None] + np.arange(3)
    assert_same_bits(uniform.of(6, 3), 0.3 + 1.9 * (points / 60))


@both_abis
def test_without_times_the_time_is_nan(library, lanes):
    u, parameters, tableau, dt, m, _ = arguments("forced", (4,), "float64", 2, np.random.default_rng(5))
    assert np.isnan(ops.relax_rk(u, slope(library, "forced", lanes=lanes), parameters, tableau, dt, m)).all()


@both_abis
def test_strides_and_in_place(library, lanes):
    rng, function = np.random.default_rng(6), slope(library, "ring", lanes=lanes)
    u, parameters, tableau, dt, m, keywords = arguments("ring", (7, 4), "float64", 3, rng, "fg")
    expected = reference.relax_rk(u, numpy_slope("ring"), parameters, tableau, dt, m, **keywords)
    memory = np.full((7, 8, 18), 7.0)
    view = memory[:, ::2, ::2]
    view[...] = u
    wide = {"times": np.repeat(keywords["times"], 2, 1)[:, ::2], "f": keywords["f"], "g": keywords["g"]}
    wide["f"] = np.asfortranarray(keywords["f"])
    ops.relax_rk(view, function, parameters, tableau, np.asfortranarray(dt), m, out=view, **wide)
    assert_same_bits(np.ascontiguousarray(view), expected)
    assert (memory[:, 1::2] == 7).all()
    assert (memory[..., 1::2] == 7).all()


@every_dtype
@both_abis
@pytest.mark.parametrize("name", ["forced", "ring"])
def test_some_states_kept_and_norms_on_the_way(library, name, dtype, lanes):
    rng, function = np.random.default_rng(10), slope(library, name, dtype, lanes)
    for shape, rows in (((37,), 2), ((1,), 3), ((5, 2), 1)):
        u, *positional, keywords = arguments(name, shape, dtype, 6, rng, "f")
        found = []
        for module, rhs in ((ops, function), (reference, numpy_slope(name))):
            every, norms = np.full((len(u), rows, *u.shape[1:]), 7, u.dtype), np.full(len(u), 7.0)
            more = keywords | {"every": every, "target": u, "norms": norms, "norm": "sum_abs"}
            found.append((module.relax_rk(u, rhs, *positional, **more), every, norms))
        assert_same_bits(found[0][1], found[1][1])
        assert_same_bits(found[0][2], found[1][2])
        assert found[0][2].min() > 0


def test_large_states(library, tmp_path):
    # A row of oscillators: 700 components, so the tile of a function of lanes is one vector wide.
    text = """
    void chain(double t, const double* u, double* du, const double* p) {
      for (int i = 0; i < 700; ++i) du[i] = p[0] * ((i ? u[i - 1] : 0) - u[i]) + t;
    }
    void chain_lanes(long n, const double* t, const double* u, double* du, const double* p) {
      for (int i = 0; i < 700; ++i)
        for (long l = 0; l < n; ++l) du[i * n + l] = p[0] * ((i ? u[(i - 1) * n + l] : 0) - u[i * n + l]) + t[l];
    }"""
    (tmp_path / "chain.c").write_text(text)
    subprocess.run([*compiler(), "-O2", "-fPIC", "-shared", "-ffp-contract=off", "chain.c", "-o", "chain.so"],
                   cwd=tmp_path, check=True)  # fmt: skip
    chain = ctypes.CDLL(str(tmp_path / "chain.so"))
    rng = np.random.default_rng(7)
    u, times = rng.standard_normal((19, 700)), rng.random((19, 2))

    def plain(t, v, p):
        left = np.concatenate([np.zeros_like(v[..., :1]), v[..., :-1]], -1)
        return p[0] * (left - v) + t

    expected = reference.relax_rk(u, plain, (0.7,), tableaux.RK4, 0.01, 2, times=times)
    for name, lanes in (("chain", False), ("chain_lanes", True)):
        address = ctypes.cast(getattr(chain, name), ctypes.c_void_p).value
        function = SlopeFunction(address, 700, dtype="float64", lanes=lanes)
        for threads in (1, 2):
            got = ops.relax_rk(u, function, (0.7,), tableaux.RK4, 0.01, 2, times=times, threads=threads)
            assert_same_bits(got, expected)


@every_dtype
@both_abis
def test_called_from_python_it_is_the_slope(library, dtype, lanes):
    rng = np.random.default_rng(8)
    u, t = states(rng, "forced", (4, 3), dtype), rng.random((4, 1, 1)).astype(dtype)
    got = slope(library, "forced", dtype, lanes)(t, u, PARAMETERS["forced"])
    assert_same_bits(got, numpy_slope("forced")(t, u, None))
    # So it is a right-hand side for the reference as well.
    more = (PARAMETERS["forced"], tableaux.RK4, 0.1, 2)
    function = slope(library, "forced", dtype, lanes)
    expected = reference.relax_rk(u, function, *more, times=np.ones((4, 2)))
    assert_same_bits(ops.relax_rk(u, function, *more, times=np.ones((4, 2))), expected)


@every_dtype
@both_abis
@every_name
def test_numba(name, dtype, lanes):
    pytest.importorskip("numba")

    def lorenz(t, u, du, p):
        x, y, z = u[0], u[1], u[2]
        du[0] = p[0] * (y - x)
        du[1] = p[1] * x - y - x * z
        du[2] = x * y - p[2] * z

    def forced(t, u, du, p):
        du[0] = u[1] * t
        du[1] = p[0] * u[0] + t * t - p[1] * u[1]

    def ring(t, u, du, p):
        for i in range(9):
            du[i] = p[0] * (u[(i + 1) % 9] - u[i]) + t * u[i]

    plain = {"lorenz": lorenz, "forced": forced, "ring": ring}[name]
    function = numba_slope(plain, COMPONENTS[name], len(PARAMETERS[name]), dtype=dtype, lanes=lanes)
    assert (function.dtype, function.lanes) == (dtype, lanes)
    rng = np.random.default_rng(9)
    agree(function, name, *arguments(name, (21,), dtype, 4, rng, "fg", substeps=2), every=True)


def test_what_a_cfunc_says_of_itself_is_checked():
    numba = pytest.importorskip("numba")
    number, pointer = numba.types.float64, numba.types.CPointer(numba.types.float64)

    @numba.cfunc(numba.types.void(number, pointer, pointer))
    def short(t, u, du):
        du[0] = u[0]

    with pytest.raises(TypeError, match=r"^source: got None \(c_double, LP_c_double, LP_c_double\), expected void"):
        SlopeFunction(short, 1)

    @numba.cfunc(numba.types.void(number, pointer, pointer, pointer))
    def fine(t, u, du, p):
        du[0] = u[0]

    with pytest.raises(TypeError, match=r"^source: got a function of float64, expected float32$"):
        SlopeFunction(fine, 1, dtype="float32")
    assert SlopeFunction(fine, 1).dtype == "float64"


def test_numba_is_asked_for_by_name(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ImportError, match=r"pip install 'pyparareal\[numba\]'"):
        numba_slope(lambda t, u, du, p: None, 1)
    with pytest.raises(ValueError, match=r"^dtype: got 'float16', expected one of float64, float32$"):
        numba_slope(lambda t, u, du, p: None, 1, dtype="float16")


def test_sources(library):
    function = c_function(library, "lorenz")
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert SlopeFunction(function, 3).address == SlopeFunction(address, 3, dtype="float64").address == address
    pythonapi = ctypes.pythonapi
    new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    capsule = lambda name: new(("PyCapsule_New", pythonapi))(address, name, None)  # noqa: E731
    names = {
        b"void (double, double const *, double *, double const *)": ("float64", False),
        b"void (float, float const *, float *, float const *)": ("float32", False),
        b"void (int64_t, double const *, double const *, double *, double const *)": ("float64", True),
    }
    for name, (dtype, lanes) in names.items():
        found = SlopeFunction(capsule(name), 3)
        assert (found.address, found.dtype, found.lanes) == (address, dtype, lanes)
    for name in (
        b"double (double)",
        b"void (double, double *, double *)",
        b"void (float, double *, double *, float *)",
    ):
        with pytest.raises(TypeError, match=r"^source: got a capsule named '.*', expected void \(T, const T\*"):
            SlopeFunction(capsule(name), 3)


def test_mistakes(library):
    function = c_function(library, "lorenz")
    pointer = ctypes.POINTER(ctypes.c_double)
    for source, error, message in (
        (1.5, TypeError, "^source: got float, expected a Numba cfunc, a PyCapsule"),
        (True, TypeError, "^source: got bool, expected"),
        (0, ValueError, "^source: got 0, expected the address of a function$"),
        (1234, ValueError, "^dtype: got None, expected float64 or float32, because an address does not tell it$"),
        (library.lorenz_double, TypeError, r"^source: got c_int \(\), expected void \(T, const T\*"),
        (ctypes.CFUNCTYPE(None, ctypes.c_double, pointer, pointer, pointer)(lambda t, u, du, p: None), TypeError,
         "^source: got a Python function behind ctypes, expected compiled code; give it as rhs$"),
        (ctypes.CFUNCTYPE(None, ctypes.c_double, pointer, pointer, pointer)(), ValueError,
         "^source: got 0, expected the address of a function$"),
        (SimpleNamespace(address=0, ctypes=function), ValueError,
         "^source: got 0, expected the address of a function$"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            SlopeFunction(source, 3)
    with pytest.raises(ValueError, match=r"^components: got 0, expected 1 or more$"):
        SlopeFunction(function, 0)
    for name in ("components", "parameters"):
        with pytest.raises(TypeError, match=rf"^{name}: got bool, expected an int$"):
            SlopeFunction(function, **({"components": 3} | {name: True}))
    with pytest.raises(ValueError, match=r"^parameters: got -1, expected 0 or more$"):
        SlopeFunction(function, 3, parameters=-1)
    with pytest.raises(TypeError, match=r"^components: got float, expected an int$"):
        SlopeFunction(function, 3.0)
    with pytest.raises(ValueError, match=r"^dtype: got 'float16', expected one of float64, float32$"):
        SlopeFunction(function, 3, dtype="float16")
    with pytest.raises(TypeError, match=r"^source: got a function without lanes, expected lanes=True$"):
        SlopeFunction(function, 3, lanes=True)


@both_abis
def test_a_count_of_parameters_that_is_known_is_checked(library, lanes):
    source, lorenz = c_function(library, "lorenz", lanes=lanes), PARAMETERS["lorenz"]
    known, out, u = SlopeFunction(source, 3, parameters=3), np.full((4, 3), 7.0), np.ones((4, 3))
    assert known.parameters == 3
    for given in ((), lorenz[:2], (*lorenz, 1.0)):
        message = rf"^parameters: got {len(given)} numbers, expected 3 for SlopeFunction\(3 components, 3 parameters, f"
        with pytest.raises(ValueError, match=message):
            ops.relax_rk(u, known, given, tableaux.RK4, 0.1, 2, out=out)
        with pytest.raises(ValueError, match=message):
            known(0.0, u, given)
    for given, kind in ((2.0, "float"), (None, "NoneType")):
        with pytest.raises(TypeError, match=rf"^parameters: got {kind}, expected a sequence of floats$"):
            ops.relax_rk(u, known, given, tableaux.RK4, 0.1, 2, out=out)
        with pytest.raises(TypeError, match=rf"^parameters: got {kind}, expected a sequence of floats$"):
            known(0.0, u, given)
    assert (out == 7).all()
    same = ops.relax_rk(u, SlopeFunction(source, 3), lorenz, tableaux.RK4, 0.1, 2)
    assert_same_bits(ops.relax_rk(u, known, lorenz, tableaux.RK4, 0.1, 2), same)


@every_dtype
@both_abis
def test_where_the_count_is_not_known_zeros_follow(tmp_path, dtype, lanes):
    # A function that reads 64 numbers: du = p[0] + 2 p[1] + ... + 64 p[63], whole numbers in both dtypes.
    text = """
    #include <stdint.h>
    void one(T t, const T* u, T* du, const T* p) { *du = 0; for (int i = 0; i < 64; ++i) *du += (i + 1) * p[i]; }
    void many(int64_t n, const T* t, const T* u, T* du, const T* p) {
      for (int64_t l = 0; l < n; ++l) one(t[l], u + l, du + l, p);
    }"""
    (tmp_path / "sum.c").write_text(text)
    number = "-DT=double" if dtype == "float64" else "-DT=float"
    subprocess.run([*compiler(), "-O2", "-fPIC", "-shared", number, "sum.c", "-o", "sum.so"], cwd=tmp_path, check=True)
    library = ctypes.CDLL(str(tmp_path / "sum.so"))
    address = ctypes.cast(library.many if lanes else library.one, ctypes.c_void_p).value
    unknown = SlopeFunction(address, 1, dtype=dtype, lanes=lanes)
    u = np.zeros((1, 1), dtype)
    for given, expected in (((), 0), ((2.0,), 2), ((2.0, 1.0), 4), ((1.0,) * 64, 2080), ((1.0,) * 70, 2080)):
        assert ops.relax_rk(u, unknown, given, tableaux.EULER, 1.0, 1) == expected
        assert unknown(0.0, u, given) == expected


def test_numba_keeps_its_count_of_parameters():
    numba = pytest.importorskip("numba")

    def decay(t, u, du, p):
        du[0] = p[0] * u[0] + p[1]

    function = numba_slope(decay, 1, 2)
    assert function.parameters == 2
    for given in ((), (1.0,), (1.0, 2.0, 3.0)):
        with pytest.raises(ValueError, match=rf"^parameters: got {len(given)} numbers, expected 2 for SlopeFunction"):
            ops.relax_rk(np.ones((1, 1, 1)), function, given, tableaux.EULER, 0.1, 1)
    assert numba_slope(lambda t, u, du, p: None, 1).parameters == 0
    # Of a function that is compiled already, the Python code.
    again = numba_slope(numba.njit(decay), 1, 2)
    call = ((0.5, 0.25), tableaux.RK4, 0.1, 3)
    u = np.ones((5, 1))
    assert_same_bits(ops.relax_rk(u, again, *call), ops.relax_rk(u, function, *call))


def test_mistakes_of_a_numba_slope():
    numba = pytest.importorskip("numba")

    def unknown_name(t, u, du, p):
        du[0] = speed  # noqa: F821

    with pytest.raises(TypeError, match=r"^function: got int, expected a Python function of t, u, du and p$"):
        numba_slope(3, 3)
    with pytest.raises(ValueError, match=r"^parameters: got -1, expected 0 or more$"):
        numba_slope(unknown_name, 3, -1)
    with pytest.raises(TypeError, match=r"^components: got bool, expected an int$"):
        numba_slope(unknown_name, True)
    for function in (unknown_name, numba.njit(unknown_name)):
        message = r"^function: got unknown_name, expected what Numba compiles; it says:\n(?s:.)*'speed'"
        with pytest.raises(ValueError, match=message) as caught:
            numba_slope(function, 3)
        assert isinstance(caught.value.__cause__, numba.core.errors.TypingError)
    with pytest.raises(ValueError, match=r"^function: got <lambda>, expected what Numba compiles"):
        numba_slope(lambda t, u: None, 3)


def test_calls_that_are_refused(library):
    function, lorenz = slope(library, "lorenz"), PARAMETERS["lorenz"]
    u, out = np.ones((4, 3)), np.full((4, 3), 7.0)

    def call(state=u, rhs=function, parameters=lorenz, tableau=tableaux.RK4, dt=0.1, **keywords):
        ops.relax_rk(state, rhs, parameters, tableau, dt, 2, out=out, **keywords)

    for error, message, changes in (
        (TypeError, "^rhs: got a function of float32, expected float64 like u$",
         {"rhs": slope(library, "lorenz", "float32")}),
        (ValueError, r"^u: got shape \[4, 2\], expected 3 components on the last axis$", {"state": np.ones((4, 2))}),
        (TypeError, "^parameters: got str, expected a float$", {"parameters": ("1",)}),
        (TypeError, "^times: got dtype float32, expected float64$", {"times": np.ones((4, 2), "f4")}),
        (ValueError, r"^times: got shape \[4, 3\], expected \[4, 2\], slices and m$", {"times": np.ones((4, 3))}),
        (ValueError, "^times: got ndarray, expected None: lorenz does not depend on the time$",
         {"rhs": "lorenz", "times": np.ones((4, 2))}),
        (ValueError, "^rhs: got 3, expected one of dahlquist", {"rhs": 3}),
        (TypeError, "^times: got tuple, expected an array or UniformTimes$", {"times": (0.0, 1.0)}),
        (TypeError, "^times: got tuple, expected an array or UniformTimes$", {"times": (0.0, 1.0, 3, 0, 1)}),
        (TypeError, r"^times: got UniformTimes\(t0='a', .*\), expected t0 and span as floats and the rest as ints$",
         {"times": UniformTimes("a", 1.0, 3, 0, 1)}),
        (TypeError, r"^times: got UniformTimes\(.*steps=3.5, .*\), expected t0 and span as floats and the rest as",
         {"times": UniformTimes(0.0, 1.0, 3.5, 0, 1)}),
        (ValueError, r"^times: got UniformTimes\(.*steps=-3, .*\), expected 1 step or more$",
         {"times": UniformTimes(0.0, 1.0, -3, 0, 1)}),
        (ValueError, "^tableau.c: got 1.0, expected 4 numbers for one's own right-hand side$",
         {"tableau": SimpleNamespace(a=tableaux.RK4.a, b=tableaux.RK4.b, c=1.0)}),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call(**changes)
    nodeless = type("Nodeless", (), {"a": ((),), "b": (1.0,)})
    with pytest.raises(ValueError, match=r"^tableau.c: got None, expected 1 numbers for one's own right-hand side$"):
        call(tableau=nodeless)
    assert (out == 7).all()
    call()
    assert (out != 7).all()
