# SPDX-License-Identifier: BSD-3-Clause
"""ResNet-1001 and ResNet-110: seconds of a training step by execution mode, beside the serial network's."""

from __future__ import annotations

import copy
import math
import os
import resource
import time
from collections.abc import Callable
from typing import Any

from bench import steps
from bench.cases import Result, case

MODES = ("serial", "batched", "parallel")
PARTS = (3, 6, 9, 18)
BATCH = 8
BATCHES = (8, 32, 128)
# Modes are compared in float64. In float32 rounding moves some of the 10**7 activations across the corner of ReLU, and
# each that crosses changes gradients by much more than rounding: those of ResNet-1001 in mode serial differ from
# float64 by 3e-3. In float64, with relative errors of some 1e-13 after 1000 layers, none is expected to cross; 2**-53
# times a condition of 10**6 then is 1e-10.
TOLERANCE = 1e-9
# Graphs are compared with eager steps as they are timed, with products rounded to the 11 bits of TF32: only that the
# capture took the right step is seen, for which the gradients of another network differ by about 1.
TF32_TOLERANCE = 0.3
# Seconds a GPU case may take; what there was no time for is named in the notes.
BUDGET = {"resnet1001": 75.0, "resnet110": 45.0}
COMPILE_SECONDS = 35.0  # asked for before units are compiled


@case("train.resnet1001", suite="full")
def resnet1001() -> Result:
    """Seconds per training step: the serial network and parareal networks of 3, 6, 9, 18 parts in every mode.

    ``checked``: loss and all gradients of each mode agree with mode ``serial`` in float64, and each mode really ran.
    """
    return on_cpu("resnet1001", counts(PARTS))


def counts(default: tuple[int, ...]) -> tuple[int, ...]:
    """Numbers of parts from ``PYPARAREAL_BENCH_PARTS="3,18"``, for a machine with little time."""
    words = os.environ.get("PYPARAREAL_BENCH_PARTS", "")
    return tuple(int(word) for word in words.split(",")) if words else default


def on_cpu(model: str, parts: tuple[int, ...], *, width: int = 16, rounds: int = 3) -> Result:
    """All alternatives in turn, so that a disturbance of the machine meets all of them."""
    import torch

    from pyparareal._timing import interleave, ratio

    x, y = steps.batch(BATCH, "cpu")
    alternatives: dict[str, steps.Step] = {"network": steps.Step(steps.build(model, None, "cpu", width=width), x, y)}
    worst, refused = 0.0, []
    for n in parts:
        built = steps.build(model, n, "cpu", width=width)  # seconds for a thousand layers
        differences, reasons = compare_modes(built, "cpu")
        worst = max(worst, *differences.values())
        refused += [f"{mode} with {n} parts: {reason}" for mode, reason in reasons.items()]
        for mode in differences:
            net = copy.deepcopy(built)
            net.execution = mode
            alternatives[f"{mode}_{n}"] = steps.Step(net, x, y)
    taken = interleave(dict(alternatives), cold_cache=False, repeats=rounds, warmup=1, max_calls=1)
    ran = all(name == "network" or name.startswith(step.net.executed) for name, step in alternatives.items())
    metrics = {f"seconds_{name}": samples.median for name, samples in taken.items()}
    metrics |= {
        f"{name}_vs_network": ratio(s, taken["network"]).value for name, s in taken.items() if name != "network"
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kilobytes on Linux
    losing = [name for name, s in taken.items() if s.median > taken["network"].median]
    return Result(
        metrics | {"max_rel_diff_float64": worst, "peak_memory_gib": peak, "threads": float(torch.get_num_threads())},
        checked=ran and worst <= TOLERANCE,
        samples={name: s.seconds for name, s in taken.items()},
        notes=f"{model}, width {width}, batch {BATCH}, 3 x 32 x 32, forward, backward and update; 'network' is the "
        f"serial one; medians of {rounds}; peak memory of the process, all networks in it; slower than the serial "
        f"network: {', '.join(losing) or 'none'}; refused: {'; '.join(refused) or 'none'}",
    )


def compare_modes(built: Any, device: str) -> tuple[dict[str, float], dict[str, str]]:
    """Relative difference of loss and gradients to mode ``serial``, two images in float64; why modes are refused."""
    x, y = steps.batch(2, device)
    differences: dict[str, float] = {}
    refused: dict[str, str] = {}
    expected = None
    for mode in MODES:
        net = copy.deepcopy(built).double()
        try:
            net.execution = mode
        except ValueError as error:
            refused[mode] = str(error).split(",")[0]
            continue
        step = steps.Step(net, x.double(), y)
        step()
        expected = step.found() if expected is None else expected
        differences[mode] = steps.difference(step.found(), expected) if net.executed == mode else math.inf
    return differences, refused


@case("train.resnet1001.cuda", suite="gpu", device="cuda")
def resnet1001_cuda() -> Result:
    """ResNet-1001 on one GPU: parareal modes, as CUDA graphs, beside the serial network eager, graphed, compiled."""
    return on_gpu("resnet1001")


@case("train.resnet110.cuda", suite="gpu", device="cuda")
def resnet110_cuda() -> Result:
    """The same for ResNet-110."""
    return on_gpu("resnet110")


def on_gpu(
    model: str,
    *,
    device: str = "cuda",
    budget: float | None = None,
    parts: tuple[int, ...] = PARTS,
    batches: tuple[int, ...] = BATCHES,
    width: int = 16,
) -> Result:
    """One alternative after the other, because each graph keeps the memory of its step; the first one again at the end.

    ``checked``: in float64 the modes agree to rounding; each graph's replay has the loss and gradients of an eager
    step. With ``device="cpu"`` "graphed" is eager: the way through this function can be tried without a GPU.
    """
    import torch

    run = _Alternatives(model, device, time.monotonic() + (BUDGET[model] if budget is None else budget), width)
    differences, refused = compare_modes(run.network(parts[-1]), device)
    run.worst = max(differences.values())
    run.left_out += [f"{mode}: {reason}" for mode, reason in refused.items()]
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
        for size in batches:
            run.measure(f"network_graphed_b{size}", None, "serial", size, graphed=True)
            for n in reversed(parts):
                for mode in MODES[1:]:
                    run.measure(f"{mode}_graphed_n{n}_b{size}", n, mode, size, graphed=True)
        for size in batches:
            run.measure(f"network_eager_b{size}", None, "serial", size)
        for mode in MODES:
            run.measure(f"{mode}_eager_n{parts[-1]}_b{batches[0]}", parts[-1], mode, batches[0])
        for size in batches:
            run.measure(f"network_compiled_b{size}", None, "serial", size, compiled=True)
            run.measure(f"network_compiled_graphed_b{size}", None, "serial", size, compiled=True, graphed=True)
            name = f"parallel_compiled_graphed_n{parts[-1]}_b{size}"
            run.measure(name, parts[-1], "parallel", size, compiled=True, graphed=True)
        again = run.seconds.get(f"network_graphed_b{batches[0]}")
        run.measure("network_graphed_again", None, "serial", batches[0], graphed=True)
    return run.result(batches, again)


class _Alternatives:
    """What was measured so far, and until when more may be."""

    def __init__(self, model: str, device: str, deadline: float, width: int) -> None:
        self.model, self.device, self.deadline, self.width = model, device, deadline, width
        self.networks: dict[int | None, Any] = {}  # by number of parts
        self.compiled_for: int | None = None  # the batch size
        self.seconds: dict[str, float] = {}
        self.samples: dict[str, list[float]] = {}
        self.left_out: list[str] = []
        self.worst = self.worst_graphed = 0.0
        self.right = True
        self.peak = 0.0

    def measure(
        self, name: str, n: int | None, mode: str, size: int, *, graphed: bool = False, compiled: bool = False
    ) -> None:
        """Median seconds of a step under ``name``; out of time, of memory or refused: noted, and on to the next."""
        if time.monotonic() + COMPILE_SECONDS * (compiled and size != self.compiled_for) > self.deadline:
            self.left_out.append(f"{name}: no time")
            return
        try:
            self._measure(name, n, mode, size, graphed, compiled)
        except (RuntimeError, ValueError) as error:  # out of memory and what cannot be captured are RuntimeErrors
            self.left_out.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
        self._release()

    def _measure(self, name: str, n: int | None, mode: str, size: int, graphed: bool, compiled: bool) -> None:
        from pyparareal._timing import measure

        net = self._compiled(n, size) if compiled else self.network(n)
        if n is not None:
            net.execution = mode
        step = steps.Step(net, *steps.batch(size, self.device))
        call: Callable[[], Any] = step
        step()
        expected = step.found()
        if graphed and self.device == "cuda":
            call = steps.graphed(step)
            call()
            self.worst_graphed = max(self.worst_graphed, steps.difference(step.found(), expected))
        self.right &= n is None or net.executed == mode
        taken = measure(call, device=self.device, cold_cache=False, repeats=7, warmup=2, max_calls=4)
        self.seconds[name], self.samples[name] = taken.median, taken.seconds

    def network(self, n: int | None) -> Any:
        """Built once: a thousand layers take seconds, and no step changes a parameter."""
        if n not in self.networks:
            self.networks[n] = steps.build(self.model, n, self.device, width=self.width)
        return self.networks[n]

    def _compiled(self, n: int | None, size: int) -> Any:
        """With each unit compiled: five graphs for all of them, where a whole network takes minutes."""
        import torch

        from pyparareal.nn.chain import chain_of

        if size != self.compiled_for:
            torch.compiler.reset()  # of each code object torch keeps a few versions, then runs it uncompiled
        self.compiled_for = size
        net = steps.build(self.model, n, self.device, width=self.width)
        for block in chain_of(net).blocks if n is None else [b for part in net.fine for b in part]:
            block.compile(dynamic=False)
        return net

    def _release(self) -> None:
        import gc

        import torch

        for net in self.networks.values():
            net.zero_grad(set_to_none=True)  # in the memory of a graph that is gone
        gc.collect()
        if self.device == "cuda":
            torch.cuda.synchronize()
            self.peak = max(self.peak, torch.cuda.max_memory_reserved() / 2**30)
            torch.cuda.empty_cache()

    def result(self, batches: tuple[int, ...], first: float | None) -> Result:
        metrics = {f"ms_{name}": 1e3 * seconds for name, seconds in self.seconds.items()}
        words = []
        for size in batches:
            ours = {name: s for name, s in self.seconds.items() if name.endswith(f"_b{size}")}
            serial = {name: s for name, s in ours.items() if name.startswith("network")}
            rest = {name: s for name, s in ours.items() if name not in serial}
            if not serial or not rest:
                continue
            best, fastest = min(serial.values()), min(rest, key=lambda name: rest[name])
            metrics[f"best_vs_best_serial_b{size}"] = rest[fastest] / best
            losing = sorted(name for name, s in rest.items() if s > best)
            words.append(
                f"batch {size}: best serial {min(serial, key=lambda name: serial[name])}, best parareal {fastest}; "
                f"slower than the best serial: {', '.join(losing) or 'none'}"
            )
        if first and "network_graphed_again" in self.seconds:
            metrics["drift"] = self.seconds["network_graphed_again"] / first
        metrics |= {
            "max_rel_diff_float64": self.worst,
            "max_rel_diff_graphed": self.worst_graphed,
            "peak_memory_gib": self.peak,
        }
        return Result(
            metrics,
            checked=self.right and self.worst <= TOLERANCE and self.worst_graphed <= TF32_TOLERANCE,
            samples=self.samples,
            notes=f"{self.model}, width {self.width}, 3 x 32 x 32, one training step, TF32 allowed; ratios below 1 are "
            f"faster than serial. {'. '.join(words)}. Left out: {'; '.join(self.left_out) or 'nothing'}",
        )
