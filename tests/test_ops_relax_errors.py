# SPDX-License-Identifier: BSD-3-Clause
"""Every mistake of a caller of the relaxations: argument, got, expected; and nothing was written."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from ops_backends import BFLOAT16
from relax_calls import DTYPES, OPS, PARAMETERS, arguments

from pyparareal import ops, tableaux

every_op = pytest.mark.parametrize("op", OPS)
LORENZ = ("lorenz", PARAMETERS["lorenz"], tableaux.RK4, 0.01)


def call(op, m=2, **changes):
    """A call with ``changes`` of its arguments, and its outputs, filled with sevens."""
    u, positional, keywords = arguments(op, (4, 3), np.float64, m, np.random.default_rng(1))
    names = {
        "relax_diagonal": ("a", "m"),
        "relax_tridiagonal": ("ratio", "scale", "coupling", "m"),
        "relax_stencil": ("weights", "m"),
        "relax_rk": ("rhs", "parameters", "tableau", "dt", "m"),
    }[op]
    given = {"u": u, **dict(zip(names, positional, strict=True)), **keywords, "out": np.full((4, 3), 7.0)}
    given |= changes
    first = [given.pop(name) for name in ("u", *names)]
    outputs = [x for name, x in given.items() if name in ("out", "every") and isinstance(x, np.ndarray)]
    return lambda: getattr(ops, op)(*first, **given), outputs


def refuses(error, message, op, **changes):
    run, outputs = call(op, **changes)
    before = [x.copy() for x in outputs]
    with pytest.raises(error, match=message):
        run()
    for x, old in zip(outputs, before, strict=True):
        assert np.array_equal(x, old), "written in spite of the error"


@every_op
@pytest.mark.parametrize("dtype", ["float16", BFLOAT16], ids=str)
def test_16_bits(op, dtype):
    changes = {"u": np.ones((4, 3), dtype), "out": np.full((4, 3), 7, dtype)}
    message = (
        rf"^u: got dtype {np.dtype(dtype)}, expected float64 or float32: relaxations do not round every step to 16"
    )
    refuses(TypeError, message, op, **changes)


@every_op
@pytest.mark.parametrize(("shape", "axes"), [((4,), 1), ((1,) * 8, 8)])
def test_axes(op, shape, axes):
    message = rf"^u: got {axes} axes, expected 2 to 7: \[slices, batch, features...\]$"
    refuses(ValueError, message, op, u=np.ones(shape), out=np.full(shape, 7.0))


@every_op
@pytest.mark.parametrize("m", [0, -3])
def test_steps(op, m):
    changes = {"dt": 0.01} if op == "relax_rk" else {}
    refuses(ValueError, f"^m: got {m}, expected 1 or more$", op, m=m, **changes)


@every_op
def test_steps_are_an_integer(op):
    refuses(TypeError, "^m: got float, expected an int$", op, **{"m": 2.0})


@every_op
@pytest.mark.parametrize("name", ["f", "g", "every"])
def test_right_hand_sides(op, name):
    good = np.zeros((4, 2, 3))
    others = {"f": good} if name == "g" else {}
    rows = ", or a divisor of m in place of m" if name == "every" else ""
    for shape in ((4, 3), (4, 3, 3), (4, 0, 3), (4, 2, 1, 3), (3, 2, 3), (4, 2, 4)):
        got = re.escape(str(list(shape)))
        message = rf"^{name}: got shape {got}, expected \[slices, m, ...\] of m = 2 steps of u \[4, 3\]{rows}$"
        refuses(ValueError, message, op, **others, **{name: np.zeros(shape)})
    refuses(TypeError, f"^{name}: got dtype float32, expected float64 like u$", op, **others,
            **{name: np.zeros((4, 2, 3), np.float32)})  # fmt: skip
    refuses(TypeError, f"^{name}: got list, expected a NumPy, CuPy or torch array", op, **others, **{name: [1.0]})


@every_op
def test_a_pair_without_its_first(op):
    refuses(ValueError, "^g: got an array, expected f as well$", op, g=np.zeros((4, 2, 3)))


@every_op
def test_outputs(op):
    refuses(ValueError, r"^out: got shape \[4, 4\], expected \[4, 3\] like u$", op, out=np.full((4, 4), 7.0))
    refuses(TypeError, "^out: got dtype float32, expected float64 like u$", op, out=np.full((4, 3), 7, "f4"))
    read_only = np.full((4, 2, 3), 7.0)
    read_only.flags.writeable = False
    refuses(ValueError, "^every: is read-only, expected a writable array$", op, every=read_only)
    repeated = np.broadcast_to(np.full((4, 1, 3), 7.0), (4, 2, 3))
    repeated.flags.writeable = True
    refuses(ValueError, "^every: got a zero stride on axis 1, expected an output without repetition$", op,
            every=repeated)  # fmt: skip
    refuses(ValueError, "^threads: got -1, expected 0", op, threads=-1)


@every_op
def test_overlaps(op):
    common = "partially, expected the same view or no common element$"
    memory = np.full(64, 7.0)
    refuses(ValueError, f"^out: overlaps u {common}", op, u=memory[1:13].reshape(4, 3), out=memory[:12].reshape(4, 3))
    out = {"out": memory[:12].reshape(4, 3)}
    shared = memory[:24].reshape(4, 2, 3)
    refuses(ValueError, f"^out: overlaps f {common}", op, f=shared, **out)
    refuses(ValueError, f"^out: overlaps g {common}", op, f=np.zeros((4, 2, 3)), g=shared, **out)
    refuses(ValueError, f"^out: overlaps every {common}", op, every=shared, **out)
    refuses(ValueError, f"^every: overlaps u {common}", op, u=memory[:12].reshape(4, 3), every=shared)
    refuses(ValueError, f"^every: overlaps f {common}", op, f=memory[1:25].reshape(4, 2, 3), every=shared)
    # With one step `out` and `f` would be the same elements, yet not the same view.
    refuses(ValueError, f"^out: overlaps f {common}", op, m=1, f=memory[:12].reshape(4, 1, 3), **out)


@pytest.mark.parametrize(("op", "name"), [
    ("relax_diagonal", "a"), ("relax_tridiagonal", "ratio"), ("relax_tridiagonal", "scale"),
    ("relax_tridiagonal", "coupling"), ("relax_stencil", "weights"),
])  # fmt: skip
def test_coefficients(op, name):
    refuses(TypeError, f"^{name}: got dtype float32, expected float64 like u$", op, **{name: np.ones(3, "f4")})
    refuses(TypeError, f"^{name}: got float, expected a NumPy, CuPy or torch array", op, **{name: 1.0})
    out = np.full((4, 3), 7.0)
    refuses(ValueError, f"^out: overlaps {name} partially", op, out=out, **{name: out[1]})
    if op == "relax_diagonal":
        for shape in ((4,), (4, 3), (1, 3), (1,)):
            got = re.escape(str(list(shape)))
            refuses(ValueError, rf"^a: got shape {got}, expected the last axes of u \[4, 3\]$", op, a=np.ones(shape))
        return
    for shape in ((2,), (1, 3), (11,)):
        expected = "an odd number of weights up to 9" if op == "relax_stencil" else r"\[3\], the last axis of u"
        got = re.escape(str(list(shape)))
        refuses(ValueError, f"^{name}: got shape {got}, expected {expected}$", op, **{name: np.ones(shape)})
    refuses(ValueError, f"^{name}: got stride 2, expected a contiguous array$", op, **{name: np.ones(6)[::2]})


@pytest.mark.parametrize("boundary", ["reflect", None, 0])
def test_boundary(boundary):
    message = f"^boundary: got {re.escape(repr(boundary))}, expected zero or periodic$"
    refuses(ValueError, message, "relax_stencil", boundary=boundary)


def test_right_hand_side_and_parameters():
    refuses(ValueError, "^rhs: got 'rossler', expected one of dahlquist, lorenz, brusselator, fitz", "relax_rk",
            rhs="rossler")  # fmt: skip
    refuses(ValueError, "^parameters: got 2 numbers, expected 3 for lorenz$", "relax_rk", parameters=(1.0, 2.0))
    refuses(TypeError, "^parameters: got str, expected a float$", "relax_rk", parameters=(1.0, 2.0, "3"))
    for given, kind in ((2.0, "float"), (None, "NoneType")):
        refuses(TypeError, f"^parameters: got {kind}, expected a sequence of floats$", "relax_rk", parameters=given)
    refuses(ValueError, r"^u: got shape \[4, 3\], expected 2 components on the last axis$", "relax_rk",
            rhs="brusselator", parameters=(1, 3))  # fmt: skip


def test_tableau():
    uneven = SimpleNamespace(a=((), (1.0, 2.0)), b=(0.5, 0.5))
    refuses(ValueError, "^tableau: expected as many rows of a as weights b, row i with the i numbers left", "relax_rk",
            tableau=uneven)  # fmt: skip
    for given, kind in (
        (None, "NoneType with a=None, b=None"),
        ("RK4", "str with a=None, b=None"),
        (SimpleNamespace(a=None, b=(1.0,)), r"SimpleNamespace with a=None, b=\(1.0,\)"),
        (SimpleNamespace(a=(1.0,), b=(1.0,)), r"SimpleNamespace with a=\(1.0,\), b=\(1.0,\)"),
    ):
        message = f"^tableau: got {kind}, expected Butcher's a and b, as in a Tableau$"
        refuses(TypeError, message, "relax_rk", tableau=given)
    short = SimpleNamespace(a=((),), b=(0.5, 0.5))
    refuses(ValueError, "^tableau: expected as many rows", "relax_rk", tableau=short)
    long = SimpleNamespace(a=tuple((0.1,) * i for i in range(12)), b=(0.1,) * 12)
    refuses(ValueError, "^tableau.b: got 12 numbers, expected 11 at most$", "relax_rk", tableau=long)
    refuses(ValueError, "^tableau: got 0 stages, expected 1 to 11$", "relax_rk", tableau=SimpleNamespace(a=(), b=()))
    refuses(TypeError, "^tableau.b: got str, expected a float$", "relax_rk", tableau=SimpleNamespace(a=((),), b=("1",)))


def test_step_sizes():
    refuses(TypeError, "^dt: got dtype float32, expected float64$", "relax_rk", dt=np.ones((4, 2), "f4"))
    for shape in ((4,), (4, 3), (2, 4)):
        got = re.escape(str(list(shape)))
        refuses(ValueError, rf"^dt: got shape {got}, expected \[4, 2\], slices and m$", "relax_rk", dt=np.ones(shape))
    refuses(TypeError, "^dt: got bool, expected a float or an array$", "relax_rk", dt=True)
    refuses(TypeError, "^dt: got str, expected a NumPy, CuPy or torch array", "relax_rk", dt="0.1")
    refuses(ValueError, "^substeps: got 0, expected 1 or more$", "relax_rk", substeps=0)
    refuses(TypeError, "^substeps: got float, expected an int$", "relax_rk", substeps=1.0)


@every_op
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_calls_above_are_fine_but_for_their_mistake(op, dtype):
    run, (out,) = call(op)
    assert run() is out
    assert (out != 7).all()
