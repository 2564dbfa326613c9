# SPDX-License-Identifier: BSD-3-Clause
"""The execution modes of a parareal network: the same numbers, and what each costs."""

from __future__ import annotations

from typing import Any

from bench.cases import Result, case

MODES = ("serial", "batched", "parallel")
PARTS, UNITS, WIDTH, BATCH = 4, 3, 32, 64
# float32: sums of 64 * 64 values in another order err by about sqrt(64 * 64) units (signs are random), 8 layers and as
# many gradients follow each other, and batch norm divides by deviations of about 0.1: 64 * 16 * 10 * 2**-24 = 6e-4.
TOLERANCE = 6e-4


@case("train.modes", suite="full")
def train_modes() -> Result:
    """One training step of ``PARTS`` equal parts in each mode, in turns, on all threads torch has.

    ``checked``: output, gradients and running statistics agree with ``serial`` to rounding, and each mode really ran.
    """
    return _compare("cpu")


@case("train.modes.cuda", suite="gpu", device="cuda")
def train_modes_cuda() -> Result:
    """The same with streams on one GPU; TF32 is off."""
    return _compare("cuda")


def _compare(device: str) -> Result:
    import torch

    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):
        return _compared(device)


def _compared(device: str) -> Result:
    import torch

    from pyparareal._timing import interleave

    nets = {mode: _network(mode).to(device) for mode in MODES}
    torch.manual_seed(1)
    x = torch.randn(BATCH, 1, 8, 8, device=device)
    for _ in range(2):
        found = {mode: _step(net, x) for mode, net in nets.items()}
    worst = max(_difference(found[mode], found["serial"]) for mode in MODES[1:])
    samples = interleave(
        {mode: lambda net=net: _step(net, x) for mode, net in nets.items()},
        device=device,
        cold_cache=False,
        min_time=2.0,
        max_calls=1,
    )
    seconds = {mode: taken.median for mode, taken in samples.items()}
    ran = all(net.executed == mode for mode, net in nets.items())
    return Result(
        metrics={
            "max_rel_diff": worst,
            "batched_vs_serial": seconds["batched"] / seconds["serial"],
            "parallel_vs_serial": seconds["parallel"] / seconds["serial"],
            "threads": float(torch.get_num_threads()),
        },
        checked=ran and worst <= TOLERANCE,
        samples={mode: taken.seconds for mode, taken in samples.items()},
        notes=f"{PARTS} parts of {UNITS} residual units, {WIDTH} channels, 8 x 8, batch {BATCH}; forward and backward; "
        "ratios below 1 are faster than serial",
    )


def _network(mode: str) -> Any:
    import torch
    from torch import nn

    from pyparareal.nn import PararealNetwork
    from pyparareal.nn.interface_maps import InterfaceMap
    from pyparareal.nn.residual_unit import ResidualUnit

    torch.manual_seed(0)
    image, shape = (1, 8, 8), (WIDTH, 8, 8)
    return PararealNetwork(
        [ResidualUnit(WIDTH, WIDTH) for _ in range(PARTS * UNITS)],
        PARTS,
        preprocess=[InterfaceMap(image, shape, units=0) for _ in range(PARTS)],
        coarse=[InterfaceMap(shape, shape, units=0, signed=True) for _ in range(PARTS - 1)],
        head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10)),
        execution=mode,
    )


def _step(net: Any, x: Any) -> dict[str, Any]:
    net.zero_grad()
    y = net(x)
    y.square().mean().backward()
    tensors = {"y": y.detach()} | {f"gradient {n}": p.grad for n, p in net.named_parameters()}
    return tensors | {n: b.double() for n, b in net.named_buffers()}


def _difference(got: dict[str, Any], expected: dict[str, Any]) -> float:
    """Largest norm-wise relative difference of all tensors."""
    return max(float((got[n] - t).norm() / t.norm().clamp_min(1e-6)) for n, t in expected.items())
