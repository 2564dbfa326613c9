# SPDX-License-Identifier: BSD-3-Clause
"""The parareal network: a deep chain cut into parts that run at once, joined by one cheap serial chain.

Lee, Lee, Park, "Parareal Neural Networks Emulating a Parallel-in-Time Algorithm", arXiv 2103.08802.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from .execution.choice import ExecutionChoice
from .execution.communication import Traffic, traffic
from .execution.serial import in_turn, require_summable
from .execution.spans import called, launch, region
from .paired_call import call_pair, require_pairable
from .part import Part
from .serial_names import from_serial, to_serial
from .shapes import meta_output, require_same_kind

CORRECTIONS = ("residual", "difference")


class PararealNetwork(ExecutionChoice):
    """``h(y_N + F^{N-1}(r~_{N-1}))`` with ``r~_1 = r_1``, ``r~_{j+1} = r_{j+1} + F^j(r~_j)``.

    The body of a feed-forward net ``f = h . g^N . ... . g^1 . C^1`` is cut into ``N`` parts ``g^j``. All
    parts run independently on guessed inputs; one serial chain of cheap coarse nets corrects the last
    output by what the guesses missed (notation of the paper; ``x`` is the raw input, ``j = 1..N``):

    ==================  ==========================================================  ====================
    preprocessing       ``x_j = C^j(x)``                                            ``[batch, X_{j-1}]``
    fine nets           ``y_j = g^j(x_j)``                                          ``[batch, X_j]``
    interface residual  ``r_j = y_j - x_{j+1}``, ``j < N``                          ``[batch, X_j]``
    coarse chain        ``F^j : X_j -> X_{j+1}``, ``j < N``, serial                 ``[batch, X_{j+1}]``
    head                ``h``                                                       ``[batch, out]``
    ==================  ==========================================================  ====================

    ``correction="residual"`` is the paper's: ``F`` acts on residuals. ``correction="difference"`` is one
    parareal iteration: ``U_1 = y_1``, ``U_j = y_j + (F^{j-1}(U_{j-1}) - F^{j-1}(x_j))``, output ``h(U_N)``.
    The two agree for linear ``F``. The bracket comes first: where ``U_{j-1}`` equals ``x_j`` it is exactly
    zero, whatever ``F``.

    It is an architecture trained end to end by ordinary back-propagation, not an iteration: there is one
    correction sweep, and in general the result differs from the serial network's. It is the serial network

    * for ``N = 1``;
    * to rounding if ``f`` is linear and ``F^j = g^{j+1}``, for any ``C^2 .. C^N`` (consistency theorem);
    * to rounding for ``correction="difference"`` and ``F^j = g^{j+1}``, linear or not;
    * bitwise for ``correction="difference"`` if the guesses are exact, whatever ``F`` (without batch statistics).

    Parameters
    ----------
    blocks : sequence of modules
        The body, in order. Shapes may change anywhere, the batch axis stays.
    parts : int, sequence of int or None
        ``N`` contiguous groups whose sizes differ by at most one (the longer ones first), or the group
        sizes themselves. Default: every block is a part.
    preprocess : N modules ``C^1 .. C^N``, each applied to the raw input
    coarse : N - 1 modules ``F^1 .. F^{N-1}``
    head : module, optional
        ``h``; default the identity.
    correction : ``"residual"`` or ``"difference"``
    execution : ``"serial"``, ``"batched"``, ``"parallel"`` or ``"auto"``
        How the parts are run (:mod:`.execution`): one after the other, those of equal structure as one network, each
        in its own thread or stream, or the fastest of these, measured once. The result is the same to rounding. May
        be assigned later. ``network.executed`` names the mode of the last forward pass.
    example : tensor, optional
        An input ``[batch, features...]`` (its values are not used). If given, all interface shapes are
        checked now, without arithmetic; otherwise in the forward pass, each before the sum that needs it.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, or the interface, what it got and what was expected; nothing is computed.

    Notes
    -----
    Parameters are named ``preprocess.<j>``, ``fine.<j>.<block>``, ``coarse.<j>`` and ``head``, counted from 0.
    ``correction="difference"`` evaluates ``F(U)`` and ``F(x)`` of one function also while training: one batch norm over
    both, committed once per forward pass, or one dropout mask for both (:mod:`.paired_call`).
    """

    construction: dict[str, Any] | None = None  # JSON values, where build_parareal made it
    serial_names: dict[str, str | None] | None = None  # name in the serial network -> name here, or None

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        parts: int | Sequence[int] | None = None,
        *,
        preprocess: Iterable[nn.Module],
        coarse: Iterable[nn.Module],
        head: nn.Module | None = None,
        correction: str = "residual",
        execution: str = "serial",
        example: Tensor | None = None,
    ) -> None:
        super().__init__()
        body = _modules("blocks", blocks)
        sizes = part_sizes(len(body), parts)
        count = len(sizes)
        preprocessing = _modules("preprocess", preprocess)
        coarse_nets = _modules("coarse", coarse)
        _require_count("preprocess", preprocessing, count, f"one map C^j for each of the {count} parts")
        _require_count("coarse", coarse_nets, count - 1, f"one net F^j for each interface of the {count} parts")
        _require_choice("correction", correction, CORRECTIONS)
        if correction == "difference":
            for j, net in enumerate(coarse_nets):
                require_pairable(net, f"coarse[{j}]")
        if head is not None and not isinstance(head, nn.Module):
            raise TypeError(f"head: got {type(head).__name__}, expected a torch.nn.Module or None")

        self.part_sizes = sizes
        self.correction = correction
        self.preprocess = nn.ModuleList(preprocessing)
        self.fine = nn.ModuleList(Part(*group) for group in _grouped(body, sizes))
        self.coarse = nn.ModuleList(coarse_nets)
        self.head = nn.Identity() if head is None else head
        self.execution = execution
        if example is not None:
            self.check_interfaces(example)

    @property
    def parts(self) -> int:
        """``N``, the number of parts."""
        return len(self.part_sizes)

    def forward(self, x: Tensor) -> Tensor:
        """``x [batch, features...] -> h(U_N) [batch, out]``."""
        u = self.corrected(x)
        with region("network.head"):
            return called("head", self.head, u)

    def corrected(self, x: Tensor) -> Tensor:
        """``U_N [batch, X_N]``: the last part's output with its correction, which the head reads."""
        with region("network.parts"):
            inputs, outputs = self.run_parts(self.preprocess, self.fine, x)  # x_j and y_j
        u = outputs[0]
        with region("network.coarse"):
            for j, f in enumerate(self.coarse, start=1):
                u = joined(self.correction, f, j, u, inputs[j], outputs[j])
        return u

    def serial(self) -> nn.Sequential:
        """The serial network ``h . g^N . ... . g^1 . C^1``, sharing this network's parameters.

        Before training, and after :func:`.warm_start.fit_maps`, it is the network that was cut. Once the parareal
        network has been trained as a whole, it is one that *nobody* has trained: its parts have learnt to take guesses,
        and their outputs to be corrected. Handwritten digits, ResNet-20 in 4 parts, 15 epochs, seeds 0, 1, 2: the
        parareal network has 100.0, 99.4 and 98.9 % of 355 test images right, its ``serial()`` 9.6, 2.8 and 5.1 %, and
        with batch statistics of its own 13.0, 3.1 and 7.6 %.
        """
        return nn.Sequential(self.preprocess[0], *self.fine, self.head)

    def serial_state_dict(self, *, strict: bool = True) -> dict[str, Tensor]:
        """The serial network's tensors under *its* names: ``net.load_state_dict(network.serial_state_dict())``.

        For networks made by :func:`.automatic.build_parareal`; a list of blocks has the names of an ``nn.Sequential``
        of them. See :meth:`serial` for what they are worth.

        Raises
        ------
        ValueError
            This network was put together by hand, or (``strict``) does not hold some tensors of the serial one,
            because these have no influence on its output, or a stem was supplied.
        """
        return to_serial(self, self.serial_names, strict)

    def load_serial_state_dict(self, state: Mapping[str, Tensor], *, strict: bool = True) -> None:
        """Take over the serial network's tensors, given under *its* names: trained blocks, stem and head.

        Raises
        ------
        ValueError
            Naming what is missing, unknown or has another shape (missing or unknown: only if ``strict``); nothing is
            changed then. Or this network was put together by hand.
        """
        from_serial(self, self.serial_names, state, strict)

    def check_interfaces(self, example: Tensor) -> list[tuple[int, ...]]:
        """Shapes ``[X_0, ..., X_N]`` with the batch axis of ``example``; raises where two of them do not meet."""
        inputs, outputs = self._meta_states(example)
        for j, f in enumerate(self.coarse, start=1):
            require_same_kind(meta_output(f, outputs[j - 1]), outputs[j], *_coarse_words(j))
        return [tuple(inputs[0].shape), *(tuple(y.shape) for y in outputs)]

    def communication(self, example: Tensor) -> list[Traffic]:
        """Bytes over each interface in one step on an input like ``example``, if every part has its own device."""
        return traffic(self._meta_states(example)[1])

    def extra_repr(self) -> str:
        return f"part_sizes={self.part_sizes}, correction={self.correction!r}, execution={self.execution!r}"

    def _meta_states(self, example: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        if not isinstance(example, Tensor):
            raise TypeError(f"example: got {type(example).__name__}, expected a tensor [batch, features...]")
        return in_turn(self.preprocess, self.fine, example, meta_output)


def joined(correction: str, f: nn.Module, j: int, u: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """``U_{j+1} = y_{j+1} + F^j(U_j - x_{j+1})``, or ``y_{j+1} + (F^j(U_j) - F^j(x_{j+1}))``, all ``[batch, X]``.

    ``U_j - x_{j+1}`` is the paper's ``r~_j``. In this order one state has to pass the interface, and the bits of a sum
    do not depend on where parts ``j`` and ``j + 1`` are.
    """
    if correction == "residual":
        carried = called(f"coarse[{j - 1}]", f, u - x)
        require_summable(carried, y, *_coarse_words(j))
        return y + carried
    with launch(f"coarse[{j - 1}]", f, u):
        g_new, g_old = call_pair(f, u, x)
    require_summable(g_new, y, *_coarse_words(j))
    return y + (g_new - g_old)


def part_sizes(blocks: int, parts: int | Sequence[int] | None = None) -> tuple[int, ...]:
    """Sizes of ``parts`` contiguous groups of ``blocks`` blocks: equal to within one, the longer ones first.

    ``parts`` may be the sizes themselves; ``None`` makes every block a group.
    """
    if blocks < 1:
        raise ValueError("blocks: got none, expected at least one module")
    if parts is None:
        return (1,) * blocks
    if isinstance(parts, bool) or not isinstance(parts, int | Sequence) or isinstance(parts, str):
        raise TypeError(f"parts: got {type(parts).__name__}, expected an int or a sequence of group sizes")
    if isinstance(parts, int):
        if not 1 <= parts <= blocks:
            raise ValueError(f"parts: got {parts} for {blocks} blocks, expected 1 <= parts <= blocks")
        return tuple(blocks // parts + (j < blocks % parts) for j in range(parts))
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in parts) or sum(parts) != blocks:
        raise ValueError(f"parts: got group sizes {list(parts)}, expected positive ints with sum {blocks} (the blocks)")
    return tuple(parts)


def _grouped(blocks: list[nn.Module], sizes: Sequence[int]) -> list[list[nn.Module]]:
    return [blocks[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]


def _modules(name: str, modules: Iterable[nn.Module]) -> list[nn.Module]:
    if isinstance(modules, nn.Module) and not isinstance(modules, nn.Sequential | nn.ModuleList):
        raise TypeError(f"{name}: got one {type(modules).__name__}, expected a sequence of modules")
    if not isinstance(modules, Iterable):
        raise TypeError(f"{name}: got {type(modules).__name__}, expected a sequence of modules")
    found = list(modules)
    for i, module in enumerate(found):
        if not isinstance(module, nn.Module):
            raise TypeError(f"{name}[{i}]: got {type(module).__name__}, expected a torch.nn.Module")
    return found


def _require_count(name: str, modules: list[nn.Module], expected: int, why: str) -> None:
    if len(modules) != expected:
        raise ValueError(f"{name}: got {len(modules)} modules, expected {expected}, {why}")


def _require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, choices))}")


def _coarse_words(j: int) -> tuple[str, str]:
    return f"interface {j}: output of coarse[{j - 1}] (F^{j})", f"the output of part {j + 1}, y_{j + 1}"
