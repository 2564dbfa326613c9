# SPDX-License-Identifier: BSD-3-Clause
"""``precision`` of ``relax_dense`` and its adjoint: every step is within the bound its documentation derives.

The bounds are of one step from the state the call itself left, so nothing is assumed of how errors grow. What runs here
is ``exact`` on the CPU, with the bound of its own; tensor cores need a GPU. Their index arithmetic, and the bounds with
sums rounded at their worst, are in ``tests/cpp/test_cuda_dense_mma.cpp``.
"""

import numpy as np
import pytest
from ops_backends import NumPyBackend, TorchBackend, assert_same_bits, lacks

from pyparareal import ops

U = 2.0**-24
H = 0.3
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
# Of one and of several parts and rounds of warps, odd and even.
every_width = pytest.mark.parametrize("d", [1, 7, 16, 64, 100, 128, 129, 256, 301])
every_activation = pytest.mark.parametrize("activation", ["tanh", "relu", "smooth_relu", "sigmoid", "silu"])
# Each with the largest sizes of its first and second derivative; where it has corners, no second.
STEEP = {"tanh": (1, 0.8), "sigmoid": (0.25, 0.1), "silu": (1.1, 0.5), "smooth_relu": (1, 5), "relu": (1, None)}


def relative(precision, d):
    """Of a product, in units of the sum of its terms' sizes (dense_ops.py)."""
    return {
        "exact": (d + 1) * U,
        "tf32x3": (d / 16 + 48) * U,
        "tf32": 2.0**-10 + 2.0**-22 * d,
    }[precision]


def activated(activation, z):
    """The activation and its derivative in float64."""
    if activation == "tanh":
        return np.tanh(z), 1 - np.tanh(z) ** 2
    s = 1 / (1 + np.exp(-z))
    if activation == "sigmoid":
        return s, s * (1 - s)
    if activation == "silu":
        return z * s, s + z * s * (1 - s)
    near = (np.abs(z) < 0.1) & (activation == "smooth_relu")
    return np.where(near, z * z / 0.4 + z / 2 + 0.025, np.maximum(z, 0)), np.where(near, 5 * z + 0.5, z > 0)


def problem(slices, m, d, batch=3, seed=1):
    """``u, weight, bias`` of size one, and weights as torch starts with."""
    rng = np.random.default_rng(seed)
    weight = rng.uniform(-1, 1, (slices, m, d, d)) / np.sqrt(d)
    arrays = (rng.standard_normal((slices, batch, d)), weight, rng.standard_normal((slices, m, d)))
    return [a.astype(np.float32) for a in arrays]


def products(weight, x):
    """``W x`` of every row ``[slices, batch, d]`` in float64, and the sums of the sizes of the terms."""
    w, rows = weight.astype(np.float64), x.astype(np.float64)
    return rows @ w.swapaxes(-1, -2), np.abs(rows) @ np.abs(w).swapaxes(-1, -2)


@every_way
@every_activation
@every_width
def test_every_step_is_within_its_bound(backend, precision, d, activation):
    u, weight, bias = problem(5, 4, d)
    every, slopes = (backend.like(np.empty((5, 4, 3, d), np.float32)) for _ in range(2))
    given = {"activation": activation, "every": every, "slopes": slopes, "precision": precision}
    ops.relax_dense(*map(backend.like, (u, weight, bias)), H, 4, **given)
    states, found = backend.to_numpy(every), backend.to_numpy(slopes)
    steep, curved = STEEP[activation]
    for j in range(4):
        before = (states[:, j - 1] if j else u).astype(np.float64)
        sums, sizes = products(weight[:, j], before)
        z = sums + bias[:, j, None]
        off = relative(precision, d) * (sizes + np.abs(bias[:, j, None])) + U * np.abs(z)
        value, slope = activated(activation, z)
        # 8 units of rounding are the activation's, of one where it is smaller; h and the result add theirs.
        bound = H * (steep * off + 8 * U * (1 + np.abs(value))) + 2 * U * (np.abs(before) + np.abs(value))
        assert (np.abs(states[:, j] - (before + H * value)) <= 1.01 * bound).all()
        if curved is not None:
            smooth = H * (curved * off + 8 * U * (1 + np.abs(z) + curved * np.abs(z)))
            assert (np.abs(found[:, j] - H * slope) <= 1.01 * smooth).all()
        else:
            assert (found[:, j] == np.where(z > 0, np.float32(H), 0))[np.abs(z) > off].all()


@every_way
@every_width
def test_every_step_of_the_adjoint_is_within_its_bound(backend, precision, d):
    v, weight, _ = problem(5, 4, d, seed=2)
    slopes = np.random.default_rng(3).uniform(0, H, (5, 4, 3, d)).astype(np.float32)
    every = backend.like(np.empty((5, 4, 3, d), np.float32))
    given = {"scale": 2.0, "every": every, "precision": precision}
    ops.relax_dense_adjoint(*map(backend.like, (v, weight, slopes)), 4, **given)
    states = backend.to_numpy(every)
    for j in range(4):
        before = states[:, j - 1] if j else v
        sums, sizes = products(weight[::-1, 3 - j].swapaxes(-1, -2), slopes[::-1, 3 - j] * before)
        step = before + 2 * sums
        bound = 2 * relative(precision, d) * sizes + U * np.abs(step)
        assert (np.abs(states[:, j] - step) <= 1.01 * bound).all()


@tensor_cores
@pytest.mark.parametrize("d", [5, 64, 128, 200])
def test_the_bits_of_a_row_do_not_depend_on_its_company_and_repeat(precision, d):
    u, weight, bias = map(ON_GPU.like, problem(300, 3, d, batch=40))
    slopes = ON_GPU.like(np.empty((300, 3, 40, d), np.float32))
    together = ops.relax_dense(u, weight, bias, H, 3, slopes=slopes, precision=precision)
    assert_same_bits(*map(ON_GPU.to_numpy, (ops.relax_dense(u, weight, bias, H, 3, precision=precision), together)))
    back = ops.relax_dense_adjoint(u, weight, slopes, 3, precision=precision)
    # In reverse the slices from `first` on take those of the weights from the end.
    for first, last in ((0, 1), (3, 20), (150, 300)):
        part, mirrored = slice(first, last), slice(300 - last, 300 - first)
        for rows in (slice(0, 40), slice(0, 5), slice(17, 40)):
            some = u[part, rows], weight[part], bias[part]
            alone = ops.relax_dense(*some, H, 3, precision=precision)
            assert_same_bits(*map(ON_GPU.to_numpy, (alone, together[part, rows])))
            given = weight[mirrored], slopes[mirrored][:, :, rows]
            alone = ops.relax_dense_adjoint(u[part, rows], *given, 3, precision=precision)
            assert_same_bits(*map(ON_GPU.to_numpy, (alone, back[part, rows])))


@tensor_cores
def test_right_hand_sides_and_strides(precision):
    rng = np.random.default_rng(5)
    u, weight, bias = problem(6, 3, 40)
    f, g = (rng.standard_normal((6, 3, 3, 40)).astype(np.float32) for _ in range(2))
    plain = [ON_GPU.like(a) for a in (u, weight, bias)]
    spaced = [ON_GPU.like(np.repeat(a, 2, -1)[..., ::2]) for a in (u, weight, bias)]
    turned = [plain[0], plain[1].mT.contiguous().mT, plain[2]]
    sides = {"f": ON_GPU.like(f), "g": ON_GPU.like(g), "precision": precision}
    one = ops.relax_dense(*plain, H, 3, **sides)
    for other in (spaced, turned):
        assert_same_bits(*map(ON_GPU.to_numpy, (ops.relax_dense(*other, H, 3, **sides), one)))
    first = [plain[0], plain[1][:, :1], plain[2][:, :1]]
    step = ON_GPU.to_numpy(ops.relax_dense(*first, H, 1, precision=precision))
    paired = ops.relax_dense(*first, H, 1, precision=precision, f=sides["f"][:, :1], g=sides["g"][:, :1])
    assert_same_bits(ON_GPU.to_numpy(paired), f[:, 0] + (step - g[:, 0]))


@tensor_cores
def test_slopes_of_zero_keep_the_gradients(precision):
    v, weight, _ = problem(4, 3, 33)
    zeros = ON_GPU.like(np.zeros((4, 3, 3, 33), np.float32))
    kept = ops.relax_dense_adjoint(ON_GPU.like(v), ON_GPU.like(weight), zeros, 3, precision=precision)
    assert_same_bits(ON_GPU.to_numpy(kept), v)


@pytest.mark.parametrize("precision", ["tf32x3", "tf32"])
def test_tensor_cores_are_refused_where_there_are_none(precision):
    u, weight, bias = problem(2, 3, 4)
    out, slopes = np.full_like(u, 7), np.zeros((2, 3, 3, 4), np.float32)
    refused = rf"precision: got {precision} for u of float32 on the CPU, expected exact, or float32 on CUDA"
    with pytest.raises(ValueError, match=refused):
        ops.relax_dense(u, weight, bias, H, 3, out=out, precision=precision)
    with pytest.raises(ValueError, match=f"precision: got {precision} for v of float32 on the CPU"):
        ops.relax_dense_adjoint(u, weight, slopes, 3, out=out, precision=precision)
    assert (out == 7).all()


@pytest.mark.parametrize("precision", ["fp32", None, 1, ["tf32"]])
def test_other_names_are_refused(precision):
    u, weight, bias = problem(2, 3, 4)
    with pytest.raises(ValueError, match=r"precision: got .*, expected one of exact, tf32x3, tf32"):
        ops.relax_dense(u, weight, bias, H, 3, precision=precision)
    with pytest.raises(ValueError, match=r"precision: got .*, expected one of exact, tf32x3, tf32"):
        ops.relax_dense_adjoint(u, weight, np.zeros((2, 3, 3, 4), np.float32), 3, precision=precision)


@tensor_cores
def test_float64_is_refused_on_the_device_too(precision):
    wide = [ON_GPU.like(a.astype(np.float64)) for a in problem(2, 3, 4)]
    with pytest.raises(ValueError, match=f"precision: got {precision} for u of float64 on CUDA"):
        ops.relax_dense(*wide, H, 3, precision=precision)
