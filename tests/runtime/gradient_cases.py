# SPDX-License-Identifier: BSD-3-Clause
"""Chains whose gradients several processes must find as one does; a :class:`Chain` makes the arguments of ``solve``."""

import random

import torch
from test_own_adjoint import Own

from pyparareal import MGRIT, Adjoint, TimeGrid, Transfer
from pyparareal.nn.layer_parallel.dense_step import DenseStep


class Waves:
    """``u + h (a[i] sin(u) + b u')``, ``u'`` the next number of the row: element by element, the same in any batch."""

    batch_invariant = True

    def __init__(self, a, b, h):
        self.a, self.b, self.h, self.steps = a, b, h, len(a)
        self.taken = 0  # rows, here and in those that see how many

    def step(self, u, points):
        self.taken += len(u)
        wave = self.a[points].reshape(-1, *[1] * (u.ndim - 1)) * torch.sin(u)
        return u + self.h * (wave + self.b * torch.roll(u, 1, -1))

    def rediscretise(self, m):
        return type(self)(self.a[: self.steps // m * m : m], self.b, self.h * m)


class Chain:
    """A problem and what it is differentiated in; ``exact`` are those whose gradients must have the same bits.

    ``terms(lambda, u)`` are those that the gradient of the other is the sum of.
    """

    def __init__(self, steps, dtype=torch.float64, features=4, kind=Waves, seed=0, h=0.05, **options):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape, scale=1.0):
            return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()

        self.a, self.b = normal(steps), normal(())
        self.u0, self.rhs = normal(2, features), normal(steps, 2, features, scale=0.02)
        self.fine = kind(self.a, self.b, h)
        self.exact = {"u0": self.u0, "rhs": self.rhs, "a": self.a}
        self.summed = {"b": self.b}
        self.arguments = {"fine": self.fine, "u0": self.u0, "grid": TimeGrid(0, 1, steps), "rhs": self.rhs}
        # Far below what a gradient is, in either dtype, and reached before every slice is exact.
        self.arguments |= {"tol": 1e-7 if dtype == torch.float64 else 1e-4} | options

    def terms(self, backwards, u):
        return self.fine.h * backwards * torch.roll(u, 1, -1)


class Modules:
    """Matrix products, which round by how many there are, in fixed blocks: then all gradients have the same bits."""

    def __init__(self, steps=43, m=2, each=False, **options):
        torch.manual_seed(1)
        fine = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Tanh()).double()
        coarse = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Tanh()).double()
        coarse.load_state_dict(fine.state_dict())
        if each:  # a module per step: no rank's steps use all
            fine = torch.nn.ModuleList(
                torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Tanh()) for _ in range(steps)
            )
            fine = fine.double()
        u0 = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(3, 5).requires_grad_()
        self.fine = fine
        self.exact = {"u0": u0} | dict(fine.named_parameters())
        self.summed = {}
        self.arguments = {"fine": fine, "coarse": coarse.requires_grad_(False), "u0": u0, "m": m, "tol": 1e-9}
        self.arguments |= {"grid": TimeGrid(0, 1, steps), "deterministic": True} | options


class Dense:
    """Layers with kernels both ways, whose gradients they bring along; the rows of the weights are one layer's each."""

    def __init__(self, steps=38, bias=True, **options):
        generator = torch.Generator().manual_seed(3)
        weight = (0.3 * torch.randn(steps, 6, 6, generator=generator, dtype=torch.float64)).requires_grad_()
        shift = (0.1 * torch.randn(steps, 6, generator=generator, dtype=torch.float64)).requires_grad_()
        u0 = torch.randn(3, 6, generator=generator, dtype=torch.float64).requires_grad_()
        self.fine = DenseStep(weight, shift if bias else None, 0.1)
        self.exact = {"u0": u0, "weight": weight} | ({"bias": shift} if bias else {})
        self.summed = {}
        self.arguments = {"fine": self.fine, "u0": u0, "grid": TimeGrid(0, 1, steps), "tol": 1e-10} | options


class OwnDerivatives:
    """Steps with an adjoint of their own that know nothing of parts."""

    def __init__(self, steps=37, **options):
        a = torch.linspace(-1, 1, steps, dtype=torch.float64).requires_grad_()
        u0 = torch.linspace(0.5, 2, 6, dtype=torch.float64).reshape(2, 3).requires_grad_()
        self.fine = Own(a, 0.1)
        self.exact, self.summed = {"u0": u0, "a": a}, {}
        self.arguments = {"fine": self.fine, "u0": u0, "grid": TimeGrid(0, 1, steps), "tol": 1e-12} | options


def halves():
    """Coarse levels see the means of pairs."""
    return Transfer(lambda u: (u[..., ::2] + u[..., 1::2]) / 2, lambda v: torch.repeat_interleave(v, 2, dim=-1))


def in_space(levels=2):
    method = MGRIT(levels=levels, min_coarse=1, transfer=halves(), stagnation=None)
    return Chain(26, m=2, method=method, max_iterations=4, on_failure="return", features=8, tol=0.0)


TWICE = {"m": 2, "method": MGRIT(levels=3)}
CASES = {
    "parareal": lambda: Chain(48, m=4),
    "parareal, trailing steps": lambda: Chain(50, m=4),
    "parareal, one slice": lambda: Chain(5, m=4),
    "parareal, three slices": lambda: Chain(14, m=4),
    "parareal, m=1": lambda: Chain(13, m=1),
    "parareal, every point": lambda: Chain(50, m=4, save="all"),
    "parareal, the end": lambda: Chain(50, m=4, save="end"),
    "parareal, float32": lambda: Chain(50, m=4, dtype=torch.float32),
    "parareal, inexact": lambda: Chain(50, m=4, tol=None, max_iterations=2),
    "parareal, serial at last": lambda: Chain(50, m=4, tol=0.0, max_iterations=2, on_failure="serial"),
    "parareal, serial at last, the end": lambda: Chain(
        50, m=4, tol=0.0, max_iterations=2, on_failure="serial", save="end"
    ),
    "parareal by MGRIT": lambda: Chain(50, m=4, adjoint=MGRIT()),
    "parareal by three levels": lambda: Chain(50, m=4, adjoint=MGRIT(levels=3), save="end"),  # blocks of 16 steps
    "parareal by a chain": lambda: Chain(50, m=4, adjoint="serial"),
    "parareal by a chain, every point": lambda: Chain(50, m=4, adjoint="serial", save="all"),
    "parareal, given up": lambda: Chain(50, m=4, adjoint=Adjoint("parareal", max_iterations=2, on_failure="serial")),
    "parareal, rejected": lambda: Chain(50, m=4, adjoint=Adjoint(accept=lambda went: False)),
    "parareal, fixed": lambda: Chain(50, m=4, adjoint=Adjoint("mgrit", max_iterations=2, fixed=True)),
    "parareal, other norm": lambda: Chain(50, m=4, adjoint=Adjoint(norm="rms", tol=1e-8)),
    "MGRIT": lambda: Chain(50, m=4, method=MGRIT()),
    "MGRIT, F": lambda: Chain(50, m=4, method=MGRIT(nu=0)),
    "MGRIT, the end": lambda: Chain(50, m=4, method=MGRIT(), save="end"),
    "MGRIT by parareal": lambda: Chain(50, m=4, method=MGRIT(), adjoint="parareal"),
    "MGRIT, from zero": lambda: Chain(50, m=4, method=MGRIT(), adjoint=MGRIT(skip_first_down=False)),
    "one level": lambda: Chain(26, m=4, method=MGRIT(levels=1)),
    "one level, the end": lambda: Chain(26, m=4, method=MGRIT(levels=1), save="end", adjoint="parareal"),
    "three levels": lambda: Chain(45, **TWICE),
    "three levels, every point": lambda: Chain(45, **TWICE, save="all"),
    "three levels, F-cycle": lambda: Chain(45, m=2, method=MGRIT(levels=3, cycle="F")),
    "three levels, other factors": lambda: Chain(71, m=[5, 2], method=MGRIT(levels=3, nu=[0, 1])),
    "three levels by parareal": lambda: Chain(45, **TWICE, adjoint="parareal", save="end"),
    "four levels, nested": lambda: Chain(47, m=2, method=MGRIT(levels=4, nested=True)),  # 48 steps backwards
    "four levels, relaxed to the end": lambda: Chain(
        59, m=2, method=MGRIT(levels=4, coarsest_sweeps=2, stagnation=None), max_iterations=6, on_failure="return"
    ),
    "in space": in_space,
    "Newton, trailing steps": lambda: Chain(26, m=4, method="newton"),
    "Newton by a chain": lambda: Chain(26, m=4, method="newton", adjoint="serial", save="all"),
    "modules": Modules,
    "modules, by MGRIT": lambda: Modules(method=MGRIT(), save="all"),
    "modules, by a chain": lambda: Modules(adjoint="serial", save="end"),
    "modules, one per step": lambda: Modules(each=True, on_failure="serial", max_iterations=2),
    "dense": lambda: Dense(m=2, method=MGRIT(levels=3)),
    "dense, by a chain": lambda: Dense(m=3, adjoint="serial", bias=False, method=MGRIT()),
    "dense, padded": lambda: Dense(m=2, method=MGRIT(levels=4), save="all"),
    "own adjoint": lambda: OwnDerivatives(m=2, method=MGRIT(levels=3)),
    "own adjoint, the end": lambda: OwnDerivatives(m=4, adjoint="serial", save="end"),
}  # fmt: skip

# More levels than blocks fit: the last are solved whole, by every rank or by the first.
DEEP = {
    "to one step": lambda: Chain(45, m=2, method=MGRIT(levels=None, min_coarse=1)),
    "to one step, the end": lambda: Chain(45, m=2, method=MGRIT(levels=None, min_coarse=1, cycle="F"), save="end"),
    "forward in fewer": lambda: Chain(50, m=4, adjoint=MGRIT(levels=None, min_coarse=1), save="all"),
    "relaxed to the end": lambda: Chain(
        36, m=2, method=MGRIT(levels=5, min_coarse=1, coarsest_sweeps=2, stagnation=None), on_failure="serial"
    ),
    "in space, to one step": lambda: in_space(levels=4),
    "dense, to one step": lambda: Dense(m=2, method=MGRIT(levels=None, min_coarse=1)),
    "own adjoint, to one step": lambda: OwnDerivatives(m=2, method=MGRIT(levels=None, min_coarse=1), save="end"),
}  # fmt: skip


def random_case(seed):
    """Any length, factor, methods, rows to keep and dtype."""
    draw = random.Random(seed)
    steps, m = draw.randint(2, 50), draw.randint(1, 4)
    m = min(m, steps)

    def method():
        few = {"nu": draw.randint(0, 2), "cycle": draw.choice("VFW"), "levels": draw.randint(2, 4), "stagnation": None}
        return "parareal" if m == 1 or draw.random() < 0.4 else MGRIT(min_coarse=1, **few)

    adjoint = draw.choice([None, "serial", method()])
    more = {"m": m, "method": method(), "adjoint": adjoint, "save": draw.choice(["coarse", "all", "end"])}
    more["freeze"] = draw.random() < 0.7
    return Chain(steps, seed=seed, dtype=draw.choice([torch.float64, torch.float32]), on_failure="serial", **more)
