# SPDX-License-Identifier: BSD-3-Clause
"""What one forward pass of a parareal network costs, and how much of that must happen one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from .costs import count_flops
from .execution.congruence import first_difference
from .parareal_network import PararealNetwork
from .shapes import meta_output, require_same_kind


@dataclass(frozen=True)
class ForwardCost:
    """Cost of every piece of a parareal network, in the unit of whoever made it (FLOPs, layers, seconds).

    A training step is about three times that: the backward pass of a convolution or product of matrices is two of
    its size, so the ratios below hold for it, too.
    """

    preprocess: tuple[float, ...]  # C^1 .. C^N
    fine: tuple[float, ...]  # g^1 .. g^N
    coarse: tuple[float, ...]  # F^1 .. F^{N-1}
    head: float

    @property
    def serial_network(self) -> float:
        """``C^1, g^1, ..., g^N, h``: the network that was cut."""
        return self.preprocess[0] + sum(self.fine) + self.head

    @property
    def total(self) -> float:
        """All pieces: the work of a forward pass, and its duration where one device does one thing at a time."""
        return sum(self.preprocess) + sum(self.fine) + sum(self.coarse) + self.head

    @property
    def critical_path(self) -> float:
        """Duration with a device per part and free communication.

        Device ``j`` runs ``C^j`` and ``g^j``, then ``F^{j-1}`` as soon as the correction arrives (the placement of
        :meth:`.PararealNetwork.communication`)::

            t_1 = C^1 + g^1,   t_j = max(t_{j-1}, C^j + g^j) + F^{j-1},   t_N + h

        In layers this is also what congruent parts in ``execution="batched"`` call one after the other; in FLOPs that
        mode does ``total``.
        """
        parts = [c + g for c, g in zip(self.preprocess, self.fine, strict=True)]
        end = parts[0]
        for part, f in zip(parts[1:], self.coarse, strict=True):
            end = max(end, part) + f
        return end + self.head

    @property
    def coarse_over_fine(self) -> float:
        """Mean coarse net over mean part; 0 for one part."""
        if not self.coarse:
            return 0.0
        return sum(self.coarse) / len(self.coarse) / (sum(self.fine) / len(self.fine))


def forward_costs(network: PararealNetwork, example: Tensor) -> tuple[ForwardCost, ForwardCost]:
    """FLOPs and layers of each piece on an input like ``example``, whose values are not used.

    Layers are calls of modules that own a weight, a parameter with two or more axes. They are what a GPU launches:
    where each is too small to fill it, time follows the number of layers in a row and not the FLOPs.

    Raises
    ------
    TypeError, ValueError
        ``network`` is none; two pieces do not meet (:meth:`.PararealNetwork.check_interfaces`).
    """
    if not isinstance(network, PararealNetwork):
        raise TypeError(f"network: got {type(network).__name__}, expected a PararealNetwork")
    count = _Counter()
    x = example.to("meta")
    flops: dict[str, list[float]] = {"preprocess": [], "fine": [], "coarse": []}
    layers: dict[str, list[float]] = {"preprocess": [], "fine": [], "coarse": []}

    def note(kind: str, module: nn.Module, u: Tensor) -> Tensor:
        before = count.flops, count.layers
        y = count.through(module, u)
        flops[kind].append(count.flops - before[0])
        layers[kind].append(count.layers - before[1])
        return y

    inputs = [note("preprocess", c, x) for c in network.preprocess]
    outputs = [note("fine", g, u) for g, u in zip(network.fine, inputs, strict=True)]
    for j, f in enumerate(network.coarse, start=1):
        require_same_kind(inputs[j], outputs[j - 1], f"input of part {j + 1}", f"the output of part {j}")
        require_same_kind(note("coarse", f, outputs[j - 1]), outputs[j], f"output of F^{j}", f"that of part {j + 1}")
    if network.correction == "difference":  # F(U) and F(x), the two as one batch where there is batch norm
        flops["coarse"] = [2 * cost for cost in flops["coarse"]]
    before = count.flops, count.layers
    count.through(network.head, outputs[-1])
    return (
        ForwardCost(**{kind: tuple(costs) for kind, costs in flops.items()}, head=count.flops - before[0]),
        ForwardCost(**{kind: tuple(costs) for kind, costs in layers.items()}, head=count.layers - before[1]),
    )


class _Counter:
    """Sums FLOPs and layers of the modules put :meth:`through`; of equal blocks in a row one is run."""

    def __init__(self) -> None:
        self.flops = self.layers = 0
        self.last: tuple[nn.Module, Tensor, Tensor, int, int] | None = None

    def through(self, module: nn.Module, x: Tensor) -> Tensor:
        """``module(x)`` on the meta device."""
        if isinstance(module, nn.Sequential) and len(module):
            for block in module:
                x = self._block(block, x)
            return x
        return self._block(module, x)

    def _block(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.last is None or not _same(self.last[:2], (block, x)):
            y: list[Tensor] = []

            def run(module: nn.Module, u: Tensor, name: str) -> Tensor:
                y.append(meta_output(module, u, name))
                return y[0]

            with _layers(block) as calls:
                flops = count_flops(block, x, output=run)
            self.last = block, x, y[0], flops, len(calls)
        _, _, out, flops, layers = self.last
        self.flops, self.layers = self.flops + flops, self.layers + layers
        return out


def _same(a: tuple[nn.Module, Tensor], b: tuple[nn.Module, Tensor]) -> bool:
    return a[1].shape == b[1].shape and a[1].dtype == b[1].dtype and first_difference(a[0], b[0]) is None


@contextmanager
def _layers(module: nn.Module) -> Iterator[list[nn.Module]]:
    """Collects the modules with a weight that are called."""
    calls: list[nn.Module] = []
    with ExitStack() as hooks:
        for m in module.modules():
            if any(p.ndim > 1 for p in m.parameters(recurse=False)):
                hooks.callback(m.register_forward_hook(lambda called, *_: calls.append(called)).remove)
        yield calls
