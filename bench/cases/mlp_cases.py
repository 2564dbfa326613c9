# SPDX-License-Identifier: BSD-3-Clause
"""Speed of the fused gradient descent, beside what one would write: loops over slices, and batched matrix products.

Schroder 2017's problems: XOR (3-4-1, all four examples a step) and the adder (24-128-64-12; one of 500 examples a step,
or all). The loops take the same steps and their weights are compared with the kernel's; the products are the bare
``torch.bmm`` of a step of the same slices, without activations, updates or anything between.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.cases import Result, case
from pyparareal import _timing

Array = Any
XOR, ADDER = (3, 4, 1), (24, 128, 64, 12)
XOR_SLICES, ADDER_SLICES, LOOP_SLICES, EXAMPLES = 4096, 16, 2, 500
PRODUCT_FLOPS = 2 * EXAMPLES * sum(i * o * (2 if n == 0 else 3) for n, (i, o) in enumerate(itertools.pairwise(ADDER)))


@case("relax.mlp_sgd", suite="quick")
def relax_mlp_sgd() -> Result:
    """Updates a second of XOR and of the adder, on one thread and on all cores, over those of loops and of products."""
    import torch

    before = torch.get_num_threads()
    total = Result(
        {}, True, {}, f"float64 unless named; loops on one thread; all cores: {_timing.cores()}; seconds of an update"
    )
    try:
        _xor(total)
        _adder_serialised(total)
        for dtype in ("float64", "float32"):
            _adder_full(total, dtype)
    finally:
        torch.set_num_threads(before)
    return total


def _weights(rng: Any, sizes: tuple[int, ...], slices: int, dtype: str = "float64") -> Array:
    return (2 * rng.random((slices, sum(i * o for i, o in itertools.pairwise(sizes)))) - 1).astype(dtype)


def _measure(total: Result, name: str, ways: dict[str, tuple[Callable[[], Any], int]]) -> dict[str, float]:
    """Median seconds of an update of every way, which makes so many in a call."""
    import torch

    torch.set_num_threads(1)
    taken = _timing.interleave({way: call for way, (call, _) in ways.items()}, min_time=0.2, cold_cache=False)
    updates = {way: count for way, (_, count) in ways.items()}
    total.samples |= {f"{name}_{way}": [s / updates[way] for s in t.seconds] for way, t in taken.items()}
    return {way: t.median / updates[way] for way, t in taken.items()}


def _xor(total: Result) -> None:
    from pyparareal import ops

    m, loop_m = 16, 20
    x, y = np.array([[0.0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]]), np.array([[0.0], [1], [1], [0]])
    u = _weights(np.random.default_rng(1), XOR, XOR_SLICES)
    out, few = np.empty_like(u), u[:LOOP_SLICES]
    ends: dict[str, Array] = {}
    step = (XOR, x, y, 1.0)
    median = _measure(total, "xor", {
        "one_thread": (lambda: ops.relax_mlp_sgd(u, *step, m, out=out, threads=1), XOR_SLICES * m),
        "all_cores": (lambda: ops.relax_mlp_sgd(u, *step, m, out=out, threads=_timing.cores()), XOR_SLICES * m),
        "one_slice": (lambda: ops.relax_mlp_sgd(u[:1], *step, 4096, threads=1), 4096),
        "numpy": (lambda: ends.update(numpy=_numpy_loop(few, x, y, loop_m)), LOOP_SLICES * loop_m),
        "torch": (lambda: ends.update(torch=_torch_loop(few, XOR, x, y, 1.0, [slice(0, 4)] * loop_m)),
                  LOOP_SLICES * loop_m),
    })  # fmt: skip
    total.metrics |= {
        "xor_ns_one_thread": median["one_thread"] * 1e9,
        "xor_ns_all_cores": median["all_cores"] * 1e9,
        "xor_ns_one_slice": median["one_slice"] * 1e9,
        "xor_vs_torch": median["torch"] / median["one_thread"],
        "xor_vs_numpy": median["numpy"] / median["one_thread"],
        "xor_vs_torch_all_cores": median["torch"] / median["all_cores"],
        "xor_vs_numpy_all_cores": median["numpy"] / median["all_cores"],
    }
    expected = ops.relax_mlp_sgd(few, *step, loop_m)
    total.checked &= all(np.abs(end - expected).max() <= 1e-11 for end in ends.values())
    total.checked &= bool((out[:LOOP_SLICES] == ops.relax_mlp_sgd(few, *step, m)).all())


def _adder_data(dtype: str = "float64") -> tuple[Array, Array]:
    """Pairs of 12-bit numbers and their sums without the overflow, as bits."""
    a, b = np.random.default_rng(2).integers(0, 1 << 12, (2, EXAMPLES))
    bits = [((n[:, None] >> np.arange(12)) & 1).astype(dtype) for n in (a, b, a + b)]
    return np.concatenate(bits[:2], 1), bits[2]


def _adder_serialised(total: Result) -> None:
    from pyparareal import ops

    m, loop_m = 16, 10
    x, y = _adder_data()
    u = _weights(np.random.default_rng(3), ADDER, ADDER_SLICES)
    first = (np.arange(ADDER_SLICES)[:, None] * 7 + np.arange(m)) % EXAMPLES
    out, few, ends = np.empty_like(u), u[:LOOP_SLICES], {}

    def kernel(threads: int) -> Any:
        return ops.relax_mlp_sgd(u, ADDER, x, y, 0.1, m, first=first, out=out, threads=threads)

    order = [slice(j, j + 1) for j in range(loop_m)]
    median = _measure(total, "adder_serialised", {
        "one_thread": (lambda: kernel(1), ADDER_SLICES * m),
        "all_cores": (lambda: kernel(_timing.cores()), ADDER_SLICES * m),
        "torch": (lambda: ends.update(torch=_torch_loop(few, ADDER, x, y, 0.1, order)), LOOP_SLICES * loop_m),
    })  # fmt: skip
    total.metrics |= {
        "adder_serialised_us_one_thread": median["one_thread"] * 1e6,
        "adder_serialised_us_all_cores": median["all_cores"] * 1e6,
        "adder_serialised_vs_torch": median["torch"] / median["one_thread"],
        "adder_serialised_vs_torch_all_cores": median["torch"] / median["all_cores"],
    }
    own = np.tile(np.arange(loop_m), (LOOP_SLICES, 1))
    expected = ops.relax_mlp_sgd(few, ADDER, x, y, 0.1, loop_m, first=own)
    total.checked &= bool(np.abs(ends["torch"] - expected).max() <= 1e-11)


def _adder_full(total: Result, dtype: str) -> None:
    import torch

    from pyparareal import ops

    x, y = _adder_data(dtype)
    u = _weights(np.random.default_rng(4), ADDER, ADDER_SLICES, dtype)
    out = np.empty_like(u)
    kind = getattr(torch, dtype)
    w = [torch.rand(ADDER_SLICES, o, i, dtype=kind) for i, o in itertools.pairwise(ADDER)]
    values, errors = ([torch.rand(ADDER_SLICES, EXAMPLES, d, dtype=kind) for d in ADDER] for _ in range(2))
    gradients = [torch.empty_like(matrix) for matrix in w]

    def products(threads: int) -> None:
        torch.set_num_threads(threads)
        for layer in range(3):
            torch.bmm(values[layer], w[layer].transpose(1, 2), out=values[layer + 1])
        for layer in (2, 1):
            torch.bmm(errors[layer + 1], w[layer], out=errors[layer])
        for layer in range(3):
            torch.bmm(errors[layer + 1].transpose(1, 2), values[layer], out=gradients[layer])

    ways = {}
    for name, threads in (("one_thread", 1), ("all_cores", _timing.cores())):
        ways[name] = (
            lambda t=threads: ops.relax_mlp_sgd(u, ADDER, x, y, 0.025, 1, out=out, threads=t),
            ADDER_SLICES,
        )
        ways[f"products_{name}"] = (lambda t=threads: products(t), ADDER_SLICES)
    median = _measure(total, f"adder_full_{dtype}", ways)
    for name in ("one_thread", "all_cores"):
        total.metrics |= {
            f"adder_full_{dtype}_gflops_{name}": PRODUCT_FLOPS / median[name] * 1e-9,
            f"adder_full_{dtype}_gemm_fraction_{name}": median[f"products_{name}"] / median[name],
        }
    expected = _torch_loop(u[:1], ADDER, x, y, 0.025, [slice(0, EXAMPLES)])
    # Sums of 500 products of size one, at a rate of 1/40
    total.checked &= bool(np.abs(expected - out[:1]).max() <= 1000 * np.finfo(dtype).eps)


def _numpy_loop(u: Array, x: Array, y: Array, m: int) -> Array:
    """A. Trask's eleven lines, slice by slice."""
    ends = []
    for state in u:
        syn0, syn1 = state[:12].reshape(4, 3).T.copy(), state[12:].reshape(1, 4).T.copy()
        for _ in range(m):
            l1 = 1 / (1 + np.exp(-np.dot(x, syn0)))
            l2 = 1 / (1 + np.exp(-np.dot(l1, syn1)))
            delta2 = (y - l2) * (l2 * (1 - l2))
            delta1 = delta2.dot(syn1.T) * (l1 * (1 - l1))
            syn1 += l1.T.dot(delta2)
            syn0 += x.T.dot(delta1)
        ends.append(np.concatenate([syn0.T.ravel(), syn1.T.ravel()]))
    return np.stack(ends)


def _torch_loop(u: Array, sizes: tuple[int, ...], x: Array, y: Array, alpha: float, batches: list[slice]) -> Array:
    """``torch.optim.SGD`` on a ``Sequential`` of ``Linear`` and ``Sigmoid``, slice by slice."""
    import torch

    u, x, y = (torch.as_tensor(a) for a in (u, x, y))
    ends = []
    for state in u:
        layers: list[Any] = []
        for i, o in itertools.pairwise(sizes):
            layers += [torch.nn.Linear(i, o, bias=False, dtype=u.dtype), torch.nn.Sigmoid()]
        module = torch.nn.Sequential(*layers)
        torch.nn.utils.vector_to_parameters(state.clone(), module.parameters())
        descent = torch.optim.SGD(module.parameters(), lr=alpha)
        for batch in batches:
            descent.zero_grad()
            loss = 0.5 * (module(x[batch]) - y[batch]).square().sum()
            loss.backward()
            descent.step()
        ends.append(torch.nn.utils.parameters_to_vector(module.parameters()).detach().numpy())
    return np.stack(ends)
