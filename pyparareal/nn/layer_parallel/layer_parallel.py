# SPDX-License-Identifier: BSD-3-Clause
"""A deep network as its serial self, the layers solved in parallel: MGRIT over depth, forward and backward."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ... import checks
from ...adjoint import BackwardPass
from ...runtime.group import Group, checksum, plain
from ...solution import Solution, Status
from ...vjp import own_graph
from .dense_step import dense_step, may_be_dense
from .distributed import LOADING, RUNNING, refuse_sharded
from .frozen import Frozen
from .kinds import check_blocks
from .names import SerialNetwork, name_serially, renumbered, serial_names, stack_names
from .parts import all_blocks, groups, refuse_ties
from .policy import Plan, Policy, adaptive
from .report import SERIAL, DepthReport, Direction
from .settings import POLICIES, Settings, check_buffer, check_common, check_factors, settings_of
from .solving import first_factor, one_by_one, solved
from .stack import Stack

MODES = ("parallel", "serial")
ON_FAILURE = ("serial", "raise", "return")


class LayerParallel(nn.Module):
    """``closing(block_{L-1}(... block_0(opening(u))))``, the blocks solved by MGRIT over layers.

    The function is that of the serial network, to what the iterations leave; so are the gradients. What was done and
    how it went is in :attr:`report`. Names in ``state_dict`` are those of the serial network: ``blocks.17.weight``.
    S. Guenther, L. Ruthotto, J. B. Schroder, E. C. Cyr, N. R. Gauger, "Layer-parallel training of deep residual neural
    networks", SIAM J. Math. Data Sci. 2 (2020), 1-23.

    Parameters
    ----------
    blocks : list, ModuleList or Sequential of modules
        :class:`.Stack`: each keeps the shape and dtype of its argument ``[batch, features...]``.
    h : float, optional
        With it a layer is the Euler step ``u + h block(u)``; without it a block is the whole map.
    m : int, or a sequence with one per level
        Layers per slice; all slices are relaxed at once. More than there are layers means serial.
    levels, nu, cycle, guess : see :class:`.Settings`
        Of both directions, where ``forward`` and ``backward`` do not say otherwise.
    forward, backward : int or Settings, optional
        Iterations: 0 takes the layers one after the other in that direction. Default: 2, with ``policy="one-shot"`` 1
        backward, with a tolerance as many as it takes.
    policy : {"fixed", "tolerance", "one-shot", "adaptive"} or Policy, optional
        "fixed": always the same iterations. "tolerance": until ``tol`` is met. "one-shot": fixed, with 2 forward and 1
        backward. "adaptive": fixed, but watched (:class:`.Policy`). Default: "fixed", with a ``tol`` "tolerance".
    tol : float, optional
        Relative change of the states in an iteration below which it ends.
    buffer : pair of int
        So many layers at the beginning and at the end are taken one after the other, outside of the iteration.
    opening, closing : modules, optional
        Before and behind the blocks.
    recompute : bool
        Keep the states at every ``m``-th layer only, and compute those between again in the backward pass.
    on_failure : {"serial", "raise", "return"}
        When an iteration fails: take the layers one after the other, with a RuntimeWarning; raise
        :class:`pyparareal.ConvergenceError`; or use what there is, with a RuntimeWarning.
    mode : {"parallel", "serial"}
        "serial": one layer after the other. May be set at any time.
    kernels : bool
        Take residual dense layers, ``h`` and ``Sequential(Linear, activation)``, by the kernels of
        :func:`pyparareal.ops.relax_dense` where they run (float64 and float32 on CPUs), in both modes; the activations
        are Tanh, ReLU, Sigmoid, SiLU and :class:`.SmoothReLU`. They round otherwise than torch: with False,
        ``mode="serial"`` is torch's network bit for bit.
    runtime : DistributedRuntime, optional
        What :func:`pyparareal.distributed` returns: the slices of layers are spread over its ranks, which all make the
        network with the same parameters and random state, call it with the same ``u``, and get the same value and the
        gradients of all parameters. Bit for bit those of one process with ``kernels``, but for sums of gradients, which
        are added up rank by rank; of torch's own layers to rounding, since a batch of another size may round otherwise.
        A rank keeps the states at the C-points of its own layers for the backward pass and computes the others again,
        whatever ``recompute`` says. Taken one after the other, as after a failure, layers run on every rank, and so do
        opening, closing, buffer layers and what a forward pass changes in the buffers of blocks. ``state_dict`` and
        pickles are without it. Around it ``DistributedDataParallel`` over the other dimension of a mesh.

    Attributes
    ----------
    report : DepthReport or None
        Of the last forward pass and the backward passes through it.
    policy : Policy or None
        The adaptive one.
    stack, before, after : Stack
        The layers in parallel, and the buffer layers.

    Raises
    ------
    TypeError, ValueError
        For a wrong argument.

    Examples
    --------
    >>> blocks = [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()) for _ in range(64)]
    >>> net = LayerParallel(blocks, h=0.1, m=4)
    >>> net(torch.randn(5, 8)).sum().backward()
    """

    def __init__(
        self,
        blocks: Any,
        *,
        h: float | None = None,
        m: int | Sequence[int] = 4,
        levels: int | None = 2,
        nu: int | Sequence[int] = 1,
        cycle: str = "V",
        guess: str = "coarse",
        forward: int | Settings | None = None,
        backward: int | Settings | None = None,
        policy: str | Policy | None = None,
        tol: float | None = None,
        buffer: tuple[int, int] = (0, 0),
        opening: nn.Module | None = None,
        closing: nn.Module | None = None,
        recompute: bool = False,
        on_failure: str = "serial",
        mode: str = "parallel",
        kernels: bool = True,
        runtime: Any = None,
    ) -> None:
        super().__init__()
        self.runtime = Group(runtime).runtime
        checks.choose("on_failure", on_failure, ON_FAILURE)
        checks.choose("mode", mode, MODES)
        if not isinstance(recompute, bool):
            raise TypeError(f"recompute: got {recompute!r}, expected True or False")
        if not isinstance(kernels, bool):
            raise TypeError(f"kernels: got {kernels!r}, expected True or False")
        for name, module in (("opening", opening), ("closing", closing)):
            if module is not None and not isinstance(module, nn.Module):
                raise TypeError(f"{name}: got {type(module).__name__}, expected a torch.nn.Module or None")
        checked = check_blocks(blocks)
        a, b = check_buffer(buffer, len(checked))
        self.layers = len(checked)
        self._m, self.m = m, check_common(m, len(checked) - a - b)
        base = {"levels": levels, "nu": nu, "cycle": cycle, "guess": guess}
        self.policy: Policy | None = None
        self.forward_settings, self.backward_settings = self._settings(base, forward, backward, policy, tol)
        if self.backward_settings.guess == "input":
            raise ValueError('guess: got "input" for the backward pass, expected "coarse" or "zero"')
        check_factors(self.m, self.forward_settings, self.backward_settings)
        refuse_ties(checked, (a, len(checked) - b), {"opening": opening, "closing": closing})
        self.opening, self.closing = opening, closing
        self.before = Stack(checked[:a], h) if a else None
        self.stack = Stack(checked[a : len(checked) - b], h)
        self.after = Stack(checked[len(checked) - b :], h) if b else None
        for name, layers in self._firsts().items():
            getattr(self, name).first = layers.start
        self.recompute, self.on_failure, self.mode, self.kernels = recompute, on_failure, mode, kernels
        self.report: DepthReport | None = None
        self._loading: tuple[str, list[str]] = "", []
        self.register_load_state_dict_post_hook(_say_serial_names)  # type: ignore[no-untyped-call]

    def _settings(self, base: Any, forward: Any, backward: Any, policy: Any, tol: Any) -> tuple[Settings, Settings]:
        if policy is None:
            policy = "fixed" if tol is None else "tolerance"
        if not isinstance(policy, Policy):
            checks.choose("policy", policy, POLICIES)
        if policy == "tolerance":
            if tol is None:
                raise ValueError('tol: got None with policy="tolerance", expected a number')
            return tuple(settings_of(n, g, base, tol, None) for n, g in (("forward", forward), ("backward", backward)))  # type: ignore[return-value]
        if tol is not None:
            raise ValueError(f'tol: got {tol!r} with policy={policy!r}, expected it with policy="tolerance" only')
        usual = (2, 1) if policy == "one-shot" else (2, 2)
        if isinstance(policy, Policy):
            usual = (policy.forward, policy.backward)
        both = (
            settings_of("forward", forward, base, None, usual[0]),
            settings_of("backward", backward, base, None, usual[1]),
        )
        if policy == "adaptive" or isinstance(policy, Policy):
            self.policy = adaptive(policy, both)
        return both

    # Running

    def forward(self, u: Tensor) -> Tensor:
        """The network's value, ``[batch, features...]`` between opening and closing.

        Raises
        ------
        TypeError, ValueError
            For states or blocks that cannot be iterated on, naming the layer.
        ConvergenceError
            See ``on_failure``. Exceptions of blocks are passed on as they are.
        """
        if self.runtime is None or self.mode == "serial":
            return self._whole(u)
        with Group(self.runtime).together():
            return self._whole(u)

    def _whole(self, u: Tensor) -> Tensor:
        if self.opening is not None:
            u = self.opening(u)
        if self.before is not None:
            u = self.before(u)
        # What runs how is decided in Python.
        run = torch.compiler.disable(self._solved) if torch.compiler.is_compiling() else self._solved
        u = run(u)
        if self.after is not None:
            u = self.after(u)
        return u if self.closing is None else self.closing(u)

    def _solved(self, u: Tensor) -> Tensor:
        """The stack, by what the mode and the policy say."""
        checks.choose("mode", self.mode, MODES)
        if not isinstance(u, Tensor):
            raise TypeError(f"u: got {type(u).__name__}, expected a tensor [batch, features...]")
        refuse_sharded(self.stack, RUNNING)
        plan, trains = None, self.training and torch.is_grad_enabled()
        trains = trains and (u.requires_grad or any(p.requires_grad for p in self.stack.parameters()))
        forward, backward = self.forward_settings, self.backward_settings
        if self.policy is not None and self.mode == "parallel":
            plan = self.policy.next() if trains else self.policy.now()
            forward = dataclasses.replace(forward, iterations=plan.forward)
            backward = dataclasses.replace(backward, iterations=plan.backward)
        if self.mode == "serial" or self._one_level(forward, backward) or not _finite(u):
            self.report = self._new_report(1, SERIAL, [], backward)
            return self._serially(u)
        frozen = self._frozen(u)
        step = self._propagator(frozen, u)
        self._agree(u, frozen, forward, backward, plan)
        alone = self.runtime is None
        every = frozen.changes_buffers or (alone and torch.is_grad_enabled() and not self.recompute)
        accept = None if plan is None or self.policy is None else self.policy.accepts
        solution, direction = solved(
            step, u, self.m, forward, backward, self.on_failure, every=every, accept=accept, runtime=self.runtime
        )
        passes = solution.adjoint if solution.adjoint is not None else []
        report = self._new_report(solution.stats.levels, direction, passes, backward)
        self.report = report
        if frozen.changes_buffers:
            frozen.commit(solution.u.detach())
        self._watch(solution, report, plan if trains else None)
        return solution.u[-1].clone()  # not the memory of all layers, nor what the backward pass will read

    def _agree(self, u: Tensor, frozen: Frozen, forward: Settings, backward: Settings, plan: Plan | None) -> None:
        """All ranks are to take the same layers."""
        group = Group(self.runtime)
        if group:
            group.agree(
                {
                    "operation": "parallel layers", "layers": self.stack.layers, "m": plain(self.m),
                    "forward": plain(forward), "backward": plain(backward), "plan": plain(plan),
                    "on_failure": self.on_failure, "kernels": self.kernels, "training": self.training,
                    "gradients": torch.is_grad_enabled(), "input of the layers": checksum([u]),
                }
                | frozen.fingerprint()
            )  # fmt: skip

    @property
    def _slices(self) -> int:
        return self.stack.layers // first_factor(self.m)

    def _one_level(self, forward: Settings, backward: Settings) -> bool:
        """Whether there is nothing to iterate on in either direction."""

        def serial(settings: Settings) -> bool:
            return settings.serial or self._slices < settings.min_coarse

        return serial(forward) and (serial(backward) or not torch.is_grad_enabled())

    def _frozen(self, u: Tensor) -> Frozen:
        try:
            with own_graph():
                return self.stack.frozen(u)
        except (TypeError, ValueError) as error:
            renamed = renumbered(str(error), self._firsts()["stack"].start)
            if renamed == str(error):
                raise
            raise type(error)(renamed) from None

    def _propagator(self, frozen: Frozen, u: Tensor) -> Any:
        """What takes the layers: kernels where there are some."""
        return (dense_step(frozen, u) if self.kernels else None) or self.stack.propagator(frozen)

    def _serially(self, u: Tensor) -> Tensor:
        """One layer after the other: all in one kernel where there is one."""
        dense = self.kernels and may_be_dense(self.stack, u) and _finite(u)
        step = dense_step(self._frozen(u), u) if dense else None
        return self.stack(u) if step is None else one_by_one(step, u)

    def _new_report(
        self, levels: int, forward: Direction, passes: Sequence[BackwardPass], backward: Settings
    ) -> DepthReport:
        events, batch = (self.policy.events, self.policy.batch) if self.policy is not None else ((), 0)
        exact = backward.exact_after(self._slices)
        return DepthReport(
            self.stack.layers, first_factor(self.m), levels, forward, passes, events, batch, backward.stopping, exact,
            serial=forward is SERIAL,
        )  # fmt: skip

    def _watch(self, solution: Solution, report: DepthReport, plan: Plan | None) -> None:
        """After every backward pass: warn of a failure, and let the policy learn."""
        node = solution.u.grad_fn
        if node is None:
            return
        policy = self.policy

        def after(*_: Any) -> None:
            went = report.passes[-1] if report.passes else None
            failure = went.failure if went is not None and math.isfinite(went.size) else None
            # Of gradients that come in as NaN or infinity, as with scaled losses, and of what a policy has not accepted
            # nobody needs to be told here.
            if failure is not None and (policy is None or failure is not Status.DIVERGED):
                text = f"layer-parallel: backward failed: {failure.value}; one layer after the other instead"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
            if plan is not None and policy is not None:
                policy.observe(plan, report)

        node.register_hook(after)

    # The serial network

    def serial(self) -> SerialNetwork:
        """The plain network with copies of all parameters; its ``state_dict`` has the same names."""
        own = copy.deepcopy([self.opening, self.closing])
        return SerialNetwork(all_blocks(self._stacks()), self.stack.h, *own)

    def refine(self, factor: int = 2, *, interpolation: str = "linear") -> LayerParallel:
        """A new network ``factor`` times as deep, with steps ``h / factor`` and copies of opening and closing.

        See :meth:`.Stack.refine`. It is solved as this one; there are ``factor`` times as many buffer layers, and an
        adaptive policy starts anew.

        Raises
        ------
        TypeError, ValueError
            As :meth:`.Stack.refine`.
        """
        finer = Stack(all_blocks(self._stacks()), self.stack.h).refine(factor, interpolation=interpolation)
        opening, closing = copy.deepcopy([self.opening, self.closing])
        a, b = (factor * stack.layers if stack is not None else 0 for stack in (self.before, self.after))
        net = LayerParallel(
            list(finer.serial()),
            h=finer.h,
            m=self._m,
            forward=self.forward_settings,
            backward=self.backward_settings,
            policy=None if self.policy is None else self.policy.anew(),
            buffer=(a, b),
            opening=opening,
            closing=closing,
            recompute=self.recompute,
            on_failure=self.on_failure,
            mode=self.mode,
            kernels=self.kernels,
            runtime=self.runtime,
        )
        return net.train(self.training)

    def optim_groups(self, options: Callable[[int | None, str], Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser, with ``options(layer, name)`` for the parameter ``name`` of a block.

        For those of opening and closing ``layer`` is None, and names are like ``"opening.weight"``. Layers that share a
        stacked parameter need the same options: :meth:`.Stack.optim_groups`, and ``net.stack = net.stack.split(key)``.
        """
        stacks = [(layers.start, getattr(self, name)) for name, layers in self._firsts().items()]
        return groups(stacks, {"opening": self.opening, "closing": self.closing}, options)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """As that of :meth:`serial`: ``opening.*``, ``blocks.17.*``, ``closing.*``."""
        for name, value in zip(("destination", "prefix", "keep_vars"), args, strict=False):
            destination = value if name == "destination" else destination
            prefix = value if name == "prefix" else prefix
            keep_vars = value if name == "keep_vars" else keep_vars
        state = super().state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        serial_names(state, prefix, self._firsts())
        return state

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        refuse_sharded(self, LOADING)
        stack_names(state_dict, prefix, self._firsts())
        self._loading = prefix, args[-1]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _stacks(self) -> list[Stack]:
        return [stack for stack in (self.before, self.stack, self.after) if stack is not None]

    def _firsts(self) -> dict[str, range]:
        """The layers of each stack."""
        found, first = {}, 0
        for name in ("before", "stack", "after"):
            stack = getattr(self, name)
            if stack is not None:
                found[name] = range(first, first + stack.layers)
                first += stack.layers
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "report": None}  # a report holds what backward passes will write

    def extra_repr(self) -> str:
        """What :func:`repr` shows."""
        how = f"{self.forward_settings.iterations}+{self.backward_settings.iterations}"
        if self.policy is not None:
            how = repr(self.policy)
        return f"layers={self.layers}, m={self.m}, levels={self.forward_settings.levels}, mode={self.mode!r}, {how}"


def _say_serial_names(net: nn.Module, keys: Any) -> None:
    """What loading has to say, under the names that were loaded; stacks have said it under their own."""
    assert isinstance(net, LayerParallel)
    prefix, messages = net._loading
    for several in (keys.missing_keys, keys.unexpected_keys, messages):
        name_serially(several, prefix, net._firsts())
    net._loading = "", []


def _finite(u: Any) -> bool:
    """Whether there are numbers, all finite, to iterate on."""
    if isinstance(u, Tensor) and not u.numel():
        return False
    with torch.no_grad(), contextlib.suppress(TypeError):
        return bool(torch.isfinite(u).all())
    return True  # no tensor: refused by what comes next
