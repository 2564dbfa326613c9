# SPDX-License-Identifier: BSD-3-Clause
"""What a user does with a network over ranks. Each use returns what it found, to be compared by the test.

``runtime`` has all ranks, ``one`` this rank alone.
"""

import gc
import pickle
import weakref

import torch
from ranked_cases import bits, conv, mlp
from torch import nn
from torch.utils.checkpoint import checkpoint

import pyparareal.nn
from pyparareal.nn import over_ranks

X = (8, 4)


def pair(runtime, make=mlp, **options):
    """The same network in one process and over ranks."""
    return make(), over_ranks(make(), runtime, **options)


def gradients(net):
    return {name: None if p.grad is None else bits(p.grad) for name, p in net.named_parameters()}


def same(alone, net):
    """Whether this rank's gradients are those of one process."""
    expected, got = gradients(alone), gradients(net)
    return bool(got) and {name: g == expected[name] for name, g in got.items()} == dict.fromkeys(got, True)


def raised(call, *arguments, **named):
    try:
        call(*arguments, **named)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["", ""]


# Graphs


def losses_of_one_output(runtime, one):
    alone, net = pair(runtime)
    for network in (alone, net):
        out = network(torch.ones(X).cumsum(0))
        out.square().mean().backward(retain_graph=True)
        out.sin().mean().backward()
    return same(alone, net)


def passes_of_one_loss(runtime, one):
    alone, net = pair(runtime)
    for network in (alone, net):
        a, b, c = (network(torch.full(X, value)) for value in (0.1, 0.2, 0.3))
        (a.square().sum() * b.exp().mean() + a.mean() / 3).backward()
        c.mean().backward()
    return same(alone, net)


def backward_passes_in_another_order(runtime, one):
    alone, net = pair(runtime)
    for network in (alone, net):
        a, b = (network(torch.full(X, value)).square().mean() for value in (0.1, 0.2))
        a.backward()
        b.backward()
    return same(alone, net)


def within_modules_of_all_ranks(runtime, one):
    """Output of the network into itself, through a module that every rank has."""
    alone, net = pair(runtime)
    found = []
    for network in (alone, net):
        torch.manual_seed(1)
        before, between = nn.Linear(4, 4), nn.Linear(3, 4)
        network(between(network(before(torch.ones(X))))).square().mean().backward()
        found.append([bits(p.grad) for p in (*before.parameters(), *between.parameters())])
    return [same(alone, net), found[0] == found[1]]


def gradient_of_the_input_alone(runtime, one):
    alone, net = pair(runtime)
    found = []
    for network in (alone, net):
        x = torch.linspace(0, 1, 32).reshape(X).requires_grad_()
        found.append(bits(torch.autograd.grad(network(x).square().sum(), x)[0]))
    return [found[0] == found[1], all(p.grad is None for p in net.parameters())]


def without_gradients(runtime, one):
    alone, net = pair(runtime)
    found = []
    for network in (alone, net):
        with torch.inference_mode():
            found.append(network.eval()(torch.ones(X)))
        with torch.no_grad():
            found.append(network(torch.ones(3, 4)))
        found.append(network(torch.ones(0, 4)))
    kinds = [
        u.is_inference() == v.is_inference() and u.requires_grad == v.requires_grad
        for u, v in zip(found[:3], found[3:], strict=True)
    ]
    return kinds + [bits(u) == bits(v) for u, v in zip(found[:3], found[3:], strict=True)]


def strides_of_images(runtime, one):
    """channels_last: the layout of the states comes over, too."""
    alone, net = pair(runtime, conv)
    for network in (alone, net):
        torch.manual_seed(2)
        network.to(memory_format=torch.channels_last)
        network(torch.randn(6, 1, 8, 8).to(memory_format=torch.channels_last)).square().mean().backward()
    return same(alone, net)


def ignored_by_a_coarse_net(runtime, one):
    """A gradient of zero comes back where none would; nobody waits."""

    class Constant(nn.Module):
        def forward(self, u):
            return torch.zeros(len(u), 6 + (u.shape[1] == 6)).requires_grad_()

    def make():
        net = mlp()
        net.coarse[2] = Constant()
        return net

    alone, net = pair(runtime, make)
    for network in (alone, net):
        network(torch.ones(X)).square().mean().backward()
    expected = gradients(alone)
    zero = {
        n: g == expected[n] or (expected[n] is None and not p.grad.any())
        for (n, g), p in zip(gradients(net).items(), net.parameters(), strict=True)
    }
    return set(zero.values()) == {True}


def checkpointed_blocks(runtime, one):
    """torch.utils.checkpoint inside the parts, with dropout: the gradients without it."""

    class Saved(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, u):
            return checkpoint(self.inner, u, use_reentrant=False)

    found = []
    for wrap in (lambda part: part, Saved):
        torch.manual_seed(5)
        net = mlp(dropout=0.3)
        for j in range(net.parts):
            net.fine[j] = wrap(net.fine[j])
        net = over_ranks(net, runtime)
        torch.manual_seed(6)
        net(torch.ones(X)).square().mean().backward()
        found.append(list(gradients(net).values()))
    return found[0] == found[1]


def compiled_parts(runtime, one):
    """Compiled by themselves, with a backend that leaves the operations as they are."""
    alone, net = pair(runtime)
    for j in net.own:
        net.fine[j].compile(backend="eager")
    for network in (alone, net):
        network(torch.ones(X)).square().mean().backward()
    return same(alone, net)


def compiled_network(runtime, one):
    alone, net = pair(runtime)
    alone(torch.ones(X)).square().mean().backward()
    torch.compile(net, backend="eager")(torch.ones(X)).square().mean().backward()
    return same(alone, net)


def modes_within_a_rank(runtime, one):
    """The largest relative difference of a gradient, and what ran."""
    found = {}
    for mode in ("parallel", "batched", "auto"):
        alone, net = mlp(parts=6, width=8, execution="serial"), mlp(parts=6, width=8)
        for network in (alone, net):  # interfaces of one width, so that parts are congruent
            torch.manual_seed(9)
            network.fine = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(6))
            network.preprocess = nn.ModuleList(nn.Linear(4, 8) for _ in range(6))
            network.coarse = nn.ModuleList(nn.Linear(8, 8) for _ in range(5))
            network.head = nn.Linear(8, 3)
            network.double()
        net = over_ranks(net, runtime)
        net.execution = mode
        for _ in range(2):  # the first pass of a kind runs the parts in turn
            for network in (alone, net):
                network.zero_grad()
                x = torch.linspace(0, 1, 32, dtype=torch.float64).reshape(X).requires_grad_()
                network(x).square().mean().backward()
        expected = dict(alone.named_parameters())
        error = max(
            float((p.grad - expected[n].grad).norm() / expected[n].grad.norm()) for n, p in net.named_parameters()
        )
        found[mode] = [error, net.executed]
    return found


def copies_and_conversions(runtime, one):
    """An average of the weights, as a copy that runs; another layout and another dtype between two passes."""
    alone, net = pair(runtime, conv)
    found = []
    for network in (alone, net):
        torch.manual_seed(2)
        x = torch.randn(6, 1, 8, 8)
        averaged = torch.optim.swa_utils.AveragedModel(network)
        found.append(bits(averaged(x)) + bits(network(x)))
        network.to(memory_format=torch.channels_last)
        found.append(bits(network(x)))
        network.double()
        network(x.double()).square().mean().backward()
        clip = getattr(network, "clip_grad_norm_", None)
        norm = clip(0.01) if clip else nn.utils.clip_grad_norm_(network.parameters(), 0.01)
        found.append(bits(norm) + str(norm.dtype).encode())
    return [a == b for a, b in zip(found[:3], found[3:], strict=True)] + [same(alone, net)]


def clipped_in_bfloat16(runtime, one):
    alone, net = pair(runtime, lambda: mlp().bfloat16())
    norms = []
    for network in (alone, net):
        network(torch.ones(X, dtype=torch.bfloat16)).square().mean().backward()
        clip = getattr(network, "clip_grad_norm_", None)
        norms.append(bits(clip(0.01) if clip else nn.utils.clip_grad_norm_(network.parameters(), 0.01)))
    return [norms[0] == norms[1], same(alone, net)]


# Randomness


def no_draw_leaves_no_trace(runtime, one):
    net = over_ranks(mlp(), runtime)
    before = torch.get_rng_state()
    net(torch.ones(X)).sum().backward()
    net(torch.ones(X))
    return torch.equal(before, torch.get_rng_state())


def draws_that_begin_late(runtime, one):
    """Dropout switched on after the first pass: all draws are those of one rank, and no mask comes twice."""
    found = []
    for over in (one, runtime):
        net, outputs = over_ranks(mlp(dropout=0.0), over), []
        torch.manual_seed(7 if over is one else 7 + 100 * (runtime.rank > 0))  # rank 0's draws are everyone's
        for step in range(4):
            outputs.append(bits(net(torch.ones(X))))
            if step == 0:
                for module in net.modules():
                    if isinstance(module, nn.Dropout):
                        module.p = 0.5
        found.append(outputs)
    return [found[0] == found[1], len(set(found[1])) == 4]


def dropout_alone_in_training(runtime, one):
    """An evaluated network whose dropout is switched on later: the same draws for any number of ranks."""
    found = []
    for over in (one, runtime):
        net = over_ranks(mlp(dropout=0.5), over).eval()
        torch.manual_seed(8)
        with torch.no_grad():
            net(torch.ones(X))
            for module in net.modules():
                module.train(isinstance(module, nn.Dropout))
            found.append([bits(net(torch.ones(X))) for _ in range(3)] + [bits(torch.rand(2))])
    return [found[0] == found[1], len(set(found[1])) == 4]


# State


def shares_and_the_whole(runtime, one):
    whole = mlp(norm=True)
    expected = {name: bits(value) for name, value in whole.state_dict().items()}
    net = over_ranks(whole, runtime)
    share = {name: bits(value) for name, value in net.state_dict().items()}
    for_one = net.full_state_dict(to=1)
    twice = mlp(norm=True)
    for p in twice.parameters():
        p.data.zero_()
    other = over_ranks(twice, runtime)
    other.load_full_state_dict(mlp(norm=True).state_dict())
    return {
        "names": sorted(share),
        "share": all(expected[name] == value for name, value in share.items()),
        "whole": {name: bits(value) for name, value in net.full_state_dict().items()} == expected,
        "for one": len(for_one),
        "order": list(net.full_state_dict()) == list(expected),
        "loaded": {name: bits(value) for name, value in other.state_dict().items()} == share,
    }


def states_that_are_refused(runtime, one):
    net, state = over_ranks(mlp(), runtime), mlp().state_dict()
    before = {name: bits(value) for name, value in net.state_dict().items()}
    found = {
        "missing": raised(net.load_full_state_dict, {n: v for n, v in state.items() if n != "coarse.3.bias"}),
        "unknown": raised(net.load_full_state_dict, state | {"fine.5.0.weight": torch.ones(1)}),
        "shape": raised(net.load_full_state_dict, state | {"head.1.bias": torch.ones(4)}),
        "on one rank": raised(net.load_full_state_dict, {} if runtime.rank == 2 else state),
        "to": raised(net.full_state_dict, to=3),
        "to, elsewhere": raised(net.full_state_dict, to=runtime.rank),
        "saved": raised(pyparareal.nn.save, net, "nowhere"),
        "pickled": raised(pickle.dumps, net),
        "module": raised(net.head if runtime.rank < 2 else net.fine[0], torch.ones(1)),
    }
    return found | {"unchanged": before == {name: bits(value) for name, value in net.state_dict().items()}}


def on_the_meta_device(runtime, one):
    state = mlp().state_dict()
    with torch.device("meta"):
        net = mlp()
    net = over_ranks(net, runtime)
    net.to_empty(device="cpu")
    net.load_full_state_dict(state)
    return bits(net(torch.ones(X))) == bits(mlp()(torch.ones(X)))


def weights_of_the_first_rank(runtime, one):
    net = mlp()
    torch.manual_seed(runtime.rank)
    for p in net.parameters():
        p.data.normal_()
    refused = raised(over_ranks, net, runtime)
    net = over_ranks(net, runtime, broadcast_weights=True)
    alone = mlp()
    torch.manual_seed(0)
    for p in alone.parameters():
        p.data.normal_()
    return [*refused, bits(net(torch.ones(X))) == bits(alone(torch.ones(X)))]


def parts_of_other_ranks_are_freed(runtime, one):
    net = mlp()
    parts = [weakref.ref(part) for part in net.fine]
    net = over_ranks(net, runtime)
    gc.collect()
    return [part() is not None for part in parts]


class Scaled(nn.Module):
    """Says a function, and by that where it is in memory."""

    def __init__(self, function, factor):
        super().__init__()
        self.function, self.factor = function, factor

    def forward(self, u):
        return self.factor * self.function(u)

    def extra_repr(self):
        return f"{self.function}, {self.factor}"


def options_of_modules(runtime, one):
    """Compared, but not by where their functions are."""
    aside = [object() for _ in range(1000 * runtime.rank)]
    found = []
    for factor in (2, 2 + runtime.rank // 2):
        net = mlp()
        net.fine[3].append(Scaled(lambda u: u.sin(), factor))
        found.append(raised(over_ranks, net, runtime))
    return [*found, len(aside) == 1000 * runtime.rank]


def parts_as_asked_for(runtime, one):
    alone, net = pair(runtime, parts_per_rank=[1, 3, 1])
    for network in (alone, net):
        network(torch.ones(X)).square().mean().backward()
    tied = mlp()
    tied.fine[0][0][0].weight = tied.preprocess[0].weight  # both are on rank 0
    tied.fine[4][1] = tied.fine[0][1]
    return {
        "own": list(net.own),
        "same": same(alone, net),
        "sum": raised(over_ranks, mlp(), runtime, parts_per_rank=[1, 1, 1]),
        "kind": raised(over_ranks, mlp(), runtime, parts_per_rank=3),
        "differ": raised(over_ranks, mlp(), runtime, parts_per_rank=[1, 3, 1] if runtime.rank else [3, 1, 1]),
        "ranks": raised(over_ranks, mlp(parts=2), runtime),
        "tied": raised(over_ranks, tied, runtime),
        "network": raised(over_ranks, net, runtime),
        "runtime": raised(over_ranks, mlp(), "gloo"),
        "after": bits(net(torch.ones(X))) == bits(alone(torch.ones(X))),
    }


def bytes_that_are_sent(runtime, one):
    """In a training step: what this rank counted, what the formula says, and what the ranks' connections carried."""
    net = over_ranks(conv(), runtime)
    x = torch.ones(6, 1, 8, 8)
    net(x).sum().backward()  # the first pass of a kind talks more
    before, carried = net.sent, runtime.volume
    net(x).sum().backward()
    carried = runtime.volume - carried
    formula = conv().communication(x)
    return {
        "counted": dict(net.sent - before),
        "carried": {name: carried[name] for name in ("bytes", "states", "broadcasts", "frames", "texts")},
        "formula": [[t.interface, t.forward_bytes, t.backward_bytes] for t in formula],
        "same formula": net.communication(x) == formula,
        "own": list(net.own),
    }


def uses_in(names):
    """Those of a module, by their first arguments."""
    return {
        name: use
        for name, use in names.items()
        if getattr(use, "__module__", "") == names["__name__"]
        and getattr(use, "__code__", None)
        and use.__code__.co_varnames[:2] == ("runtime", "one")
    }


USES = uses_in(globals())
