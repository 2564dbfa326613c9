# SPDX-License-Identifier: BSD-3-Clause
"""What ``relax_mlp_sgd`` refuses: each message names the argument, what it got and what was expected."""

import numpy as np
import pytest

from pyparareal import ops

X, Y = np.zeros((4, 3)), np.zeros((4, 1))
SHARED = np.zeros((3, 2, 16))


def call(**changed):
    given = {"u": np.zeros((2, 16)), "sizes": (3, 4, 1), "x": X, "y": Y, "alpha": 1.0, "m": 2} | changed
    first = [given.pop(name) for name in ("u", "sizes", "x", "y", "alpha", "m")]
    return ops.relax_mlp_sgd(*first, **given)


REFUSED = {
    "float16": ({"u": np.zeros((2, 16), np.float16)}, TypeError, "u: got dtype float16, expected float64 or float32"),
    "integers": ({"u": np.zeros((2, 16), np.int64)}, TypeError, "out: got dtype int64, expected float64"),
    "one axis": ({"u": np.zeros(16)}, ValueError, "u: got 1 axes, expected 2 to 7"),
    "weights": ({"u": np.zeros((2, 15))}, ValueError, r"u: got shape \[2, 15\], expected 16 weights .* as of sizes"),
    "bias": ({"bias": True}, ValueError, r"u: got shape \[2, 16\], expected 21 weights"),
    "no layers": ({"sizes": (3,)}, ValueError, "sizes: got 0 layers, expected 1 to 8"),
    "no sizes": ({"sizes": ()}, ValueError, "sizes: got -1 layers, expected 1 to 8"),
    "many layers": ({"sizes": (1,) * 10}, ValueError, "sizes: got 10 numbers, expected 9 at most"),
    "no neurons": ({"sizes": (3, 0, 1)}, ValueError, "sizes: got 0, expected 1 to 1048576 neurons"),
    "huge": ({"sizes": (1 << 20, 1 << 20)}, ValueError, "sizes: got 1099511627776 weights, expected 268435456"),
    "half a neuron": ({"sizes": (3, 4.5, 1)}, TypeError, "sizes: got float, expected an int"),
    "not a sequence": ({"sizes": 3}, TypeError, "sizes: got int, expected a sequence"),
    "x dtype": ({"x": X.astype(np.float32)}, TypeError, "x: got dtype float32, expected float64 like u"),
    "x features": ({"x": np.zeros((4, 2))}, ValueError, r"x: got shape \[4, 2\], expected \[4, 3\], examples"),
    "x axes": ({"x": np.zeros((4, 3, 1))}, ValueError, r"x: got shape \[4, 3, 1\], expected \[4, 3\]"),
    "no examples": ({"x": X[:0], "y": Y[:0]}, ValueError, r"x: got shape \[0, 3\], expected \[1, 3\]"),
    "x a number": ({"x": 1.0}, TypeError, "x: got float, expected a NumPy"),
    "y features": ({"y": np.zeros((4, 2))}, ValueError, r"y: got shape \[4, 2\], expected \[4, 1\]"),
    "y rows": ({"y": np.zeros((5, 1))}, ValueError, r"y: got shape \[5, 1\], expected \[4, 1\]"),
    "no steps": ({"m": 0}, ValueError, "m: got 0, expected 1 or more"),
    "nan": ({"alpha": float("nan")}, ValueError, "alpha: got nan, expected finite"),
    "infinite": ({"alpha": np.array([[1, 1], [1, np.inf]])}, ValueError, "alpha: got inf, expected finite"),
    "alpha dtype": ({"alpha": np.ones((2, 2), np.float32)}, TypeError, "alpha: got dtype float32, expected float64"),
    "alpha shape": ({"alpha": np.ones((2, 3))}, ValueError, r"alpha: got shape \[2, 3\], expected \[2, 2\], slices"),
    "first dtype": ({"first": np.zeros((2, 2))}, TypeError, "first: got dtype float64, expected int64"),
    "first int32": ({"first": np.zeros((2, 2), np.int32)}, TypeError, "first: got dtype int32"),
    "first shape": ({"first": np.zeros((2, 1), np.int64)}, ValueError, r"first: got shape \[2, 1\], expected \[2, 2\]"),
    "first above": ({"first": np.array([[0, 3], [4, 0]])}, ValueError, "first: got example 4, expected 0 to 3"),
    "first below": ({"first": np.array([[0, 3], [-1, 0]])}, ValueError, "first: got example -1, expected 0 to 3"),
    "count": ({"count": 3}, ValueError, "count: got 3 without first, expected all 4 examples"),
    "count above": ({"first": np.zeros((2, 2), np.int64), "count": 5}, ValueError, "count: got 5, expected 1 to the 4"),
    "count below": ({"first": np.zeros((2, 2), np.int64), "count": 0}, ValueError, "count: got 0, expected 1 to the 4"),
    "hidden": ({"hidden": "gelu"}, ValueError, "hidden: got 'gelu', expected one of identity, relu, sigmoid, tanh"),
    "last": ({"last": None}, ValueError, "last: got None, expected one of"),
    "g alone": ({"g": np.zeros((2, 2, 16))}, ValueError, "g: got an array, expected f as well"),
    "f shape": ({"f": np.zeros((2, 16))}, ValueError, r"f: got shape \[2, 16\], expected \[slices, m, ...\] of m = 2"),
    "overlap": ({"u": SHARED[:2, 0], "out": SHARED[1:, 0]}, ValueError, "out: overlaps u partially"),
    "threads": ({"threads": -1}, ValueError, "threads: got -1"),
    "read-only": ({"out": np.broadcast_to(np.zeros(16), (2, 16))}, ValueError, "out: is read-only"),
}  # fmt: skip


@pytest.mark.parametrize(("changed", "error", "message"), REFUSED.values(), ids=list(REFUSED))
def test_refused(changed, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call(**changed)


def test_outputs_may_not_lie_in_the_examples():
    store = np.zeros(64)
    with pytest.raises(ValueError, match=r"^out: overlaps x partially"):
        call(x=store[:12].reshape(4, 3), out=store[8:40].reshape(2, 16))
    assert not store.any()


def test_indices_are_no_states():
    with pytest.raises(TypeError, match=r"^u: got dtype int64, expected float64"):
        ops.slice_norms(np.zeros((2, 3), np.int64))
