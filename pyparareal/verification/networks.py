# SPDX-License-Identifier: BSD-3-Clause
"""Networks verified: blocks by themselves, then every way to run the network against its serial one."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor, nn

from ..nn.execution import MODES
from ..nn.layer_parallel import LayerParallel
from ..nn.parareal_network import PararealNetwork
from ..nn.recurrent.layers import SolvedLayers
from ..nn.recurrent.recurrence import Recurrence
from .blocks import Block, BlockProbes, duplicated, holders, quiet
from .both import changed, compared, outcome, shaken, summary, tensors_of
from .calls import Raised, guarded
from .expected import SENSITIVE
from .faults import FAULT, NOTE, Fault, Finding, Findings, Place
from .held import Held
from .measures import differences, digits, epsilon
from .result import Comparison, Verification

Progress = Callable[[str, float], None]


def verifier_of(model: Any, data: Any, serial: Any, gradients: bool | None, quick: bool, progress: Progress) -> Any:
    """Who verifies ``model``; None if it is no network."""
    if type(model).__name__ == "TrainingRuns":
        from .training_runs import TrainingVerifier

        return TrainingVerifier(model, progress)
    kind: Any = None
    if isinstance(model, PararealNetwork):
        kind = PararealVerifier
    elif isinstance(model, LayerParallel):
        kind = DepthVerifier
    elif isinstance(model, Recurrence | SolvedLayers):
        from .sequences import SequenceVerifier

        kind = SequenceVerifier
    elif _blocks(model):
        kind = BlocksVerifier
    if kind is None:
        return None
    if data is None or not tensors_of(data):
        raise ValueError(f"data: got {type(data).__name__}, expected a batch, a tensor [batch, features...]")
    for t in tensors_of(data):
        if not t.numel() or not (t == t).all() or not t.abs().max() < float("inf"):
            got = "NaN or infinity" if t.numel() else f"a tensor {list(t.shape)} without elements"
            raise ValueError(f"data: got {got}, expected finite values, at least one row")
    if serial is not None and not isinstance(serial, nn.Module):
        raise TypeError(f"serial: got {type(serial).__name__}, expected a torch.nn.Module or None")
    return kind(model, data, serial, gradients is not False, quick, progress)


def _blocks(model: Any) -> bool:
    if isinstance(model, nn.Sequential | nn.ModuleList):
        return len(model) > 0
    return isinstance(model, list | tuple) and bool(model) and all(isinstance(b, nn.Module) for b in model)


class NetworkVerifier:
    """What all have in common; :meth:`_run` differs."""

    independent = False

    def __init__(self, model: Any, data: Any, serial: Any, gradients: bool, quick: bool, progress: Progress) -> None:
        self.model, self.data, self.serial = model, data, serial
        self.gradients, self.quick, self.progress = gradients, quick, progress
        self.held = Held({"": model, "data": data, "serial": serial})
        self.found, self.scale, self.grown = Findings(), 0.0, 1.0
        self.drawing: list[Place] = []
        first = tensors_of(data)[0]
        self.facts: dict[str, Any] = {"input": list(first.shape), "dtype": str(first.dtype).removeprefix("torch.")}

    def run(self) -> Verification:
        """Everything, and all put back as it was."""
        comparisons: list[Comparison] = []
        try:
            comparisons = self._run()
        except Raised as raised:
            if self.found.blames() and raised.by_the_package:
                self.facts["refused"] = str(raised)  # for what was found already
            else:
                self.found.add(raised.finding())
        finally:
            self.held.restore()
        return Verification(type(self.model).__name__, tuple(comparisons), self.found.all(), self.facts)

    def _run(self) -> list[Comparison]:
        raise NotImplementedError

    def probes(self, blocks: Sequence[Block]) -> BlockProbes:
        return BlockProbes(self.held, self.found, self.independent, self.gradients, holders(blocks), self.drawing)

    def chain(self, blocks: Sequence[Block], u: Any) -> Any:
        """The blocks one after the other, each probed."""
        probing = self.probes(blocks)
        for k, block in enumerate(blocks):
            self.progress(block.name, 0.5 * k / len(blocks))
            u = probing.run(block, u)
        return u

    def both(
        self, what: str, why: str, run: Callable[[Any], Any], reference: Callable[[Any], Any], extra: float = 0.0
    ) -> list[Comparison]:
        """``run`` against ``reference``, dropout off; a difference gets a name."""
        eps = epsilon(tensors_of(self.data)[0])
        with quiet(self.model, batch_norm=False):
            held = Held({"": self.model, "data": self.data})
            try:
                known = self._reference(reference, eps, held)
                ours = outcome(run, self.data, self.model, held, self.gradients)
            except Raised:
                raise
            except Exception as error:  # what the user's blocks raise, or the network refuses
                raise Raised(error, Place(words=what)) from error
            finally:
                held.restore()
        self.scale = max((float(t.abs().max()) for n, t in known[0].items() if n.startswith("value")), default=0.0)
        made = compared(what, why, ours, *known, extra)
        bad = [c for c in made if not c.ok]
        grown = max(self.grown, _reaction(*known, 4 * eps))
        explained = all(_relative(c, known[0]) <= 1e3 * grown * eps for c in bad)
        if grown >= SENSITIVE and explained:
            self._sensitive(what, made, bad, grown * eps)
        elif bad and not self.found.blames():
            self.found.add(self._differs(bad))
        return summary(made, what, why)

    def _reference(self, reference: Callable[[Any], Any], eps: float, held: Held) -> tuple[Any, Any]:
        try:
            known = outcome(reference, self.data, self.model, held, self.gradients)
            near = shaken(reference, self.model, 4 * eps)
            nearby = outcome(near, changed(self.data, 4 * eps), self.model, held, self.gradients)
        except Exception as error:
            raise Raised(error, Place(words="the serial network")) from error
        return known, nearby

    def _sensitive(self, what: str, made: Sequence[Comparison], bad: Sequence[Comparison], rounding: float) -> None:
        """Differences that grow so much that the serial network is no better known than this."""
        if self.found.has(Fault.CHAOS):
            return
        off = max((c.largest for c in made if ": value" in c.what), default=0.0)
        eps = epsilon(tensors_of(self.data)[0])
        text = (
            f"Relative differences grow by {digits(rounding / eps)} along it, so that rounding alone may change its "
            f"values by {digits(min(1.0, rounding))} of their size; those of {what} and serial differ by {digits(off)}."
        )
        if bad:
            text += f" So may its gradients: {len(bad)} of what was compared differ, {bad[0].what} among them."
        severity = FAULT if bad or off > 1e-2 * self.scale else NOTE
        numbers = {"growth": rounding / eps, "largest": off}
        advice = "Smaller weights or fewer blocks make it less so, float64 helps; single values cannot be compared."
        place = Place(words="the chain of its blocks")
        self.found.add(Finding(Fault.CHAOS, place, text, severity, advice, numbers))

    def _differs(self, bad: Sequence[Comparison]) -> Finding:
        worst = max(bad, key=lambda c: c.rows[0].largest / max(c.rows[0].allowed, 1e-300))
        row, names = worst.rows[0], [c.what.rpartition(": ")[2] for c in bad]
        text = (
            f"{len(bad)} of what was compared differ, most {worst.what} by {digits(row.largest)} (allowed: "
            f"{digits(row.allowed)})."
        )
        if self.drawing:
            text += (
                f" {self.drawing[0].words} draws random numbers: solved in parallel it gets other ones than serially."
            )
            return Finding(Fault.UNFIXED_RANDOMNESS, self.drawing[0], text, numbers={"tensors": names[:8]})
        only_buffers = all(name.startswith("buffer") for name in names)
        fault = Fault.STALE_STATISTICS if only_buffers else Fault.UNEXPLAINED
        return Finding(fault, Place(words=worst.what), text, numbers={"tensors": names[:8]})


def _reaction(reference: dict[str, Tensor], nearby: dict[str, Tensor], size: float) -> float:
    """By how much a relative change of ``size`` of the input has grown in the values."""
    found = [0.0]
    for name, t in reference.items():
        if name.startswith("value") and t.numel():
            scale = max(float(t.detach().double().abs().max()), 1e-300)
            found.append(float(differences(nearby[name], t).max()) / (size * scale))
    return max(found)


def _relative(made: Comparison, reference: dict[str, Tensor]) -> float:
    """The difference of one tensor in units of its size; infinite for buffers, which are counted, too."""
    t = reference[made.what.rpartition(": ")[2]]
    size = float(t.detach().double().abs().max()) if t.is_floating_point() and t.numel() else 0.0
    return made.largest / size if size else float("inf")


class BlocksVerifier(NetworkVerifier):
    """A list of blocks: could it be made parallel?"""

    independent = True

    def _run(self) -> list[Comparison]:
        modules: list[Any] = (
            list(self.model._modules.values()) if isinstance(self.model, nn.Module) else list(self.model)
        )
        blocks = [Block(f"blocks.{i}", b, i, i, keeps_shape=True) for i, b in enumerate(modules)]
        self.facts["blocks"] = len(blocks)
        self.found.add(*duplicated(blocks, self.serial))
        self.chain(blocks, self.data)
        if self.drawing:
            text = "In training mode it draws random numbers, not only for dropout; in parallel it may get others."
            self.found.add(Finding(Fault.UNFIXED_RANDOMNESS, self.drawing[0], text, NOTE))
        return []


class PararealVerifier(NetworkVerifier):
    """A parareal network: its parts, and all execution modes."""

    def _run(self) -> list[Comparison]:
        net = self.model
        ranges = list(pairwise([0, *accumulate(net.part_sizes)]))
        self.facts["parts"] = net.parts
        fine: list[list[Block]] = []
        for j, ((first, _), part) in enumerate(zip(ranges, net.fine, strict=True)):
            made = [Block(f"fine.{j}.{k}", b, j, first + k, keeps_input=not (j and k == 0)) for k, b in enumerate(part)]
            fine.append(made)
        every = [b for part in fine for b in part]
        self.found.add(*duplicated(every, self.serial))
        tied = self.probes(every)
        inputs, outputs = [], []
        for j, part in enumerate(fine):
            self.progress(f"part {j}", 0.5 * j / len(fine))
            u = self.probes([]).run(Block(f"preprocess.{j}", net.preprocess[j]), self.data)
            inputs.append(u)
            for block in part:
                u = tied.run(block, u)
            outputs.append(u)
        self._coarse(inputs, outputs)
        return self._modes()

    def _coarse(self, inputs: list[Any], outputs: list[Any]) -> None:
        net, u = self.model, outputs[0]
        probing = self.probes([])
        for j, f in enumerate(net.coarse, start=1):
            given = u - inputs[j] if net.correction == "residual" else u
            correction = probing.run(Block(f"coarse.{j - 1}", f, j, None), given)
            if net.correction == "difference":
                with quiet(f):
                    old = guarded(f, Place(j, None, f"coarse.{j - 1}"), inputs[j].clone())
                    self.held.restore()
                correction = correction - old
            u = outputs[j] + correction
        if not isinstance(net.head, nn.Identity):
            probing.run(Block("head", net.head), u)

    def _modes(self) -> list[Comparison]:
        net, made = self.model, []
        names = [name for name in MODES if name not in ("auto", "serial")]
        for k, name in enumerate(names):
            self.progress(f"mode {name}", 0.5 + 0.5 * k / len(names))
            try:
                with _mode(net, name):
                    pass
            except ValueError as error:
                self.facts[f"mode {name}"] = f"does not run these parts: {error}"
                continue
            why = "tolerance: rounding of the dtype, and what the serial mode makes of changes of that size"
            try:
                made += self.both(f"mode {name}", why, partial(_in_mode, net, name), partial(_in_mode, net, "serial"))
            except Raised as raised:
                if not str(raised).startswith("execution: "):  # that is for the user to choose
                    raise
                self.facts[f"mode {name}"] = f"does not run these parts: {raised}"
        return made


@contextlib.contextmanager
def _mode(net: Any, name: str) -> Iterator[None]:
    before, mode = net._execution, net._mode
    net.execution = name
    try:
        yield
    finally:
        net._execution, net._mode = before, mode


def _in_mode(net: Any, name: str, x: Any) -> Any:
    with _mode(net, name):
        return net(x)


class DepthVerifier(NetworkVerifier):
    """A layer-parallel network: its layers, then its iteration as it is set and with enough iterations."""

    def _run(self) -> list[Comparison]:
        net, data = self.model, self.data
        serial = net.serial()
        blocks = [
            Block(f"blocks.{i}", b, i // net.m if isinstance(net.m, int) else i // net.m[0], i, keeps_shape=True)
            for i, b in enumerate(_layers(serial))
        ]
        self.facts |= {"layers": len(blocks), "m": net.m}
        self.held = Held({"": net, "data": data, "serial": self.serial, "copy": serial})
        self.found.add(*duplicated(blocks, self.serial))
        u = data
        if serial.opening is not None:
            u = self.probes([]).run(Block("opening", serial.opening), u)
        probing = self.probes(blocks)
        for k, block in enumerate(blocks):
            self.progress(block.name, 0.5 * k / len(blocks))
            y = probing.run(block, u)
            h = net.stack.h
            u = y if h is None or not isinstance(y, Tensor) or y.shape != u.shape else u + h * y
        if serial.closing is not None:
            self.probes([]).run(Block("closing", serial.closing), u)
        return [*self._exact(), *self._as_set()]

    def _exact(self) -> list[Comparison]:
        net = self.model
        slices = max(net._slices, 1)
        settings = []
        for s in (net.forward_settings, net.backward_settings):
            most = s.exact_after(slices)
            settings.append(s if most is None else dataclasses.replace(s, iterations=max(most, 1), tol=None))
        if any(s.exact_after(slices) is None for s in settings):
            self.facts["exact"] = "no number of iterations makes these settings exact"
            return []
        self.facts["iterations that make all exact"] = [s.iterations for s in settings]
        self.progress("enough iterations", 0.6)
        why = "tolerance: rounding, with as many iterations as make every layer exact"
        return self.both("exact", why, lambda x: _set(net, settings, x), lambda x: _set(net, None, x))

    def _as_set(self) -> list[Comparison]:
        net = self.model
        self.progress("iterations as set", 0.8)
        report: list[Any] = []

        def run(x: Any) -> Any:
            y = _set(net, (net.forward_settings, net.backward_settings), x)
            report.append(net.report)
            return y

        quietly, self.found = self.found, Findings()
        try:
            made = self.both("as set", "", run, lambda x: _set(net, None, x))
        finally:
            self.found = quietly
        claims = report[-1].forward.error, report[-1].gradient_error
        self.facts["as set"] = str(report[-1])
        judged = [_judged(c, claims[not c.what.endswith("value")], self.scale) for c in made]
        bad = [c for c in judged if not c.ok]
        off = max((c.largest for c in judged if ": value" in c.what), default=0.0)
        if not bad and not claims[0] < float("inf") and off > 1e-2 * self.scale:
            text = (
                f"Its values differ from the serial ones by {digits(off)}, at a size of {digits(self.scale)}, and its "
                "report cannot say by how much: the iterations do not get nearer to it. More of them may."
            )
            advice = 'Allow more iterations (forward=, policy="tolerance"), or take mode="serial".'
            self.found.add(Finding(Fault.NOT_CONVERGED, Place(words="the network as set"), text, NOTE, advice))
        if bad and not self.found.blames():
            text = (
                f"{bad[0].what} differs from the serial one by {digits(bad[0].largest)}, where its report claims a "
                f"relative error of {digits(claims[0])}. More iterations make it smaller."
            )
            self.found.add(Finding(Fault.NOT_CONVERGED, Place(words="the network as set"), text, NOTE))
        return judged


def _judged(made: Comparison, claim: float, scale: float) -> Comparison:
    """Against what the report says the iterations leave, a relative error of the states; nothing, where it is NaN."""
    row = made.rows[0]
    claim = float("inf") if claim != claim else claim
    why = f"tolerance: ten times the relative error of {claim:.2g} that the report claims, and rounding"
    size = max(scale, row.largest if "value" not in made.what else 0.0)
    rows = (dataclasses.replace(row, allowed=row.allowed + (10 * claim * size if claim else 0.0)),)
    return dataclasses.replace(made, expected=why, rows=rows)


def _layers(serial: Any) -> list[nn.Module]:
    blocks = serial.blocks
    if isinstance(blocks, nn.Sequential | nn.ModuleList):
        return list(blocks._modules.values())
    inner = next((m for m in blocks.children() if isinstance(m, nn.ModuleList | nn.Sequential)), None)
    return list((inner if inner is not None else blocks)._modules.values())


def _set(net: Any, settings: Any, x: Any) -> Any:
    """The network with these settings; None: serially."""
    before = net.mode, net.forward_settings, net.backward_settings, net.policy, net.on_failure
    net.mode = "serial" if settings is None else "parallel"
    if settings is not None:
        net.forward_settings, net.backward_settings = settings
        net.policy, net.on_failure = None, "return"
    # The backward pass comes later and has its own copy of the settings.
    try:
        return net(x)
    finally:
        net.mode, net.forward_settings, net.backward_settings, net.policy, net.on_failure = before
