# SPDX-License-Identifier: BSD-3-Clause
"""Small networks on which all execution modes must agree, and how closely.

Tolerance, in float64: modes sum the same terms in another order. A sum of ``n`` terms errs by at most ``n u`` of the
sum of their sizes; batch norm and its gradients sum ``n = batch * 36`` terms here, and about 12 layers and as many
gradients follow each other, each amplifying by less than 10 (weights of norm about 1, standard deviations above 0.1).
Cancellation in sums of gradients costs up to a further factor 100: ``12 * 6 * 36 * 10 * 100 u = 3e-10``.
"""

import torch
from torch import nn

from pyparareal.nn import PararealNetwork
from pyparareal.nn.interface_maps import InterfaceMap
from pyparareal.nn.residual_unit import ResidualUnit

TOLERANCE = 12 * 6 * 36 * 10 * 100 * 2.0**-53
WIDTH, BATCH = 4, 6


def residual_net(parts=3, **options):
    """Convolutions and batch norm; all parts congruent."""
    shape = (WIDTH, 6, 6)
    return PararealNetwork(
        [ResidualUnit(WIDTH, WIDTH) for _ in range(2 * parts)],
        parts,
        preprocess=[InterfaceMap((1, 6, 6), shape, units=0) for _ in range(parts)],
        coarse=[InterfaceMap(shape, shape, units=0, signed=True) for _ in range(parts - 1)],
        head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 3)),
        **options,
    )


def mixed_net(**options):
    """Parts of two structures: 1 and 3, 2 and 4 are congruent; layer norm and products of matrices."""

    def narrow():
        return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.GELU())

    def wide():
        return nn.Sequential(nn.Linear(7, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 5))

    def link(a, b):
        return nn.Sequential(nn.Linear(a, b), nn.Tanh())

    return PararealNetwork(
        [narrow(), wide(), narrow(), wide()],
        preprocess=[nn.Flatten(), link_flat(7), link_flat(5), link_flat(7)],
        coarse=[link(7, 5), link(5, 7), link(7, 5)],
        head=nn.Linear(5, 3),
        **options,
    )


def link_flat(target):
    return nn.Sequential(nn.Flatten(), nn.Linear(5, target), nn.ReLU())


def dropout_net(**options):
    def part():
        return nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5), nn.Tanh())

    return PararealNetwork(
        [part(), nn.Sequential(nn.Linear(5, 5), nn.Tanh()), part()],
        preprocess=[nn.Identity(), nn.Linear(5, 5), nn.Linear(5, 5)],
        coarse=[nn.Linear(5, 5), nn.Linear(5, 5)],
        **options,
    )


NETS = {
    "residual": (residual_net, (BATCH, 1, 6, 6)),
    "mixed": (mixed_net, (BATCH, 5)),
}


def build(name, seed=0, **options):
    """A network with random parameters and running statistics, and an input."""
    torch.manual_seed(seed)
    make, shape = NETS[name]
    net = make(**options)
    for p in net.parameters():  # no ones and zeros: a wrong order of scales and shifts must show
        p.data.add_(torch.randn_like(p), alpha=0.1)
    return net, torch.randn(shape)


def step(net, x, seed=1):
    """Output, gradient of the input, of every parameter, and every buffer after one training step's two passes."""
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    net.zero_grad()
    y = net(x)
    y.square().sum().backward()
    named = {"y": y.detach(), "x": x.grad}
    named |= {f"gradient of {n}": p.grad for n, p in net.named_parameters()}
    return named | {n: b.clone() for n, b in net.named_buffers()}


@torch.no_grad()
def require_close(got, expected, tolerance=TOLERANCE):
    """Norm-wise, tensor by tensor; prints the first that is not."""
    assert got.keys() == expected.keys()
    for name, a in got.items():
        b = expected[name]
        assert (a is None) == (b is None), name
        if a is not None:
            error, size = float((a - b).double().norm()), float(b.double().norm())
            assert error <= tolerance * max(size, 1.0), f"{name}: |difference| = {error:.1e}, |expected| = {size:.1e}"


def require_equal(got, expected):
    assert got.keys() == expected.keys()
    for name, a in got.items():
        assert torch.equal(a, expected[name]), name
