# SPDX-License-Identifier: BSD-3-Clause
"""One training step as a callable: of a network cut in several ways, eager or as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

STAGES = 3  # of the residual networks
WARM_UP = 3  # steps before a capture: lazily made handles, cuDNN's choices, momentum


def stage_sizes(blocks: int, parts: int) -> list[int]:
    """Blocks in each part where ``parts / 3`` parts share each of the three stages: no part crosses a stage."""
    from pyparareal.nn.parareal_network import part_sizes

    if blocks % STAGES or parts % STAGES:
        raise ValueError(f"parts: got {parts} for {blocks} blocks, expected multiples of {STAGES}")
    return list(part_sizes(blocks // STAGES, parts // STAGES)) * STAGES


def build(model: str, parts: int | None, device: str, *, width: int = 16) -> Any:
    """The serial network, or with ``parts`` its parareal network with automatic maps; equal seeds, training mode."""
    import torch

    from pyparareal.nn import models
    from pyparareal.nn.chain import chain_of

    torch.manual_seed(0)
    net = models.build(model, channels=3, classes=10, width=width)
    if parts is not None:
        sizes = stage_sizes(len(chain_of(net).blocks), parts)
        net = models.build_parareal(net, (3, 32, 32), sizes, coarse_units=None, preprocess_units=None)
    return net.to(device).train()


def batch(size: int, device: str) -> tuple[Any, Any]:
    """Random images of CIFAR's shape and their classes."""
    import torch

    rng = torch.Generator().manual_seed(1)
    x, y = torch.randn(size, 3, 32, 32, generator=rng), torch.randint(0, 10, (size,), generator=rng)
    return x.to(device), y.to(device)


class Step:
    """Forward, backward, update of a network on one batch; a learning rate of 0 leaves the parameters as they are.

    Every call therefore has the same loss and gradients, whatever ran before.
    """

    def __init__(self, net: Any, x: Any, y: Any) -> None:
        import torch

        self.net, self.x, self.y = net, x, y
        self.optimiser = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9, weight_decay=5e-4, nesterov=True)
        self.loss = torch.zeros((), device=x.device)

    def __call__(self) -> None:
        import torch.nn.functional as F

        self.optimiser.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.net(self.x), self.y)
        loss.backward()
        self.optimiser.step()
        # Detached: a graph kept from one step would bring its streams into the capture of the next.
        self.loss = loss.detach()

    def found(self) -> Any:
        """``[loss, gradients...]`` of the last call as one vector in float64."""
        import torch

        grads = [p.grad for p in self.net.parameters() if p.grad is not None]
        return torch.cat([t.detach().flatten().double() for t in (self.loss, *grads)])


def graphed(step: Step) -> Callable[[], None]:
    """The step as one CUDA graph: warm-up on a side stream, capture, replay."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    # Gradients are to be allocated inside the capture, in the graph's own memory.
    step.optimiser.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def difference(got: Any, expected: Any) -> float:
    """Relative difference of two vectors of :meth:`Step.found`: the larger of the loss's and of the gradients'."""
    loss = abs(got[0] - expected[0]) / abs(expected[0])
    gradients = (got[1:] - expected[1:]).norm() / expected[1:].norm()
    return max(float(loss), float(gradients))
