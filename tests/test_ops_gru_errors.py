# SPDX-License-Identifier: BSD-3-Clause
"""What ``relax_gru`` and its adjoint refuse: each message names the argument, what it got and what was expected."""

import numpy as np
import pytest

from pyparareal import ops

GATES, WEIGHT = np.zeros((2, 3, 5, 12)), np.zeros((12, 4))
SHARED = np.zeros((3, 5, 4))


def call(**changed):
    given = {"u": np.zeros((2, 5, 4)), "gates": GATES, "weight": WEIGHT, "bias": np.zeros(4), "m": 3} | changed
    first = [given.pop(name) for name in ("u", "gates", "weight", "bias", "m")]
    return ops.relax_gru(*first, **given)


def adjoint(**changed):
    given = {"u": np.zeros((2, 3, 5, 4)), "gates": GATES, "weight": WEIGHT, "bias": np.zeros(4)}
    given |= {"d_end": np.zeros((2, 5, 4))} | changed
    first = [given.pop(name) for name in ("u", "gates", "weight", "bias", "d_end")]
    return ops.relax_gru_adjoint(*first, **given)


REFUSED = {
    "float16": ({"u": np.zeros((2, 5, 4), np.float16)}, TypeError, "u: got dtype float16, expected float64 or float32"),
    "one axis": ({"u": np.zeros(4)}, ValueError, "u: got 1 axes, expected 2 to 7"),
    "hidden": ({"u": np.zeros((2, 5, 3))}, ValueError, r"weight: got shape \[12, 4\], expected \[9, 3\], 3 hidden"),
    "gates": ({"gates": GATES[..., :11]}, ValueError, r"gates: got shape \[2, 3, 5, 11\], expected .*12\], 3 hidden"),
    "gates steps": ({"gates": GATES[:, :2]}, ValueError, r"gates: got shape \[2, 2, 5, 12\], .* of m = 3 steps of u"),
    "gates slices": ({"gates": GATES[:1]}, ValueError, r"gates: got shape \[1, 3, 5, 12\]"),
    "gates batch": ({"gates": GATES[:, :, :4]}, ValueError, r"gates: got shape \[2, 3, 4, 12\]"),
    "gates axes": ({"gates": GATES[0]}, ValueError, r"gates: got shape \[3, 5, 12\]"),
    "gates dtype": (
        {"gates": GATES.astype(np.float32)},
        TypeError,
        "gates: got dtype float32, expected float64 like u",
    ),
    "weight": ({"weight": WEIGHT.T}, ValueError, r"weight: got shape \[4, 12\], expected \[12, 4\], 3 hidden and hid"),
    "weight axes": ({"weight": WEIGHT[0]}, ValueError, r"weight: got shape \[4\], expected \[12, 4\]"),
    "weight dtype": ({"weight": WEIGHT.astype("f4")}, TypeError, "weight: got dtype float32, expected float64 like u"),
    "weight a number": ({"weight": 1.0}, TypeError, "weight: got float, expected a NumPy"),
    "bias": ({"bias": np.zeros(12)}, ValueError, r"bias: got shape \[12\], expected \[4\], hidden"),
    "bias axes": ({"bias": np.zeros((1, 4))}, ValueError, r"bias: got shape \[1, 4\], expected \[4\]"),
    "bias dtype": ({"bias": np.zeros(4, "f4")}, TypeError, "bias: got dtype float32, expected float64 like u"),
    "no steps": ({"m": 0}, ValueError, "m: got 0, expected 1 or more"),
    "half a step": ({"m": 1.5}, TypeError, "m: got float, expected an int"),
    "g alone": ({"g": np.zeros((2, 3, 5, 4))}, ValueError, "g: got an array, expected f as well"),
    "every": ({"every": np.zeros((2, 2, 5, 4))}, ValueError, r"every: got shape \[2, 2, 5, 4\], expected \[slices, m"),
    "overlap": ({"u": SHARED[:2], "out": SHARED[1:]}, ValueError, "out: overlaps u partially"),
    "norm": ({"norm": "rms"}, ValueError, "norm: got 'rms', expected one of sum_squares"),
    "threads": ({"threads": -1}, ValueError, "threads: got -1"),
}
ADJOINT_REFUSED = {
    "float16": ({"d_end": np.zeros((2, 5, 4), np.float16)}, TypeError, "d_end: got dtype float16, expected float64 or"),
    "no steps": ({"u": np.zeros((2, 0, 5, 4))}, ValueError, r"u: got shape \[2, 0, 5, 4\], expected .* of 1 step or m"),
    "u axes": ({"u": np.zeros((2, 5, 4))}, ValueError, r"u: got shape \[2, 5, 4\], expected \[slices, m, ..., 4"),
    "u dtype": ({"u": np.zeros((2, 3, 5, 4), "f4")}, TypeError, "u: got dtype float32, expected float64 like d_end"),
    "gates": ({"gates": GATES[:, :2]}, ValueError, r"gates: got shape \[2, 2, 5, 12\], .* of m = 3 steps of d_end"),
    "weight": ({"weight": WEIGHT.T}, ValueError, r"weight: got shape \[4, 12\], expected \[12, 4\]"),
    "bias": ({"bias": np.zeros(3)}, ValueError, r"bias: got shape \[3\], expected \[4\]"),
    "d_every": ({"d_every": np.zeros((2, 5, 4))}, ValueError, r"d_every: got shape \[2, 5, 4\], expected \[slices, m,"),
    "out": ({"out": np.zeros((5, 4))}, ValueError, r"d_start: got shape \[5, 4\], expected \[2, 5, 4\] like d_end"),
    "d_gates": ({"d_gates": np.zeros((2, 3, 5, 4))}, ValueError, r"d_gates: got shape .*, expected .*12\], 3 hidden"),
    "d_hidden": ({"d_hidden": np.zeros((2, 3, 5, 12))}, ValueError, r"d_hidden: got shape .*, expected .*4\], hidden"),
    "not written": (
        {"only_start": True, "d_gates": np.zeros_like(GATES)}, ValueError, "d_gates: got an array with only_start, exp",
    ),
    "not written either": (
        {"only_start": True, "d_hidden": np.zeros((2, 3, 5, 4))}, ValueError, "d_hidden: got an array with only_start",
    ),
    "threads": ({"threads": -1}, ValueError, "threads: got -1"),
}  # fmt: skip


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
    weight = np.zeros((12, 4))
    u, gates = np.zeros((12, 4)), np.zeros((12, 3, 12))
    with pytest.raises(ValueError, match="out: overlaps weight, expected no common element"):
        ops.relax_gru(u, gates, weight, None, 3, out=weight)
    with pytest.raises(ValueError, match="d_start: overlaps weight, expected no common element"):
        ops.relax_gru_adjoint(np.zeros((12, 3, 4)), gates, weight, None, u, out=weight)
    states = np.zeros((3, 3, 4, 4))
    with pytest.raises(ValueError, match="d_hidden: overlaps d_every partially"):
        ops.relax_gru_adjoint(
            np.zeros((2, 3, 4, 4)), np.zeros((2, 3, 4, 12)), weight, None, np.zeros((2, 4, 4)), d_every=states[1:],
            d_hidden=states[:2],
        )  # fmt: skip


def test_nothing_is_written_where_an_argument_is_refused():
    out, of_gates = np.full((2, 5, 4), 7.0), np.full_like(GATES, 7)
    with pytest.raises(ValueError, match="bias"):
        adjoint(bias=np.zeros(3), out=out, d_gates=of_gates)
    with pytest.raises(ValueError, match="bias"):
        call(bias=np.zeros(3), out=out)
    assert (out == 7).all()
    assert (of_gates == 7).all()


def test_gradients_of_torch_are_refused_by_name():
    torch = pytest.importorskip("torch")
    given = [torch.zeros(shape) for shape in ((1, 2, 4), (1, 3, 2, 12), (12, 4), (4,))]
    given[1].requires_grad_()
    with pytest.raises(ValueError, match="gates: "):
        ops.relax_gru(*given, 3)
