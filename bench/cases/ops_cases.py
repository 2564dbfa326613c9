# SPDX-License-Identifier: BSD-3-Clause
"""Speed of the kernels: bytes moved against the copy bandwidth of the same run, and host cost per call.

Inputs are drawn afresh each time, outputs are poisoned before timing, and what the timed calls left
there is compared with ``pyparareal.reference``, bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from bench.cases import Result, case
from pyparareal import _bandwidth, _timing, reference

MB = 1 << 20
SLICES = 32
DTYPES = ("float64", "float32", "float16", "bfloat16")
SMALL = (4, 2, 8)  # [slices, batch, features]: no kernel time to speak of


@dataclass
class Buffers:
    """Inputs and preallocated outputs, all ``[SLICES, n]`` torch tensors of one dtype and device."""

    f_old: Any
    g_new: Any
    g_old: Any
    u_old: Any
    u: Any  # written by the op
    jump: Any  # float64 [SLICES], written by the op
    w: Any  # written by the torch expressions
    t: Any
    norms: Any  # [SLICES]

    @property
    def nbytes(self) -> int:
        return int(self.u.numel() * self.u.element_size())


@case("ops.parareal_update", suite="quick")
def parareal_update() -> Result:
    """Fused update and jump norm, 16 MB to 256 MB an array, all dtypes; the two goals are at 64 MB float32."""
    from pyparareal import ops

    result = update_speed(ops, 64 * MB, "float32")
    for mb, dtype in [(16, "float32"), (256, "float32"), *((64, d) for d in DTYPES if d != "float32")]:
        _add(result, update_speed(ops, mb * MB, dtype, min_time=0.15), f"_{mb}MB_{dtype}")
    return result


@case("ops.overhead", suite="quick")
def overhead() -> Result:
    """Host time of ``parareal_update(f, g, h, out=u)`` on small arrays against ``torch.add(a, b, out=c)``."""
    from pyparareal import ops

    return host_cost(ops, "cpu")


@case("ops.parareal_update.cuda", suite="gpu", device="cuda")
def parareal_update_cuda() -> Result:
    """Fused update and jump norm on the device, 256 MB an array (several L2), all dtypes."""
    from pyparareal import ops

    result = update_speed(ops, 256 * MB, "float32", device="cuda")
    for dtype in DTYPES:
        if dtype != "float32":
            _add(result, update_speed(ops, 256 * MB, dtype, device="cuda"), f"_{dtype}")
    return result


@case("ops.overhead.cuda", suite="gpu", device="cuda")
def overhead_cuda() -> Result:
    """Host time of an asynchronous call on small CUDA tensors against ``torch.add(a, b, out=c)``."""
    from pyparareal import ops

    return host_cost(ops, "cuda")


def update_speed(ops: Any, nbytes: int, dtype: str, *, device: str = "cpu", min_time: float = 0.3) -> Result:
    """``bandwidth_fraction`` and ``speedup_vs_torch`` of the fused update + norm at ``nbytes`` per array.

    The copies move as many bytes as the fused pass, 4 reads + 1 write of ``nbytes``, so the fraction of
    the copy bandwidth is the ratio of two times of one round.
    """
    with _all_cores():
        b = _buffers(nbytes, dtype, device)
        ways = {**_kernel_ways(ops, b, device), **_torch_ways(b)}
        ways |= _bandwidth.copies(b.nbytes * 5 // 2, device=device)
        b.u.fill_(float("nan"))
        b.jump.fill_(float("nan"))
        taken = _timing.interleave(ways, device=device, min_time=min_time)
    copy = min((name for name in taken if name.startswith("copy_")), key=lambda name: taken[name].median)
    # The three operations may reuse the output or a second buffer; the faster of the two is the baseline.
    torch_best = min(("torch_in_place", "torch_two_buffers"), key=lambda name: taken[name].median)
    fraction = _timing.ratio(taken[copy], taken["update_norm"])
    speedup = _timing.ratio(taken[torch_best], taken["update_norm"])
    metrics = {
        "bandwidth_fraction": fraction.value,
        "bandwidth_fraction_low": fraction.low,
        "bandwidth_fraction_high": fraction.high,
        "speedup_vs_torch": speedup.value,
        "speedup_vs_torch_low": speedup.low,
        "speedup_vs_torch_high": speedup.high,
        "speedup_vs_torch_two_buffers": _timing.ratio(taken["torch_two_buffers"], taken["update_norm"]).value,
        "speedup_vs_torch_blocked": _timing.ratio(taken["torch_blocked"], taken["update_norm"]).value,
        # Without the norm 3 reads + 1 write: 4/5 of the bytes of the copy.
        "bandwidth_fraction_without_norm": 0.8 * _timing.ratio(taken[copy], taken["update"]).value,
        # Fastest against fastest: what a disturbed run can still say; tells load on the machine from a slow kernel.
        "bandwidth_fraction_fastest": taken[copy].min / taken["update_norm"].min,
        "speedup_vs_torch_fastest": taken[torch_best].min / taken["update_norm"].min,
        "gb_per_s": 5e-9 * b.nbytes / taken["update_norm"].median,
        "copy_gb_per_s": 5e-9 * b.nbytes / taken[copy].median,
    }
    samples = {name: s.seconds for name, s in taken.items()}
    notes = f"baselines: {copy}, {torch_best}; {SLICES} slices; {_timing.cores()} cores; times of one call in seconds"
    every = nbytes <= 64 * MB  # beyond, the reference takes longer than the measurement
    return Result(metrics, agrees(b, range(SLICES) if every else (0, 1, SLICES // 2, SLICES - 1)), samples, notes)


def host_cost(ops: Any, device: str) -> Result:
    """Seconds of host time per call on ``SMALL`` arrays, alternatives in turn, loops without wrappers."""
    import numpy as np
    import torch

    f, g, h, u_old = (torch.randn(SMALL).to(device) for _ in range(4))
    u, w, jump = torch.empty_like(f), torch.empty_like(f), torch.empty(SMALL[0], dtype=torch.float64, device=device)
    update = ops.parareal_update
    ways = {
        "update": _loop(update, f, g, h, out=u),
        "update_norm": _loop(update, f, g, h, u_old, out=w, jump=jump),
        "torch_add": _loop(torch.add, f, g, out=torch.empty_like(f)),
        "torch_sub": _loop(torch.sub, f, g, out=torch.empty_like(f)),
    }
    checks = [(u, f, g, h)]
    if device == "cpu":
        nf, ng, nh = (np.random.default_rng().standard_normal(SMALL, dtype=np.float32) for _ in range(3))
        nu = np.empty_like(nf)
        ways["update_numpy"] = _loop(update, nf, ng, nh, out=nu)
        ways["numpy_add"] = _loop(np.add, nf, ng, out=np.empty_like(nf))
        checks.append((nu, nf, ng, nh))
    # On a GPU the queue must not fill up, and must be empty when a sample begins.
    queue = {"setup": torch.cuda.synchronize, "max_calls": 256} if device == "cuda" else {}
    taken = _timing.interleave(ways, batched=True, cold_cache=False, min_time=0.2, **queue)
    ratio = _timing.ratio(taken["update"], taken["torch_add"])
    metrics = {
        "ratio_vs_torch_add": ratio.value,
        "ratio_vs_torch_add_low": ratio.low,
        "ratio_vs_torch_add_high": ratio.high,
        # The same formula takes torch two operations.
        "ratio_vs_two_torch_ops": ratio.value / (1 + _timing.ratio(taken["torch_sub"], taken["torch_add"]).value),
        "ratio_with_norm_vs_torch_add": _timing.ratio(taken["update_norm"], taken["torch_add"]).value,
        **{f"ns_{name}": s.median * 1e9 for name, s in taken.items()},
    }
    if device == "cpu":
        metrics["ratio_vs_numpy_add"] = _timing.ratio(taken["update_numpy"], taken["numpy_add"]).value
    expected = [reference.parareal_update(*map(_numpy, inputs)) for _, *inputs in checks]
    checked = all(np.array_equal(_numpy(out), e) for (out, *_), e in zip(checks, expected, strict=True))
    checked &= np.array_equal(_numpy(jump), reference.slice_norms(_numpy(w), _numpy(u_old)))
    return Result(metrics, checked, {name: s.seconds for name, s in taken.items()}, f"shape {SMALL}, float32")


def agrees(b: Buffers, slices: Iterable[int]) -> bool:
    """Whether ``u`` and ``jump`` equal the reference bitwise on these slices (a slice knows no other slice)."""
    import torch

    wide = torch.float64 if b.u.dtype == torch.float64 else torch.float32  # exact for the 16-bit dtypes
    for n in slices:
        f, g, h, u_old = (_numpy(x[n : n + 1].to(wide)) for x in (b.f_old, b.g_new, b.g_old, b.u_old))
        expected = torch.from_numpy(reference.parareal_update(f, g, h)).to(b.u.dtype)
        if not torch.equal(b.u[n : n + 1].cpu(), expected):
            return False
        if float(b.jump[n]) != float(reference.slice_norms(_numpy(expected.to(wide)), u_old)[0]):
            return False
    return True


def _buffers(nbytes: int, dtype: str, device: str) -> Buffers:
    import torch

    kind = getattr(torch, dtype)
    shape = (SLICES, nbytes // kind.itemsize // SLICES)
    f, g, h, u_old = (torch.empty(shape, dtype=kind, device=device).normal_() for _ in range(4))
    u, w, t = (torch.empty(shape, dtype=kind, device=device) for _ in range(3))
    jump = torch.empty(SLICES, dtype=torch.float64, device=device)
    return Buffers(f, g, h, u_old, u, jump, w, t, torch.empty(SLICES, dtype=kind, device=device))


def _kernel_ways(ops: Any, b: Buffers, device: str) -> dict[str, Callable[[], Any]]:
    threads = {} if device == "cuda" else {"threads": _timing.cores()}
    return {
        "update_norm": lambda: ops.parareal_update(b.f_old, b.g_new, b.g_old, b.u_old, out=b.u, jump=b.jump, **threads),
        "update": lambda: ops.parareal_update(b.f_old, b.g_new, b.g_old, out=b.u, **threads),
    }


def _torch_ways(b: Buffers) -> dict[str, Callable[[], Any]]:
    """The same quantities by torch with preallocated outputs: three operations and ``vector_norm``."""
    import torch

    norm = torch.linalg.vector_norm
    rows = [tuple(x[n] for x in (b.f_old, b.g_new, b.g_old, b.u_old, b.w, b.norms)) for n in range(SLICES)]

    def torch_two_buffers() -> None:
        torch.sub(b.g_new, b.g_old, out=b.t)
        torch.add(b.f_old, b.t, out=b.w)
        torch.sub(b.w, b.u_old, out=b.t)
        norm(b.t, dim=1, out=b.norms)

    def torch_in_place() -> None:
        torch.sub(b.g_new, b.g_old, out=b.w)
        torch.add(b.f_old, b.w, out=b.w)
        torch.sub(b.w, b.u_old, out=b.t)
        norm(b.t, dim=1, out=b.norms)

    def torch_blocked() -> None:  # slice by slice, so that intermediates stay in the cache: the best one can do by hand
        for f_old, g_new, g_old, u_old, w, norms in rows:
            torch.sub(g_new, g_old, out=w)
            torch.add(f_old, w, out=w)
            torch.sub(w, u_old, out=b.t[0])
            norm(b.t[0], dim=0, out=norms)

    return {"torch_two_buffers": torch_two_buffers, "torch_in_place": torch_in_place, "torch_blocked": torch_blocked}


def _add(result: Result, more: Result, suffix: str) -> None:
    result.metrics |= {key + suffix: value for key, value in more.metrics.items() if not key.endswith(("low", "high"))}
    result.samples |= {key + suffix: values for key, values in more.samples.items()}
    result.checked &= more.checked


def _loop(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[int], None]:
    """``loop(calls)`` around the call written out as source: no wrapper and no argument unpacking is timed."""
    names = {"fn": fn} | {f"a{i}": a for i, a in enumerate(args)} | kwargs
    call = ", ".join([f"a{i}" for i in range(len(args))] + [f"{key}={key}" for key in kwargs])
    source = f"def make({', '.join(names)}):\n def loop(calls):\n  for _ in range(calls):\n   fn({call})\n return loop"
    scope: dict[str, Any] = {}
    exec(source, scope)
    loop: Callable[[int], None] = scope["make"](**names)
    return loop


def _numpy(x: Any) -> Any:
    return x.cpu().numpy() if hasattr(x, "cpu") else x


@contextlib.contextmanager
def _all_cores() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(_timing.cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)
