# SPDX-License-Identifier: BSD-3-Clause
"""A stack is its blocks: any set of layers in one call, values and gradients, and the reasons where it cannot."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from stack_blocks import KINDS, STACKED, Branching, Item, dense, inputs, row  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal import MGRIT, Adjoint, TimeGrid, solve  # noqa: E402
from pyparareal.nn.layer_parallel import Stack  # noqa: E402

# Sums of at most 100 terms of size 1, each rounded to 1.1e-16, through three layers of a block: 1e-13 at most.
TOL = {"rtol": 1e-12, "atol": 1e-12}
every_kind = pytest.mark.parametrize("kind", KINDS)


def step_by_block(blocks, h, u, layers, factor=1):
    """The definition: one layer for each slice, of copies of the blocks."""
    return torch.stack(_live(copy.deepcopy(blocks), h, u, layers, factor))


def _live(blocks, h, u, layers, factor):
    found = []
    for n, layer in enumerate(layers):
        y = blocks[layer](u[n].clone())
        if h is not None:
            y = u[n] + factor * h * y
        elif factor > 1:
            y = u[n] + factor * (y - u[n])
        found.append(y)
    return found


@every_kind
@pytest.mark.parametrize(
    ("points", "factor"), [(slice(0, 6, 1), 1), (slice(1, 6, 2), 1), (slice(4, 5, 3), 1), (slice(0, 3, 1), 2)]
)
def test_a_set_of_layers_in_one_call_is_each_of_them(kind, points, factor):
    make, h, shape = KINDS[kind]
    blocks = row(make)
    layers = [factor * i for i in range(points.start, points.stop, points.step)]
    u = inputs(shape, len(layers))
    expected = step_by_block(blocks, h, u, layers, factor)
    stack = Stack(blocks, h)
    phi = stack.propagator(stack.frozen(u[0]))
    phi = phi if factor == 1 else phi.rediscretise(factor)
    assert phi.steps == 6 // factor
    before = u.clone()
    torch.testing.assert_close(phi.step(u, points), expected, **TOL)
    assert torch.equal(u, before) or kind == "in place"


@every_kind
def test_gradients_of_all_layers_in_one_pass(kind):
    make, h, shape = KINDS[kind]
    blocks = row(make)
    stack = Stack(blocks, h)
    u, w = inputs(shape), inputs(shape, seed=2)
    blocks = row(make)
    x = u.clone().requires_grad_()
    y = torch.stack([b(v.clone()) if h is None else v + h * b(v) for b, v in zip(blocks, x, strict=True)])
    parameters = [p for block in blocks for p in block.parameters()]
    expected = torch.autograd.grad(y, [x, *parameters], w)
    phi = stack.propagator(stack.frozen(u[0]))
    z = u.clone().requires_grad_()
    got = torch.autograd.grad(phi.step(z.clone(), slice(0, 6, 1)), [z, *stack.parameters()], w)
    torch.testing.assert_close(got[0], expected[0], **TOL)
    flat = dict(zip([n for n, _ in stack.named_parameters()], got[1:], strict=True))
    serial = dict(nn.ModuleList(blocks).named_parameters())
    if kind in STACKED:
        assert all(name.startswith("stacked.0.") and len(g) == 6 for name, g in flat.items())
        flat = {f"{i}.{n.removeprefix('stacked.0.')}": g[i] for n, g in flat.items() for i in range(6)}
    elif kind == "recurrent":
        flat = {name.removeprefix("blocks."): g for name, g in flat.items()}
    else:  # stacked, but run one after the other
        flat = {f"{i}.{n.removeprefix('stacked.0.')}": g[i] for n, g in flat.items() for i in range(6)}
    assert flat.keys() == serial.keys()
    for (name, _), g in zip(serial.items(), expected[1:], strict=True):
        torch.testing.assert_close(flat[name], g, **TOL)


@every_kind
def test_one_layer_after_the_other_is_the_serial_network(kind):
    make, h, shape = KINDS[kind]
    blocks = row(make)
    stack = Stack(blocks, h)
    serial = stack.serial()
    u = inputs(shape, 1)[0]
    assert torch.equal(stack(u.clone()), serial(u.clone()))
    for (name, got), expected in zip(stack.state_dict().items(), serial.state_dict().values(), strict=True):
        assert torch.equal(got, expected), name  # running statistics too


@every_kind
def test_mgrit_with_all_iterations_is_the_serial_network(kind):
    make, h, shape = KINDS[kind]
    stack = Stack(row(make, 8), h)
    serial = stack.serial()
    u, w = inputs(shape, 1)[0], inputs(shape, 1, seed=2)[0]
    x = u.clone().requires_grad_()
    y = serial(x.clone())
    expected = torch.autograd.grad(y, [x, *serial.parameters()], w)
    z = u.clone().requires_grad_()
    frozen = stack.frozen(z)
    phi = stack.propagator(frozen)
    # Two levels with FCF: two slices of four layers are exact after two iterations, forward and backward.
    solution = solve(
        phi, z, TimeGrid(0, 1, 8), method=MGRIT(levels=2), m=4, tol=0.0, save="all", max_iterations=2,
        on_failure="return", adjoint=Adjoint(tol=0.0, max_iterations=2),
    )  # fmt: skip
    torch.testing.assert_close(solution.u[-1], y, **TOL)
    got = torch.autograd.grad(solution.u[-1], [z, *stack.parameters()], w)
    frozen.commit(solution.u)
    torch.testing.assert_close(got[0], expected[0], **TOL)
    total = [float(sum(g.square().sum() for g in gradients)) for gradients in (got[1:], expected[1:])]
    assert total[0] == pytest.approx(total[1], rel=1e-11)
    for (name, a), b in zip(stack.state_dict().items(), serial.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, **TOL, msg=name)


MAKERS = [dense, Branching, lambda: nn.Linear(8, 8), nn.Tanh, lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU())]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_mixture_of_kinds_and_any_stride(data):
    kinds = data.draw(st.lists(st.integers(0, len(MAKERS) - 1), min_size=1, max_size=9), label="kinds")
    split = data.draw(st.lists(st.booleans(), min_size=len(kinds), max_size=len(kinds)), label="split")
    h = data.draw(st.sampled_from([None, 0.5]), label="h")
    torch.manual_seed(0)
    blocks = [MAKERS[k]().double() for k in kinds]
    stack = Stack(blocks, h, key=lambda layer: split[layer])
    factor = data.draw(st.integers(1, len(kinds)), label="factor")
    start = data.draw(st.integers(0, len(kinds) // factor - 1), label="start")
    stride = data.draw(st.integers(1, len(kinds)), label="stride")
    points = slice(start, len(kinds) // factor, stride)
    layers = [factor * i for i in range(points.start, points.stop, stride)]
    u, w = inputs((3, 8), len(layers)), inputs((3, 8), len(layers), seed=2)
    phi = stack.propagator(stack.frozen(u[0]))
    got = (phi if factor == 1 else phi.rediscretise(factor)).step(u, points)
    expected = step_by_block(blocks, h, u, layers, factor)
    torch.testing.assert_close(got, expected, **TOL)
    assert equal_states(stack, blocks)
    if got.requires_grad:
        gradients = torch.autograd.grad(got, list(stack.parameters()), w, allow_unused=True)
        live = torch.stack(_live(blocks, h, u, layers, factor))
        true = torch.autograd.grad(live, list(nn.ModuleList(blocks).parameters()), w, allow_unused=True)
        norms = [sum(float(g.square().sum()) for g in several if g is not None) for several in (gradients, true)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-11)


def equal_states(stack, blocks):
    state = nn.ModuleList(blocks).state_dict()
    return {f"blocks.{k}" for k in state} == set(stack.state_dict()) and all(
        torch.equal(stack.state_dict()[f"blocks.{k}"], v) for k, v in state.items()
    )


# What cannot be stacked, or not run in one call


def test_reasons_are_found_by_trying():
    for make, part in ((Branching, "data-dependent"), (Item, "item()")):
        stack = Stack(row(make))
        assert stack.why_not_stacked is None
        stack.frozen(inputs((3, 8), 1)[0])
        assert stack.why_not_stacked.startswith(f"blocks.0 ({make.__name__}) and 5 more: vmap cannot run it")
        assert part in stack.why_not_stacked


@pytest.mark.parametrize("kind", STACKED)
def test_nothing_stands_against_blocks_of_a_kind(kind):
    make, h, shape = KINDS[kind]
    stack = Stack(row(make), h)
    stack.frozen(inputs(shape, 1)[0])
    assert stack.why_not_stacked is None
    assert len(stack.stacked) == 1
    assert not stack.blocks


def hooked():
    block = dense()
    block.register_forward_hook(lambda *_: None)
    return block


def parametrized():
    block = dense()
    nn.utils.parametrizations.weight_norm(block[0])
    return block


def tied():
    block = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    block[2].weight = block[0].weight
    return block


class Extra(nn.Linear):
    def get_extra_state(self):
        return 1

    def set_extra_state(self, state):
        pass


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (hooked, "has hooks on its module 'itself'"),
        (parametrized, "has the parametrized module '0'"),
        (tied, "has one tensor as '0.weight' and as '2.weight'"),
        (lambda: Extra(8, 8), "saves more than tensors"),
        (lambda: nn.GRUCell(8, 8), None),
    ],
)
def test_blocks_that_are_left_as_they_are(make, reason):
    blocks = row(make, 3)
    if reason is None:
        assert Stack(blocks).why_not_stacked is None
        return
    stack = Stack(blocks)
    assert reason in stack.why_not_stacked
    assert "blocks.0" in stack.why_not_stacked
    assert "and 2 more" in stack.why_not_stacked
    assert [stack.blocks[str(i)] for i in range(3)] == blocks
    u = inputs((3, 8), 3)
    torch.testing.assert_close(
        stack.propagator(stack.frozen(u[0])).step(u, slice(0, 3, 1)), step_by_block(blocks, None, u, range(3)), **TOL
    )


def test_layers_with_a_weight_in_common_keep_it():
    blocks = row(dense, 4)
    blocks[3][0].weight = blocks[1][0].weight
    stack = Stack(blocks, 0.5)
    assert "blocks.1 (Sequential) and 1 more: shares '0.weight' with another block" in stack.why_not_stacked
    assert stack._pieces == [[0, 2]]
    u, w = inputs((3, 8), 4), inputs((3, 8), 4, seed=2)
    phi = stack.propagator(stack.frozen(u[0]))
    phi.step(u, slice(0, 4, 1)).backward(w)
    shared = blocks[1][0].weight.grad.clone()
    blocks[1][0].weight.grad = None
    for i in (1, 3):
        (u[i] + 0.5 * blocks[i](u[i])).backward(w[i])
    torch.testing.assert_close(shared, blocks[1][0].weight.grad, **TOL)


def test_one_block_at_every_depth():
    block = row(dense, 1)[0]
    stack = Stack([block] * 4, 0.5)
    u = inputs((3, 8), 1)[0]
    solution = solve(stack.propagator(stack.frozen(u)), u, TimeGrid(0, 1, 4), method=MGRIT(levels=2), m=2, tol=0.0)
    torch.testing.assert_close(solution.u[-1], stack.serial()(u), **TOL)
    (gradient,) = torch.autograd.grad(solution.u[-1].sum(), [block[0].weight])
    serial = stack.serial()
    serial(u).sum().backward()
    torch.testing.assert_close(gradient, serial[0][0].weight.grad, **TOL)


def test_kinds_that_alternate_are_each_one_call():
    calls = []

    class Counted(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.linear, self.act = nn.Linear(8, 8), act

        def forward(self, u):
            calls.append(1)
            return self.act(self.linear(u))

    torch.manual_seed(0)
    blocks = [Counted((torch.tanh, torch.relu)[i % 2]).double() for i in range(8)]
    u = inputs((3, 8), 8)
    expected = step_by_block(blocks, 0.5, u, range(8))
    stack = Stack(blocks, 0.5)
    phi = stack.propagator(stack.frozen(u[0]))
    assert stack.why_not_stacked is None
    calls.clear()
    torch.testing.assert_close(phi.step(u, slice(0, 8, 1)), expected, **TOL)
    assert len(calls) == 2
    calls.clear()
    torch.testing.assert_close(phi.step(u[1::2], slice(1, 8, 2)), expected[1::2], **TOL)
    assert len(calls) == 1


# Blocks that do more than multiply


class Checkpointed(nn.Module):
    """Runs again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.inner = dense()

    def forward(self, u):
        return torch.utils.checkpoint.checkpoint(self.inner, u, use_reentrant=False)


class Exp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, w):
        return w * ctx.saved_tensors[0]


class OwnFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, u):
        return 0.1 * Exp.apply(self.linear(u))


class Cached(nn.Module):
    """Makes a constant when it first meets a shape."""

    def __init__(self):
        super().__init__()
        self.linear, self.ramp = nn.Linear(8, 8), None

    def forward(self, u):
        if self.ramp is None or self.ramp.shape != u.shape[:1]:
            self.ramp = torch.arange(len(u)).to(u.dtype)
        return self.linear(u) + self.ramp[:, None]


class Listed(nn.Module):
    """Finds its parts by a list of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.order = [self.b, torch.tanh, self.a]

    def forward(self, u):
        for part in self.order:
            u = part(u)
        return u


class Bound(nn.Module):
    """Finds its parameters by a method bound to it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.function = self.compute

    def compute(self, u):
        return torch.tanh(self.linear(u))

    def forward(self, u):
        return self.function(u)


class Doubled(torch.autograd.Function):
    """Twice its argument; three times under vmap, which is somebody's mistake."""

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, w):
        return 2 * w

    @staticmethod
    def vmap(info, in_dims, x):
        return 3 * x, in_dims[0]


class Mistaken(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, u):
        return Doubled.apply(torch.tanh(self.linear(u)))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Mistaken, "vmap gives other values than the block alone"),
        (Checkpointed, "vmap cannot run it"),
        (OwnFunction, "vmap cannot run it: In order to use an autograd.Function"),
        (Cached, None),
        (Listed, "refers to its modules by its attribute 'order' too"),
        (Bound, "refers to its modules by its attribute 'function' too"),
    ],
)
def test_blocks_that_do_more_than_multiply(make, reason):
    blocks = row(make, 4)
    stack = Stack(blocks, 0.5)
    serial = stack.serial()
    u, w = inputs((3, 8), 2)
    y = serial(u)
    expected = torch.autograd.grad(y, list(serial.parameters()), w)
    phi = stack.propagator(stack.frozen(u))
    solution = solve(phi, u, TimeGrid(0, 1, 4), method=MGRIT(levels=2), m=2, tol=0.0, max_iterations=2,
                     on_failure="return", adjoint=Adjoint(tol=0.0, max_iterations=2))  # fmt: skip
    assert reason is None or reason in stack.why_not_stacked
    torch.testing.assert_close(solution.u[-1], y, **TOL)
    got = torch.autograd.grad(solution.u[-1], list(stack.parameters()), w)
    sums = [sum(float(g.square().sum()) for g in gradients) for gradients in (got, expected)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-11)
    z = u.clone().requires_grad_()  # one layer after the other, through the stack itself
    torch.testing.assert_close(torch.autograd.grad(stack(z), list(stack.parameters()), w), got, **TOL)
