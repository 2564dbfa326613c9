# SPDX-License-Identifier: BSD-3-Clause
"""Speed of recurrences of 16,384 steps, batch 4, 64 numbers a state: inference, and a training step.

Beside ours: the loop over the cell in Python; the same with blocks of steps compiled by ``torch.compile``, whose
compilation takes minutes and is not counted; and ``torch.nn.GRU``. ``nn.GRU`` with chunks is there too where it loses.
All in one run, two threads, single precision; what the timed calls returned is compared with float64.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

from bench.cases import Result, case
from pyparareal import _timing

STEPS, BATCH, INPUTS, HIDDEN = 16_384, 4, 64, 64
BLOCK = 32  # steps that are compiled together: more take the compiler longer than the case
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
    total = _compare(cell, calls, torch.nn.GRU(INPUTS, HIDDEN, dtype=torch.float64), theirs.state_dict())
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
    import torch

    from pyparareal.nn.recurrent import Recurrence

    torch.manual_seed(0)
    cell = _minimal_gated_unit(torch.float32)
    ours = Recurrence(cell)
    calls = {"loop": lambda x: _loop(cell, x), "ours": lambda x: ours(x)[0]}
    total = _compare(cell, calls, _minimal_gated_unit(torch.float64), cell.state_dict())
    for name in ("loop", "compiled_loop"):
        _ratios(total, f"vs_{name}", name, "ours")
    report = ours.report
    assert report is not None
    total.metrics |= {"iterations": report.iterations, "chunk": report.chunk, "exponent": report.exponent}
    return total


def _minimal_gated_unit(dtype: Any) -> Any:
    """``f = s(norm(W_f [x, h]))``, ``h' = h + f (tanh(W_n [x, f h]) - h)`` after G.-B. Zhou et al., 2016."""
    import torch
    from torch import nn

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.new = (nn.Linear(INPUTS + HIDDEN, HIDDEN, dtype=dtype) for _ in range(2))
            self.norm = nn.LayerNorm(HIDDEN, dtype=dtype)

        def initial_state(self, batch: int, dtype: Any, device: Any) -> Any:
            return torch.zeros(batch, HIDDEN, dtype=dtype, device=device)

        def forward(self, x: Any, h: Any) -> Any:
            f = torch.sigmoid(self.norm(self.gate(torch.cat([x, h], -1))))
            return h + f * (torch.tanh(self.new(torch.cat([x, f * h], -1))) - h)

    return Cell()


def _loop(cell: Any, x: Any) -> Any:
    import torch

    h, states = x.new_zeros(BATCH, HIDDEN), []
    for row in x.unbind(0):
        h = cell(row, h)
        states.append(h)
    return torch.stack(states)


def _compiled(cell: Any) -> Callable[[Any], Any]:
    """The loop over blocks of steps, each one graph."""
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
        for rows in x.split(BLOCK):
            blocks.append(run(rows, h))
            h = blocks[-1][-1]
        return torch.cat(blocks)

    return loop


def _compare(cell: Any, calls: dict[str, Callable[[Any], Any]], wide: Any, weights: Any) -> Result:
    """Times of all ways, for inference and for a training step, and their largest error."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    torch.manual_seed(1)
    x, out = torch.randn(STEPS, BATCH, INPUTS), torch.randn(STEPS, BATCH, HIDDEN)
    wide.load_state_dict({name: value.double() for name, value in weights.items()})
    of_wide = (lambda v: wide(v)[0]) if isinstance(wide, torch.nn.GRU) else (lambda v: _loop(wide, v))
    expected = [t.detach() for t in _step(of_wide, x.double(), out.double())]
    if COMPILED:
        calls |= {"compiled_loop": _compiled(cell)}
    total = Result({}, True, {}, f"float32, {STEPS} steps, batch {BATCH}, hidden {HIDDEN}, {THREADS} threads; seconds")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler, about itself
            found: dict[str, Any] = {}
            for kind, run in (("inference", _inference), ("training", _step)):
                some = {n: f for n, f in calls.items() if kind == "inference" or n not in SLOW}
                taken = _timing.interleave(
                    {n: lambda n=n, f=f, run=run: found.update({n: run(f, x, out)}) for n, f in some.items()},
                    repeats=REPEATS, warmup=1,
                )  # fmt: skip
                total.samples |= {f"{name}_{kind}": list(t.seconds) for name, t in taken.items()}
                total.metrics |= {f"{name}_{kind}_ms": 1e3 * t.median for name, t in taken.items()}
                _check(total, kind, found, expected)
    finally:
        torch.set_num_threads(before)
    return total


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
