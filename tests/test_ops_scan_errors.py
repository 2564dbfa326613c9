# SPDX-License-Identifier: BSD-3-Clause
"""What the scans refuse: each message names the argument, what it got and what was expected."""

import numpy as np
import pytest

from pyparareal import ops

SHARED = np.zeros((6, 2, 3))
BLOCKS = np.zeros((5, 2, 3, 3))

DIAG = {
    "float16": ({"b": np.zeros((5, 3), np.float16)}, TypeError, "b: got dtype float16, expected float64 or float32"),
    "one axis": ({"a": np.zeros(5), "b": np.zeros(5)}, ValueError, "b: got 1 axes, expected 2 to 8"),
    "a dtype": ({"a": np.zeros((5, 2, 3), np.float32)}, TypeError, "a: got dtype float32, expected float64 like b"),
    "a shape": ({"a": np.zeros((5, 2, 1))}, ValueError, r"a: got shape \[5, 2, 1\], expected \[5, 2, 3\] like b"),
    "a a number": ({"a": 0.5}, TypeError, "a: got float, expected a NumPy"),
    "b a number": ({"b": 0.5}, TypeError, "b: got float, expected a NumPy"),
    "start shape": ({"start": np.zeros(3)}, ValueError, r"start: got shape \[3\], expected that of a row of b \[5, "),
    "start axes": ({"start": np.zeros((1, 2, 3))}, ValueError, r"start: got shape \[1, 2, 3\], expected that of a row"),
    "start dtype": ({"start": np.zeros((2, 3), np.float32)}, TypeError, "start: got dtype float32, expected float64"),
    "start a number": ({"start": 0.0}, TypeError, "start: got float, expected a NumPy"),
    "start reverse": (
        {"start": np.zeros((2, 3)), "reverse": True}, ValueError, "start: got an array, expected none with reverse",
    ),
    "out shape": ({"out": np.zeros((4, 2, 3))}, ValueError, r"out: got shape \[4, 2, 3\], expected \[5, 2, 3\] like b"),
    "out dtype": ({"out": np.zeros((5, 2, 3), np.float32)}, TypeError, "out: got dtype float32, expected float64"),
    "out overlaps b": ({"b": SHARED[:5], "out": SHARED[1:]}, ValueError, "out: overlaps b partially"),
    "out is a": ({"a": SHARED[:5], "out": SHARED[:5]}, ValueError, "out: overlaps a, expected no common element"),
    "out has start": ({"start": SHARED[2], "out": SHARED[:5]}, ValueError, "out: overlaps start, expected no common"),
    "out repeats": ({"out": np.lib.stride_tricks.as_strided(np.zeros(6), (5, 2, 3), (0, 24, 8))}, ValueError, "out: "),
    "read-only": ({"out": np.broadcast_to(np.zeros(3), (5, 2, 3))}, ValueError, "out: is read-only"),
    "threads": ({"threads": -1}, ValueError, "threads: got -1"),
    "half a thread": ({"threads": 0.5}, TypeError, "threads: got float, expected an int"),
    "stream": ({"stream": 0}, ValueError, "stream: "),
}  # fmt: skip

BLOCK = {
    "one axis": ({"a": np.zeros((5, 5)), "b": np.zeros(5)}, ValueError, "b: got 1 axes, expected 2 to 7"),
    "eight axes": ({"b": np.zeros((1,) * 8)}, ValueError, "b: got 8 axes, expected 2 to 7"),
    "not square": ({"a": np.zeros((5, 2, 3, 2))}, ValueError, r"a: got shape \[5, 2, 3, 2\], expected \[steps, ..., "),
    "vectors": ({"a": np.zeros((5, 2, 3))}, ValueError, r"a: got shape \[5, 2, 3\], expected \[steps, ..., d, d"),
    "rows": ({"a": np.zeros((4, 2, 3, 3))}, ValueError, r"a: got shape \[4, 2, 3, 3\], expected \[steps, ..., d, d"),
    "a dtype": ({"a": BLOCKS.astype(np.float32)}, TypeError, "a: got dtype float32, expected float64 like b"),
    "start": ({"start": np.zeros((2, 1))}, ValueError, r"start: got shape \[2, 1\], expected that of a row of b"),
    "out in a": ({"a": BLOCKS, "out": BLOCKS[..., 0]}, ValueError, "out: overlaps a, expected no common element"),
}  # fmt: skip


@pytest.mark.parametrize(("changed", "error", "message"), DIAG.values(), ids=DIAG)
def test_diag_refuses(changed, error, message):
    given = {"a": np.zeros((5, 2, 3)), "b": np.zeros((5, 2, 3)), "out": np.full((5, 2, 3), 7.0)} | changed
    before = given["out"].copy()
    with pytest.raises(error, match=f"^{message}"):
        ops.scan_diag(given.pop("a"), given.pop("b"), given.pop("start", None), **given)
    np.testing.assert_array_equal(given["out"], before)


@pytest.mark.parametrize(("changed", "error", "message"), BLOCK.values(), ids=BLOCK)
def test_block_refuses(changed, error, message):
    given = {"a": BLOCKS, "b": np.zeros((5, 2, 3)), "out": np.full((5, 2, 3), 7.0)} | changed
    before = given["out"].copy()
    with pytest.raises(error, match=f"^{message}"):
        ops.scan_block(given.pop("a"), given.pop("b"), given.pop("start", None), **given)
    np.testing.assert_array_equal(given["out"], before)


def test_tensors_that_require_grad_are_refused():
    torch = pytest.importorskip("torch")
    a, b = torch.ones(4, 2, requires_grad=True), torch.ones(4, 2)
    with pytest.raises(ValueError, match=r"^a: requires grad, expected a detached tensor"):
        ops.scan_diag(a, b)


def test_a_start_without_axes_is_refused():
    with pytest.raises((TypeError, ValueError), match=r"^start: "):
        ops.scan_diag(np.zeros((5, 2)), np.zeros((5, 2)), np.array(1.0))
