# SPDX-License-Identifier: BSD-3-Clause
"""Several processes: the same bits, and what a second one makes of the time."""

from __future__ import annotations

from collections.abc import Iterable

from bench import machine, ranks
from bench.cases import Result, case
from pyparareal import _timing

RANKS = (1, 2, 3, 4)


@case("devices.bits", suite="full")
def bits() -> Result:
    """Is all that goes over ranks the same, bit for bit, in one process and on 1, 2, 3 and 4 ranks?"""
    return compared(RANKS, "cpu")


@case("devices.bits.cuda", suite="multi_gpu", device="cuda")
def bits_cuda() -> Result:
    """The same with a GPU for every rank."""
    return compared(range(1, require_gpus() + 1), "cuda")


@case("devices.scaling", suite="full")
def scaling() -> Result:
    """Times of one process over those of two, of one thread each: a ``solve``, and a step of a parareal network.

    ``checked``: two ranks return the bits of one process, and send what the formulas say.
    """
    return scaled([2], "cpu")


@case("devices.scaling.cuda", suite="multi_gpu", device="cuda")
def scaling_cuda() -> Result:
    """The same with a GPU for every rank, for 2, 4, ... of them; the parareal network on two."""
    count = require_gpus()
    return scaled([n for n in range(2, count + 1) if n == count or n & (n - 1) == 0], "cuda")


def require_gpus() -> int:
    """How many GPUs there are, at least two."""
    count = len(machine.gpus())
    if count < 2:
        raise RuntimeError(f"needs at least 2 GPUs, there are {count}")
    return count


def compared(counts: Iterable[int], device: str) -> Result:
    alone = ranks.call("bench.devices_bits", "bits_alone", 1, device=device)[0]
    differing, told_in_all = set(), 0
    for count in counts:
        for told in ranks.call("bench.devices_bits", "bits_on_a_rank", count, device=device):
            names = alone.keys() | told.keys()
            told_in_all += len(names)
            differing |= {f"{name} on {count}" for name in names if told.get(name) != alone.get(name)}
    return Result(
        {"identical": float(not differing), "compared": float(told_in_all)},
        checked=not differing,
        notes=f"differing: {', '.join(sorted(differing)) or 'nothing'}; values, gradients, residual histories, weights",
    )


def scaled(counts: Iterable[int], device: str) -> Result:
    metrics: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    checked = True
    runs = [("bench.devices_solves", "solves_on_a_rank", count) for count in counts]
    for module, function, count in [*runs, ("bench.devices_nets", "parareal_net_on_a_rank", 2)]:
        told = ranks.call(module, function, count, device=device)
        checked &= all(one["checked"] for one in told)
        samples |= told[0]["samples"]
        metrics |= told[0]["metrics"] | ratios(told[0]["samples"], count)
    metrics["solve_2_ranks"] = metrics["mgrit_2_ranks"]
    return Result(
        metrics,
        checked=checked,
        samples=samples,
        notes="*_2_ranks: seconds of one process over those of two (1.6 wanted of solve_2_ranks, which is MGRIT's, and "
        "1.5 of parareal_net_2_ranks, a step of 64 residual layers in 2 parts against its mode 'serial'); solves: "
        "reaction and diffusion by dense products, *_vs_serial is the time of the serial chain over that of the ranks; "
        "parareal does not compute converged slices again, which are the first rank's: with K = 13 of 32 slices two "
        "ranks are at most 1.62 times as fast; bytes and states are those that rank 0 sends",
    )


def ratios(samples: dict[str, list[float]], count: int) -> dict[str, float]:
    """Of what was measured in one process and on ``count`` ranks in turn."""
    taken = {name: _timing.Samples(seconds) for name, seconds in samples.items()}
    found = {f"seconds_{name}": one.median for name, one in taken.items()}
    for name in (name.removesuffix("_1_rank") for name in taken if name.endswith("_1_rank")):
        many = taken[f"{name}_{count}_ranks"]
        faster = _timing.ratio(taken[f"{name}_1_rank"], many)
        found |= {f"{name}_{count}_ranks": faster.value}
        found |= {f"{name}_{count}_ranks_low": faster.low, f"{name}_{count}_ranks_high": faster.high}
        if "serial" in taken:
            found[f"{name}_{count}_ranks_vs_serial"] = _timing.ratio(taken["serial"], many).value
    return found
