# SPDX-License-Identifier: BSD-3-Clause
"""Tensors that are refused by name, never read wrongly: gradients, lazy bits, no memory, other devices."""

import re

import numpy as np
import pytest

from pyparareal import ops

torch = pytest.importorskip("torch", reason="torch is not installed")
from torch._subclasses import FakeTensorMode  # noqa: E402


def state(value=1.0, dtype=torch.float64, **keywords):
    return torch.full((3, 4), value, dtype=dtype, **keywords)


def refused_everywhere(bad, error, message):
    """``bad`` in each place of each op; ``message`` has ``{}`` for the argument's name. Nothing is written."""
    good, out, norms = state(), state(7.0), torch.full((3,), 7.0, dtype=torch.float64)
    for name, call in {
        "f_old": lambda: ops.parareal_update(bad, good, good, good, out=out, jump=norms),
        "g_new": lambda: ops.parareal_update(good, bad, good, out=out),
        "g_old": lambda: ops.parareal_update(good, good, bad, out=out),
        "u_old": lambda: ops.parareal_update(good, good, good, bad, out=out, jump=norms),
        "phi": lambda: ops.c_relax(bad, good, 0.5, out=out),
        "v": lambda: ops.inject(bad, out, step=1),
        "u": lambda: ops.slice_norms(bad, out=norms),
        "out": lambda: ops.parareal_update(good, good, good, out=bad),
    }.items():
        with pytest.raises(error, match="^" + message.format(name)):
            call()
        assert (out == 7).all()
        assert (norms == 7).all()


def test_requires_grad():
    message = r"{}: requires grad, expected a detached tensor: call .detach\(\), or use the differentiable "
    refused_everywhere(state(requires_grad=True), ValueError, message + "torch.ops.pyparareal ops$")
    refused_everywhere(torch.nn.Parameter(state()), ValueError, message)
    refused_everywhere(state(requires_grad=True) * 2, ValueError, message)
    with torch.no_grad():
        refused_everywhere(torch.nn.Parameter(state()), ValueError, message)


def test_frozen_parameter_is_an_array():
    frozen = torch.nn.Parameter(state(), requires_grad=False)
    assert ops.slice_norms(frozen).tolist() == [4.0, 4.0, 4.0]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.uint8, torch.complex64])
def test_dtype(dtype):
    name = {"uint8": "uint8", "bool": "bool8"}.get(str(dtype)[6:], str(dtype)[6:])
    refused_everywhere(state(1, dtype), TypeError, f"{{}}: got dtype {name}, expected float64, float32, float16 or bf")


def test_small_floats():
    refused_everywhere(state().to(torch.float8_e4m3fn), TypeError, "{}: got dtype of DLPack code 10 and bits 8, expect")


def test_negative_bit():
    message = "{}: has its negative bit set, expected a tensor that holds its own values: call .resolve_neg"
    refused_everywhere(torch._neg_view(state()), ValueError, message)
    imaginary = torch.complex(state(), state()).conj().imag
    assert imaginary.is_neg()
    refused_everywhere(imaginary, ValueError, message)
    assert (ops.extract(imaginary.resolve_neg(), step=1) == -1).all()


def test_real_part_of_a_conjugate_is_an_array():
    real = torch.complex(state(2.0), state()).conj().real
    assert ops.slice_norms(real, norm="max_abs").tolist() == [2.0, 2.0, 2.0]


def test_meta_and_fake_tensors():
    refused_everywhere(state(device="meta"), TypeError, "{}: cannot be read as an array: ")
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(state())
    refused_everywhere(fake, TypeError, "{}: got FakeTensor, expected a real array, not one that is being traced$")


def test_sparse_tensor():
    refused_everywhere(state().to_sparse(), TypeError, "{}: cannot be read as an array: [^\n]*$")


def test_inside_a_functorch_transform():
    seen = []

    def norms(u):
        with pytest.raises(TypeError, match=r"^u: cannot be read as an array: "):
            ops.slice_norms(u, out=torch.empty(4, dtype=torch.float64))
        seen.append(True)
        return u

    torch.func.vmap(norms)(state())
    assert seen


def test_misaligned_tensor():
    memory = bytearray(8 * 13)
    offset = -np.frombuffer(memory, np.uint8).ctypes.data % 8 + 1
    bad = torch.frombuffer(memory, dtype=torch.float64, offset=offset, count=12).reshape(3, 4)
    refused_everywhere(bad, ValueError, "{}: is not aligned to its item size of 8 bytes, expected an aligned array$")


def test_outputs_that_repeat_or_overlap():
    f, g, h = (torch.randn(4, 6) for _ in range(3))
    with pytest.raises(ValueError, match=r"^out: got a zero stride on axis 0, expected an output without repetition$"):
        ops.parareal_update(f, g, h, out=torch.zeros(1, 6).expand(4, 6))
    with pytest.raises(ValueError, match=r"^out: overlaps itself, expected an output without repetition$"):
        ops.parareal_update(f, g, h, out=torch.zeros(32).as_strided((4, 6), (2, 1)))
    memory = torch.zeros(48)
    with pytest.raises(ValueError, match=r"^out: overlaps g_new partially, expected the same view"):
        ops.parareal_update(f, memory[3:27].view(4, 6), h, out=memory[:24].view(4, 6))
    assert (memory == 0).all()


@pytest.mark.parametrize("op", ["parareal_update", "slice_norms", "extract", "inject", "c_relax"])
def test_a_write_is_a_version_that_autograd_sees(op):
    x = state()
    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)
    saved = x[:, 0].clone() if op == "slice_norms" else x
    loss = (saved * (weight if saved is x else weight[:3])).sum()
    before = saved._version
    {
        "parareal_update": lambda: ops.parareal_update(state(), state(), state(), out=x),
        "slice_norms": lambda: ops.slice_norms(state(), out=saved),
        "extract": lambda: ops.extract(state(2.0), step=1, out=x),
        "inject": lambda: ops.inject(state(2.0), x, step=1),
        "c_relax": lambda: ops.c_relax(state(), state(), 0.5, out=x),
    }[op]()
    assert saved._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_mode_has_no_versions_and_works():
    with torch.inference_mode():
        u = state()
        assert ops.c_relax(u, state(3.0), 0.5, out=u) is u
        assert (u == 2).all()


def test_two_libraries_in_one_call():
    # One memory, two libraries: legal, because only the view counts.
    u = np.ones((3, 4))
    out = torch.zeros(3, 4, dtype=torch.float64)
    assert ops.parareal_update(u, torch.from_numpy(u), u, out=out) is out
    assert (out == 1).all()
    shared = torch.from_numpy(u)
    with pytest.raises(ValueError, match=r"^out: overlaps f_old partially"):
        ops.parareal_update(shared[:2], u[:2].copy(), u[:2].copy(), out=u[1:])
    out, jump = ops.parareal_update(shared, shared, shared, shared, out=out, jump=np.empty(3))
    assert jump.tolist() == [0.0] * 3


@pytest.mark.gpu
def test_wrong_device():
    good, far = state(), state(device="cuda")
    for call, message in (
        (lambda: ops.parareal_update(good, far, good), "g_new: got device cuda:0, expected cpu like f_old"),
        (lambda: ops.parareal_update(far, far, far, out=good), "out: got device cpu, expected cuda:0 like f_old"),
        (lambda: ops.slice_norms(far, good), "u_old: got device cpu, expected cuda:0 like u"),
        (lambda: ops.slice_norms(far, out=good[:, 0].clone()), "out: got device cpu, expected cuda:0 like u"),
        (lambda: ops.inject(good, far, step=1), "v: got device cpu, expected cuda:0 like u"),
        (lambda: ops.c_relax(far, good, 0.5), "u: got device cpu, expected cuda:0 like phi"),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            call()


@pytest.mark.gpu
def test_stream_of_another_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    far = state(device="cuda:0")
    with pytest.raises(ValueError, match=r"^stream: got a stream of cuda:1, expected one of cuda:0 like the arrays$"):
        ops.slice_norms(far, stream=torch.cuda.Stream("cuda:1").cuda_stream)


@pytest.mark.gpu
def test_arrays_on_a_foreign_stream_are_held_until_it_is_done():
    from pyparareal import _core

    stream = torch.cuda.Stream()
    f, g, h = (torch.randn(64, 1 << 16, device="cuda") for _ in range(3))
    expected = f + (g - h)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
    out = ops.parareal_update(f, g, h, stream=stream.cuda_stream)
    assert _core.held_calls() == 1
    del f, g, h
    _ = torch.full((64, 1 << 16), torch.nan, device="cuda")  # would reuse memory that was let go
    stream.synchronize()
    assert _core.held_calls() == 0
    assert torch.equal(out, expected)
