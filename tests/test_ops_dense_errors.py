# SPDX-License-Identifier: BSD-3-Clause
"""What ``relax_dense`` and its adjoint refuse: each message names the argument, what it got and what was expected."""

import numpy as np
import pytest

from pyparareal import ops

WEIGHT, BIAS, STEPS = np.zeros((2, 3, 4, 4)), np.zeros((2, 3, 4)), np.zeros((2, 3, 5, 4))
SHARED = np.zeros((3, 5, 4))


def call(**changed):
    given = {"u": np.zeros((2, 5, 4)), "weight": WEIGHT, "bias": BIAS, "h": 0.1, "m": 3} | changed
    first = [given.pop(name) for name in ("u", "weight", "bias", "h", "m")]
    return ops.relax_dense(*first, **given)


def adjoint(**changed):
    given = {"v": np.zeros((2, 5, 4)), "weight": WEIGHT, "slopes": STEPS, "m": 3} | changed
    first = [given.pop(name) for name in ("v", "weight", "slopes", "m")]
    return ops.relax_dense_adjoint(*first, **given)


REFUSED = {
    "float16": ({"u": np.zeros((2, 5, 4), np.float16)}, TypeError, "u: got dtype float16, expected float64 or float32"),
    "one axis": ({"u": np.zeros(4)}, ValueError, "u: got 1 axes, expected 2 to 7"),
    "features": (
        {"u": np.zeros((2, 5, 3))}, ValueError, r"weight: got shape \[2, 3, 4, 4\], expected \[slices, m, d, d\] of m",
    ),
    "steps": ({"weight": WEIGHT[:, :2]}, ValueError, r"weight: got shape \[2, 2, 4, 4\], .* of m = 3 steps of u \[2, "),
    "slices": ({"weight": WEIGHT[:1]}, ValueError, r"weight: got shape \[1, 3, 4, 4\]"),
    "not square": ({"weight": WEIGHT[..., :3, :]}, ValueError, r"weight: got shape \[2, 3, 3, 4\]"),
    "weight axes": ({"weight": WEIGHT[0]}, ValueError, r"weight: got shape \[3, 4, 4\]"),
    "weight dtype": ({"weight": WEIGHT.astype("f4")}, TypeError, "weight: got dtype float32, expected float64 like u"),
    "weight a number": ({"weight": 1.0}, TypeError, "weight: got float, expected a NumPy"),
    "too wide": ({"u": np.zeros((2, 1, 16385))}, ValueError, "u: got 16385 features, expected 16384 at most"),
    "bias": ({"bias": BIAS[..., :3]}, ValueError, r"bias: got shape \[2, 3, 3\], expected \[slices, m, d\] of m = 3"),
    "bias axes": ({"bias": BIAS[0]}, ValueError, r"bias: got shape \[3, 4\]"),
    "bias dtype": ({"bias": BIAS.astype("f4")}, TypeError, "bias: got dtype float32, expected float64 like u"),
    "h": ({"h": "0.1"}, TypeError, "h: got str, expected a float"),
    "activation": ({"activation": "gelu"}, ValueError, "activation: got 'gelu', expected one of tanh, relu, smooth_r"),
    "activation kind": ({"activation": [1]}, ValueError, r"activation: got \[1\], expected one of tanh"),
    "no steps": ({"m": 0}, ValueError, "m: got 0, expected 1 or more"),
    "half a step": ({"m": 1.5}, TypeError, "m: got float, expected an int"),
    "slopes": ({"slopes": STEPS[:, :1]}, ValueError, r"slopes: got shape \[2, 1, 5, 4\], expected \[slices, m, ...\]"),
    "slopes dtype": ({"slopes": STEPS.astype("f4")}, TypeError, "slopes: got dtype float32, expected float64 like u"),
    "slopes repeat": ({"slopes": np.broadcast_to(STEPS[:1], STEPS.shape)}, ValueError, "slopes: "),
    "slopes are f": ({"slopes": STEPS, "f": STEPS}, ValueError, "slopes: overlaps f, expected no common element"),
    "slopes are every": ({"slopes": STEPS, "every": STEPS}, ValueError, "slopes: overlaps every, expected no common"),
    "g alone": ({"g": STEPS}, ValueError, "g: got an array, expected f as well"),
    "every": ({"every": STEPS[:, :2]}, ValueError, r"every: got shape \[2, 2, 5, 4\], expected \[slices, m"),
    "overlap": ({"u": SHARED[:2], "out": SHARED[1:]}, ValueError, "out: overlaps u partially"),
    "norm": ({"norm": "rms"}, ValueError, "norm: got 'rms', expected one of sum_squares"),
    "threads": ({"threads": -1}, ValueError, "threads: got -1"),
}  # fmt: skip
ADJOINT_REFUSED = {
    "float16": ({"v": np.zeros((2, 5, 4), np.float16)}, TypeError, "v: got dtype float16, expected float64 or"),
    "weight": ({"weight": WEIGHT[:, :2]}, ValueError, r"weight: got shape \[2, 2, 4, 4\], .* of m = 3 steps of v \[2"),
    "slopes": ({"slopes": STEPS[:1]}, ValueError, r"slopes: got shape \[1, 3, 5, 4\], .* of m = 3 steps of v \[2"),
    "no slopes": ({"slopes": None}, TypeError, "slopes: got NoneType"),
    "slopes dtype": ({"slopes": STEPS.astype("f4")}, TypeError, "slopes: got dtype float32, expected float64 like v"),
    "scale": ({"scale": None}, TypeError, "scale: got NoneType, expected a float"),
    "out": ({"out": np.zeros((5, 4))}, ValueError, r"out: got shape \[5, 4\], expected \[2, 5, 4\] like v"),
    "every is slopes": ({"every": STEPS}, ValueError, "every: overlaps slopes, expected no common element"),
    "no steps": ({"m": 0}, ValueError, "m: got 0, expected 1 or more"),
    "threads": ({"threads": -1}, ValueError, "threads: got -1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_argument_is_named(name):
    changed, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call(**changed)


@pytest.mark.parametrize("name", ADJOINT_REFUSED)
def test_a_wrong_argument_of_the_adjoint_is_named(name):
    changed, error, message = ADJOINT_REFUSED[name]
    with pytest.raises(error, match=message):
        adjoint(**changed)


def test_an_output_may_not_be_what_others_still_read():
    weight = np.zeros((4, 4, 4, 4))
    u, steps = np.zeros((4, 4)), np.zeros((4, 4, 4))
    with pytest.raises(ValueError, match="out: overlaps weight"):
        ops.relax_dense(u, weight, None, 0.1, 4, out=weight[0, 0])
    with pytest.raises(ValueError, match="every: overlaps bias, expected no common element"):
        ops.relax_dense(u, weight, steps, 0.1, 4, every=steps)
    with pytest.raises(ValueError, match="out: overlaps weight"):
        ops.relax_dense_adjoint(u, weight, steps, 4, out=weight[0, 0])


def test_nothing_is_written_where_an_argument_is_refused():
    out, slopes = np.full((2, 5, 4), 7.0), np.full_like(STEPS, 7)
    with pytest.raises(ValueError, match="bias"):
        call(bias=BIAS[:1], out=out, slopes=slopes)
    with pytest.raises(ValueError, match="weight"):
        adjoint(weight=WEIGHT[:1], out=out)
    assert (out == 7).all()
    assert (slopes == 7).all()


def test_gradients_of_torch_are_refused_by_name():
    torch = pytest.importorskip("torch")
    weight = torch.zeros(1, 3, 4, 4, requires_grad=True)
    with pytest.raises(ValueError, match="weight: "):
        ops.relax_dense(torch.zeros(1, 2, 4), weight, None, 0.1, 3)
