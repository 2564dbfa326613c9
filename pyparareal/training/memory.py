# SPDX-License-Identifier: BSD-3-Clause
"""What a window of so many steps takes in memory, estimated before anything of it is allocated."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from .settings import Settings
from .steps import OptimiserStep

_STEP_ROWS = 6  # of a step of all slices: what it gets, weights, gradient, new weights and moments, result, ends


def available(device: torch.device) -> int:
    """Bytes that may be taken: half of what is free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def gradient_bytes(step: OptimiserStep) -> int:
    """Of the gradient of one slice: what the forward pass keeps for the backward pass, twice."""
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    numbers = range(0, 1)
    x, y, own = step.examples.batch(step.rules, step.level, numbers, step.stride, step.offset)
    w = step.start()[0, : step.weights.size].clone().requires_grad_(True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        step._loss(w, x[0] if own else x, y[0] if own else y)
    return 2 * kept


def window_bytes(state_bytes: int, steps: int, settings: Settings) -> int:
    """Of the states of a window: C-points, ends and right-hand sides on all levels, and one step of all slices.

    Level ``l + 1`` has ``n = steps / m^(l+1)`` points, for each of which four states are kept.
    """
    m = settings.m
    slices = steps // m + 1
    per_level = 4 * slices if settings.levels_for(steps) <= 2 else 4 * slices * m // (m - 1)
    return state_bytes * (per_level + _STEP_ROWS * slices)


def fitting(step: OptimiserStep, settings: Settings, budget: int) -> tuple[int, int | None]:
    """The longest window that ``budget`` bytes hold, at most all steps, and how many gradients to take at a time.

    Raises
    ------
    MemoryError
        Not even two slices fit.
    """
    state = step.start()
    stride = settings.m ** (settings.levels_for(settings.steps) - 1)
    gradient = gradient_bytes(step) + step.examples.batch_bytes(step.rules, stride)
    state_bytes = state.numel() * state.element_size()
    for_states = budget * 3 // 4
    least = 2 * settings.m
    if window_bytes(state_bytes, least, settings) > for_states or gradient > budget // 4:
        needed = max(window_bytes(state_bytes, least, settings) * 4 // 3, 4 * gradient)
        raise MemoryError(
            f"memory: got {budget / 1e6:.3g} MB, expected at least {needed / 1e6:.3g} MB for two slices of "
            f"{settings.m} steps; train serially"
        )
    low, high = least, max(settings.steps, least)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if window_bytes(state_bytes, middle, settings) <= for_states else (low, middle - 1)
    window = low if low >= settings.steps else low - low % settings.m
    slices = window // settings.m + 1
    at_a_time = budget // 4 // max(gradient, 1)
    return min(window, settings.steps), None if at_a_time >= slices else max(at_a_time, 1)
