# SPDX-License-Identifier: BSD-3-Clause
"""Speed of the fused relaxations: nanoseconds per step of one element or trajectory, on one thread and on all cores.

Beside them: the same kernel on one slice, which is a serial program in C++ with all of its latency; for Lorenz the
same steps in NumPy; for heat the norms of the end states, in the same call and in a call of their own. What the timed
calls left behind is compared with ``pyparareal.reference``, bit for bit, on some slices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.cases import Result, case
from pyparareal import _timing, reference

Array = Any
POINTS, SLICES, STEPS = 256, 1024, 16  # heat: 2 MB of states
TRAJECTORIES, SCALARS = 10_000, 1_000_000
LORENZ = (10, 28, 8 / 3)
TRIDIAGONAL_FLOPS = 5  # per element: multiply and subtract inwards; two products and a difference outwards
LORENZ_RK4_FLOPS = 78  # per step: 4 slopes of 9, 3 stages of 6, weights of 24
SERIAL_STEPS = 4096  # in one launch, which then costs nothing
SHOWN = (0, 1, 7, -1)  # slices that are compared with the reference


@case("ops.relax", suite="quick")
def relax() -> Result:
    """Heat by backward Euler, Lorenz by RK4, a diagonal; also with a pair of right-hand sides and all states kept."""
    metrics: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    checked = True
    for measure in (_heat, _lorenz, _diagonal):
        more = measure()
        metrics |= more.metrics
        samples |= more.samples
        checked &= more.checked
    return Result(
        metrics,
        checked,
        samples,
        f"float64; heat: {SLICES} slices of {POINTS} points, {STEPS} steps; Lorenz: {TRAJECTORIES} trajectories; "
        f"diagonal: {SCALARS} scalars; threads: 1 and {_timing.cores()}; times of one call in seconds",
    )


@case("relax.user_rhs", suite="quick")
def user_rhs() -> Result:
    """Nanoseconds per evaluation of Lorenz in RK4 steps: compiled in, as Numba's function of lanes and of one column,
    and as a NumPy callable, stepped in Python; one thread, same run, same bits."""
    from pyparareal import ops
    from pyparareal.problems import published
    from pyparareal.propagators import RungeKutta, advance
    from pyparareal.slopes import numba_slope
    from pyparareal.tableaux import RK4
    from pyparareal.time_grid import TimeGrid

    def slope(t: float, u: Array, du: Array, p: Array) -> None:
        x, y, z = u[0], u[1], u[2]
        du[0] = p[0] * (y - x)
        du[1] = p[1] * x - y - x * z
        du[2] = x * y - p[2] * z

    u, dt = np.random.default_rng().standard_normal((TRAJECTORIES, 3)), 2.0**-10
    forms: dict[str, Any] = {
        "compiled_in": "lorenz",
        "lanes": numba_slope(slope, 3, 3),
        "one_column": numba_slope(slope, 3, 3, lanes=False),
    }
    outs = {name: np.full_like(u, np.nan) for name in (*forms, "numpy")}
    grid = TimeGrid(0.0, dt * TRAJECTORIES * STEPS, TRAJECTORIES * STEPS)
    rhs = published.lorenz().rhs
    phi, points = RungeKutta(lambda t, v: rhs(t, v), grid, RK4), slice(0, TRAJECTORIES * STEPS, STEPS)
    ways: dict[str, Callable[[], Any]] = {
        name: lambda form=form, name=name: ops.relax_rk(  # type: ignore[misc]
            u, form, LORENZ, RK4, dt, STEPS, out=outs[name], threads=1
        )
        for name, form in forms.items()
    }
    ways["numpy"] = lambda: advance(phi, u, points, STEPS, out=outs["numpy"])
    taken = _timing.interleave(ways, min_time=0.2, cold_cache=False)
    evaluations = TRAJECTORIES * STEPS * len(RK4.b)
    metrics = {f"{name}_ns": samples.median / evaluations * 1e9 for name, samples in taken.items()}
    metrics |= {f"numpy_over_{name}": taken["numpy"].median / taken[name].median for name in forms}
    metrics["lanes_over_compiled_in"] = taken["lanes"].median / taken["compiled_in"].median
    checked = all(np.array_equal(out, outs["numpy"]) for out in outs.values())
    samples = {name: s.seconds for name, s in taken.items()}
    return Result(metrics, checked, samples, f"float64, {TRAJECTORIES} trajectories, {STEPS} steps; seconds of a call")


@case("ops.relax.cuda", suite="gpu", device="cuda")
def relax_cuda() -> Result:
    """The same on the device, beside one slice in one launch: the best serial program there; heat at three widths."""
    return on_device("cuda")


def on_device(device: str) -> Result:
    """``ops.relax.cuda`` on torch tensors of ``device``."""
    from pyparareal.tableaux import RK4

    rng = np.random.default_rng()
    total = Result({}, True, {}, f"float64, {STEPS} steps a launch, {SERIAL_STEPS} of one slice; seconds of a call")
    for points, slices in ((64, 1 << 18), (256, 1 << 16), (1024, 1 << 14)):
        off = np.full(points - 1, -0.5)
        factors = reference.factorise_tridiagonal(off, np.full(points, 2.0), off)
        u = rng.standard_normal((1, points))
        _add(total, f"heat_{points}", points * TRIDIAGONAL_FLOPS, device, "relax_tridiagonal", u, slices, factors)
    lorenz = ("lorenz", LORENZ, RK4, 2.0**-10)
    _add(total, "lorenz", LORENZ_RK4_FLOPS, device, "relax_rk", rng.standard_normal((1, 3)), 1 << 20, lorenz)
    numbers = (np.array([0.9]),)
    _add(total, "diagonal", 1, device, "relax_diagonal", rng.standard_normal((1, 1)), 1 << 26, numbers)
    return total


def _add(total: Result, name: str, flops: int, device: str, op: str, u: Array, slices: int, given: Any) -> None:
    """``slices`` copies of ``u`` and ``u`` alone; ``flops`` are those of a step of one slice."""
    import torch

    from pyparareal import ops

    alone = torch.from_numpy(u).to(device)
    batch = alone.expand(slices, *u.shape[1:]).contiguous()
    out, out_alone = torch.full_like(batch, float("nan")), torch.empty_like(alone)
    arguments = [torch.from_numpy(x).to(device) if isinstance(x, np.ndarray) else x for x in given]
    kernel = getattr(ops, op)
    ways: dict[str, Callable[[], Any]] = {
        "batched": lambda: kernel(batch, *arguments, STEPS, out=out),
        "serial": lambda: kernel(alone, *arguments, SERIAL_STEPS, out=out_alone),
    }
    taken = _timing.interleave(ways, device=device, min_time=0.2)
    batched, serial = taken["batched"].median / (slices * STEPS), taken["serial"].median / SERIAL_STEPS
    total.metrics |= {
        f"{name}_ns_per_step": batched * 1e9,
        f"{name}_ns_per_serial_step": serial * 1e9,
        f"{name}_serial_over_batched": serial / batched,
        f"{name}_gflops": flops / batched * 1e-9,
    }
    total.samples |= {f"{name}_{way}": s.seconds for way, s in taken.items()}
    expected = torch.from_numpy(getattr(reference, op)(u, *given, STEPS))
    total.checked &= bool((out.cpu() == expected).all())


def _heat() -> Result:
    from pyparareal import ops

    rng = np.random.default_rng()
    u, rate = rng.standard_normal((SLICES, POINTS)), 0.5
    off = np.full(POINTS - 1, -rate)
    factors = reference.factorise_tridiagonal(off, np.full(POINTS, 1 + 2 * rate), off)
    f, g, every = (rng.standard_normal((SLICES, STEPS, POINTS)) for _ in range(3))
    outs = {name: np.full_like(u, np.nan) for name in ("one", "all", "pair", "norms")}
    target, norms, norms_apart = rng.standard_normal(u.shape), np.empty(SLICES), np.empty(SLICES)
    serial_u, serial_out = u[:1].copy(), np.empty((1, POINTS))
    ways: dict[str, Callable[[], Any]] = {
        "one_thread": lambda: ops.relax_tridiagonal(u, *factors, STEPS, out=outs["one"], threads=1),
        "all_cores": lambda: ops.relax_tridiagonal(u, *factors, STEPS, out=outs["all"], threads=_timing.cores()),
        "pair_all_cores": lambda: ops.relax_tridiagonal(
            u, *factors, STEPS, f=f, g=g, every=every, out=outs["pair"], threads=_timing.cores()
        ),
        "with_norms": lambda: ops.relax_tridiagonal(
            u, *factors, STEPS, out=outs["norms"], target=target, norms=norms, threads=1
        ),
        "norms_apart": lambda: ops.slice_norms(outs["one"], target, out=norms_apart, threads=1),
        "one_slice": lambda: ops.relax_tridiagonal(serial_u, *factors, 64, out=serial_out, threads=1),
    }
    taken = _timing.interleave(ways, min_time=0.2, cold_cache=False)
    elements = SLICES * POINTS * STEPS
    metrics = _common("heat", taken, elements, POINTS * 64, TRIDIAGONAL_FLOPS)
    metrics["heat_ns_with_pair_all_cores"] = taken["pair_all_cores"].median / elements * 1e9
    # f and g read, every written
    metrics["heat_gb_per_s_with_pair_all_cores"] = 24e-9 * elements / taken["pair_all_cores"].median
    two_calls = taken["one_thread"].median + taken["norms_apart"].median
    metrics["heat_two_calls_over_fused_norms"] = two_calls / taken["with_norms"].median
    few = np.array(SHOWN)
    kept = np.empty((len(few), STEPS, POINTS))
    expected = reference.relax_tridiagonal(u[few], *factors, STEPS)
    expected_pair = reference.relax_tridiagonal(u[few], *factors, STEPS, f=f[few], g=g[few], every=kept)
    checked = all(np.array_equal(outs[name][few], expected) for name in ("one", "all", "norms"))
    checked &= np.array_equal(norms, norms_apart)
    checked &= np.array_equal(outs["pair"][few], expected_pair) and np.array_equal(every[few], kept)
    return Result(metrics, bool(checked), {f"heat_{name}": s.seconds for name, s in taken.items()})


def _lorenz() -> Result:
    from pyparareal import ops
    from pyparareal.problems import published
    from pyparareal.propagators import RungeKutta, advance
    from pyparareal.tableaux import RK4
    from pyparareal.time_grid import TimeGrid

    u, dt = np.random.default_rng().standard_normal((TRAJECTORIES, 3)), 2.0**-10
    outs = {name: np.full_like(u, np.nan) for name in ("one", "all", "numpy")}
    serial_u, serial_out = u[:1].copy(), np.empty((1, 3))
    grid = TimeGrid(0.0, dt * TRAJECTORIES * STEPS, TRAJECTORIES * STEPS)
    lorenz = published.lorenz().rhs
    phi = RungeKutta(lambda t, v: lorenz(t, v), grid, RK4)  # of no name that is compiled in
    step = ("lorenz", LORENZ, RK4, dt)
    ways: dict[str, Callable[[], Any]] = {
        "one_thread": lambda: ops.relax_rk(u, *step, STEPS, out=outs["one"], threads=1),
        "all_cores": lambda: ops.relax_rk(u, *step, STEPS, out=outs["all"], threads=_timing.cores()),
        "one_slice": lambda: ops.relax_rk(serial_u, *step, 4096, out=serial_out, threads=1),
        "numpy": lambda: advance(phi, u, slice(0, TRAJECTORIES * STEPS, STEPS), STEPS, out=outs["numpy"]),
    }
    taken = _timing.interleave(ways, min_time=0.2, cold_cache=False)
    metrics = _common("lorenz", taken, TRAJECTORIES * STEPS, 4096, LORENZ_RK4_FLOPS)
    checked = all(np.array_equal(out, outs["numpy"]) for out in outs.values())
    return Result(metrics, checked, {f"lorenz_{name}": s.seconds for name, s in taken.items()})


def _diagonal() -> Result:
    from pyparareal import ops

    u, a = np.random.default_rng().standard_normal((SCALARS, 1)), np.array([0.9])
    outs = {name: np.full_like(u, np.nan) for name in ("one", "all")}
    serial_u, serial_out = u[:1].copy(), np.empty((1, 1))
    ways: dict[str, Callable[[], Any]] = {
        "one_thread": lambda: ops.relax_diagonal(u, a, STEPS, out=outs["one"], threads=1),
        "all_cores": lambda: ops.relax_diagonal(u, a, STEPS, out=outs["all"], threads=_timing.cores()),
        "one_slice": lambda: ops.relax_diagonal(serial_u, a, 65536, out=serial_out, threads=1),
    }
    taken = _timing.interleave(ways, min_time=0.2, cold_cache=False)
    metrics = _common("diagonal", taken, SCALARS * STEPS, 65536, 1)
    metrics["diagonal_gb_per_s_all_cores"] = 16e-9 * SCALARS / taken["all_cores"].median
    expected = reference.relax_diagonal(u, a, STEPS)
    checked = all(np.array_equal(out, expected) for out in outs.values())
    return Result(metrics, checked, {f"diagonal_{name}": s.seconds for name, s in taken.items()})


def _common(
    name: str, taken: dict[str, _timing.Samples], steps: int, serial_steps: int, flops: int
) -> dict[str, float]:
    """``steps`` of one element or trajectory in a call, ``serial_steps`` in the call for one slice."""
    serial = taken["one_slice"].median / serial_steps
    one, every = (taken[way].median / steps for way in ("one_thread", "all_cores"))
    metrics = {
        f"{name}_ns_one_thread": one * 1e9,
        f"{name}_ns_all_cores": every * 1e9,
        f"{name}_ns_one_slice": serial * 1e9,
        f"{name}_gflops_one_thread": flops / one * 1e-9,
        f"{name}_one_slice_over_one_thread": serial / one,
        f"{name}_one_slice_over_all_cores": serial / every,
    }
    if "numpy" in taken:
        metrics[f"{name}_numpy_over_one_thread"] = taken["numpy"].median / taken["one_thread"].median
    return metrics
