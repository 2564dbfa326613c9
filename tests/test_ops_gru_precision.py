# SPDX-License-Identifier: BSD-3-Clause
"""``precision`` of ``relax_gru`` and its adjoint: every step is within the bound its documentation derives.

The bounds are of one step from the state the call itself left, so nothing is assumed of how errors grow. What runs here
is ``exact`` on the CPU, with the bound of its own; tensor cores need a GPU. Their index arithmetic, and the bounds with
sums rounded at their worst, are in ``tests/cpp/test_cuda_gru_mma.cpp``.
"""

import numpy as np
import pytest
from ops_backends import NumPyBackend, TorchBackend, assert_same_bits, lacks

from pyparareal import ops, reference

U = 2.0**-24
PRECISIONS = ("exact", "tf32x3", "tf32")
gpu = [pytest.mark.gpu, pytest.mark.skipif(lacks("torch"), reason="torch is not installed")]
ON_GPU = TorchBackend("cuda")
WAYS = [
    pytest.param(NumPyBackend(), "exact", id="numpy-exact"),
    *(pytest.param(ON_GPU, precision, id=f"cuda-{precision}", marks=gpu) for precision in PRECISIONS),
]
every_way = pytest.mark.parametrize(("backend", "precision"), WAYS)
tensor_cores = pytest.mark.parametrize(
    "precision", [pytest.param(p, id=f"cuda-{p}", marks=gpu) for p in PRECISIONS if p != "exact"]
)
# With weights in shared memory and streamed, of one and of several rounds of warps, odd and even.
every_width = pytest.mark.parametrize("hidden", [1, 7, 16, 64, 100, 128, 129, 256, 301])


def relative(precision, hidden):
    """Of a product, in units of the sum of its terms' sizes (gru_ops.py)."""
    return {
        "exact": hidden * U,
        "tf32x3": (hidden / 16 + 48) * U,
        "tf32": 2.0**-10 + 2.0**-22 * hidden,
    }[precision]


def problem(slices, m, hidden, batch=3, seed=1):
    """``u, gates, weight, bias`` of size one, and weights as torch starts with."""
    rng = np.random.default_rng(seed)
    u = rng.standard_normal((slices, batch, hidden))
    gates = rng.standard_normal((slices, m, batch, 3 * hidden))
    weight = rng.uniform(-1, 1, (3 * hidden, hidden)) / np.sqrt(hidden)
    return [a.astype(np.float32) for a in (u, gates, weight, rng.standard_normal(hidden))]


def step_and_bound(h, gates, weight, bias, precision):
    """One step in float64, and how far off a float32 step with products of this precision may be.

    Sigmoid has a slope of 1/4 and tanh of 1 at most; 4 units of rounding are theirs, and each operation adds one of its
    result.
    """
    h, gates, weight, bias = (a.astype(np.float64) for a in (h, gates, weight, bias))
    hidden = h.shape[-1]
    sums, sizes = h @ weight.T, np.abs(h) @ np.abs(weight).T
    off = relative(precision, hidden) * sizes
    (in_r, in_z, in_n), (of_r, of_z, of_n) = np.split(gates, 3, -1), np.split(sums, 3, -1)
    off_r, off_z, off_n = np.split(off, 3, -1)
    r, z, s = 1 / (1 + np.exp(-in_r - of_r)), 1 / (1 + np.exp(-in_z - of_z)), of_n + bias
    off_r = (off_r + U * np.abs(in_r + of_r)) / 4 + 4 * U
    off_z = (off_z + U * np.abs(in_z + of_z)) / 4 + 4 * U
    off_s = off_n + U * np.abs(s)
    off_n = r * off_s + np.abs(s) * off_r + U * (np.abs(r * s) + np.abs(in_n + r * s)) + 4 * U
    n = np.tanh(in_n + r * s)
    step = n + z * (h - n)
    # Products of two of these errors, and the rounding of their bound, are in the last factor.
    return step, 1.01 * ((1 - z) * off_n + np.abs(h - n) * off_z + 4 * U * (np.abs(h) + np.abs(n)))


@every_way
@every_width
def test_every_step_is_within_its_bound(backend, precision, hidden):
    u, gates, weight, bias = problem(5, 4, hidden)
    every = backend.like(np.empty((5, 4, 3, hidden), np.float32))
    ops.relax_gru(*map(backend.like, (u, gates, weight, bias)), 4, every=every, precision=precision)
    states = backend.to_numpy(every)
    for j in range(4):
        step, bound = step_and_bound(states[:, j - 1] if j else u, gates[:, j], weight, bias, precision)
        assert (np.abs(states[:, j] - step) <= bound).all()


@every_way
@every_width
def test_the_adjoint_is_within_its_bound(backend, precision, hidden):
    # Linear in the gradients. A step makes of a gradient of 1 at most `growth`, and of errors in the gates, which are
    # those of a step forward, at most `growth` times them once more; each of its products adds its own.
    u, gates, weight, bias = problem(5, 1, hidden, seed=2)
    d_end = np.random.default_rng(3).standard_normal(u.shape).astype(np.float32)
    got = ops.relax_gru_adjoint(*map(backend.like, (u[:, None], gates, weight, bias, d_end)), precision=precision)
    wide = [a.astype(np.float64) for a in (u[:, None], gates, weight, bias, d_end)]
    expected = reference.relax_gru_adjoint(*wide)
    sizes = np.abs(wide[0][:, 0]) @ np.abs(wide[2]).T
    off_gates = relative(precision, hidden) * sizes.max() + 16 * U * np.abs(gates).max()
    steep = 4 * max(1, np.abs(u).max(), np.abs(sizes).max() + np.abs(bias).max())
    growth = 1 + steep * np.abs(weight).sum(0).max()
    bound = np.abs(d_end).max() * growth * (relative(precision, 3 * hidden) + steep * off_gates)
    for one, other in zip(got, expected, strict=True):
        assert np.abs(backend.to_numpy(one) - other).max() <= bound


@tensor_cores
@pytest.mark.parametrize("hidden", [5, 64, 128, 200])
def test_the_bits_of_a_row_do_not_depend_on_its_company_and_repeat(precision, hidden):
    u, gates, weight, bias = map(ON_GPU.like, problem(1500, 3, hidden, batch=2))
    together = ops.relax_gru(u, gates, weight, bias, 3, precision=precision)
    assert_same_bits(*map(ON_GPU.to_numpy, (ops.relax_gru(u, gates, weight, bias, 3, precision=precision), together)))
    starts = gates[..., :hidden].contiguous()
    back = ops.relax_gru_adjoint(starts, gates, weight, bias, u, precision=precision)
    for part in (slice(0, 1), slice(3, 20), slice(700, 1500)):
        alone = ops.relax_gru(u[part], gates[part], weight, bias, 3, precision=precision)
        assert_same_bits(*map(ON_GPU.to_numpy, (alone, together[part])))
        some = ops.relax_gru_adjoint(starts[part], gates[part], weight, bias, u[part], precision=precision)
        for one, other in zip(some, back, strict=True):
            assert_same_bits(*map(ON_GPU.to_numpy, (one, other[part])))


@tensor_cores
def test_an_infinite_gate_keeps_the_state_bit_for_bit(precision):
    u, gates, weight, bias = problem(4, 5, 33)
    gates[1, 2:, ..., 33:66] = np.inf
    gates[1, 2:, ..., 66:] = np.nan
    every = ON_GPU.like(np.empty((4, 5, 3, 33), np.float32))
    ops.relax_gru(*map(ON_GPU.like, (u, gates, weight, bias)), 5, every=every, precision=precision)
    states = ON_GPU.to_numpy(every)
    for j in range(2, 5):
        assert_same_bits(states[1, j], states[1, 1])


@tensor_cores
def test_right_hand_sides_and_strides(precision):
    rng = np.random.default_rng(5)
    u, gates, weight, bias = problem(6, 3, 40)
    f, g = (rng.standard_normal((6, 3, 3, 40)).astype(np.float32) for _ in range(2))
    plain = [ON_GPU.like(a) for a in (u, gates, weight, bias)]
    spaced = [ON_GPU.like(np.repeat(a, 2, -1)[..., ::2]) for a in (u, gates, weight, bias)]
    sides = {"f": ON_GPU.like(f), "g": ON_GPU.like(g)}
    one = ops.relax_gru(*plain, 3, precision=precision, **sides)
    assert_same_bits(*map(ON_GPU.to_numpy, (ops.relax_gru(*spaced, 3, precision=precision, **sides), one)))
    step = ON_GPU.to_numpy(ops.relax_gru(*plain[:1], plain[1][:, :1], *plain[2:], 1, precision=precision))
    paired = ops.relax_gru(
        *plain[:1], plain[1][:, :1], *plain[2:], 1, precision=precision, f=sides["f"][:, :1], g=sides["g"][:, :1]
    )
    assert_same_bits(ON_GPU.to_numpy(paired), f[:, 0] + (step - g[:, 0]))


@pytest.mark.parametrize("precision", ["tf32x3", "tf32"])
def test_tensor_cores_are_refused_where_there_are_none(precision):
    u, gates, weight, bias = problem(2, 3, 4)
    out = np.full_like(u, 7)
    refused = rf"precision: got {precision} for u of float32 on the CPU, expected exact, or float32 on CUDA"
    with pytest.raises(ValueError, match=refused):
        ops.relax_gru(u, gates, weight, bias, 3, out=out, precision=precision)
    assert (out == 7).all()
    with pytest.raises(ValueError, match=f"precision: got {precision} for d_end of float32 on the CPU"):
        ops.relax_gru_adjoint(np.zeros((2, 3, 3, 4), np.float32), gates, weight, bias, u, precision=precision)


@pytest.mark.parametrize("precision", ["fp32", None, 1, ["tf32"]])
def test_other_names_are_refused(precision):
    u, gates, weight, bias = problem(2, 3, 4)
    with pytest.raises(ValueError, match=r"precision: got .*, expected one of exact, tf32x3, tf32"):
        ops.relax_gru(u, gates, weight, bias, 3, precision=precision)
    with pytest.raises(ValueError, match=r"precision: got .*, expected one of exact, tf32x3, tf32"):
        ops.relax_gru_adjoint(np.zeros((2, 3, 3, 4), np.float32), gates, weight, bias, u, precision=precision)


@tensor_cores
def test_float64_is_refused_on_the_device_too(precision):
    wide = [ON_GPU.like(a.astype(np.float64)) for a in problem(2, 3, 4)]
    with pytest.raises(ValueError, match=f"precision: got {precision} for u of float64 on CUDA"):
        ops.relax_gru(*wide, 3, precision=precision)
