# SPDX-License-Identifier: BSD-3-Clause
"""Speed of recurrences of 16,384 steps, batch 4, 64 numbers a state: inference, and a training step.

Beside ours: the loop over the cell in Python; the same with the cell, or blocks of steps, compiled by ``torch.compile``
in up to ``LIMIT`` seconds each, which are told and not counted; and ``torch.nn.GRU``. ``nn.GRU`` with chunks is there
too where it loses. All of a case in one run, two threads but where one is named, single precision; what the timed calls
returned is compared with float64.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from bench.cases import Result, case
from pyparareal import _timing

STEPS, BATCH, INPUTS, HIDDEN = 16_384, 4, 64, 64
BLOCK = 32  # steps that are compiled together: more take the compiler longer than the case
SHORT_BLOCK = 8  # of the custom cell, of which 32 took it more than five minutes
LIMIT = float(os.environ.get("PYPARAREAL_BENCH_COMPILE_LIMIT", "300"))  # seconds for the compiler, each time
THREADS, REPEATS = 2, 3
TOLERANCE = 1e-5  # of the largest state, against float64; gradients ten times that
SLOW = ("ours_mgrit",)  # which loses: its inference says so, a training step would take as long as all others
COMPILED = os.environ.get("PYPARAREAL_BENCH_COMPILED", "1") != "0"


@case("sequence.gru", suite="full")
def gru() -> Result:
    """``nn.GRU``: "auto", and chunks relaxed side by side, against the loop over ``GRUCell`` and ``torch.nn.GRU``."""
    import torch

    from pyparareal.nn.recurrent import GRU

    torch.manual_seed(0)
    theirs, cell = torch.nn.GRU(INPUTS, HIDDEN), torch.nn.GRUCell(INPUTS, HIDDEN)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in theirs.state_dict().items()})
    ours = {
        "ours": GRU.from_torch(theirs),
        "ours_hybrid": GRU.from_torch(theirs, method="hybrid"),
        "ours_mgrit": GRU.from_torch(theirs, method="mgrit", max_iterations=64),
    }
    calls: dict[str, Callable[[Any], Any]] = {"cell_loop": lambda x: _loop(cell, x), "nn_gru": lambda x: theirs(x)[0]}
    calls |= {name: lambda x, m=m: m(x)[0] for name, m in ours.items()}
    total = _compare(cell, calls, torch.nn.GRU(INPUTS, HIDDEN, dtype=torch.float64), theirs.state_dict(), block=BLOCK)
    for name in ("vs_cell_loop", "vs_nn_gru", "vs_compiled_loop"):
        _ratios(total, name, name.removeprefix("vs_"), "ours")
    for name in ("hybrid", "mgrit"):
        _ratios(total, f"{name}_vs_nn_gru", "nn_gru", f"ours_{name}")
        report = ours[f"ours_{name}"].report[0]
        total.metrics[f"{name}_iterations"] = report.iterations
        total.metrics[f"{name}_chunk"] = report.chunk
        total.metrics["exponent"] = report.exponent
    total.metrics["iterations"] = ours["ours"].report[0].iterations
    return total


@case("sequence.custom_cell", suite="full")
def custom_cell() -> Result:
    """A cell that no library has, a minimal gated unit with a norm, through ``nn.Recurrence`` against its loop."""
    return _custom_cell(THREADS, None)


@case("sequence.compiled_cell", suite="full")
def compiled_cell() -> Result:
    """The same on one thread, against the loop over the compiled cell and over compiled blocks of steps too."""
    return _custom_cell(1, SHORT_BLOCK)


def _custom_cell(threads: int, block: int | None) -> Result:
    import torch

    from bench.sequence_training import MinimalGatedUnit
    from pyparareal.nn.recurrent import Recurrence

    torch.manual_seed(0)
    cell = MinimalGatedUnit(INPUTS, HIDDEN)
    ours = Recurrence(cell)
    calls = {"loop": lambda x: _loop(cell, x), "ours": lambda x: ours(x)[0]}
    wide = MinimalGatedUnit(INPUTS, HIDDEN, torch.float64)
    total = _compare(cell, calls, wide, cell.state_dict(), threads=threads, block=block)
    for name in ("loop", "compiled_cell", "compiled_loop"):
        _ratios(total, f"vs_{name}", name, "ours")
    report = ours.report
    assert report is not None
    total.metrics |= {"iterations": report.iterations, "chunk": report.chunk, "exponent": report.exponent}
    return total


def _loop(cell: Any, x: Any) -> Any:
    import torch

    h, states = x.new_zeros(BATCH, HIDDEN), []
    for row in x.unbind(0):
        h = cell(row, h)
        states.append(h)
    return torch.stack(states)


def _compiled(cell: Any, steps: int) -> Callable[[Any], Any]:
    """The loop over blocks of so many steps, each one graph."""
    import torch

    def block(rows: Any, h: Any) -> Any:
        states = []
        for row in rows.unbind(0):
            h = cell(row, h)
            states.append(h)
        return torch.stack(states)

    run = torch.compile(block, dynamic=False)

    def loop(x: Any) -> Any:
        h, blocks = x.new_zeros(BATCH, HIDDEN), []
        for rows in x.split(steps):
            blocks.append(run(rows, h))
            h = blocks[-1][-1]
        return torch.cat(blocks)

    return loop


def _compiled_in_time(cell: Any, steps: int, total: Result) -> dict[str, Callable[[Any], Any]]:
    """The loops over the compiled cell and over compiled blocks, those that the compiler made within ``LIMIT``."""
    import torch

    made: dict[str, Callable[[Any], Any]] = {}
    one = torch.compile(cell, dynamic=False)
    ways = {"compiled_cell": lambda x: _loop(one, x), "compiled_loop": _compiled(cell, steps)}
    x, out = torch.randn(2 * steps, BATCH, INPUTS), torch.randn(2 * steps, BATCH, HIDDEN)
    for name, way in ways.items():
        print(f"  {name}: compiling, {LIMIT:g} s at most", file=sys.stderr, flush=True)
        begin = time.perf_counter()
        try:
            with _alarm(LIMIT):
                for run in (_inference, _step):
                    run(way, x, out)
        except Exception:  # the compiler wraps the alarm in errors of its own
            if time.perf_counter() - begin < LIMIT:
                raise
            total.notes += f"; {name}: not compiled within {LIMIT:g} s"
            continue
        total.metrics[f"{name}_compile_s"] = time.perf_counter() - begin
        made[name] = way
    return made


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """TimeoutError when so much time has passed."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"{seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _compare(
    cell: Any, calls: dict[str, Callable[[Any], Any]], wide: Any, weights: Any, *, threads: int = THREADS, block: Any
) -> Result:
    """Times of all ways, for inference and for a training step, and their largest error."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    x, out = torch.randn(STEPS, BATCH, INPUTS), torch.randn(STEPS, BATCH, HIDDEN)
    wide.load_state_dict({name: value.double() for name, value in weights.items()})
    of_wide = (lambda v: wide(v)[0]) if isinstance(wide, torch.nn.GRU) else (lambda v: _loop(wide, v))
    expected = [t.detach() for t in _step(of_wide, x.double(), out.double())]
    total = Result({}, True, {}, f"float32, {STEPS} steps, batch {BATCH}, hidden {HIDDEN}, {threads} threads; seconds")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler, about itself
            if COMPILED and block:
                calls = calls | _compiled_in_time(cell, block, total)
            for kind, run in (("inference", _inference), ("training", _step)):
                _time(total, kind, run, calls, x, out, expected)
    finally:
        torch.set_num_threads(before)
    return total


def _time(
    total: Result, kind: str, run: Any, calls: dict[str, Callable[[Any], Any]], x: Any, out: Any, expected: list[Any]
) -> None:
    found: dict[str, Any] = {}
    some = {n: f for n, f in calls.items() if kind == "inference" or n not in SLOW}
    taken = _timing.interleave(
        {n: lambda n=n, f=f, run=run: found.update({n: run(f, x, out)}) for n, f in some.items()},
        repeats=REPEATS, warmup=1,
    )  # fmt: skip
    total.samples |= {f"{name}_{kind}": list(t.seconds) for name, t in taken.items()}
    total.metrics |= {f"{name}_{kind}_ms": 1e3 * t.median for name, t in taken.items()}
    _check(total, kind, found, expected)


def _inference(run: Callable[[Any], Any], x: Any, out: Any) -> list[Any]:
    import torch

    with torch.no_grad():
        return [run(x)]


def _step(run: Callable[[Any], Any], x: Any, out: Any) -> list[Any]:
    """The states, and the gradient of ``sum(states * out)`` in ``x``; those of the weights are computed too."""
    x = x.clone().requires_grad_()
    states = run(x)
    (states * out).sum().backward()
    return [states.detach(), x.grad]


def _check(total: Result, kind: str, found: dict[str, list[Any]], expected: list[Any]) -> None:
    names = ["max_rel_err", "max_rel_err_gradient"]
    for name, tensors in found.items():
        for what, got, right in zip(names, tensors, expected, strict=False):
            error = float((got.double() - right).abs().max() / right.abs().max())
            total.checked &= error <= TOLERANCE * (10 if "gradient" in what else 1)
            if name == "ours":
                total.metrics[what] = max(error, total.metrics.get(what, 0.0))


def _ratios(total: Result, name: str, numerator: str, denominator: str) -> None:
    """``numerator / denominator`` of neighbouring samples, in inference and in training."""
    for kind, prefix in (("inference", ""), ("training", "training_")):
        keys = [f"{n}_{kind}" for n in (numerator, denominator)]
        if all(key in total.samples for key in keys):
            samples = (_timing.Samples(total.samples[key]) for key in keys)
            total.metrics[prefix + name] = _timing.ratio(*samples).value
