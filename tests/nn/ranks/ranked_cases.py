# SPDX-License-Identifier: BSD-3-Clause
"""Networks, and what is done with them: the same code for a network in one process and for one over ranks."""

import copy
from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import nn

from pyparareal.nn import PararealNetwork

PARTS = 5


def mlp(correction="residual", dropout=0.0, parts=PARTS, width=6, norm=False, **options):
    """A part is two blocks; interfaces of width 6, 7, 6, ... ; a different coarse net for each."""
    torch.manual_seed(3)
    widths = [width + j % 2 for j in range(parts + 1)]

    def block(a, b):
        layers = [nn.Linear(a, b), nn.BatchNorm1d(b) if norm else nn.LayerNorm(b), nn.Tanh(), nn.Dropout(dropout)]
        return nn.Sequential(*layers)

    blocks = [block(a, b) for j in range(parts) for a, b in ((widths[j], 9), (9, widths[j + 1]))]
    guesses = [nn.Linear(4, w) for w in widths[:-1]]
    coarse = [nn.Linear(a, b) for a, b in pairwise(widths[1:])]
    head = nn.Sequential(nn.Dropout(dropout), nn.Linear(widths[-1], 3))
    options = {"preprocess": guesses, "coarse": coarse, "head": head, "correction": correction} | options
    return PararealNetwork(blocks, [2] * parts, **options)


def conv(correction="residual"):
    """Images, batch norm in the fine and in the coarse nets, interfaces of other resolutions."""
    torch.manual_seed(4)

    def unit(a, b, stride=1):
        return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())

    def coarse(a, b, stride=1):
        return nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))

    guesses = [unit(1, 3), unit(1, 3), unit(1, 4, 2), unit(1, 4, 2)]
    return PararealNetwork(
        [unit(3, 3), unit(3, 4, 2), unit(4, 4), unit(4, 5)],
        preprocess=guesses,
        coarse=[coarse(3, 4, 2), coarse(4, 4), coarse(4, 5)],
        head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)),
        correction=correction,
    )


def batches(shape, steps=4, x_grad=False):
    for step in range(steps):
        torch.manual_seed(50 + step)
        size = shape[0] - (3 if step == steps - 1 else 0)  # the last batch is smaller
        yield torch.randn(size, *shape[1:], requires_grad=x_grad), torch.randint(3, (size,))


def train(net, shape, optimiser, *, steps=4, x_grad=False, autocast=False, clip=None, accumulate=1, between=None):
    """Some steps, then an evaluation: outputs, losses, gradients of ``x`` and norms, all as bytes."""
    told = []
    clipped = getattr(net, "clip_grad_norm_", None)
    for step, (x, target) in enumerate(batches(shape, steps, x_grad)):
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            out = net(x)
            loss = nn.functional.cross_entropy(out, target)
        loss.backward()
        told += [out, loss, x.grad if x_grad else loss]
        if clip:
            parameters = list(net.parameters())
            told.append(clipped(*clip) if clipped else nn.utils.clip_grad_norm_(parameters, *clip))
        if (step + 1) % accumulate == 0:
            told.append(optimiser.step())
            optimiser.zero_grad()
        if between:
            between(net, step)
    net.eval()
    with torch.no_grad():
        told.append(net(x))
    net.train()
    return [bits(one) for one in told if one is not None]


def bits(tensor):
    return tensor.detach().double().numpy().tobytes() + str(tensor.dtype).encode()


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def adam(net):
    return torch.optim.Adam(net.parameters(), lr=0.01)


def freeze(*names):
    def frozen(net):
        for name, p in net.named_parameters():
            p.requires_grad_(not name.startswith(names))
        return net

    return frozen


FIRST_HALF = ("preprocess.0", "fine.0", "preprocess.1", "fine.1", "coarse.0", "preprocess.2", "fine.2", "coarse.1")


def toggle(net, step):
    """Freeze the parts of the first rank, or ranks, after the first step, and thaw them after the second."""
    if step < 2:
        freeze(*(FIRST_HALF if step == 0 else ("nothing",)))(net)


def doubled(make):
    return lambda: make().double()


def unchanged(net):
    return net


# name: (network, what is done to it before training, optimiser, options of train)
MLP, CONV = (8, 4), (6, 1, 8, 8)
CASES = {
    "residual": (mlp, unchanged, sgd, MLP, {}),
    "difference": (lambda: mlp("difference"), unchanged, adam, MLP, {}),
    "float64": (doubled(mlp), unchanged, adam, MLP, {"dtype": torch.float64}),
    "batch norm": (lambda: mlp(norm=True), unchanged, sgd, MLP, {}),
    "images": (conv, unchanged, sgd, CONV, {}),
    "images, difference": (lambda: conv("difference"), unchanged, adam, CONV, {}),
    "gradient of x": (mlp, unchanged, sgd, MLP, {"x_grad": True}),
    "gradient of images": (conv, unchanged, adam, CONV, {"x_grad": True}),
    "autocast": (mlp, unchanged, sgd, MLP, {"autocast": True}),
    "clipped": (mlp, unchanged, sgd, MLP, {"clip": (0.05,)}),
    "clipped, largest": (mlp, unchanged, sgd, MLP, {"clip": (0.01, float("inf"))}),
    "accumulated": (mlp, unchanged, adam, MLP, {"accumulate": 2}),
    "first parts frozen": (
        mlp, freeze("preprocess.0", "fine.0", "preprocess.1", "fine.1", "coarse.0"), sgd, MLP, {}),
    "last part frozen": (mlp, freeze("fine.4", "preprocess.4", "coarse.3", "head"), sgd, MLP, {}),
    "all but one frozen": (mlp, freeze("pre", "coarse", "head", "fine.0", "fine.2", "fine.3", "fine.4"), sgd, MLP, {}),
    "frozen meanwhile": (mlp, unchanged, sgd, MLP, {"between": toggle}),
    "dropout": (lambda: mlp(dropout=0.3), unchanged, sgd, MLP, {}),
    "dropout, difference": (lambda: mlp("difference", dropout=0.3), unchanged, adam, MLP, {"x_grad": True}),
    "no head": (lambda: mlp(head=None), unchanged, sgd, MLP, {}),
}  # fmt: skip
DRAWING = ("dropout", "dropout, difference")  # draws are those of one rank, and not those without any


def run(name, over=None):
    """A case in one process or, with ``over``, over ranks: what it told, and all tensors at the end as bytes."""
    make, prepare, optimiser, shape, options = CASES[name]
    options = copy.copy(options)
    torch.set_default_dtype(options.pop("dtype", torch.float32))
    try:
        net = prepare(make())
        net = over(net) if over else net
        told = train(net, shape, optimiser(net), **options)
        state = net.full_state_dict() if over else net.state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    return told, {key: bits(value) for key, value in state.items()}
