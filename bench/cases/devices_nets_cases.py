# SPDX-License-Identifier: BSD-3-Clause
"""Deep networks in two processes of one thread each: a parareal network, layers in parallel, and a pipeline."""

from __future__ import annotations

import math

from bench import ranks
from bench.cases import Result, case
from bench.cases.devices_cases import require_gpus
from bench.devices_nets import BATCH, LAYERS, MICRO_BATCHES, WIDTH
from pyparareal import _timing

# Sums of BATCH products in another order, in float32, through LAYERS layers that neither grow nor shrink: their errors
# add up like sqrt(BATCH * LAYERS) 2**-24 = 1.5e-5 at most; a wrong gradient differs by about 1.
ROUNDING = 2e-5


@case("devices.vs_pipelining", suite="full")
def vs_pipelining() -> Result:
    """A training step of ``LAYERS`` residual layers: PyTorch's pipeline with 1 to 8 micro-batches, and ours.

    ``*_vs_pipeline_M`` below 1: ours is faster than the pipeline with ``M`` micro-batches. ``checked``: the gradients
    of the pipeline are the serial ones to rounding, and those of the parareal network in two processes are those in
    one.
    """
    return piped("cpu")


@case("devices.vs_pipelining.cuda", suite="multi_gpu", device="cuda")
def vs_pipelining_cuda() -> Result:
    """The same on two GPUs."""
    require_gpus()
    return piped("cuda")


def piped(device: str) -> Result:
    told = ranks.call("bench.devices_nets", "networks_on_a_rank", 2, device=device)
    samples = {name: _timing.Samples(seconds) for name, seconds in told[0]["samples"].items()}
    errors = {name: math.hypot(*(one["errors"][name] for one in told)) for name in told[0]["errors"]}
    metrics = {f"gradient_error_{name}": error for name, error in errors.items()}
    metrics |= {f"seconds_{name}": one.median for name, one in samples.items()}
    metrics |= told[0]["metrics"]
    for m in MICRO_BATCHES:
        for ours in ("parareal_net", "layer_parallel"):
            found = _timing.ratio(samples[ours], samples[f"pipeline_{m}"])
            metrics[f"{ours}_vs_pipeline_{m}"] = found.value
    for name, one in samples.items():
        if name != "serial":
            metrics[f"{name}_vs_serial"] = _timing.ratio(one, samples["serial"]).value
    pipelines = max(errors[f"pipeline_{m}"] for m in MICRO_BATCHES)
    return Result(
        metrics,
        checked=pipelines <= ROUNDING and errors["parareal_net"] <= ROUNDING,
        samples={name: one.seconds for name, one in samples.items()},
        notes=f"{LAYERS} layers u + tanh(linear(u)) / 16 of width {WIDTH}, batch {BATCH}, float32; gloo, 2 processes "
        "of one thread; GPipe; the parareal network of two parts is another network than the one it was cut from, its "
        "gradient is compared with its own in one process; layers in parallel by 2 + 2 iterations approximate the "
        "serial gradient",
    )
