# SPDX-License-Identifier: BSD-3-Clause
"""What ``pyparareal profile`` can watch without a program of one's own."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import numpy as np

from . import problems, runs_command, solve_command, solve_report
from ._progress import Live
from .profile_runs import INTERRUPTED, MOST_EVENTS
from .profiling.events import Record
from .profiling.timeline import Timeline
from .solver import serial_solve, solve

SERIAL_SECONDS = 2.0  # of measuring each serial program, after which it is not run once more


@dataclass
class Job:
    """A case made ready: ``run`` is watched, ``warm_up`` happens before, and ``after`` adds to what is known."""

    title: str
    run: Callable[[], Any]
    warm_up: Callable[[], Any] | None = None
    after: Callable[[Record], None] | None = None
    runtime: Any = None


def watched(name: str, arguments: Sequence[str], repeat: bool, live: Live) -> tuple[Record, int]:
    """The record of the case of this name, and its exit status."""
    make = CASES[name][0]
    if os.environ.get("WORLD_SIZE", "1") != "1" and make is not _problem:
        raise ValueError(f"ranks: {name} runs in one process; a model problem or a script can have several")
    live.status(f"{name}: getting ready", at_once=True)
    job = make(name, list(arguments), live)
    if job.warm_up is not None:
        job.warm_up()
    if repeat:
        job.run()
    timeline, status = Timeline(job.title, most=MOST_EVENTS), None
    interrupted = False
    try:
        with timeline:
            status = job.run()
    except KeyboardInterrupt:
        status, interrupted = INTERRUPTED, True
    record = timeline.record
    if interrupted:
        record.about["failed"] = "it was interrupted"
    elif job.after is not None:
        live.status(f"{name}: measuring what to compare with", at_once=True)
        job.after(record)
    if job.runtime is not None:
        import torch.distributed

        torch.distributed.destroy_process_group()
    return record, int(status or 0)


def listing() -> str:
    """A line for each case."""
    width = max(map(len, CASES))
    lines = [f"{name:{width}}  {words}" for name, (_, words) in CASES.items()]
    return "\n".join([*lines, f"{'SCRIPT.py':{width}}  a program of your own, with its arguments"])


# Model problems: pyparareal solve


def _problem(name: str, arguments: list[str], live: Live) -> Job:
    args = _parsed(name, solve_command.configure, [name, *arguments])
    problem = problems.model_problem(name, points=args.points, steps=args.steps)
    method = solve_command.method_of(args, problem)
    case = solve_command.case_of(problem, args)
    runtime = _runtime()
    progress = solve_report.Progress(live, args.max_iterations)
    progress.tol, progress.heading = case["tol"], solve_report.heading(problem, args.integrator, method, case)
    own: dict[str, Any] = {"method": method, "max_iterations": args.max_iterations, "on_failure": "return"}
    own |= {"runtime": runtime, "callback": progress if live.active else None}

    def run() -> int:
        with np.errstate(all="ignore"):  # a step that overflows is reported by its status
            solution = solve(**case, **own)
        return 0 if solution.status.ok else 1

    def after(record: Record) -> None:
        if int(os.environ.get("RANK", "0")) == 0:  # alone, while the others end
            record.about["serial_seconds"] = _serial_seconds(case)

    kind = method if isinstance(method, str) else f"MGRIT, at most {method.levels} levels"
    title = f"{name}: {case['grid'].steps} steps, {kind}, m = {case['m']}"
    return Job(title, run, None, after, runtime)


def _serial_seconds(case: dict[str, Any]) -> float:
    """Of the faster serial program, slice after slice or all steps in one call: the median of five after one more.

    Once would be the time of first calls: threads that start, memory touched for the first time.
    """
    factor = case["m"][0] if isinstance(case["m"], tuple) else case["m"]
    medians = []
    for m in {factor, case["grid"].steps}:
        taken: list[float] = []
        while (len(taken) < 6 and sum(taken) < SERIAL_SECONDS) or len(taken) < 2:
            begin = time.perf_counter()
            with np.errstate(all="ignore"):
                serial_solve(case["fine"], case["u0"], case["grid"], m=m, save="coarse", on_failure="return")
            taken.append(time.perf_counter() - begin)
        medians.append(statistics.median(taken[1:]))
    return min(medians)


def _runtime() -> Any:
    """That of all ranks where there are several."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    import torch

    from .runtime import distributed

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    return distributed()


# Training over runs: pyparareal runs


def _runs(name: str, arguments: list[str], live: Live) -> Job:
    from . import runs_report

    args = _parsed(name, runs_command.configure, arguments)
    problem, runs = runs_command.runs_of(args)
    progress = runs_report.Progress(live, problem, runs) if live.active else None

    def run() -> int:
        return 0 if runs.run(callback=progress).status.ok else 1

    return Job(f"training {args.problem}, {args.steps} steps over runs", run)


# Networks


def _train(name: str, arguments: list[str], live: Live) -> Job:
    from .nn.training_job.watching import watched_training

    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--steps", type=_positive, default=10, help="training steps to watch (default: 10)")
        parser.add_argument("--run", metavar="DIR", help="the run whose network it is (default: the latest in runs/)")

    args = _parsed(name, options, arguments)
    training = watched_training(args.run)

    def after(record: Record) -> None:
        record.about["network"] = training.network(record)

    return Job(training.title, partial(training.steps, args.steps, live), partial(training.steps, 3, live), after)


def _layers(name: str, arguments: list[str], live: Live) -> Job:
    import torch
    from torch import nn

    from .nn import LayerParallel

    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--layers", type=_positive, default=256, help="of the network (default: 256)")
        parser.add_argument("--width", type=_positive, default=32, help="of each (default: 32)")
        parser.add_argument("--m", type=_positive, default=4, help="layers in a slice (default: 4)")

    args = _parsed(name, options, arguments)
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(args.width, args.width), nn.Tanh()) for _ in range(args.layers)]
    net = LayerParallel(blocks, h=4 / args.layers, m=args.m, forward=2, backward=2)
    x = torch.randn(32, args.width)
    step = partial(_forward_and_backward, net, x)
    return Job(f"LayerParallel: {args.layers} layers of {args.width}, a training step", step, step)


def _gru(name: str, arguments: list[str], live: Live) -> Job:
    import torch

    from .nn import GRU

    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--steps", type=_positive, default=2048, help="of the sequence (default: 2048)")
        parser.add_argument("--hidden", type=_positive, default=32, help="size of the state (default: 32)")
        parser.add_argument("--method", default="auto", help="as nn.GRU takes it (default: auto)")

    args = _parsed(name, options, arguments)
    torch.manual_seed(0)
    net = GRU(8, args.hidden, method=args.method)
    x = torch.randn(args.steps, 2, 8)
    step = partial(_forward_and_backward, net, x)
    return Job(f"nn.GRU: {args.steps} steps, {args.hidden} hidden, method {args.method}", step, step)


def _forward_and_backward(net: Any, x: Any) -> None:
    from . import _trace

    net.zero_grad()
    with _trace.mark("train.forward"):
        output = net(x.clone().requires_grad_())
        loss = (output[0] if isinstance(output, tuple) else output).square().mean()
    with _trace.mark("train.backward"):
        loss.backward()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_positive.__name__ = "number of at least 1"  # what argparse calls it in its errors


def _parsed(
    name: str, configure: Callable[[argparse.ArgumentParser], None], arguments: list[str]
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"pyparareal profile {name}", add_help=False)
    configure(parser)

    def fail(message: str) -> NoReturn:
        parser.exit(2, f"{parser.prog}: error: {message}\n")

    parser.error = fail  # type: ignore[method-assign]
    return parser.parse_args(arguments)


CASES: dict[str, tuple[Callable[[str, list[str], Live], Job], str]] = {
    "train": (_train, "training steps of the latest network of `make train`, or of a fresh one like it"),
    "layers": (_layers, "a training step of a deep network, parallel over its layers (nn.LayerParallel)"),
    "gru": (_gru, "a training step of a recurrent layer, parallel over the sequence (nn.GRU)"),
    "runs": (_runs, "training in parallel over its steps; options of `pyparareal runs`"),
    **dict.fromkeys(problems.CATALOGUE, (_problem, "a model problem; options of `pyparareal solve`")),
}
