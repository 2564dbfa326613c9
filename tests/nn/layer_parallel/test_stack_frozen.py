# SPDX-License-Identifier: BSD-3-Clause
"""During one forward and backward pass a stack is one function: masks, statistics, precision."""

import random

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from stack_blocks import ConvBlock, Dense, Noisy, Transformer, dense, inputs, row  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from pyparareal import MGRIT, Adjoint, TimeGrid, solve  # noqa: E402
from pyparareal.nn.layer_parallel import Stack  # noqa: E402

TOL = {"rtol": 1e-12, "atol": 1e-12}  # as in test_stack.py


class Channels(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.drop = nn.Conv2d(4, 4, 1), nn.Dropout2d(0.4)

    def forward(self, u):
        return u + self.drop(torch.tanh(self.conv(u)))


class Attention(nn.Module):
    """Scaled dot products called directly, with all of their options."""

    def __init__(self, causal=False, mask=None, scale=None, groups=False):
        super().__init__()
        self.qkv, self.options = nn.Linear(8, 8 + 2 * (4 if groups else 8)), (causal, scale, groups)
        self.register_buffer("mask", None if mask is None else mask.clone(), persistent=False)

    def forward(self, u):
        causal, scale, groups = self.options
        heads = 1 if groups else 2
        parts = self.qkv(u).split([8, 4 * heads, 4 * heads], -1)
        q, k, v = (x.unflatten(-1, (-1, 4)).transpose(1, 2) for x in parts)
        more = {"enable_gqa": True} if groups else {}
        p = 0.3 if self.training else 0.0
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=self.mask, dropout_p=p, is_causal=causal, scale=scale, **more
        )
        return u + y.transpose(1, 2).flatten(2)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(8, 8, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, u):
        return u + self.cell(u)[0]


ALLOWED = torch.ones(5, 5, dtype=torch.bool).tril()
ADDED = torch.zeros(5, 5, dtype=torch.float64).masked_fill(~ALLOWED, -2.0)
# name: (block, h, shape)
CHANCE = {
    "functional": (lambda: Dense(0.3), 0.5, (3, 8)),
    "module": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Tanh()), 0.5, (3, 8)),
    "in place": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5, inplace=True), nn.Tanh()), 0.5, (3, 8)),
    "everything": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(1.0)), 0.5, (3, 8)),
    "channels": (Channels, None, (2, 4, 3, 3)),
    "transformer": (lambda: Transformer(0.2), None, (2, 5, 8)),
    "transformer, weights": (lambda: Transformer(0.2, need_weights=True), None, (2, 5, 8)),
    "torch's layer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 12, 0.2, batch_first=True, norm_first=True), None, (2, 5, 8),
    ),
    "causal": (lambda: Attention(causal=True), None, (2, 5, 8)),
    "allowed": (lambda: Attention(mask=ALLOWED, scale=0.3), None, (2, 5, 8)),
    "added": (lambda: Attention(mask=ADDED), None, (2, 5, 8)),
    "groups": (lambda: Attention(groups=True), None, (2, 5, 8)),
}  # fmt: skip
every_chance = pytest.mark.parametrize("kind", CHANCE)


@every_chance
def test_masks_are_those_of_the_serial_network_from_the_same_seed(kind):
    """Forward, and backward: MGRIT with all of its iterations against plain autograd."""
    make, h, shape = CHANCE[kind]
    stack = Stack(row(make, 6), h)
    serial = stack.serial()
    u, w = inputs(shape, 2)
    x, z = u.clone().requires_grad_(), u.clone().requires_grad_()
    torch.manual_seed(11)
    y = serial(x)
    drawn = torch.get_rng_state()
    expected = torch.autograd.grad(y, [x, *serial.parameters()], w, allow_unused=True)
    torch.manual_seed(11)
    phi = stack.propagator(stack.frozen(z))
    assert torch.equal(torch.get_rng_state(), drawn), "as many numbers are drawn, trying draws none"
    assert stack.why_not_stacked is None
    solution = solve(phi, z, TimeGrid(0, 1, 6), method=MGRIT(levels=2), m=2, tol=0.0, max_iterations=3,
                     on_failure="return", adjoint=Adjoint(tol=0.0, max_iterations=3))  # fmt: skip
    torch.testing.assert_close(solution.u[-1], y, **TOL)
    got = torch.autograd.grad(solution.u[-1], [z, *stack.parameters()], w, allow_unused=True)
    torch.testing.assert_close(got[0], expected[0], **TOL)
    of_stack = {n: g for (n, _), g in zip(stack.named_parameters(), got[1:], strict=True)}
    for (name, p), g in zip(serial.named_parameters(), expected[1:], strict=True):
        layer, _, rest = name.partition(".")
        mine = of_stack[f"stacked.0.{rest}"]
        g = torch.zeros_like(p) if g is None else g
        torch.testing.assert_close(mine[int(layer)] if mine is not None else torch.zeros_like(p), g, **TOL)


@every_chance
def test_a_mask_belongs_to_its_layer(kind):
    """Alone, in any company and again, a step is the same; another pass draws anew."""
    make, h, shape = CHANCE[kind]
    stack = Stack(row(make, 6), h)
    u = inputs(shape, 6)
    phi = stack.propagator(stack.frozen(u[0]))
    together = phi.step(u, slice(0, 6, 1))
    torch.manual_seed(99)
    torch.testing.assert_close(phi.step(u, slice(0, 6, 1)), together, rtol=0, atol=0)
    torch.testing.assert_close(phi.step(u[1::2], slice(1, 6, 2)), together[1::2], **TOL)
    torch.testing.assert_close(phi.step(u[4:5], slice(4, 5, 2)), together[4:5], **TOL)
    again = stack.propagator(stack.frozen(u[0])).step(u, slice(0, 6, 1))
    assert torch.equal(again, together) == (kind == "everything")
    stack.eval()
    phi = stack.propagator(stack.frozen(u[0]))
    assert not phi.frozen.draws
    torch.testing.assert_close(
        phi.step(u, slice(0, 6, 1)),
        torch.stack([_step(b, v, h) for b, v in zip(stack.serial(), u, strict=True)]),
        **TOL,
    )


def _step(block, u, h):
    return block(u) if h is None else u + h * block(u)


@pytest.mark.parametrize("kind", ["functional", "channels"])
def test_gradcheck_of_a_frozen_step(kind):
    """Only possible because every evaluation has the same masks."""
    make, h, (_, *features) = CHANCE[kind]
    stack = Stack(row(make, 3), h)
    u = inputs((1, *features), 3).requires_grad_()
    names = [name for name, _ in stack.named_parameters()]
    frozen = stack.frozen(u[0])

    def step(u, *parameters):
        for name, p in zip(names, parameters, strict=True):
            frozen.stacked[name.removeprefix("stacked.0.")] = p
        frozen._kinds[0]._rows.clear()
        frozen._kinds[0]._shells.clear()
        return stack.propagator(frozen).step(u, slice(0, 3, 1))

    assert torch.autograd.gradcheck(step, (u, *(p.detach().clone().requires_grad_() for p in stack.parameters())))


@pytest.mark.parametrize("make", [Noisy, Recurrent], ids=["randn", "GRU"])
def test_what_draws_otherwise_has_a_seed_for_every_layer(make):
    stack = Stack(row(make, 4))
    u = inputs((3, 5, 8), 4)
    frozen = stack.frozen(u[0])
    phi = stack.propagator(frozen)
    assert frozen.draws
    before = torch.get_rng_state()
    together = phi.step(u, slice(0, 4, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(phi.step(u[1::2], slice(1, 4, 2)), together[1::2])
    assert not torch.equal(stack.propagator(stack.frozen(u[0])).step(u, slice(0, 4, 1)), together)
    same = u[:1].expand_as(u)
    blocks = stack.serial()
    noise = phi.step(same, slice(0, 4, 1)) - torch.stack([b.eval()(u[0]) for b in blocks])
    assert all(not torch.allclose(noise[0], other, atol=1e-6) for other in noise[1:]), "layers draw different numbers"
    if make is Noisy:
        assert stack.why_not_stacked == "blocks.0 (Noisy) and 3 more: draws by other means than dropout"


def test_frequencies_and_scale_of_masks():
    stack = Stack([nn.Dropout(0.25) for _ in range(8)])
    u = torch.ones(8, 100, 100)
    y = stack.propagator(stack.frozen(u[0])).step(u, slice(0, 8, 1))
    assert set(y.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    # 80000 draws: the frequency has a standard deviation of 0.0015.
    assert (y == 0).double().mean() == pytest.approx(0.25, abs=0.008)


def test_a_layer_that_draws_in_other_places_is_named():
    class Moody(nn.Module):
        def __init__(self, p):
            super().__init__()
            self.register_buffer("p", torch.tensor(p))

        def forward(self, u):
            return F.dropout(u, 0.5, self.training) if self.p > 0 else u

    with pytest.raises(ValueError, match=r"blocks.1 \(Moody\): draws in other places than blocks.0 \(Moody\)"):
        Stack([Moody(1.0), Moody(0.0)]).frozen(torch.ones(3, 8))


def test_python_randomness_is_refused():
    class Depth(nn.Module):
        def forward(self, u):
            return u * random.random()

    random.seed(0)  # else two draws are once in a while equal to rounding
    with pytest.raises(ValueError, match=r"blocks.0 \(Depth\): gives another value when it is called again"):
        Stack([Depth(), Depth()]).frozen(torch.ones(3, 8))


# Batch norm


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("tracked", [True, False])
def test_running_statistics_change_once(momentum, tracked):
    def make():
        return ConvBlock(lambda: nn.BatchNorm2d(4, momentum=momentum, track_running_stats=tracked))

    stack = Stack(row(make, 6))
    serial = stack.serial()
    u = inputs((3, 4, 5, 5), 1)[0]
    for k in range(2):  # the second time from the statistics of the first
        frozen = stack.frozen(u + k)
        assert frozen.changes_buffers == tracked
        before = stack.state_dict()
        solution = solve(stack.propagator(frozen), u + k, TimeGrid(0, 1, 6), method=MGRIT(levels=2), m=2, tol=0.0,
                         max_iterations=3, on_failure="return", save="all")  # fmt: skip
        assert all(torch.equal(a, b) for a, b in zip(before.values(), stack.state_dict().values(), strict=True))
        frozen.commit(solution.u)
        serial(u + k)
    for (name, a), b in zip(stack.state_dict().items(), serial.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, **TOL, msg=name)
    if tracked:
        assert [int(n) for k, n in stack.state_dict().items() if "tracked" in k] == [2] * 6


def test_buffers_that_are_assigned_change_once():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(8, dtype=torch.float64))

        def forward(self, u):
            self.mean = 0.9 * self.mean + 0.1 * u.detach().mean(0)
            return u - 0.1 * self.mean

    stack = Stack([Mean() for _ in range(4)])
    serial = stack.serial()
    u = inputs((3, 8), 1)[0]
    frozen = stack.frozen(u)
    states = [u]
    phi = stack.propagator(frozen)
    for i in range(4):
        states.append(phi.step(states[-1][None], slice(i, i + 1, 1))[0])
    for _ in range(3):
        phi.step(torch.stack(states[:4]), slice(0, 4, 1))
    frozen.commit(torch.stack(states))
    torch.testing.assert_close(states[-1], serial(u), **TOL)
    for a, b in zip(stack.state_dict().values(), serial.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, **TOL)
    # The serial forward of the stack does the same again.
    torch.testing.assert_close(stack(u), serial(u), **TOL)
    for a, b in zip(stack.state_dict().values(), serial.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, **TOL)


# Modes and precision


def test_plans_follow_mode_rate_and_shape():
    stack = Stack(row(lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)), 4), 0.5)
    u = inputs((3, 8), 1)[0]
    assert stack.frozen(u).draws
    stack.eval()
    assert not stack.frozen(u).draws
    stack.train()
    stack.stacked[0][1].p = 0.0
    assert not stack.frozen(u).draws
    stack.stacked[0][1].p = 1.0
    frozen = stack.frozen(inputs((5, 8), 1)[0])
    y = stack.propagator(frozen).step(inputs((5, 8), 4), slice(0, 4, 1))
    assert torch.equal(y, inputs((5, 8), 4))


def test_without_a_graph_attention_is_computed_as_with_one():
    """torch has another kernel for attention in eval mode without a graph, which vmap knows not."""
    layers = row(lambda: nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True, norm_first=True).eval(), 4)
    stack = Stack(layers)
    u = inputs((2, 5, 8), 4)
    with torch.no_grad():
        phi = stack.propagator(stack.frozen(u[0]))
        y = phi.step(u, slice(0, 4, 1))
    assert stack.why_not_stacked is None
    again = stack.propagator(stack.frozen(u[0])).step(u, slice(0, 4, 1))
    assert torch.equal(y, again)
    torch.testing.assert_close(y, torch.stack([b(v) for b, v in zip(layers, u, strict=True)]), **TOL)


MIXED = {
    "dense": (dense, 0.5, (3, 8)),
    "conv": (lambda: ConvBlock(lambda: nn.GroupNorm(2, 4)), None, (2, 4, 5, 5)),
    "batch norm": (lambda: ConvBlock(lambda: nn.BatchNorm2d(4)), None, (3, 4, 5, 5)),
    "transformer": (Transformer, None, (2, 5, 8)),
    "dropout": (lambda: Transformer(0.3), None, (2, 5, 8)),
}


@pytest.mark.parametrize("kind", MIXED)
def test_mixed_precision_is_that_of_the_forward_pass(kind):
    make, h, shape = MIXED[kind]
    stack = Stack(row(make, 4, torch.float32), h)
    serial = stack.serial()
    u, w = inputs(shape, 4, torch.float32), inputs(shape, 4, torch.float32, seed=2)
    x, z = u.clone().requires_grad_(), u.clone().requires_grad_()
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = torch.stack([_step(b, v, h) for b, v in zip(serial, x, strict=True)])
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        phi = stack.propagator(stack.frozen(z[0]))
    y = phi.step(z.clone(), slice(0, 4, 1))  # as in a backward pass: outside
    assert y.dtype == torch.float32
    assert stack.why_not_stacked is None
    # bfloat16 rounds to 2^-9, in up to three layers with outputs of size 1, in one order or another.
    torch.testing.assert_close(y, expected, rtol=0.03, atol=0.03)
    full = torch.stack([_step(b, v, h) for b, v in zip(serial.eval(), u, strict=True)])
    if kind != "dropout":
        assert not torch.allclose(y, full, rtol=1e-5, atol=1e-5), "in full precision"
    got = torch.autograd.grad(y, [z, *stack.parameters()], w)
    true = torch.autograd.grad(expected, [x, *serial.parameters()], w)
    torch.testing.assert_close(got[0], true[0], rtol=0.1, atol=0.1)
    assert all(torch.isfinite(g).all() and g.dtype == torch.float32 for g in got)


def test_states_that_leave_their_precision_are_refused():
    stack = Stack(row(dense, 3, torch.float32))
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match=r"blocks.0 \(Sequential\): makes a state of dtype torch.bfloat16, expected"),
    ):
        stack.frozen(torch.ones(3, 8))


def test_inference_mode():
    stack = Stack(row(lambda: Transformer(0.1), 4))
    u = inputs((2, 5, 8), 4)
    stack.eval()
    expected = stack.propagator(stack.frozen(u[0])).step(u, slice(0, 4, 1)).detach()
    with torch.inference_mode():
        y = stack.propagator(stack.frozen(u[0])).step(u, slice(0, 4, 1))
    assert stack.why_not_stacked is None
    assert torch.equal(y, expected)
