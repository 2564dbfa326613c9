# SPDX-License-Identifier: BSD-3-Clause
"""Arrays are borrowed: no reference is kept or lost, ``__dlpack__`` alone is enough, threads may call at once."""

import gc
import subprocess
import sys
import threading
import tracemalloc
import weakref

import numpy as np
import pytest
from ops_backends import assert_same_bits, random_state

from pyparareal import ops, reference

ROUNDS = 2000  # of five or six calls each


class OnlyDLPack:
    """An array that shows nothing but the DLPack protocol."""

    def __init__(self, array, keywords=("max_version", "dl_device", "copy")):
        self.array = array
        self.accepts = keywords

    def __dlpack__(self, *, stream=None, **keywords):
        unknown = set(keywords) - set(self.accepts)
        if unknown:
            raise TypeError(f"unexpected {unknown}")
        if not self.accepts:  # a producer older than versions: the unversioned capsule
            return self.array.__dlpack__(stream=stream)
        return self.array.__dlpack__(stream=stream, **keywords)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class OtherDevice(OnlyDLPack):
    def __dlpack_device__(self):
        return (8, 0)  # kDLMetal


def states(count, shape=(3, 5)):
    rng = np.random.default_rng(1)
    return [random_state(rng, shape, np.float64) for _ in range(count)]


def torch_states(count):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    return [torch.from_numpy(u.copy()) for u in states(count)]


LIBRARIES = {
    "numpy": states,
    "torch": torch_states,
    "dlpack": lambda count: [OnlyDLPack(u) for u in states(count)],
    "old dlpack": lambda count: [OnlyDLPack(u, ()) for u in states(count)],
}
every_library = pytest.mark.parametrize("library", LIBRARIES)


def all_ops(arrays, norms):
    f, g, h, old, out = arrays
    ops.parareal_update(f, g, h, old, out=out, jump=norms)
    ops.slice_norms(f, g, out=norms)
    ops.extract(f, step=1, out=out)
    ops.inject(f, out, step=1)
    ops.c_relax(f, g, 0.5, out=out)


def failing(arrays, norms):
    f, g, h, _old, out = arrays
    for call in (
        lambda: ops.parareal_update(f, g, h, [1.0], out=out, jump=norms),
        lambda: ops.parareal_update(f, g, norms, out=out),
        lambda: ops.slice_norms(f, out=norms, threads=-1),
        lambda: ops.extract(f, step=1, out=out, stream=0),
        lambda: ops.c_relax(f, g, float("nan"), out=out),
        lambda: ops.c_relax(f, g, "x", out=out),
    ):
        try:  # not pytest.raises, which keeps memory of its own
            call()
        except (TypeError, ValueError):
            continue
        pytest.fail("not refused")


@pytest.mark.no_sanitize
@pytest.mark.parametrize("what", [all_ops, failing])
@every_library
def test_no_reference_and_no_memory_is_kept(library, what):
    arrays = LIBRARIES[library](5)
    norms = LIBRARIES[library](1)[0]
    norms = OnlyDLPack(np.zeros(3), norms.accepts) if isinstance(norms, OnlyDLPack) else norms[:, 0].reshape(-1) * 1
    for _ in range(50):
        what(arrays, norms)
    gc.collect()
    counted = [*arrays, norms, None, type(arrays[0]), float]
    before = [sys.getrefcount(a) for a in counted]
    tracemalloc.start()
    try:
        # Memory that NumPy frees behind tracemalloc's back counts until its address is used again: first fill up.
        for _ in range(ROUNDS // 2):
            what(arrays, norms)
        gc.collect()
        start = tracemalloc.get_traced_memory()[0]
        for _ in range(ROUNDS):
            what(arrays, norms)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - start
    finally:
        tracemalloc.stop()
    # One object leaked per round of calls would be ROUNDS references, or at least 16 bytes times that.
    leaked = [now - then for now, then in zip([sys.getrefcount(a) for a in counted], before, strict=True)]
    assert max(leaked[:-3]) == 0
    assert max(leaked) < ROUNDS // 20
    assert grown < 16 * ROUNDS


@every_library
def test_arrays_are_not_kept_alive(library):
    arrays = LIBRARIES[library](5)
    norms = np.zeros(3)
    all_ops(arrays, norms)
    references = [weakref.ref(a) for a in arrays]
    del arrays
    gc.collect()
    assert [r() for r in references] == [None] * 5


@pytest.mark.parametrize("keywords", [("max_version", "dl_device", "copy"), ()])
def test_an_object_with_only_dlpack(keywords):
    f, g, h, old = states(4, (3, 2000))
    out, jump = np.empty_like(f), np.empty(3)
    wrapped = [OnlyDLPack(u, keywords) for u in (f, g, h, old)]
    result, result_jump = ops.parareal_update(*wrapped, out=OnlyDLPack(out, keywords), jump=OnlyDLPack(jump, keywords))
    assert result.array is out
    assert result_jump.array is jump
    expected, expected_jump = reference.parareal_update(f, g, h, old)
    assert_same_bits(out, expected)
    assert_same_bits(jump, expected_jump)


def test_an_object_whose_memory_only_its_export_keeps():
    class Temporary(OnlyDLPack):
        def __dlpack__(self, **keywords):
            return self.array.copy().__dlpack__(**keywords)

    (u,) = states(1, (3, 100_000))
    out = np.empty(3)
    ops.slice_norms(Temporary(u), out=out)
    assert_same_bits(out, reference.slice_norms(u))


def test_dlpack_objects_need_an_output():
    with pytest.raises(TypeError, match=r"^phi: got OnlyDLPack, .* arrays of other libraries need out= given$"):
        ops.c_relax(OnlyDLPack(np.ones((2, 2))), OnlyDLPack(np.ones((2, 2))), 0.5)


def test_a_read_only_export_is_an_input_only():
    u = np.ones((2, 2))
    u.flags.writeable = False
    out = np.empty(2)
    ops.slice_norms(OnlyDLPack(u), out=out)
    assert out.tolist() == [2.0, 2.0]
    with pytest.raises(ValueError, match=r"^out: is read-only, expected a writable array$"):
        ops.c_relax(np.ones((2, 2)), np.ones((2, 2)), 0.5, out=OnlyDLPack(u))


def test_an_output_exported_as_a_copy_is_refused():
    class Copies(OnlyDLPack):
        def __dlpack__(self, **keywords):
            return self.array.__dlpack__(copy=True, **keywords)

    with pytest.raises(ValueError, match=r"^out: was exported as a copy, expected an array written in place$"):
        ops.c_relax(np.ones((2, 2)), np.ones((2, 2)), 0.5, out=Copies(np.ones((2, 2))))


@pytest.mark.parametrize("error", [RuntimeError, BufferError, TypeError, KeyError])
def test_a_broken_producer_is_named(error):
    class Broken(OnlyDLPack):
        def __dlpack__(self, **keywords):
            raise error("the dog ate it")

    out = np.full((2, 2), 7.0)
    with pytest.raises(TypeError, match=r"^u: cannot be read as an array: '?the dog ate it'?$"):
        ops.c_relax(np.ones((2, 2)), Broken(np.ones((2, 2))), 0.5, out=out)
    assert (out == 7).all()


@pytest.mark.parametrize("returned", [None, 3, "capsule"])
def test_a_producer_that_returns_no_capsule(returned):
    class Wrong(OnlyDLPack):
        def __dlpack__(self, **keywords):
            return returned

    with pytest.raises(TypeError, match=r"^u: got Wrong, expected a NumPy, CuPy or torch array"):
        ops.slice_norms(Wrong(np.ones((2, 2))), out=np.empty(2))


def test_an_unknown_device():
    class Metal(OtherDevice):
        def __dlpack__(self, **keywords):
            import ctypes

            capsule = self.array.__dlpack__()
            get = ctypes.pythonapi.PyCapsule_GetPointer
            get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
            ctypes.c_int32.from_address(get(capsule, b"dltensor") + 8).value = 8  # DLTensor.device.device_type
            return capsule

    with pytest.raises(ValueError, match=r"^u: got DLPack device type 8, expected a CPU or CUDA array$"):
        ops.slice_norms(Metal(np.ones((2, 2))), out=np.empty(2))


def test_calls_from_several_threads():
    # Each thread has its own arrays and calls with another number of OpenMP threads, sizes around every path.
    wrong = []
    barrier = threading.Barrier(4)

    def work(number):
        rng = np.random.default_rng(number)
        problems = [
            [random_state(rng, shape, np.float64) for _ in range(4)] for shape in ((3, 7), (4, 5000), (2, 70_001))
        ]
        expected = [reference.parareal_update(*p) for p in problems]
        barrier.wait()
        for _ in range(30):
            for problem, (u, jump) in zip(problems, expected, strict=True):
                got = ops.parareal_update(*problem, threads=1 + number % 2)
                if (got[0] != u).any() or (got[1] != jump).any():
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.no_sanitize
def test_a_forked_child_does_not_wait_for_threads_it_has_not():
    program = """
import os
import numpy as np
from pyparareal import ops, reference

f, g, h = np.random.default_rng(0).standard_normal((3, 4, 1 << 18))
ops.parareal_update(f, g, h, threads=2)  # starts the parent's team
child = os.fork()
if child == 0:
    same = np.array_equal(ops.parareal_update(f, g, h, threads=2), reference.parareal_update(f, g, h))
    os._exit(0 if same else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
