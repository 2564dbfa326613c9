# SPDX-License-Identifier: BSD-3-Clause
"""``w[i+1] = Phi_i(w[i])``, one optimiser update after the other, solved for thousands of updates at once by MGRIT.

J. B. Schroder, "Parallelizing over artificial neural network training runs with multigrid", arXiv 1708.02276v2. The
chain that is solved is that of ordinary training, so the weights it ends in are those of ordinary training. Nothing is
gained where one step already keeps the device busy: :mod:`pyparareal.training.speed`.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import arrays
from ..errors import ConvergenceError
from ..runtime.group import Group
from ..solution import Status
from . import checkpoint as checkpoints
from . import data as examples
from . import memory as memories
from . import optimisers, refusals
from .mlp import make_step
from .over_ranks import budget, require_same_gradients, shared
from .result import RunsResult
from .rules import Rules
from .rules import find as find_rules
from .settings import Settings, integer
from .steps import Loss
from .weights import weights_of
from .windows import Cycle, Window, WindowSolver, as_json, finite, from_json, timed

Callback = Callable[[int, int, float], object]

_PROBED = 4096  # points of a level at which a function for the data is asked what it chooses


class TrainingRuns:
    """Training steps solved in parallel; :meth:`run` works, constructing only checks and copies the initial weights.

    Parameters
    ----------
    module : torch module
        Parameters that require grad are trained; float32 or float64, one device. :meth:`run` leaves the final weights
        in it. No dropout without fixed masks and no running statistics: see :mod:`pyparareal.training.refusals`.
    loss : callable
        ``loss(module(inputs), targets)``, a scalar.
    data : pair of tensors, or DataLoader
        Inputs and targets ``[examples, ...]``; a loader must be able to give its order again.
    steps : int
        Optimiser updates.
    optimiser : str or object
        "sgd", "momentum", "nesterov", "adam", "adamw", :class:`.SGD`, :class:`.Adam`, or a new one of ``torch.optim``,
        which brings its learning rate.
    lr : float, function, or scheduler
        Learning rate of the finest level; a function ``lr(step)`` gives that of step 0, 1, ..., ``steps - 1``. Beside
        an optimiser of ``torch.optim``: nothing, or its new scheduler, of which every update is one step. Read once,
        when constructing: a coarse step has the rate of the fine step that it starts at, times the level's growth.
    rules : str or Rules
        Learning rate and data of every level: "naive", "solver1", "solver2", "slow"
        (:data:`pyparareal.training.PRESETS`).
    alpha_max : float, optional
        In place of that of ``rules``.
    m : int
        Steps of a level per step of the next.
    cycle : {"V", "F", "W"}
        See :class:`pyparareal.mgrit.MGRIT`.
    nu : int
        F- and C-relaxations before the last F-relaxation of a cycle: 1 is FCF, 0 is F.
    levels : int, optional
        At most so many; None: until one has at most ``max_coarse`` steps.
    max_coarse : int
        Steps that are few enough to be taken one after the other.
    tol : float, optional
        Of the residual at the C-points, times the root of the window's steps. Default: 1e-9, or what float32 can reach.
    max_iterations : int
        Cycles per window.
    guess : {"zeros", "constant", "coarse"}
        Weights of zero behind the initial ones, as in the paper; the state a window starts with at all its points; a
        first cycle that only goes up from the coarsest level.
    divergence : float
        The residual over the first one, above which the window has diverged.
    stagnation : int, optional
        Cycles without a new least residual after which the window has stagnated; None: never. F-cycles over thousands
        of steps may let the residual grow first and then fall fast: the longest of the paper's runs waits 34.
    window : int, optional
        Steps solved at a time, each window from the end of the one before. Default: all that ``memory`` holds.
    on_failure : {"serial", "return", "raise"}
        Where a window stagnates, diverges or needs too many cycles: train from its last exact point to the end of the
        run serially; return the weights the windows before it end in; raise :class:`pyparareal.ConvergenceError`.
    deterministic : bool
        Steps in fixed, padded blocks of slices: then full iterations are bitwise :meth:`serial` for any module.
    fused : bool, optional
        Use the kernel for small networks; default: where it can. True refuses where it cannot, naming why.
    memory : int, optional
        Bytes to work in; default: half of what is free. Over ranks the least that any of them has.
    runtime : DistributedRuntime, optional
        What :func:`pyparareal.distributed` returns: the slices of a window are spread over its ranks, which all make
        this object and call :meth:`run` with the same arguments, and all end with the same weights: bit for bit those
        of one process with the same windows, where the kernel is used or with ``deterministic=True``; else to a few
        times ``tol``, as a batch of another size rounds otherwise. What is serial, a fallback among it, every rank does
        for itself. Default: this process alone.

    Raises
    ------
    TypeError, ValueError
        For a wrong argument, before any step; MemoryError where two slices do not fit.
    """

    def __init__(
        self, module: nn.Module, loss: Loss, data: Any, *, steps: int, optimiser: Any = "sgd", lr: Any = None,
        rules: str | Rules = "solver1", alpha_max: float | None = None, m: int = 2, cycle: str = "V", nu: int = 1,
        levels: int | None = 2, max_coarse: int = 10, tol: float | None = None, max_iterations: int = 50,
        guess: str = "zeros", divergence: float = 1e6, stagnation: int | None = 40, window: int | None = None,
        on_failure: str = "serial", deterministic: bool = False, fused: bool | None = None, memory: int | None = None,
        runtime: Any = None,
    ) -> None:  # fmt: skip
        self.group = Group(runtime)
        with self.group.together():
            self.weights = weights_of(module)
            self.module = module
            if not callable(loss):
                raise TypeError(f"loss: got {type(loss).__name__}, expected a callable loss(prediction, target)")
            steps = integer("steps", steps, 1)
            self.optimiser, base = optimisers.find(optimiser, lr, module, steps)
            found = find_rules(rules)
            self.rules = found if alpha_max is None else dataclasses.replace(found, alpha_max=alpha_max)
            self.settings = Settings(
                steps, m, cycle, nu, levels, max_coarse, self._tolerance(tol), max_iterations, guess, divergence,
                stagnation, on_failure, deterministic,
            )  # fmt: skip
            refusals.require_repeatable(module)
            self.examples = examples.read(data, self.rules, steps).to(self.weights.device)
            if callable(self.rules.data):
                self.examples.require_function(self.rules.data, self._strides(), steps)
            self.step, self.why_not_fused = make_step(
                module, loss, self.examples, fused, weights=self.weights, optimiser=self.optimiser, base=base,
                rules=self.rules,
            )  # fmt: skip
            refusals.require_gradient(self.step, self.examples)
            self.given_window, self.start = self._given(window), self.step.start()
            memory = None if memory is None else integer("memory", memory, 1)
            self._agree()
        self.window, self.slices_per_call = self._window(memory)

    def run(
        self,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        callback: Callback | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> RunsResult:
        """Solve all windows; the module gets the final weights unless the run failed or was stopped.

        Parameters
        ----------
        checkpoint : str or path-like, optional
            Written after every cycle; where there is one, the run goes on from it, to the same bits. Over ranks a
            file of rank 0, whose C-points are gathered to write it; a run may go on with another number of them.
        callback : callable, optional
            ``callback(first step of the window, cycle, residual)``, on every rank that has slices.
        stop : callable, optional
            Asked after every cycle (and its checkpoint), and after every window that is trained serially; True, on any
            rank that has slices, ends the run with ``Status.STOPPED``.

        Raises
        ------
        TypeError, ValueError
            For a wrong argument, or a module that has changed, before any step.
        CheckpointError
            The file is not whole, or of another run; neither is changed.
        OSError
            The checkpoint cannot be written; what was there before still is.
        RankError
            A rank failed; the runtime has ended, and a run with another goes on from the checkpoint.
        ConvergenceError
            With ``on_failure="raise"``; its ``solution`` is what "return" would have returned.
        """
        with self.group.together():
            for name, function in (("callback", callback), ("stop", stop)):
                if function is not None and not callable(function):
                    raise TypeError(f"{name}: got {function!r}, expected a function or None")
            self._require_unchanged()
            path, identity, progress = self._place(checkpoint)
            self.group.agree({"checkpoint": "none" if checkpoint is None else "a path"})
        if checkpoint is not None:
            progress = shared(self.group, progress)
            assert progress.sizes is not None
            self.window, self.slices_per_call = progress.sizes
        while progress.first < self.settings.steps:
            begin = time.perf_counter() - progress.seconds

            def after(cycle: Cycle) -> bool:
                progress.residuals = cycle.residuals  # noqa: B023 - of this very window
                progress.seconds = time.perf_counter() - begin  # noqa: B023
                if checkpoint is not None:
                    progress.c = cycle.whole()  # noqa: B023
                self._save(path, progress, identity)  # noqa: B023
                if callback:
                    callback(progress.first, len(cycle.residuals), cycle.residuals[-1])  # noqa: B023
                return bool(stop and stop())

            window, end = self._advance(progress, after)
            progress.windows.append(as_json(window))
            if end is None:
                return self._result(progress, window.status)
            serial = progress.serial or window.failure is not None
            progress = checkpoints.Progress(end, progress.first + window.steps, progress.windows, serial)
            self._save(path, progress, identity)
            between = not window.iterations and progress.first < self.settings.steps
            if between and self.group.any(bool(stop and stop()), "asking whether to stop"):
                return self._result(progress, Status.STOPPED)
        failed = any(window["failure"] for window in progress.windows)
        return self._result(progress, Status.SERIAL_FALLBACK if failed else Status.CONVERGED)

    def serial(self) -> RunsResult:
        """Ordinary training with the same step, one update after the other: what :meth:`run` must end in."""
        self._require_unchanged()
        solver = WindowSolver(self.step, self.settings.steps, self.settings)
        end = timed("runs.serial", solver.window, lambda: solver.serial(self.start), self.wait)
        solver.window.steps_per_level = (self.settings.steps,)
        progress = checkpoints.Progress(end, self.settings.steps, [as_json(solver.window)])
        return self._result(progress, Status.SERIAL)

    def _require_unchanged(self) -> None:
        """The module may have been called or trained since, but not become another."""
        refusals.require_repeatable(self.module)
        if weights_of(self.module) != self.weights:
            raise ValueError(
                "module: its trained parameters have other names, shapes, dtypes or devices than when the TrainingRuns "
                "was made; make a new one"
            )

    def _advance(self, progress: checkpoints.Progress, after: Callable[[Cycle], bool]) -> tuple[Window, Tensor | None]:
        """The window that ``progress`` stands at, and its end state, or None where the run ends here."""
        steps = min(self.window, self.settings.steps - progress.first)
        step = self.step.moved(offset=progress.first, slices_per_call=self.slices_per_call)
        solver = WindowSolver(step, steps, self.settings, self.group)
        window = solver.window
        if progress.serial:
            end = timed("runs.serial", window, lambda: solver.serial(progress.state), self.wait)
            window.steps_per_level, window.status = (steps,), Status.SERIAL
            return window, end
        cycle = None if progress.c is None else Cycle(progress.c, progress.residuals, progress.parts)
        window.seconds = progress.seconds
        end = timed("runs.window", window, lambda: solver.solve(progress.state, cycle, after), self.wait)
        if end is not None or window.failure is Status.STOPPED:
            return window, end
        if self.settings.on_failure == "raise":
            so_far = dataclasses.replace(progress, windows=[*progress.windows, as_json(window)])
            raise ConvergenceError(window.reason, self._result(so_far, window.status))
        if self.settings.on_failure == "return":
            return window, None
        return window, timed("runs.fall_back", window, solver.fall_back, self.wait)

    def _result(self, progress: checkpoints.Progress, status: Status) -> RunsResult:
        if status.ok and not finite(progress.state):
            status = Status.NON_FINITE
        parts = progress.state[0].clone().split(self.weights.size)
        weights = self.weights.named(parts[0])
        if status.ok:
            self.weights.load(self.module, weights)
        moments = {name: self.weights.named(part) for name, part in zip(self.optimiser.moments, parts[1:], strict=True)}
        return RunsResult(
            weights, moments, status, tuple(from_json(window) for window in progress.windows), self.settings.steps,
            progress.first, "torch" if self.why_not_fused else "fused", self.why_not_fused, self.slices_per_call,
        )  # fmt: skip

    def _place(
        self, checkpoint: str | os.PathLike[str] | None
    ) -> tuple[Path | None, dict[str, Any], checkpoints.Progress]:
        """Where this rank writes checkpoints of which run, and where that stands; what rank 0 says holds for all."""
        if checkpoint is not None and not isinstance(checkpoint, str | os.PathLike):
            raise TypeError(f"checkpoint: got {type(checkpoint).__name__}, expected a path")
        progress = checkpoints.Progress(self.start)
        if checkpoint is None or self.group.rank:
            return None, {}, progress
        path, identity = checkpoints.require_place(checkpoint), self.identity()
        if path.exists():
            progress = checkpoints.load(path, identity, self.start)
            if progress.c is not None:
                progress.parts = (*progress.parts, len(progress.residuals) - sum(progress.parts))
        else:
            self._save(path, progress, identity)  # so that a place that cannot be written is met before any step
        return path, identity, progress

    def _save(self, path: Path | None, progress: checkpoints.Progress, identity: dict[str, Any]) -> None:
        if path:
            progress.sizes = self.window, self.slices_per_call
            checkpoints.save(path, progress, identity)

    def wait(self) -> None:
        """For the device."""
        if self.weights.device.type == "cuda":
            torch.cuda.synchronize(self.weights.device)

    def identity(self) -> dict[str, Any]:
        """What a run must have in common with one to continue it."""
        return {**self._common(), "what loss and forward pass compute": self._probe()}

    def _common(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self.settings),
            "window": self.given_window,
            "weights": checkpoints.digest(self.start),
            "shapes": {name: list(shape) for name, shape in self.weights.shapes.items()},
            "module": str(self.module),
            "optimiser": repr(self.optimiser),
            "lr": self.step.base if isinstance(self.step.base, float) else checkpoints.digest(self.step.base),
            **self._identity_of_rules(),
            "data": checkpoints.digest(self.examples.x, self.examples.y, self.examples.order),
            "path": "torch" if self.why_not_fused else "fused",
        }

    def _identity_of_rules(self) -> dict[str, Any]:
        rules, settings = self.rules, self.settings
        if not callable(rules.data):
            return {"rules": repr(rules)}
        chosen = []
        for level, stride in enumerate(self._strides()):
            points = range(max(min(settings.steps // stride, _PROBED), 1))
            chosen.append(self.examples.chosen(rules.data, level, points, stride))
        return {
            "rules": repr(dataclasses.replace(rules, data="full")).replace("'full'", "a function"),
            "the rule of the data": checkpoints.digest(*chosen),
        }

    def _strides(self) -> list[int]:
        """Fine steps per step of every level."""
        return [self.settings.m**level for level in range(self.settings.levels_for(self.settings.steps))]

    def _probe(self) -> list[float]:
        """Norm, sum and a weighted sum of gradients of the first steps of two levels, near the initial weights.

        What a loss and a forward pass compute, which their names do not tell.
        """
        found: list[float] = []
        w = self.start[0, : self.weights.size]
        factors = torch.linspace(-1.0, 1.0, len(w), dtype=w.dtype).to(w.device)
        for level in range(min(self.settings.levels_for(self.settings.steps), 2)):
            step = self.step.moved(level=level, stride=self.settings.m**level)
            count = max(min(self.settings.steps // step.stride, 3), 1)
            scales = 1 + torch.arange(count, dtype=w.dtype, device=w.device)[:, None] / 8
            for g in step.gradient(w * scales, slice(0, count, 1)):
                found += [float(g.norm()), float(g.sum()), float((g * factors).sum())]
        return found

    def _tolerance(self, tol: float | None) -> float:
        """The paper's 1e-9, or where the weights cannot be so exact what rounding leaves of them."""
        if tol is not None:
            return tol
        flat = self.weights.flat(self.module)
        return max(1e-9, 10 * arrays.epsilon(flat) * float(flat.norm()))

    def _agree(self) -> None:
        """All ranks are to train the same, in windows of the same size."""
        if self.group:
            self.group.agree(self._common())

    def _given(self, window: int | None) -> int | None:
        if window is None:
            return None
        window = integer("window", window, 1)
        if window % self.settings.m and window < self.settings.steps:
            raise ValueError(f"window: got {window}, expected a multiple of m = {self.settings.m}")
        return window

    def _window(self, memory: int | None) -> tuple[int, int | None]:
        """Steps of a window and gradients at a time; the same on all ranks."""
        window = self.given_window
        if self.group:
            require_same_gradients(self.group, self._probe(), self.start.dtype)
        room = budget(self.group, memory, self.weights.device)
        longest, at_a_time = memories.fitting(self.step, self.settings, room)
        if window is not None and window > longest and longest < self.settings.steps:
            raise MemoryError(
                f"window: got {window} steps, but {room / 1e6:.3g} MB hold windows of {longest}; leave it out, or "
                "give memory="
            )
        return min(window or longest, self.settings.steps), at_a_time
