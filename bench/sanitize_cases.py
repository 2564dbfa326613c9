# SPDX-License-Identifier: BSD-3-Clause
"""Every op once on tiny odd CUDA arrays, for compute-sanitizer: ``bench/sanitize_cases.py [--device cpu|cuda]``.

Data is made on the host and only copied, so no kernel but ours is instrumented. Run it with
``PYTORCH_NO_CUDA_MEMORY_CACHING=1``: then each array is an allocation of its own, and one element
past its end is an error the checker sees. Results are compared with ``pyparareal.reference``.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

if __package__ in (None, ""):  # started as a script: bench is the one beside it, pyparareal an installed one first
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import bench  # noqa: F401

    sys.path.append(sys.path.pop(0))

from pyparareal import ops, reference, reference_dense
from pyparareal.tableaux import RK4

# Empty, one element, odd tails of every vector width, one past a norm chunk, several chunks, many slices.
SHAPES = [(0, 3), (2, 0), (1, 1), (3, 1, 7), (2, 3, 5), (5, 33), (2, 1025), (3, 2051), (70, 3)]
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
NORMS = reference.NORMS


def main(argv: list[str] | None = None) -> int:
    """Run all; 1 if a result differs from the reference."""
    parser = argparse.ArgumentParser(prog="bench/sanitize_cases.py")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    device = parser.parse_args(argv).device
    generator = torch.Generator().manual_seed(1)
    wrong = []
    count = 0
    for shape, dtype in itertools.product(SHAPES, DTYPES):
        host = [torch.randn(shape, generator=generator).to(dtype) for _ in range(4)]
        for name, got, expected in itertools.chain(_ops_on(host, device), _relaxations_on(host, device)):
            count += 1
            if not _same(got, expected, dtype):
                wrong.append(f"{name} {shape} {dtype}")
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{count} results compared, {len(wrong)} differ: {'; '.join(wrong[:10])}")
    return 1 if wrong or not count else 0


def _ops_on(host: list[Any], device: str) -> Any:
    """``(name, result, reference)`` of each op on the device copies of the host arrays ``f, g, h, u``."""
    f, g, h, u_old = (x.to(device) for x in host)
    rf, rg, rh, ru = (_wide(x) for x in host)
    dtype = f.dtype
    yield "parareal_update", ops.parareal_update(f, g, h), reference.parareal_update(rf, rg, rh)
    rounded = _round(reference.parareal_update(rf, rg, rh), dtype)
    for norm in NORMS:
        u, jump = ops.parareal_update(f, g, h, u_old, norm=norm)
        yield "parareal_update", u, rounded
        yield f"jump {norm}", jump, reference.slice_norms(rounded, ru, norm=norm)
        yield f"slice_norms {norm}", ops.slice_norms(f, norm=norm), reference.slice_norms(rf, norm=norm)
        yield f"slice_norms of jump {norm}", ops.slice_norms(f, g, norm=norm), reference.slice_norms(rf, rg, norm=norm)
    aliased = f.clone()
    yield "parareal_update in place", ops.parareal_update(aliased, g, h, out=aliased), rounded
    for omega in (1.0, 0.7):
        yield f"c_relax {omega}", ops.c_relax(f, g, omega), reference.c_relax(rf, rg, omega)
    for start, step in ((0, 1), (0, 2), (1, 3)):
        yield f"extract {start}::{step}", ops.extract(f, start=start, step=step), rf[start::step]
        v, target = host[1][start::step].contiguous(), host[0].to(device).clone()
        ops.inject(v.to(device), target, start=start, step=step)
        yield f"inject {start}::{step}", target, reference.inject(_wide(v), rf.copy(), start=start, step=step)
    if f.dim() == 3:  # strides that are no plain copy: every second batch row, from an odd address
        views = [x.to(device)[:, :, 1:] for x in host]
        expected = reference.parareal_update(*(_wide(x[:, :, 1:]) for x in host[:3]))
        yield "parareal_update of views", ops.parareal_update(*views[:3]), expected


def _relaxations_on(host: list[Any], device: str) -> Any:
    """The same for the relaxations, of two steps with a pair of right-hand sides; none for 16 bits."""
    u = host[0]
    if u.dtype not in (torch.float64, torch.float32) or 0 in u.shape:
        return
    n = u.shape[-1]
    numbers = [(0.1 + 0.01 * (torch.arange(size) % 7)).to(u.dtype) for size in (n, n, n, 5)]
    sides = [torch.stack([x, 2 * x], 1).contiguous() for x in host[1:3]]
    calls = {
        "relax_diagonal": (numbers[0], 2),
        "relax_tridiagonal": (*numbers[:3], 2),
        "relax_stencil": (numbers[3], 2),
    }
    for name, arguments in calls.items():
        every = torch.empty_like(sides[0]).to(device)
        expected_every = np.empty(every.shape, _wide(u).dtype)
        f, g = (x.to(device) for x in sides)
        expected = getattr(reference, name)(
            _wide(u), *(_wide(x) if torch.is_tensor(x) else x for x in arguments), f=_wide(sides[0]),
            g=_wide(sides[1]), every=expected_every,
        )  # fmt: skip
        on_device = [x.to(device) if torch.is_tensor(x) else x for x in arguments]
        yield (
            name,
            getattr(ops, name)(u.to(device), *on_device, f=f, g=g, every=every, out=torch.empty_like(f[:, 0])),
            expected,
        )
        yield f"{name} every", every, expected_every
        kept, norms = every[:, :1].contiguous(), torch.empty(len(u), dtype=torch.float64, device=device)
        target = host[3].to(device)
        end = getattr(ops, name)(u.to(device), *on_device, f=f, g=g, every=kept, target=target, norms=norms)
        yield f"{name} of which one state is kept", end[:, 0], expected
        yield f"norms of {name}", norms, reference.slice_norms(expected, _wide(host[3]))
    yield from _networks_on(u, host[1], device)
    yield from _recurrent_units_on(u, host[1], device)
    yield from _dense_layers_on(u, host[1], device)
    yield from _scans_on(u.dtype, device)
    yield from _newton_on(u.dtype, device)
    if n == 3:
        lorenz = ("lorenz", (10, 28, 8 / 3), RK4, 0.001, 2)
        yield "relax_rk", ops.relax_rk(u.to(device), *lorenz), reference.relax_rk(_wide(u), *lorenz)


def _networks_on(u: Any, other: Any, device: str) -> Any:
    """Two steps of every slice, its state the weights of one neuron, with all examples in a batch and with one."""
    inputs = u.shape[-1]
    x = torch.stack([other.reshape(-1)[:1].repeat(inputs) / (i + 1) for i in range(3)])
    y = torch.tensor([[0.0], [1.0], [0.5]], dtype=u.dtype)
    first = torch.arange(2 * len(u)).reshape(len(u), 2) % 3
    sizes, alpha = (inputs, 1), 0.1
    for name, examples in (("all examples", {}), ("one example", {"first": first, "count": 1})):
        plain = {key: value.numpy() if torch.is_tensor(value) else value for key, value in examples.items()}
        here = {key: value.to(device) if torch.is_tensor(value) else value for key, value in examples.items()}
        yield (
            f"relax_mlp_sgd, {name}",
            ops.relax_mlp_sgd(u.to(device), sizes, x.to(device), y.to(device), alpha, 2, **here),
            reference.relax_mlp_sgd(_wide(u), sizes, _wide(x), _wide(y), alpha, 2, **plain),
        )


def _recurrent_units_on(u: Any, other: Any, device: str) -> Any:
    """Two steps of a gated recurrent unit of as many units as the state has, and their adjoint."""
    hidden = u.shape[-1]
    if hidden > 70:  # its weights are the square of that
        return
    gates = torch.stack([other, u], 1).repeat_interleave(3, -1)
    weight = torch.cos(torch.arange(3 * hidden * hidden, dtype=u.dtype)).reshape(3 * hidden, hidden) / hidden
    given = gates, weight, weight[:hidden, 0].contiguous()
    here = [a.to(device) for a in given]
    plain = [_wide(a) for a in given]
    yield "relax_gru", ops.relax_gru(u.to(device), *here, 2), reference.relax_gru(_wide(u), *plain, 2)
    states = torch.stack([u, other], 1)
    got = ops.relax_gru_adjoint(states.to(device), *here, other.to(device))
    expected = reference.relax_gru_adjoint(_wide(states), *plain, _wide(other))
    for name, one, wanted in zip(("start", "gates", "hidden"), got, expected, strict=True):
        yield f"relax_gru_adjoint, {name}", one, wanted
    for precision in ("tf32x3", "tf32") if device != "cpu" and u.dtype == torch.float32 else ():
        # Tensor cores do not give the reference's bits; but those of the first slice are the same without the others.
        state, side, back, wide = u.to(device), here[0], other.to(device), states.to(device)
        got = ops.relax_gru(state, *here, 2, precision=precision)[:1]
        alone = ops.relax_gru(state[:1], side[:1], *here[1:], 2, precision=precision)
        yield f"relax_gru, {precision}", got, alone.cpu().numpy()
        got = ops.relax_gru_adjoint(wide, *here, back, precision=precision)
        alone = ops.relax_gru_adjoint(wide[:1], side[:1], *here[1:], back[:1], precision=precision)
        for name, one, wanted in zip(("start", "gates", "hidden"), got, alone, strict=True):
            yield f"relax_gru_adjoint, {precision}, {name}", one[:1], wanted.cpu().numpy()


def _dense_layers_on(u: Any, other: Any, device: str) -> Any:
    """Two residual layers of the width of the state with each activation, and their adjoint."""
    d = u.shape[-1]
    if d > 70:  # its weights are the square of that
        return
    weight = torch.cos(torch.arange(2 * len(u) * d * d, dtype=u.dtype)).reshape(len(u), 2, d, d) / d
    bias = weight[..., 0].contiguous()
    here, plain = (weight.to(device), bias.to(device)), (_wide(weight), _wide(bias))
    for kind in reference_dense.ACTIVATIONS:
        given = torch.empty(len(u), 2, *u.shape[1:], dtype=u.dtype, device=device)
        expected = np.empty(given.shape, _wide(u).dtype)
        got = ops.relax_dense(u.to(device), *here, 0.3, 2, activation=kind, slopes=given)
        wanted = reference.relax_dense(_wide(u), *plain, 0.3, 2, activation=kind, slopes=expected)
        yield f"relax_dense, {kind}", got, wanted
        yield f"relax_dense, slopes of {kind}", given, expected
        got = ops.relax_dense_adjoint(other.to(device), here[0], given, 2, scale=2.0)
        wanted = reference.relax_dense_adjoint(_wide(other), plain[0], expected, 2, scale=2.0)
        yield f"relax_dense_adjoint, {kind}", got, wanted
    for precision in ("tf32x3", "tf32") if device != "cpu" and u.dtype == torch.float32 else ():
        # As in _recurrent_units_on; the first slice of the adjoint takes the weights of the last.
        state, back, (matrices, vectors) = u.to(device), other.to(device), here
        got = ops.relax_dense(state, *here, 0.3, 2, precision=precision)[:1]
        alone = ops.relax_dense(state[:1], matrices[:1], vectors[:1], 0.3, 2, precision=precision)
        yield f"relax_dense, {precision}", got, alone.cpu().numpy()
        got = ops.relax_dense_adjoint(back, matrices, given, 2, precision=precision)[:1]
        alone = ops.relax_dense_adjoint(back[:1], matrices[-1:], given[-1:], 2, precision=precision)
        yield f"relax_dense_adjoint, {precision}", got, alone.cpu().numpy()


def _scans_on(dtype: Any, device: str) -> Any:
    """Scans over more rows than a group has, forward, reverse and of blocks."""
    numbers = torch.arange(300 * 6, dtype=dtype).reshape(300, 6)
    a, b = numbers.cos(), numbers.sin()
    for reverse in (False, True):
        got = ops.scan_diag(a.to(device), b.to(device), reverse=reverse)
        yield f"scan_diag, reverse {reverse}", got, reference.scan_diag(_wide(a), _wide(b), reverse=reverse)
    vectors = b.reshape(300, 3, 2)
    blocks = torch.stack([vectors, vectors.flip(-1)], -1).contiguous()
    got = ops.scan_block(blocks.to(device), vectors.to(device), vectors[0].to(device))
    yield "scan_block", got, reference.scan_block(_wide(blocks), _wide(vectors), _wide(vectors[0]))


def _newton_on(dtype: Any, device: str) -> Any:
    """An iteration of Newton's method over more rows than a group has, of lanes that do not fill a block."""
    steps, hidden = 300, 11
    u = torch.arange((steps + 1) * 2 * hidden, dtype=dtype).sin().reshape(steps + 1, 2, hidden)
    products, gates = (torch.arange(steps * 6 * hidden, dtype=dtype).reshape(steps, 2, -1) * s for s in (0.7, 1.3))
    given = [u, products.sin(), gates.cos(), u[:3, 0].contiguous(), u[3, 0].contiguous()]
    expected = reference.newton_gru(*map(_wide, given), 0.5)
    more = [torch.empty(wanted.shape, dtype=torch.from_numpy(wanted).dtype, device=device) for wanted in expected[1:]]
    names = ("jacobians", "residuals", "updates")
    got = ops.newton_gru(*(t.to(device) for t in given), factor=0.5, **dict(zip(names, more, strict=True)))
    for name, one, wanted in zip(("states", *names), (got, *more), expected, strict=True):
        yield f"newton_gru, {name}", one, wanted


def _wide(x: Any) -> np.ndarray[Any, Any]:
    """The same values in a dtype NumPy knows: exact, and float32 is the arithmetic of the 16-bit dtypes."""
    return (x if x.dtype == torch.float64 else x.float()).numpy()


def _round(x: np.ndarray[Any, Any], dtype: Any) -> np.ndarray[Any, Any]:
    return _wide(torch.from_numpy(x).to(dtype))


def _same(got: Any, expected: np.ndarray[Any, Any], dtype: Any) -> bool:
    got = got.cpu()
    if got.dtype == dtype:
        expected = _round(np.ascontiguousarray(expected), dtype)
        got = torch.from_numpy(_wide(got))
    return np.array_equal(got.numpy(), expected)


if __name__ == "__main__":
    sys.exit(main())
