# SPDX-License-Identifier: BSD-3-Clause
"""Every op on every backend gives the bits of ``pyparareal.reference``, for any shape, stride, dtype and alias."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_backends import (
    BACKWARD,
    DTYPES,
    LAYOUTS,
    REPEATED,
    arrange,
    assert_same_bits,
    base_of,
    on_every_backend,
    random_state,
)

from pyparareal import ops, reference

# Around every border of the sums: lanes of 64, chunks of 1024, several chunks; one and several feature axes; none.
FEATURES = [(), (0,), (1,), (2, 3), (3, 1, 7), (2, 0, 3), (63,), (64,), (65,), (5, 13), (1023,), (1024,), (1025,)]
FEATURES += [(5000,), (3, 1025), (2, 2, 2, 2, 2, 2, 2)]
shapes = st.builds(lambda slices, features: (slices, *features), st.integers(0, 5), st.sampled_from(FEATURES))
norms = st.sampled_from(reference.NORMS)
seeds = st.integers(0, 2**32 - 1)
EXAMPLES = settings(max_examples=200)


@st.composite
def problems(draw, operands):
    """NumPy views of equal shape in drawn layouts, and the layout of an output."""
    shape, dtype = draw(shapes), draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(seeds))
    special = draw(st.sampled_from([0.0, 0.0, 0.3]))
    layouts = st.sampled_from([*LAYOUTS, *BACKWARD, *REPEATED])
    return [arrange(random_state(rng, shape, dtype, special), draw(layouts)) for _ in range(operands)]


def can_hold(backend, *views):
    return backend.negative_strides or all(s >= 0 for v in views for s in v.strides)


def writable(view):
    return all(stride != 0 or size < 2 for stride, size in zip(view.strides, view.shape, strict=True))


def output(data, views, label):
    """None, an own layout, or the number of the operand it aliases."""
    own = st.sampled_from([*LAYOUTS, *BACKWARD])
    choices = [i for i, view in enumerate(views) if writable(view)]
    return data.draw(st.one_of(st.none(), own, st.sampled_from(choices)) if choices else st.none() | own, label=label)


def place(backend, views, choice, shape):
    """The operands in the library, and the output drawn by ``output``."""
    arrays = [backend.like(view) for view in views]
    if choice is None or isinstance(choice, int):
        return arrays, None if choice is None else arrays[choice], None
    frame = arrange(np.full(shape, 5.0, views[0].dtype), choice)
    return arrays, backend.like(frame), frame


def check_output(backend, result, out, frame, expected):
    if out is not None:
        assert result is out
    assert_same_bits(backend.to_numpy(result), expected)
    if frame is not None and backend.name == "numpy":  # nothing beside the view was written
        frame[...] = expected
        assert_same_bits(base_of(out)[0].view(out.dtype), base_of(frame)[0])


@on_every_backend
@EXAMPLES
@given(data=st.data(), views=problems(4), norm=norms, with_jump=st.booleans(), threads=st.sampled_from([0, 1, 3]))
def test_parareal_update(backend, data, views, norm, with_jump, threads):
    views = views if with_jump else views[:3]
    choice = output(data, views, "out")
    if not can_hold(backend, *views) or (choice in BACKWARD and not backend.negative_strides):
        return
    with np.errstate(all="ignore"):
        expected = reference.parareal_update(*views, norm=norm)
    arrays, out, frame = place(backend, views, choice, views[0].shape)
    result = ops.parareal_update(*arrays, norm=norm, out=out, threads=threads)
    if with_jump:
        result, jump = result
        expected, expected_jump = expected
        assert_same_bits(backend.to_numpy(jump), expected_jump)
    check_output(backend, result, out, frame, expected)


@on_every_backend
@EXAMPLES
@given(views=problems(2), norm=norms, with_old=st.booleans(), threads=st.sampled_from([0, 1, 3]))
def test_slice_norms(backend, views, norm, with_old, threads):
    if not can_hold(backend, *views):
        return
    views = views if with_old else views[:1]
    with np.errstate(all="ignore"):
        expected = reference.slice_norms(*views, norm=norm)
    arrays = [backend.like(view) for view in views]
    assert_same_bits(backend.to_numpy(ops.slice_norms(*arrays, norm=norm, threads=threads)), expected)
    out = backend.like(np.full(len(views[0]), 3.0))
    assert ops.slice_norms(*arrays, norm=norm, out=out, threads=threads) is out
    assert_same_bits(backend.to_numpy(out), expected)


@on_every_backend
@EXAMPLES
@given(data=st.data(), views=problems(2), omega=st.sampled_from([0.0, 1.0, 2 / 3, 1.3, -0.25, 1.0 + 2.0**-40]))
def test_c_relax(backend, data, views, omega):
    choice = output(data, views, "out")
    if not can_hold(backend, *views) or (choice in BACKWARD and not backend.negative_strides):
        return
    with np.errstate(all="ignore"):
        expected = reference.c_relax(*views, omega)
    arrays, out, frame = place(backend, views, choice, views[0].shape)
    check_output(backend, ops.c_relax(*arrays, omega, out=out), out, frame, expected)


@on_every_backend
@EXAMPLES
@given(data=st.data(), views=problems(1), start=st.integers(0, 6), step=st.sampled_from([1, 2, 3, 7, 2**62]))
def test_extract(backend, data, views, start, step):
    room = len(range(start, len(views[0]), step))
    count = data.draw(st.none() | st.integers(0, room), label="count")
    choice = data.draw(st.none() | st.sampled_from([*LAYOUTS, *BACKWARD]), label="out")
    if not can_hold(backend, *views) or (choice in BACKWARD and not backend.negative_strides):
        return
    expected = reference.extract(views[0], start=start, step=step, count=count)
    (u,), out, frame = place(backend, views, choice, expected.shape)
    check_output(backend, ops.extract(u, start=start, step=step, count=count, out=out), out, frame, expected)


@on_every_backend
@EXAMPLES
@given(data=st.data(), views=problems(1), step=st.sampled_from([1, 2, 3, 7]), seed=seeds)
def test_inject(backend, data, views, step, seed):
    u = views[0]
    if not can_hold(backend, u) or not writable(u):
        return
    start = data.draw(st.integers(0, len(u)), label="start")
    count = data.draw(st.integers(0, len(range(start, len(u), step))), label="points")
    v = random_state(np.random.default_rng(seed), (count, *u.shape[1:]), u.dtype, 0.1)
    array = backend.like(u)
    assert ops.inject(backend.like(v), array, start=start, step=step) is array
    assert_same_bits(backend.to_numpy(array), reference.inject(v, u.copy(), start=start, step=step))
