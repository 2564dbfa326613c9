# SPDX-License-Identifier: BSD-3-Clause
"""The differentiable gated recurrent unit: gradients, tracing, autocast, and what it refuses."""

import itertools

import pytest

torch = pytest.importorskip("torch")

from pyparareal.torch_gru import gru_chunks, gru_states, newton_gru  # noqa: E402


def arguments(length, batch, hidden, dtype=torch.float64, *, seed=0):
    torch.manual_seed(seed)
    shapes = (length, batch, 3 * hidden), (3 * hidden, hidden), (hidden,), (batch, hidden)
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("hidden", [1, 4])
def test_gradcheck(length, hidden):
    gates, weight, bias, h0 = arguments(length, 2, hidden)
    assert torch.autograd.gradcheck(gru_states, (gates, weight, bias, h0))
    assert torch.autograd.gradcheck(lambda *a: gru_states(a[0], a[1], None, a[2]), (gates, weight, h0))


@pytest.mark.parametrize("m", [1, 3])
def test_gradcheck_of_slices(m):
    gates, weight, bias, u = arguments(m, 2, 3)
    gates = torch.stack([gates.detach(), gates.detach() + 0.5, gates.detach() - 1]).requires_grad_()
    u = torch.stack([u.detach(), u.detach() * 2, -u.detach()]).requires_grad_()
    assert torch.autograd.gradcheck(gru_chunks, (gates, weight, bias, u))


def test_all_states_and_gradients_are_those_of_torch_in_float64():
    # A contracting cell, whose errors are those of a few steps: 20 terms of size one, three sums deep. The gradients of
    # the weights are sums of 80 such numbers.
    torch.manual_seed(1)
    module = torch.nn.GRU(3, 20).double()
    x = torch.randn(40, 2, 3).double().requires_grad_()
    h0 = torch.randn(1, 2, 20).double().requires_grad_()
    parameters = [h0, x, module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0, module.bias_hh_l0]
    gates = x @ module.weight_ih_l0.T + module.bias_ih_l0
    gates = gates + torch.cat([module.bias_hh_l0[:40], torch.zeros(20).double()])
    states, wanted = gru_states(gates, module.weight_hh_l0, module.bias_hh_l0[40:], h0[0]), module(x, h0)[0]
    eps = torch.finfo(torch.float64).eps
    assert (states - wanted).abs().max().item() <= 1000 * eps
    d = torch.randn_like(wanted)
    for mine, other in zip(
        torch.autograd.grad(states, parameters, d), torch.autograd.grad(wanted, parameters, d), strict=True
    ):
        assert (mine - other).abs().max().item() <= 10_000 * eps * (1 + other.abs().max().item())


@pytest.mark.parametrize("slices", [1, 3])
def test_gradients_that_nobody_needs_are_left_out_and_the_others_the_same(slices):
    gates, weight, bias, h0 = arguments(4, 2, 3)
    u, chunks = torch.stack([h0.detach()] * slices), torch.stack([gates.detach()] * slices)
    given = u, chunks, weight.detach(), bias.detach()
    every = torch.ops.pyparareal.gru_states(*given)
    d_every = torch.randn_like(every)
    whole = torch.ops.pyparareal.gru_states_backward(d_every, every, *given)
    for needed in itertools.product([False, True], repeat=4):
        some = [t.clone().requires_grad_(wanted) for t, wanted in zip(given, needed, strict=True)]
        found = torch.ops.pyparareal.gru_states_backward(d_every, every, *given, *needed[1:])
        assert [bool(d.numel()) for d in found] == [True, *needed[1:]]  # that of u costs nothing
        if any(needed):
            wanted = [t for t in some if t.requires_grad]
            got = iter(torch.autograd.grad(torch.ops.pyparareal.gru_states(*some), wanted, d_every))
            for d, right, is_needed in zip(found, whole, needed, strict=True):
                assert not is_needed or torch.equal(next(got), right)
                assert d.numel() == 0 or torch.equal(d, right)


def test_views_of_other_strides_and_slices_of_a_sequence():
    gates, weight, bias, h0 = arguments(12, 2, 5)
    first = gates.detach().transpose(0, 1).contiguous().requires_grad_()  # batch first
    states = gru_states(gates, weight, bias, h0)
    assert torch.equal(gru_states(first.transpose(0, 1), weight, bias, h0), states)
    d = torch.randn_like(states)
    own, other = (
        torch.autograd.grad(states, gates, d),
        torch.autograd.grad(gru_states(first.transpose(0, 1), weight, bias, h0), first, d),
    )
    assert torch.equal(own[0], other[0].transpose(0, 1))
    starts = torch.cat([h0[None], states[2:-1:3]])
    assert torch.equal(gru_chunks(gates.unflatten(0, (4, 3)), weight, bias, starts).flatten(0, 1), states)


def test_padding_by_an_infinite_gate_takes_no_gradient():
    gates, weight, bias, h0 = arguments(6, 2, 4)
    with torch.no_grad():
        gates[4:, 1, 4:8] = float("inf")
    states = gru_states(gates, weight, bias, h0)
    assert torch.equal(states[5, 1], states[3, 1])
    gradient = torch.autograd.grad(states[5].sum(), [gates, h0])
    assert not gradient[0][4:, 1].any()
    assert torch.isfinite(gradient[0]).all()
    assert gradient[1].all()


def test_compiles_as_one_graph():
    gates, weight, bias, h0 = arguments(4, 2, 3)

    def loss(gates, weight, bias, h0):
        return (gru_states(gates * 2, weight, bias, h0) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(loss(gates, weight, bias, h0), [gates, weight, bias, h0])
    got = torch.autograd.grad(compiled(gates, weight, bias, h0), [gates, weight, bias, h0])
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one, other)


def test_what_tracing_is_told_is_true():
    gates, weight, bias, h0 = arguments(4, 2, 3, seed=1)
    u, chunks = (a.detach()[None].requires_grad_() for a in (h0, gates))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for given in ((u, chunks, weight, bias), (u, chunks, weight, None)):
        torch.library.opcheck(torch.ops.pyparareal.gru_states, given, test_utils=tests)
    plain = [a.detach() for a in (u, chunks, weight, bias)]
    every = torch.ops.pyparareal.gru_states(*plain)
    given = (torch.randn_like(every), every, *plain)
    for needed in ((), (False, True, False), (False, False, False)):
        torch.library.opcheck(
            torch.ops.pyparareal.gru_states_backward, (*given, *needed), test_utils=("test_schema", "test_faketensor")
        )


def test_autocast_widens_what_a_linear_layer_narrowed():
    gates, weight, bias, h0 = arguments(4, 2, 3, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        states = gru_states(gates.bfloat16(), weight, bias, h0)
    assert states.dtype == torch.float32
    assert torch.equal(states, gru_states(gates.bfloat16().float(), weight, bias, h0))


def test_float32_gradients_are_near_those_of_float64():
    # Twenty contracting steps: each value and gradient has an error of a few hundred units of rounding.
    narrow = arguments(20, 3, 17, torch.float32)
    wide = [a.detach().double().requires_grad_() for a in narrow]
    results = []
    for given in (narrow, wide):
        given[1].data.mul_(0.2)
        results.append(torch.autograd.grad((gru_states(*given) ** 2).sum(), given))
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max().item() <= 500 * 1.2e-7 * (1 + other.abs().max().item())


REFUSED = {
    "gates": (0, lambda a: a[..., :-1], ValueError, r"gates: got shape \[1, 4, 2, 8\], expected \[slices, m, ..., 9\]"),
    "weight": (1, lambda a: a[:-1], ValueError, r"weight: got shape \[8, 3\], expected \[9, 3\]"),
    "bias": (2, lambda a: a[:-1], ValueError, r"bias: got shape \[2\], expected \[3\]"),
    "dtype": (1, lambda a: a.float(), TypeError, "weight: got dtype float32, expected float64 like u"),
    "no steps": (0, lambda a: a[:0], ValueError, "m: got 0, expected 1 or more"),
    "batch": (3, lambda a: a[:1], ValueError, r"gates: got shape .* of u \[1, 1, 3\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_errors_name_the_argument(name):
    position, change, error, message = REFUSED[name]
    given = [a.detach() for a in arguments(4, 2, 3)]
    given[position] = change(given[position])
    with pytest.raises(error, match=message):
        gru_states(*given)


def test_a_second_derivative_is_refused():
    gates, weight, bias, h0 = arguments(3, 2, 3)
    (first,) = torch.autograd.grad(gru_states(gates, weight, bias, h0).sum(), gates, create_graph=True)
    with pytest.raises(NotImplementedError, match="gru_states: got a second derivative"):
        first.sum().backward()


@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)  # forward mode of torch itself
def test_derivatives_that_are_not_there_are_refused():
    gates, weight, bias, h0 = (a.detach() for a in arguments(3, 2, 3))
    for transform in (torch.func.grad, torch.func.jacfwd):
        with pytest.raises(NotImplementedError, match=r"gru_states: got a transform of torch\.func"):
            transform(lambda g: gru_states(g, weight, bias, h0).sum())(gates)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(h0, h0)
        with pytest.raises(NotImplementedError, match="gru_states: got a tangent of forward mode"):
            gru_states(gates, weight, bias, dual)


def newton_arguments(dtype=torch.float64):
    gates, weight, bias, h0 = (t.detach() for t in arguments(30, 2, 4, dtype))
    return torch.cat([h0[None], torch.zeros(30, 2, 4, dtype=dtype)]), gates, weight, bias


@pytest.mark.parametrize("bias", [True, False])
def test_iterations_of_newton_converge_to_the_states(bias):
    u, gates, weight, b = newton_arguments()
    weight, b = 0.3 * weight, b if bias else None
    for _ in range(30):
        u_new, jacobians, residuals, updates = newton_gru(u, gates, weight, b)
        u = torch.cat([u[:1], u_new])
    # A step that contracts, of sums of 4 terms of size one.
    eps = torch.finfo(u.dtype).eps
    assert (u[1:] - gru_states(gates, weight, b, u[0])).abs().max().item() <= 100 * eps
    assert max(residuals.max().item(), updates.max().item()) <= 100 * eps
    wanted = torch.autograd.functional.jacobian(lambda h: gru_states(gates[:1], weight, b, h)[0], u[0])
    assert (jacobians[0] - torch.einsum("bibi->bi", wanted)).abs().max().item() <= 100 * eps


def test_newton_is_one_node_for_torch():
    u, gates, weight, bias = newton_arguments(torch.float32)
    diagonal = torch.stack([w.diagonal() for w in weight.split(4)])
    torch.library.opcheck(torch.ops.pyparareal.newton_gru.default, (u, u[:-1] @ weight.T, gates, diagonal, bias, 0.5))
    torch.library.opcheck(torch.ops.pyparareal.newton_gru.default, (u, u[:-1] @ weight.T, gates, diagonal, None, 1.0))


def test_newton_refuses_derivatives_and_wrong_shapes():
    u, gates, weight, bias = newton_arguments()
    u_new, *_ = newton_gru(u.requires_grad_(), gates, weight, bias)
    with pytest.raises(NotImplementedError, match="newton_gru: got a derivative, expected none"):
        u_new.sum().backward()
    with pytest.raises(ValueError, match=r"gates: got shape \[29, 2, 12\], expected"):
        newton_gru(u.detach(), gates[1:], weight, bias)
