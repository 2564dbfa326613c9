# SPDX-License-Identifier: BSD-3-Clause
"""Kernels while CUDA graphs are captured, and from several threads: what only a GPU can show.

The parts that need none are in ``tests/cpp/test_cuda_emulated.cpp``.
"""

import threading

import numpy as np
import pytest

from pyparareal import _core, ops, reference

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.gpu

FEATURES = 5000  # several chunks of a norm: there is scratch
POINTS = 1025  # more than fits in a block's shared memory


def states(count, *shape):
    return [torch.randn(shape, dtype=torch.float64, device="cuda") for _ in range(count)]


def factors(points):
    off = np.full(points - 1, -0.5)
    return reference.factorise_tridiagonal(off, np.full(points, 2.0), off)


def on_device(numbers):
    return [torch.from_numpy(x).cuda() for x in numbers]


def test_a_graph_of_kernels_repeats_their_bits():
    f, g, h, u_old = states(4, 3, FEATURES)
    (u,) = states(1, 5, POINTS)
    numbers = on_device(factors(POINTS))

    def work():
        return *ops.parareal_update(f, g, h, u_old), ops.slice_norms(f), ops.relax_tridiagonal(u, *numbers, 3)

    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()
    for x in (f, g, h, u_old, u):
        x.normal_()
    graph.replay()
    assert all(torch.equal(got, expected) for got, expected in zip(results, work(), strict=True))


def test_a_call_on_a_named_stream_does_not_disturb_a_capture_elsewhere():
    """What it holds is asked for by every later call, those being captured included; CUDA forbids plain asking."""
    f, g, h = states(3, 3, FEATURES)
    ops.parareal_update(f, g, h)
    other = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(other):
        torch.cuda._sleep(200_000_000)
    ops.parareal_update(f, g, h, stream=other.cuda_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = ops.parareal_update(f, g, h)
        ops.c_relax(f, g, 0.5, out=result)
    graph.replay()
    assert torch.equal(result, ops.c_relax(f, g, 0.5))
    other.synchronize()
    assert _core.held_calls() == 0


def test_arrays_of_a_captured_call_are_held_until_the_capture_is_over():
    f, g, h, u_old = states(4, 3, FEATURES)
    expected = ops.parareal_update(f, g, h, u_old)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        results = ops.parareal_update(f, g, h, u_old, stream=stream.cuda_stream)
        assert _core.held_calls() == 1
    assert _core.held_calls() == 0
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(got, want) for got, want in zip(results, expected, strict=True))


def test_threads_that_need_different_amounts_of_shared_memory():
    """A launch may come between another thread's request for shared memory and that thread's launch."""
    rounds, wrong = 200, []

    def run(points):
        numbers = factors(points)
        u = np.random.default_rng(points).standard_normal((2, points))
        expected = reference.relax_tridiagonal(u, *numbers, 2)
        there, given = torch.from_numpy(u).cuda(), on_device(numbers)
        try:
            for _ in range(rounds):
                out = ops.relax_tridiagonal(there, *given, 2)
            wrong.append(not np.array_equal(out.cpu().numpy(), expected))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=run, args=(points,)) for points in (200, 220, 250, 290)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [False] * len(threads)
