# SPDX-License-Identifier: BSD-3-Clause
"""Which method, in chunks of how many steps: "auto" measured once, and the sizes that need no measurement."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import torch
from torch import Tensor

from ...linearise import source_of
from ...mgrit import MGRIT
from ...time_grid import shift_points
from .exponent import SAMPLES, STEPS, growth_along
from .settings import Settings

FEWEST = 4  # steps: two chunks of two
SHORT = 64  # steps below which no measurement of "auto" pays
FULL = 8  # numbers of a state up to which whole Jacobians are cheap: F products of F x F matrices per step
MEASURED = 4  # steps, after one that warms up
MOST = 32  # passes that a sequence of few chunks may take
MARGIN = 1.3  # steps of a memory over those that its mean decay takes
ITERATIONS = 10  # of Newton's method on smooth cells: measured were 4 to 10 on GRUs of long memory
LINEARISED = 2048  # steps whose Jacobians are timed

Key = tuple[Any, ...]


def resolved(settings: Settings, length: int, features: int) -> Settings:
    """``settings`` for this length with nothing left open but "auto"."""
    if length < FEWEST or settings.method == "serial":
        return dataclasses.replace(settings, method="serial", chunk=None)
    method, jacobian = settings.method, settings.jacobian
    if jacobian == "auto" and method in ("newton", "hybrid"):
        jacobian = "full" if features <= FULL else ("diagonal" if method == "newton" else "none")
    chunk = settings.chunk or (1 if method == "newton" else chunk_of(length))
    if isinstance(method, MGRIT) or method in ("mgrit", "hybrid"):
        chunk = max(2, chunk)
    chunk = min(chunk, length)
    warm_up = chunk // 4 if settings.warm_up is None else min(settings.warm_up, chunk)
    return dataclasses.replace(settings, jacobian=jacobian, chunk=chunk, warm_up=warm_up)


def chunk_of(length: int) -> int:
    """Near the square root of the length, and such that few steps are left over, which are taken one by one.

    A pass over chunks of ``m`` steps takes ``m`` steps one after the other, and what joins them ``length / m``: the
    sum is smallest at the square root.
    """
    root = math.isqrt(length)
    near = range(max(2, root - root // 4), root + root // 4 + 1)
    return min(near, key=lambda m: (length % m, abs(m - root)))


def iterations_of(settings: Settings, length: int) -> int:
    """Passes without a Jacobian, at most: few chunks are made exact, of many a quarter, then one by one is as fast."""
    slices = length // (settings.chunk or 1)
    return settings.max_iterations or min(slices, max(MOST, slices // 4))


def key_of(u0: Tensor, length: int, gradients: bool) -> Key:
    """What a choice of "auto" holds for: shape, dtype, device, and lengths up to the next power of two."""
    return (1 << (length - 1).bit_length(), tuple(u0.shape), u0.dtype, u0.device, gradients)


@torch.no_grad()
def measured(step: Any, u0: Tensor, length: int, settings: Settings, tol: float) -> tuple[Settings, str]:
    """What promises to be fastest, and why: "serial", "hybrid" without Jacobians, or "newton" with whole ones.

    Measured are a step by itself, one of all chunks side by side, how fast a difference decays, and of small states the
    Jacobians of all steps. Chunks without a Jacobian need the steps in which a difference decays to ``tol``, for the
    guess and in further passes, and one pass; Newton's method takes a few iterations, however long the memory. Chunks
    with whole Jacobians are not among them: they take the same products, but one after the other within a chunk.
    """
    serial = dataclasses.replace(settings, method="serial")
    if length < SHORT:
        return serial, f"auto: fewer than {SHORT} steps"
    hybrid = resolved(dataclasses.replace(settings, method="hybrid", jacobian="none"), length, u0[0].numel())
    m = hybrid.chunk or 1
    slices = length // m
    one = _seconds(lambda: _serial(step, u0, MEASURED), u0) / MEASURED
    u, points = u0.expand(slices, *u0.shape).contiguous(), slice(0, (slices - 1) * m + 1, m)
    side_by_side = _seconds(lambda: _relax(step, u, points, MEASURED), u0) / MEASURED
    rate = decay(step, u0, length)
    why = (
        f"auto: one step {1e6 * one:.0f} us, of {slices} chunks side by side {1e6 * side_by_side:.0f} us, "
        f"differences change by exp({rate:.3g}) per step"
    )
    if not rate < 0:
        return serial, f"{why}: chaotic or never forgetting"
    memory = MARGIN * math.log(1 / tol) / -rate
    warm_up = min(m, math.ceil(memory)) if settings.warm_up is None else hybrid.warm_up or 0
    passes = 1 + math.ceil(max(0.0, memory - warm_up) / m)
    by_chunks, by_newton = (warm_up + passes * m) * side_by_side, math.inf
    if settings.chunk in (None, 1):
        by_newton = ITERATIONS * _linearised(step, u0, length)
    if math.isfinite(by_newton):
        why = f"{why}, their Jacobians take {1e3 * by_newton / ITERATIONS:.2g} ms"
    if min(by_chunks, by_newton) >= length * one:
        return serial, f"{why}: too little to gain"
    if by_chunks <= by_newton:
        limit = settings.max_iterations or min(2 * passes + 2, slices)
        return dataclasses.replace(hybrid, warm_up=warm_up, max_iterations=limit), why
    limit = settings.max_iterations or MOST
    return dataclasses.replace(settings, method="newton", jacobian="full", max_iterations=limit), why


def _linearised(step: Any, u0: Tensor, length: int) -> float:
    """Seconds that the Jacobians of all steps take; infinite for large states, and where there are none."""
    if u0[0].numel() > FULL or (source := source_of(step, u0[None])) is None or "full" not in source.kinds:
        return math.inf
    steps = min(length, LINEARISED)
    u = u0.expand(steps, *u0.shape).contiguous()
    return _seconds(lambda: source.step(u, slice(0, steps, 1), "full"), u0) * length / steps


def decay(step: Any, u0: Tensor, length: int) -> float:
    """Mean of ``log |d[i+1]| / |d[i]|`` over a few dozen steps from several places of the sequence."""
    places = min(SAMPLES, length // STEPS)
    stride = (length - STEPS) // max(1, places - 1) if places > 1 else length
    points = slice(0, (places - 1) * stride + 1, stride)
    u = [u0.expand(places, *u0.shape).contiguous()]
    for j in range(STEPS):
        u.append(step.step(u[-1], shift_points(points, j)))
    return float(growth_along(step, torch.stack(u), points).mean(0).amax())


def _serial(step: Any, u0: Tensor, steps: int) -> None:
    if hasattr(step, "serial"):
        step.serial(u0, steps)
    else:
        _relax(step, u0[None], slice(0, 1, 1), steps)


def _relax(step: Any, u: Tensor, points: slice, steps: int) -> None:
    if getattr(step, "fused", False) is True:
        step.relax(u, points, steps, torch.empty_like(u))
        return
    for j in range(steps):
        u = step.step(u, slice(points.start + j, points.stop + j, points.step))


def _seconds(work: Any, u: Tensor) -> float:
    """The least of two, after one that warms up."""
    seconds = []
    for _ in range(3):
        _wait(u)
        begin = time.perf_counter()
        work()
        _wait(u)
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


def _wait(u: Tensor) -> None:
    if u.device.type == "cuda":
        torch.cuda.synchronize(u.device)
