# SPDX-License-Identifier: BSD-3-Clause
"""How many iterations a batch gets: watched while training, raised or given up before training is harmed.

After M. Jiang, A. Salvado, E. C. Cyr, A. Kopanicakova, R. Krause, J. B. Schroder, "Layer-parallel training for
transformers", arXiv 2601.09026 (2026): every so many batches twice as many iterations are run, and the contraction
``rho`` of the last of them says whether iterating still helps. Here they also give the error of the gradient that the
usual number leaves (:mod:`.estimate`), which is what the number is chosen by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...solution import Status
from ..training_job.checkpoint import CheckpointError
from .estimate import contraction, error_after, gradient_error, iteration_error
from .report import DepthReport, Direction
from .settings import Settings

KEYS = ("batch", "forward", "backward", "serial", "probe_next", "usual", "events")


@dataclass(frozen=True)
class Plan:
    """What one batch gets: iterations forward and backward, 0 for serial, and whether it is a probe."""

    forward: int
    backward: int
    probe: bool = False


class Policy:
    """Adaptive iterations: ``LayerParallel(blocks, policy=Policy(tol=0.1))``.

    The first training batch is a probe, then every ``probe_every``-th, and one after a batch that looks wrong. A probe
    runs twice as many iterations in both directions. If they do not contract, or no number of iterations up to ``most``
    is promised to bring the estimated error of the gradient below ``tol``, layers are taken one after the other from
    then on; else the smallest number that does so is used, if it is larger than before. What :meth:`accepts`
    refuses is not used, in any batch: the layers are taken one after the other instead, in the same pass.

    It has a state: one policy for one network, saved and loaded by :meth:`state_dict` and :meth:`load_state_dict`. With
    data parallelism every process has its own, and each gradient is right to ``tol`` by itself.

    Parameters
    ----------
    forward, backward : int
        Iterations to start with; 0: that direction is serial all along.
    tol : float
        Relative error of the gradient that is tolerated.
    probe_every : int
        Batches between probes.
    most : int
        Iterations at most, in each direction; with more, or as many as make all exact, serial is as fast.
    rho_most : float
        A pass whose last iteration contracted by less than this factor is not used, and as a probe ends parallel
        layers.
    trip : float
        A batch makes the next one a probe if its own estimate is above ``tol``, and ``trip`` times what it was when
        the last probe found all well, or more.

    Attributes
    ----------
    batch : int
        Training batches seen.
    serial : bool
        Whether layers are taken one after the other now.
    events : list of str
        What was decided, and at which batch.
    """

    def __init__(
        self,
        forward: int = 2,
        backward: int = 2,
        *,
        tol: float = 0.1,
        probe_every: int = 500,
        most: int = 8,
        rho_most: float = 1.0,
        trip: float = 2.0,
    ) -> None:
        for name, value, least in (
            ("forward", forward, 0),
            ("backward", backward, 0),
            ("probe_every", probe_every, 1),
            ("most", most, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: got {value!r}, expected an integer")
            if value < least:
                raise ValueError(f"{name}: got {value}, expected at least {least}")
        for name, number in (("tol", tol), ("rho_most", rho_most), ("trip", trip)):
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise TypeError(f"{name}: got {number!r}, expected a number")
            if not 0 < number < math.inf:
                raise ValueError(f"{name}: got {number}, expected a finite number above 0")
        if max(forward, backward) > most:
            raise ValueError(
                f"most: got {most}, expected at least the {max(forward, backward)} iterations to start with"
            )
        self.forward, self.backward, self.tol = forward, backward, float(tol)
        self.probe_every, self.most = probe_every, most
        self.rho_most, self.trip = float(rho_most), float(trip)
        self.batch, self.serial, self.events = 0, forward == backward == 0, list[str]()
        self._probe_next, self._usual = True, 0.0
        self._start = forward, backward

    def __repr__(self) -> str:
        now = "serial" if self.serial else f"forward={self.forward}, backward={self.backward}"
        return f"Policy({now}, tol={self.tol}, probe_every={self.probe_every}, most={self.most})"

    def anew(self) -> Policy:
        """One with the same options that has seen nothing."""
        return Policy(
            *self._start,
            tol=self.tol,
            probe_every=self.probe_every,
            most=self.most,
            rho_most=self.rho_most,
            trip=self.trip,
        )

    def next(self) -> Plan:
        """The plan of the next training batch, which is counted."""
        self.batch += 1
        if self.serial:
            return Plan(0, 0)
        if self._probe_next or self.batch % self.probe_every == 0:
            self._probe_next = True  # until one has had its backward pass
            return Plan(2 * self.forward, 2 * self.backward, probe=True)
        return Plan(self.forward, self.backward)

    def now(self) -> Plan:
        """The plan for a pass that is no training batch."""
        return Plan(0, 0) if self.serial else Plan(self.forward, self.backward)

    def accepts(self, direction: Direction) -> bool:
        """Whether what iterations have made may be used.

        Not if the last of them did not contract, or still changed the states by all of their size.
        """
        return not (direction.moves and (direction.rho >= self.rho_most or direction.residuals[-1] >= 1))

    def observe(self, plan: Plan, report: DepthReport) -> None:
        """Learn from a training batch after its backward pass, which may change what the next ones get."""
        if self.serial or not report.passes:
            return
        forward, backward = report.forward, report.backward[-1]
        if not math.isfinite(backward.size):  # the loss had no gradient
            return
        failed = next((d.failure for d in (forward, backward) if d.failure is not None), None)
        if not plan.probe:
            error = gradient_error(_known(forward.error), _known(backward.error), backward.path)
            if failed is not None or error > self.trip * max(self.tol, self._usual):
                self._probe_next = True
            return
        self._probe_next = False
        if failed is not None and failed is not Status.DIVERGED:
            self._stop(report.batch, f"a probe failed: {failed.value}")
            return
        rho = max((d.rho for d in (forward, backward) if d.moves or d.failure is not None), default=0.0)
        if not rho < self.rho_most:  # NaN too
            self._stop(report.batch, f"rho {rho:.2g}")
            return
        if failed is not None:
            change = max(d.residuals[-1] for d in (forward, backward) if d.failure is not None)
            self._stop(report.batch, f"a probe's last iteration changed states by {change:.2g} of their size")
            return
        self._choose(report.batch, forward, backward)

    def _choose(self, batch: int, forward: Direction, backward: Direction) -> None:
        """The fewest iterations, no fewer than now, that bring each direction below its share of ``tol``."""
        share = self.tol / 2 if self.forward and self.backward else self.tol
        weight = 1 + (backward.path if math.isfinite(backward.path) else 0.0)
        now = gradient_error(_error(forward, self.forward), _error(backward, self.backward), backward.path)
        wanted = self.forward, self.backward
        if not now <= self.tol:
            wanted = (
                _enough(forward, self.forward, share / weight, self.most),
                _enough(backward, self.backward, share, self.most),
            )
        most = min([self.most, *(d.exact_after - 1 for d in (forward, backward) if d.iterations and d.exact_after)])
        if max(wanted) > most:
            self._stop(batch, f"estimated error {now:.2g} of the gradient, and more than {most} iterations needed")
            return
        if wanted != (self.forward, self.backward):
            self.forward, self.backward = wanted
            counts = f"{wanted[0]} iterations forward and {wanted[1]} backward"
            self.events.append(f"{counts} from batch {batch + 1}: estimated error {now:.2g} of the gradient")
        alone = _known(_alone(forward, self.forward)), _known(_alone(backward, self.backward))
        usual = gradient_error(*alone, backward.path)
        self._usual = usual if math.isfinite(usual) else 0.0

    def _stop(self, batch: int, why: str) -> None:
        self.serial = True
        self.events.append(f"serial from batch {batch + 1}: {why}")

    # Saving

    def state_dict(self) -> dict[str, Any]:
        """What it has learned; a training that goes on with it goes on as if it had not been stopped."""
        now = (self.batch, self.forward, self.backward, self.serial)
        return dict(zip(KEYS, (*now, self._probe_next, self._usual, list(self.events)), strict=True))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned.

        Raises
        ------
        CheckpointError
            For something else; nothing was changed then.
        """
        if not isinstance(state, Mapping) or set(state) != set(KEYS):
            got = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise CheckpointError(f"policy: got {got}, expected the keys {', '.join(KEYS)}")
        for key in ("batch", "forward", "backward"):
            if isinstance(state[key], bool) or not isinstance(state[key], int) or state[key] < 0:
                raise CheckpointError(f"policy: got {state[key]!r} for {key}, expected a number of at least 0")
        if max(state["forward"], state["backward"]) > self.most:
            raise CheckpointError(
                f"policy: got {state['forward']} + {state['backward']} iterations, expected at most {self.most}, which "
                "is most= here"
            )
        for key in ("serial", "probe_next"):
            if not isinstance(state[key], bool):
                raise CheckpointError(f"policy: got {state[key]!r} for {key}, expected True or False")
        usual = state["usual"]
        if isinstance(usual, bool) or not isinstance(usual, int | float) or not 0 <= usual < math.inf:
            raise CheckpointError(f"policy: got {usual!r} for usual, expected a finite number of at least 0")
        if not isinstance(state["events"], list) or not all(isinstance(event, str) for event in state["events"]):
            raise CheckpointError("policy: expected a list of strings for events")
        self.batch, self.forward, self.backward = state["batch"], state["forward"], state["backward"]
        self.serial, self._probe_next, self._usual = state["serial"], state["probe_next"], float(usual)
        self.events = list(state["events"])


def _error(direction: Direction, k: int) -> float:
    """The error that ``k`` iterations leave, by a probe with more."""
    if len(direction.residuals) <= k:
        return direction.error
    return error_after(direction.residuals, k, direction.error)


def _alone(direction: Direction, k: int) -> float:
    """The error as ``k`` iterations would estimate it by themselves."""
    if len(direction.residuals) <= k:
        return direction.error
    return iteration_error(direction.residuals[:k], direction.floor)


def _known(error: float) -> float:
    """``error``, or 0 where one iteration tells nothing: the other direction may."""
    return 0.0 if math.isnan(error) else error


def _enough(direction: Direction, k: int, tol: float, most: int) -> int:
    """The iterations from ``k`` on that bring the error below ``tol``: seen by the probe, or extrapolated from it."""
    if not direction.iterations:
        return k
    jumps, left = direction.residuals, direction.error
    for count in range(k, len(jumps) + 1):
        if error_after(jumps, count, left) <= tol:
            return count
    rho, count = contraction(jumps), len(jumps)
    while not left <= tol and count <= most:
        left, count = left * rho, count + 1
    return count


def adaptive(given: Policy | str, both: tuple[Settings, Settings]) -> Policy:
    """``policy=`` of :class:`.LayerParallel`, starting with the iterations of the settings forward and backward."""
    for name, settings in zip(("forward", "backward"), both, strict=True):
        if settings.tol is not None:
            raise ValueError(f"{name}: got a tolerance with an adaptive policy, expected a number of iterations")
        if settings.stopping != "jump":
            raise ValueError(f'{name}: got stopping={settings.stopping!r} with an adaptive policy, expected "jump"')
    counts = (both[0].iterations or 0, both[1].iterations or 0)
    if not isinstance(given, Policy):
        return Policy(*counts)
    if counts != (given.forward, given.backward):
        raise ValueError(
            f"policy: got one with {given.forward} + {given.backward} iterations, and {counts[0]} + {counts[1]} "
            "besides, expected one or the other"
        )
    return given
