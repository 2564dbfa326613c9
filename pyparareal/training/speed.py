# SPDX-License-Identifier: BSD-3-Clause
"""What solving a training run in parallel gains: predicted for P processors, measured on this device.

Two predictions. :func:`sigma` is Schroder's count of steps that wait for one another, with a processor for every
slice and steps that cost the same on all levels. :func:`predicted` is the schedule itself on ``P`` processors with the
cost of a step as measured here (:mod:`pyparareal.prediction`), without the driver's work between the steps. Measured is
one run, driver included. Both are over the best serial program here; :func:`sigma` counts steps over steps.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..mgrit import MGRIT
from ..prediction import Prediction, measured_costs, predict
from ..time_grid import TimeGrid
from .learning_rates import largest, require_number
from .optimisers import SGD
from .result import RunsResult
from .runs import TrainingRuns
from .windows import Window, WindowSolver


def sigma(iterations: int, levels: int, cycle: str = "V", coarsest: int = 10) -> int:
    """Steps one after the other of ``iterations`` cycles; the speed-up of ``N`` serial steps is ``N / sigma``.

    ``sigma_V(L) = K (7 + coarsest + 8 (L - 2))``, eq. (16): 3 steps of FCF-relaxation and 4 for the residual on the
    finest level, 8 on each level between, ``coarsest`` on the last. ``sigma_F(L) = K sum_{l=1}^{L-2} sigma_V(l)`` with
    ``K = 1`` inside, eq. (17); ``sigma_V`` for two levels. FCF-relaxation and ``m = 2``, as in the paper.
    """
    if cycle not in ("V", "F"):
        raise ValueError(f"cycle: got {cycle!r}, expected V or F")
    if levels < 2:
        raise ValueError(f"levels: got {levels}, expected at least 2")

    def v(count: int) -> int:
        return 7 + coarsest + 8 * max(count - 2, 0)

    if cycle == "V" or levels == 2:
        return iterations * v(levels)
    return iterations * sum(v(count) for count in range(1, levels - 1))


OWN_STEP = "the same step, one slice"


@dataclass(frozen=True)
class Speed:
    """Seconds and speed-ups of one result.

    Attributes
    ----------
    parallel : float
        Measured seconds of the run on this device.
    serial : dict
        Seconds of all steps one after the other, by program, measured over ``serial_steps`` of them.
    sigma : float
        Speed-up that :func:`sigma` allows with a processor per slice, in steps; NaN where it does not apply.
    predictions : tuple of Prediction
        Over the best serial program, as ``measured`` is: ``serial_seconds`` are those of the solver's own step times
        ``serial[best_serial] / serial[OWN_STEP]``. Steps alone; the driver's work between them is left out.
    """

    parallel: float
    serial: dict[str, float]
    serial_steps: dict[str, int]
    sigma: float
    predictions: tuple[Prediction, ...]

    @property
    def best_serial(self) -> str:
        """The fastest serial program."""
        return min(self.serial, key=lambda name: self.serial[name])

    @property
    def measured(self) -> float:
        """Speed-up over it, on this device; below 1 the parallel run lost."""
        return self.serial[self.best_serial] / self.parallel if self.parallel else float("nan")

    @property
    def driver(self) -> float:
        """Seconds of ``parallel`` beyond those predicted for the steps on 1 processor: what predictions leave out.

        NaN where 1 processor was not predicted; 0 where noise made the prediction the longer one.
        """
        alone = [p.seconds for p in self.predictions if p.processors == 1]
        return max(0.0, self.parallel - alone[0]) if alone else float("nan")


def speed(
    runs: TrainingRuns, result: RunsResult, *, processors: Sequence[int] | None = None, budget: float = 2.0
) -> Speed:
    """Measure and predict for ``result`` of ``runs``; each serial program is timed for ``budget`` seconds at most."""
    require_number("budget", budget, "seconds")
    if not 0 < budget < math.inf:
        raise ValueError(f"budget: got {budget!r}, expected a finite number of seconds above 0")
    serial, counts = {}, {}
    programs = {OWN_STEP: _own_step, "torch.optim": _torch_optim}
    for name, program in programs.items():
        counts[name], seconds = _timed(runs, program(runs), budget)
        serial[name] = seconds * runs.settings.steps
    windows = [window for window in result.windows if window.levels > 1]
    steps = sum(_sigma(runs, window) if window.levels > 1 else window.steps for window in result.windows)
    applies = runs.settings.m == 2 and runs.settings.nu == 1 and runs.settings.cycle != "W" and not _failed(result)
    ratio = runs.settings.steps / steps if applies and steps else float("nan")
    predictions = () if len(windows) != 1 or _failed(result) else predicted(runs, windows[0], processors)
    best = min(serial.values()) / serial[OWN_STEP]  # `predicted` is over the own step, and that may not be the best
    predictions = tuple(dataclasses.replace(p, serial_seconds=best * p.serial_seconds) for p in predictions)
    return Speed(result.seconds, serial, counts, ratio, predictions)


def predicted(runs: TrainingRuns, window: Window, processors: Sequence[int] | None = None) -> tuple[Prediction, ...]:
    """The schedule of ``window`` on ``P`` processors, over its own step taken serially.

    For ``P`` = 1, 4, 16, 64, ... up to one per slice unless given.
    """
    settings = runs.settings
    slices = window.steps // settings.m
    if processors is None:
        processors = sorted({slices, *(p for p in (1, 4, 16, 64, 256, 1024, 4096) if p < slices)})
    phis, sizes = [runs.step], [slices]
    for _ in range(window.levels - 1):
        phis.append(phis[-1].rediscretise(settings.m))
        sizes.append(max(sizes[-1] // settings.m, 1))
    costs = measured_costs(phis, runs.start, sizes, wait=runs.wait)
    grid = TimeGrid(0.0, float(window.steps), window.steps)
    options = MGRIT(levels=window.levels, min_coarse=1, nu=settings.nu, cycle=settings.cycle)
    return tuple(
        predict(grid, costs, m=settings.m, iterations=window.iterations, processors=p, method=options)
        for p in processors
    )


def _failed(result: RunsResult) -> bool:
    return any(window.failure is not None for window in result.windows)


def _sigma(runs: TrainingRuns, window: Window) -> int:
    coarsest = window.steps // runs.settings.m ** (window.levels - 1)
    cycle = runs.settings.cycle if runs.settings.cycle != "W" else "F"
    return sigma(window.iterations, window.levels, cycle, max(coarsest, 10))


def _timed(runs: TrainingRuns, steps: Callable[[int], None], budget: float) -> tuple[int, float]:
    """How many steps were timed, and the seconds of one: the fastest of the calls that fit the budget."""
    most, count = runs.settings.steps, 1
    steps(1)  # the first call of a kernel loads it
    end, best, timed = time.perf_counter() + budget, float("inf"), 1
    while True:
        runs.wait()
        begin = time.perf_counter()
        steps(count)
        runs.wait()
        seconds = time.perf_counter() - begin
        # A longer call counts before a shorter one: what every step costs, not what a call does.
        best, timed = seconds / count, count
        if count == most or begin + 4 * seconds > end:
            return timed, best
        count = min(most, 4 * count)


def _own_step(runs: TrainingRuns) -> Callable[[int], None]:
    def steps(count: int) -> None:
        WindowSolver(runs.step, count, runs.settings).serial(runs.start)

    return steps


def _torch_optim(runs: TrainingRuns) -> Callable[[int], None]:
    """An ordinary training loop."""
    module = copy.deepcopy(runs.module)
    optimiser = torch_optimiser(runs, module)
    one = runs.examples.batch(runs.rules, 0, range(1), 1, 0)
    batches = [one[:2]] if not one[2] else None

    def steps(count: int) -> None:
        for i in range(count):
            if batches:
                x, y = batches[0]
            else:
                x, y, _ = runs.examples.batch(runs.rules, 0, range(i, i + 1), 1, 0)
                x, y = x[0], y[0]
            if not isinstance(runs.step.base, float):
                optimiser.param_groups[0]["lr"] = largest(runs.step.base, slice(i, i + 1))
            optimiser.zero_grad(set_to_none=True)
            runs.step.loss(module(x), y).backward()
            optimiser.step()

    return steps


def torch_optimiser(runs: TrainingRuns, module: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of ``runs`` as torch has it, for the parameters of ``module`` that require grad."""
    own = runs.optimiser
    parameters = [p for p in module.parameters() if p.requires_grad]
    lr, decay = largest(runs.step.base, slice(0, 1)), own.weight_decay
    if isinstance(own, SGD):
        return torch.optim.SGD(parameters, lr=lr, momentum=own.momentum, nesterov=own.nesterov, weight_decay=decay)
    kind = torch.optim.AdamW if own.decoupled else torch.optim.Adam
    return kind(parameters, lr=lr, betas=own.betas, eps=own.eps, weight_decay=decay)
