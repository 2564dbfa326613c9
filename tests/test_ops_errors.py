# SPDX-License-Identifier: BSD-3-Clause
"""Every caller's mistake: the exception, its message (argument, got, expected), and that nothing was written."""

import re

import numpy as np
import pytest
from ops_backends import BFLOAT16

from pyparareal import ops

SHAPE = (3, 4)
WANTED = "expected float64, float32, float16 or bfloat16"
AN_ARRAY = "expected a NumPy, CuPy or torch array"


def state(value=1.0, shape=SHAPE, dtype=np.float64):
    return np.full(shape, value, dtype)


def calls(bad):
    """Each op with the bad array in each of its input places, and the output it must not touch."""
    out, norms, coarse = state(7.0), state(7.0, (3,)), state(7.0, (2, 4))
    good = state()
    for place, name in enumerate(("f_old", "g_new", "g_old", "u_old")):
        operands = [good, good, good, good]
        operands[place] = bad
        yield name, (out, norms), lambda operands=operands: ops.parareal_update(*operands, out=out, jump=norms)
    yield "u", (norms,), lambda: ops.slice_norms(bad, out=norms)
    yield "u_old", (norms,), lambda: ops.slice_norms(good, bad, out=norms)
    yield "u", (coarse,), lambda: ops.extract(bad, step=2, out=coarse)
    yield "v", (out,), lambda: ops.inject(bad, out, step=2)
    yield "phi", (out,), lambda: ops.c_relax(bad, good, 0.5, out=out)
    yield "u", (out,), lambda: ops.c_relax(good, bad, 0.5, out=out)


def refuses(error, message, call, outputs=()):
    with pytest.raises(error, match=message):
        call()
    for out in outputs:
        assert (np.asarray(out) == 7).all(), "written in spite of the error"


def refused_everywhere(bad, error, message):
    """``message`` has ``{}`` for the argument's name."""
    for name, outputs, call in calls(bad):
        refuses(error, "^" + message.format(name), call, outputs)


def masked():
    return np.ma.masked_array(state(), mask=state() > 0)


@pytest.mark.parametrize("dtype", ["int64", "int8", "uint16", "bool", "complex128", "complex64", "longdouble", "O"])
def test_dtype_of_numpy(dtype):
    name = "object" if dtype == "O" else re.escape(str(np.dtype(dtype)))
    refused_everywhere(state(dtype=dtype), TypeError, f"{{}}: got dtype {name}, {WANTED}")


def test_byte_swapped_dtype():
    refused_everywhere(state(dtype=">f8"), TypeError, f"{{}}: got dtype >f8, {WANTED}")


@pytest.mark.parametrize(("bad", "kind"), [([1.0], "list"), (1.0, "float"), ("u", "str"), (object(), "object")])
def test_wrong_type(bad, kind):
    refused_everywhere(bad, TypeError, f"{{}}: got {kind}, {AN_ARRAY}")


@pytest.mark.parametrize("bad", [[1.0], 1.0, None])
@pytest.mark.parametrize("op", ["parareal_update", "slice_norms", "extract", "c_relax"])
def test_wrong_type_where_an_output_would_be_allocated(op, bad):
    first = {"parareal_update": "f_old", "slice_norms": "u", "extract": "u", "c_relax": "phi"}[op]
    others = {"parareal_update": (state(), state()), "c_relax": (state(), 0.5)}.get(op, ())
    kind = re.escape(type(bad).__name__)
    step = {"step": 2} if op == "extract" else {}
    refuses(TypeError, f"^{first}: got {kind}, {AN_ARRAY}", lambda: getattr(ops, op)(bad, *others, **step))


def test_none_is_no_state():
    refuses(TypeError, "^g_new: got NoneType, " + AN_ARRAY, lambda: ops.parareal_update(state(), None, state()))


def test_mixed_dtypes():
    good, bad = state(), state(dtype=np.float32)
    refuses(TypeError, "^g_new: got dtype float32, expected float64 like f_old$",
            lambda: ops.parareal_update(good, bad, good))  # fmt: skip
    refuses(TypeError, "^u_old: got dtype bfloat16, expected float64 like f_old$",
            lambda: ops.parareal_update(good, good, good, state(dtype=BFLOAT16)))  # fmt: skip
    refuses(TypeError, "^u: got dtype float32, expected float64 like phi$", lambda: ops.c_relax(good, bad, 0.5))
    refuses(TypeError, "^v: got dtype float32, expected float64 like u$", lambda: ops.inject(bad, good, step=1))
    out = state(7.0, dtype=np.float32)
    refuses(TypeError, "^out: got dtype float32, expected float64 like f_old$",
            lambda: ops.parareal_update(good, good, good, out=out), [out])  # fmt: skip
    refuses(TypeError, "^out: got dtype float32, expected float64 like u$",
            lambda: ops.extract(good, step=1, out=out), [out])  # fmt: skip


@pytest.mark.parametrize("shape", [(3,), (3, 5), (2, 4), (3, 4, 1), (4, 3), (0, 4)])
def test_shape(shape):
    good, bad, got = state(), state(7.0, shape), re.escape(str(list(shape)))
    like = rf"got shape {got}, expected \[3, 4\] like"
    refuses(ValueError, f"^g_old: {like} f_old$", lambda: ops.parareal_update(good, good, bad))
    refuses(ValueError, f"^out: {like} f_old$", lambda: ops.parareal_update(good, good, good, out=bad), [bad])
    refuses(ValueError, f"^u_old: {like} u$", lambda: ops.slice_norms(good, bad))
    refuses(ValueError, f"^u: {like} phi$", lambda: ops.c_relax(good, bad, 0.5))


def test_shape_of_norms():
    good, bad = state(), state(7.0, (4,))
    refuses(ValueError, r"^out: got shape \[4\], expected \[3\], one norm per slice of u$",
            lambda: ops.slice_norms(good, out=bad), [bad])  # fmt: skip
    refuses(ValueError, r"^jump: got shape \[4\], expected \[3\], one norm per slice of f_old$",
            lambda: ops.parareal_update(good, good, good, good, jump=bad), [bad])  # fmt: skip
    strided = state(7.0, (6,))[::2]
    refuses(ValueError, "^out: got stride 2, expected a contiguous array$",
            lambda: ops.slice_norms(good, out=strided), [strided])  # fmt: skip


def test_dtype_of_norms():
    good, bad = state(dtype=np.float32), state(7.0, (3,), np.float32)
    refuses(TypeError, "^out: got dtype float32, expected float64$", lambda: ops.slice_norms(good, out=bad), [bad])
    refuses(TypeError, "^jump: got dtype float32, expected float64$",
            lambda: ops.parareal_update(good, good, good, good, jump=bad), [bad])  # fmt: skip


def test_jump_without_old_states():
    good, jump = state(), state(7.0, (3,))
    refuses(ValueError, "^jump: got an array, expected u_old as well$",
            lambda: ops.parareal_update(good, good, good, jump=jump), [jump])  # fmt: skip


@pytest.mark.parametrize("norm", ["l2", "", None, 0, ["sum_abs"]])
def test_norm(norm):
    good = state()
    message = f"^norm: got {re.escape(repr(norm))}, expected one of sum_squares, sum_abs, max_abs$"
    refuses(ValueError, message, lambda: ops.slice_norms(good, norm=norm))
    refuses(ValueError, message, lambda: ops.parareal_update(good, good, good, good, norm=norm))
    refuses(ValueError, message, lambda: ops.parareal_update(good, good, good, norm=norm))


def test_axes():
    refused_everywhere(state(shape=()), ValueError, r"{}: got 0 axes, expected 1 to 8: \[slices, batch, features...\]$")
    refused_everywhere(state(shape=(1,) * 9), ValueError, "{}: got 9 axes, expected 1 to 8")
    refuses(ValueError, "^u: got 0 axes, expected 1 to 8", lambda: ops.extract(state(shape=()), step=1))
    refuses(ValueError, "^u: got 0 axes, expected 1 to 8", lambda: ops.slice_norms(state(shape=())))


@pytest.mark.parametrize(("start", "step", "count", "message"), [
    (0, 0, None, "step: got 0, expected 1 or more"),
    (0, -2, None, "step: got -2, expected 1 or more"),
    (-1, 2, None, "start: got -1, expected 0 or more"),
    (0, 2, 3, "count: got 3, expected 0 to 2, the points of u from 0 in steps of 2"),
    (0, 2, -1, "count: got -1, expected 0 to 2, the points of u from 0 in steps of 2"),
])  # fmt: skip
def test_points_of_extract(start, step, count, message):
    refuses(ValueError, f"^{message}$", lambda: ops.extract(state(), start=start, step=step, count=count))


@pytest.mark.parametrize(("start", "step", "message"), [
    (0, 0, "step: got 0, expected 1 or more"),
    (-1, 1, "start: got -1, expected 0 to 2, a slice of u"),
    (3, 1, "start: got 3, expected 0 to 2, a slice of u"),
    (1, 2, r"v: got shape \[2, 4\], expected at most 1 slices shaped like those of u \[3, 4\]"),
    (0, 2**62, r"v: got shape \[2, 4\], expected at most 1 slices shaped like those of u \[3, 4\]"),
])  # fmt: skip
def test_points_of_inject(start, step, message):
    u = state(7.0)
    refuses(ValueError, f"^{message}$", lambda: ops.inject(state(shape=(2, 4)), u, start=start, step=step), [u])


def test_points_given_with_an_output():
    out = state(7.0, (2, 4))
    refuses(ValueError, "^count: got 1, expected 2, the slices of out$",
            lambda: ops.extract(state(), step=2, count=1, out=out), [out])  # fmt: skip
    refuses(ValueError, r"^out: got shape \[2, 4\], expected at most 1 slices shaped like those of u \[3, 4\]$",
            lambda: ops.extract(state(), step=3, out=out), [out])  # fmt: skip
    refuses(TypeError, "^out: got list, " + AN_ARRAY, lambda: ops.extract(state(), step=2, count=1, out=[1.0]))


@pytest.mark.parametrize(("name", "bad", "kind"), [("step", 2.0, "float"), ("step", None, "NoneType"),
                                                   ("start", "0", "str"), ("count", 1.5, "float")])  # fmt: skip
def test_integers_of_extract(name, bad, kind):
    keywords = {"step": 2, name: bad}
    refuses(TypeError, f"^{name}: got {kind}, expected an int$", lambda: ops.extract(state(), **keywords))
    if name != "count":
        refuses(TypeError, f"^{name}: got {kind}, expected an int$",
                lambda: ops.inject(state(shape=(1, 4)), state(), **keywords))  # fmt: skip


@pytest.mark.parametrize("omega", [np.nan, np.inf, -np.inf])
def test_omega_is_finite(omega):
    out = state(7.0)
    refuses(ValueError, f"^omega: got -?{abs(omega)}, expected a finite weight$",
            lambda: ops.c_relax(state(), state(), omega, out=out), [out])  # fmt: skip


@pytest.mark.parametrize(("omega", "kind"), [("1", "str"), (None, "NoneType"), (1j, "complex"), ([1.0], "list")])
def test_omega_is_a_number(omega, kind):
    refuses(TypeError, f"^omega: got {kind}, expected a float$", lambda: ops.c_relax(state(), state(), omega))


@pytest.mark.parametrize(("threads", "error", "message"), [
    (-1, ValueError, "threads: got -1, expected 0 (the default) or more"),
    (2**40, ValueError, f"threads: got {2**40}, expected 0 (the default) or more"),
    (2**80, ValueError, f"threads: got {2**80}, expected at most 63 bits"),
    (1.5, TypeError, "threads: got float, expected an int"),
    ("2", TypeError, "threads: got str, expected an int"),
    (None, TypeError, "threads: got NoneType, expected an int"),
])  # fmt: skip
def test_threads(threads, error, message):
    out = state(7.0)
    for call in (lambda: ops.c_relax(state(), state(), 0.5, out=out, threads=threads),
                 lambda: ops.inject(state(), out, step=1, threads=threads),
                 lambda: ops.extract(state(), step=1, out=out, threads=threads),
                 lambda: ops.parareal_update(*[state()] * 3, out=out, threads=threads),
                 lambda: ops.slice_norms(state(), out=out[:, 0].copy(), threads=threads)):  # fmt: skip
        refuses(error, "^" + re.escape(message), call, [out])


class NamedStream:
    def __cuda_stream__(self):
        return (0, 0)


@pytest.mark.parametrize(("stream", "error", "message"), [
    (0, ValueError, "stream: got a stream, expected None because the arrays are on cpu"),
    (NamedStream(), ValueError, "stream: got a stream, expected None because the arrays are on cpu"),
    (-1, ValueError, "stream: got -1, expected a non-negative int"),
    (2**70, ValueError, f"stream: got {2**70}, expected a non-negative int"),
    (True, TypeError, "stream: got bool, expected None, an object with __cuda_stream__ or a non-negative int"),
    (0.0, TypeError, "stream: got float, expected None, an object with __cuda_stream__ or a non-negative int"),
    ("s", TypeError, "stream: got str, expected None, an object with __cuda_stream__ or a non-negative int"),
])  # fmt: skip
def test_stream(stream, error, message):
    out = state(7.0)
    for call in (lambda: ops.c_relax(state(), state(), 0.5, out=out, stream=stream),
                 lambda: ops.inject(state(), out, step=1, stream=stream),
                 lambda: ops.extract(state(), step=1, out=out, stream=stream),
                 lambda: ops.parareal_update(*[state()] * 3, out=out, stream=stream),
                 lambda: ops.slice_norms(state(), out=out[:, 0].copy(), stream=stream)):  # fmt: skip
        refuses(error, "^" + re.escape(message), call, [out])


def test_misaligned_array():
    memory = np.zeros(13 * 8, np.uint8)
    start = -memory.ctypes.data % 8 + 1
    bad = memory[start : start + 96].view(np.float64).reshape(SHAPE)
    refused_everywhere(bad, ValueError, "{}: is not aligned to its item size of 8 bytes, expected an aligned array$")


def test_strides_between_elements():
    bad = np.zeros(SHAPE, [("u", "f8"), ("flag", "i4")])["u"]
    refused_everywhere(bad, ValueError, "{}: got a stride of 12 bytes, expected a multiple of the item size 8$"
                       if bad.strides[1] == 12 and bad.strides[0] == 12 else "{}: got a stride of ")  # fmt: skip


def test_a_mask_is_not_ignored():
    refused_everywhere(masked(), TypeError, r"{}: got MaskedArray, expected an array without a mask: call .filled\(\)$")


class Tagged(np.ndarray):
    pass


def test_other_subclasses_are_plain_arrays():
    assert ops.slice_norms(state().view(Tagged)).tolist() == [4.0, 4.0, 4.0]
    assert type(ops.extract(state().view(Tagged), step=2)) is np.ndarray
