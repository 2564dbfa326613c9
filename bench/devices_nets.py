# SPDX-License-Identifier: BSD-3-Clause
"""Training steps of deep networks on a rank: a parareal network, layers in parallel, and a pipeline."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

from bench import ranks

LAYERS, WIDTH, BATCH, CLASSES = 64, 256, 1024, 10
MICRO_BATCHES = (1, 2, 4, 8)
ROUNDS = 7
H = 1 / 16


def slopes() -> list[Any]:
    """``tanh(linear(u))`` of every layer, the same on every rank."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()).to(ranks.device()) for _ in range(LAYERS)]


@cache
def residual() -> type[Any]:
    from torch import nn

    class Residual(nn.Module):
        """``u + slope(u) / 16``."""

        def __init__(self, slope: nn.Module) -> None:
            super().__init__()
            self.slope = slope

        def forward(self, u: Any) -> Any:
            return u + H * self.slope(u)

    return Residual


def blocks() -> list[Any]:
    """The layers, the same on every rank."""
    return [residual()(slope) for slope in slopes()]


def cut() -> Any:
    """The parareal network of two parts, with one linear map for the guess and one for the coarse step."""
    import torch
    from torch import nn

    from pyparareal.nn import PararealNetwork

    body = blocks()
    torch.manual_seed(1)
    guesses = [nn.Identity(), nn.Linear(WIDTH, WIDTH)]
    net = PararealNetwork(body, 2, preprocess=guesses, coarse=[nn.Linear(WIDTH, WIDTH)], head=head())
    return net.to(ranks.device())


def head() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(2)
    return nn.Linear(WIDTH, CLASSES).to(ranks.device())


def batch() -> tuple[Any, Any]:
    import torch

    torch.manual_seed(3)
    x, y = torch.randn(BATCH, WIDTH), torch.randint(0, CLASSES, (BATCH,))
    return x.to(ranks.device()), y.to(ranks.device())


class Step:
    """Forward, loss, backward and an update with learning rate 0, so that every call computes the same."""

    def __init__(self, net: Any) -> None:
        import torch

        self.net, (self.x, self.y) = net, batch()
        self.optimiser = torch.optim.SGD(net.parameters(), lr=0.0)

    def __call__(self) -> None:
        from torch.nn.functional import cross_entropy

        self.optimiser.zero_grad()
        self.loss = cross_entropy(self.net(self.x), self.y)
        self.loss.backward()
        self.optimiser.step()

    def gradients(self) -> dict[str, Any]:
        self()
        return {name: p.grad.clone() for name, p in self.net.named_parameters()}


class Pipeline(Step):
    """The same by ``torch.distributed.pipelining``: half of the layers on each of two ranks."""

    def __init__(self, net: Any, half: range, rank: int, micro_batches: int) -> None:
        import torch
        from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
        from torch.nn.functional import cross_entropy

        super().__init__(torch.nn.Sequential(*(net[i] for i in half)))
        self.rank = rank
        stage: Any = PipelineStage(self.net, rank, 2, torch.device(ranks.device()))
        self.schedule: Any = ScheduleGPipe(stage, micro_batches, loss_fn=cross_entropy)

    def __call__(self) -> None:
        self.optimiser.zero_grad()
        if self.rank == 0:
            self.schedule.step(self.x)
        else:
            self.schedule.step(target=self.y)
        self.optimiser.step()


def networks_on_a_rank() -> dict[str, Any]:
    """On each of two ranks: all alternatives in turn, and how far their gradients are from the serial ones."""
    import torch

    import pyparareal
    from pyparareal.nn import LayerParallel, over_ranks

    runtime = pyparareal.distributed(timeout=120)
    rank = runtime.rank
    serial = Step(torch.nn.Sequential(*blocks(), head()))
    exact = serial.gradients()
    halves = (range(LAYERS // 2), range(LAYERS // 2, LAYERS + 1))
    work: dict[str, Callable[[], Any]] = {"serial": serial if rank == 0 else _nothing}
    errors = {}
    for m in MICRO_BATCHES:
        pipeline = Pipeline(serial.net, halves[rank], rank, m)
        found = pipeline.gradients()
        mine = {f"{halves[rank][int(name.split('.')[0])]}.{name.split('.', 1)[1]}": g for name, g in found.items()}
        errors[f"pipeline_{m}"] = _error(mine, exact) / math.sqrt(2)
        work[f"pipeline_{m}"] = pipeline
    parallel = LayerParallel(slopes(), h=H, m=4, forward=2, backward=2, closing=head(), runtime=runtime)
    layers = Step(parallel)
    errors["layer_parallel"] = _error(_by_layer(layers.gradients()), exact) / math.sqrt(2)
    ours = Step(over_ranks(cut(), runtime))
    errors["parareal_net"] = _error(ours.gradients(), Step(cut()).gradients()) / math.sqrt(2)
    samples = ranks.in_turn(work | {"layer_parallel": layers, "parareal_net": ours}, ROUNDS)
    told = {name: one.seconds for name, one in samples.items()}
    return {"errors": errors, "samples": told, "metrics": {}}


def _by_layer(stacked: dict[str, Any]) -> dict[str, Any]:
    """Gradients of all layers at once, ``stack.stacked.0.<name> [layers, ...]``, under the names of the blocks."""
    found = {}
    for name, gradient in stacked.items():
        if name.startswith("closing."):
            found[f"{LAYERS}.{name.removeprefix('closing.')}"] = gradient
            continue
        inside = name.removeprefix("stack.stacked.0.")
        found |= {f"{row}.slope.{inside}": of_layer for row, of_layer in enumerate(gradient)}
    return found


def parareal_net_on_a_rank() -> dict[str, Any]:
    """On each of two ranks: a step of the whole network on rank 0 alone and of its two parts on both, in turn."""
    import torch

    import pyparareal
    from pyparareal.nn import over_ranks

    runtime = pyparareal.distributed(timeout=120)
    whole = Step(cut())
    ours = Step(over_ranks(cut(), runtime))
    expected, before = whole.gradients(), runtime.volume
    found = ours.gradients()
    sent = runtime.volume - before
    same = all(torch.equal(g, expected[name]) for name, g in found.items()) and torch.equal(ours.loss, whole.loss)
    samples = ranks.in_turn(
        {"parareal_net_1_rank": whole if runtime.rank == 0 else _nothing, "parareal_net_2_ranks": ours}, ROUNDS
    )
    (interface,) = cut().communication(whole.x)
    logits = BATCH * CLASSES * whole.x.element_size()
    # Besides the states of the interface rank 0 sends the input and the last rank the output.
    formula = interface.forward_bytes + whole.x.nbytes if runtime.rank == 0 else interface.backward_bytes + logits
    return {
        "checked": bool(same and found) and sent["bytes"] == formula,
        "metrics": {"parareal_net_bytes_sent": float(sent["bytes"]), "parareal_net_bytes_formula": float(formula)},
        "samples": {name: one.seconds for name, one in samples.items()},
    }


def _error(found: dict[str, Any], exact: dict[str, Any]) -> float:
    """Relative, in the 2-norm over all tensors of ``found``."""
    off = sum(float((g - exact[name]).square().sum()) for name, g in found.items())
    return math.sqrt(off / sum(float(exact[name].square().sum()) for name in found))


def _nothing() -> None:
    pass
