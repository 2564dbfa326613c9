# SPDX-License-Identifier: BSD-3-Clause
"""What every number of processes must compute alike: small runs of all that goes over ranks, told by their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from bench import ranks

Found = dict[str, Any]


def bits_on_a_rank() -> dict[str, str]:
    """Digests of all workloads over the ranks of the present group."""
    import pyparareal

    return digests(pyparareal.distributed(timeout=120))


def bits_alone() -> dict[str, str]:
    """The same in one process."""
    return digests(None)


def digests(runtime: Any) -> dict[str, str]:
    """By name; ``runtime`` None: in this process."""
    import numpy as np
    import torch

    def of(value: Any) -> bytes:
        if isinstance(value, torch.Tensor):
            return value.detach().double().cpu().numpy().tobytes()
        return value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()

    found = {}
    for workload in WORKLOADS:
        for name, value in workload(runtime).items():
            found[f"{workload.__name__}.{name}"] = hashlib.sha256(of(value)).hexdigest()[:16]
    return found


def parareal(runtime: Any) -> Found:
    """Blocks of unequal lengths, and trailing steps."""
    return _solved(runtime, "parareal", 7)


def mgrit(runtime: Any) -> Found:
    from pyparareal import MGRIT

    return _solved(runtime, MGRIT(levels=3, nu=1), 3)


def newton(runtime: Any) -> Found:
    from pyparareal import Newton

    return _solved(runtime, Newton(), 1, steps=101)


def _solved(runtime: Any, method: Any, m: int, *, steps: int = 997) -> Found:
    """States and residuals, and the gradient of the initial value."""
    import torch

    from pyparareal import TimeGrid, solve

    torch.manual_seed(0)
    rate = torch.linspace(0.1, 3.0, 8, dtype=torch.float64, device=ranks.device())
    u0 = torch.linspace(0.05, 0.95, 16, dtype=torch.float64).reshape(2, 8).to(rate.device).requires_grad_()
    grid = TimeGrid(0, 1, steps)
    solution = solve(Logistic(rate, grid), u0, grid, m=m, tol=1e-10, method=method, runtime=runtime, parameters=[rate])
    gradients = torch.autograd.grad(solution.u.square().sum(), [u0])
    return {"u": solution.u, "residuals": solution.residuals, "du0": gradients[0]}


class Logistic:
    """``u' = rate u (1 - u)`` in explicit steps, number by number."""

    batch_invariant = True

    def __init__(self, rate: Any, grid: Any) -> None:
        self.rate, self.grid = rate, grid
        self.h = (grid.t1 - grid.t0) / grid.steps

    def step(self, u: Any, points: slice) -> Any:
        return u + self.h * self.rate * u * (1 - u)

    def rediscretise(self, m: int) -> Logistic:
        return Logistic(self.rate, self.grid.coarsen(m))


def parareal_network(runtime: Any) -> Found:
    """Five updates of a network of four parts with batch norm."""
    import torch
    from torch import nn

    from pyparareal.nn import PararealNetwork, over_ranks

    torch.manual_seed(0)
    body = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh()) for _ in range(9)]
    net: Any = PararealNetwork(
        body,
        4,
        preprocess=[nn.Linear(6, 6) for _ in range(4)],
        coarse=[nn.Linear(6, 6) for _ in range(3)],
        head=nn.Linear(6, 3),
    ).to(ranks.device())
    if runtime is not None:
        net = over_ranks(net, runtime)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    x, y = torch.randn(12, 6).to(ranks.device()), (torch.arange(12) % 3).to(ranks.device())
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    state = net.state_dict() if runtime is None else net.full_state_dict()
    return {"losses": losses} | {name: state[name] for name in sorted(state)}


def layer_parallel(runtime: Any) -> Found:
    """Value, and gradient of the input, of forty residual layers in our own kernel."""
    import torch
    from torch import nn

    from pyparareal.nn import LayerParallel

    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(41)]
    net = LayerParallel(blocks, h=0.1, m=4, forward=3, backward=3, runtime=runtime).double().to(ranks.device())
    x = torch.randn(5, 8, dtype=torch.float64).to(ranks.device()).requires_grad_()
    y = net(x)
    y.square().sum().backward()
    return {"y": y, "dx": x.grad}


def training_runs(runtime: Any) -> Found:
    """Two hundred updates of a small network, by the fused kernel."""
    import torch
    from torch import nn

    from pyparareal.training import TrainingRuns

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double().to(ranks.device())
    x = torch.randn(8, 3, dtype=torch.float64).to(ranks.device())
    data = (x, x.sum(1, keepdim=True).sin())
    runs = TrainingRuns(net, nn.functional.mse_loss, data, steps=203, lr=0.05, m=4, guess="constant", runtime=runtime)
    result = runs.run()
    return {"status": result.status.name} | result.weights


def gru(runtime: Any) -> Found:
    """Outputs of a recurrence of three hundred steps, by chunks in our own kernel, and the gradient of its input."""
    import torch

    from pyparareal.nn import GRU

    torch.manual_seed(0)
    net = GRU(3, 5, method="hybrid", jacobian="none", chunk=16, runtime=runtime).double().to(ranks.device())
    x = torch.randn(301, 2, 3, dtype=torch.float64).to(ranks.device()).requires_grad_()
    y, _ = net(x)
    y.square().sum().backward()
    return {"y": y, "dx": x.grad}


WORKLOADS: tuple[Callable[[Any], Found], ...] = (
    parareal,
    mgrit,
    newton,
    parareal_network,
    layer_parallel,
    training_runs,
    gru,
)
