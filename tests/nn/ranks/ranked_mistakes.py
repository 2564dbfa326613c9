# SPDX-License-Identifier: BSD-3-Clause
"""What a user does wrong with a network over ranks; the runtime goes on. As :mod:`ranked_uses`."""

import torch
from ranked_cases import bits, mlp
from ranked_uses import X, pair, raised, same, uses_in
from torch import nn

from pyparareal import RankError
from pyparareal.nn import over_ranks


def inputs_that_differ(runtime, one):
    alone, net = pair(runtime)
    rank, x = runtime.rank, torch.ones(X)
    found = {
        "shape": raised(net, torch.ones(7 + (rank == 2), 4)),
        "dtype": raised(net, x.double() if rank == 1 else x),
        "gradient": raised(net, x.clone().requires_grad_(rank == 1)),
        "strides": raised(net, torch.ones(4, 8).T if rank == 2 else x),
        "type": raised(net, [1.0] if rank == 1 else x),
    }
    with torch.set_grad_enabled(rank != 1):
        found["grad mode"] = raised(net, x)
    with torch.autocast("cpu", torch.bfloat16, enabled=rank == 2):
        found["autocast"] = raised(net, x)
    net.train(rank != 0)
    found["training"] = raised(net, x)
    net.train()
    found["clipping"] = raised(net.clip_grad_norm_, 1.0 + rank)
    for network in (alone, net):
        network(x).square().mean().backward()
    return found | {"after": same(alone, net)}


def values_of_other_ranks_do_not_matter(runtime, one):
    alone, net = pair(runtime)
    return bits(net(torch.full(X, float(runtime.rank)))) == bits(alone(torch.zeros(X)))


def first_pass_that_fails(runtime, one):
    """An error in a part for an input of a new kind: told to all, and nothing is lost."""
    alone, net = pair(runtime)
    if runtime.rank == 1:
        net.fine[2].register_forward_pre_hook(_refuse)
    found = {"part": raised(net, torch.ones(13, 4))}
    widths = over_ranks(_does_not_meet(), runtime)
    found["interface"] = raised(widths, torch.ones(X))
    with torch.no_grad():
        found["after"] = bits(net(torch.ones(X))) == bits(alone(torch.ones(X)))
    return found


def _refuse(module, arguments):
    if len(arguments[0]) == 13:
        raise ArithmeticError("no batches of 13")


def _does_not_meet():
    """The guess of the first part of rank 1 has another width than the part before."""
    net = mlp()
    net.preprocess[2], net.fine[2] = nn.Linear(4, 5), nn.Linear(5, 7)
    return net


def rank_errors_are_runtime_errors(runtime, one):
    return issubclass(RankError, RuntimeError)


MISTAKES = uses_in(globals())
