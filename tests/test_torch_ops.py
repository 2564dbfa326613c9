# SPDX-License-Identifier: BSD-3-Clause
"""``torch.ops.pyparareal``: the bits of the reference, exact adjoints, and torch's own checks of every op."""

import subprocess
import sys

import numpy as np
import pytest
from ops_backends import DTYPES, TorchBackend, assert_same_bits, random_state

from pyparareal import reference

torch = pytest.importorskip("torch", reason="torch is not installed")
from pyparareal import torch_ops  # noqa: E402

torch_ops.register()
P = torch.ops.pyparareal
CPU = TorchBackend("cpu")
NAMES = ("parareal_update", "parareal_update_jump", "slice_norms", "extract", "inject", "c_relax")


def states(count, shape=(5, 2, 3), dtype=torch.float64, grad=False, seed=1, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [u.to(device, dtype).requires_grad_(grad) for u in made]


def functional(dtype=torch.float64, grad=False, device="cpu"):
    """Arguments of each functional op."""
    u = states(4, dtype=dtype, grad=grad, device=device)
    (v,) = states(1, (2, 2, 3), dtype, grad, 2, device)
    return {
        "parareal_update": (u[0], u[1], u[2]),
        "parareal_update_jump": (u[0], u[1], u[2], u[3]),
        "slice_norms": (u[0], u[1]),
        "extract": (u[0], 1, 2),
        "inject": (v, u[0], 1, 2),
        "c_relax": (u[0], u[1], 0.7),
    }


def mutating():
    """Arguments of each op that writes into its first ones."""
    u = states(4)
    out, jump = torch.zeros(5, 2, 3, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    return {
        "parareal_update_": (out, u[0], u[1], u[2]),
        "parareal_update_jump_": (out, jump, u[0], u[1], u[2], u[3]),
        "slice_norms_": (jump, u[0], u[1]),
        "extract_": (out[:2], u[0], 1, 2),
        "inject_": (out, states(1, (2, 2, 3), seed=2)[0], 1, 2),
        "c_relax_": (out, u[0], u[1], 0.7),
    }


def test_registering_is_lazy_and_once():
    code = (
        "import sys, pyparareal, pyparareal.ops; assert 'torch' not in sys.modules; import torch;"
        "assert not hasattr(torch.ops.pyparareal, 'c_relax'); import pyparareal.torch_ops as t;"
        "assert torch.ops.pyparareal.c_relax; t.register(); t.register()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_the_reference(dtype):
    rng = np.random.default_rng(1)
    f, g, h, old = (random_state(rng, (5, 1500), dtype) for _ in range(4))
    tf, tg, th, told = (CPU.like(u) for u in (f, g, h, old))
    assert_same_bits(CPU.to_numpy(P.parareal_update(tf, tg, th)), reference.parareal_update(f, g, h))
    for norm in reference.NORMS:
        for got, expected in zip(P.parareal_update_jump(tf, tg, th, told, norm),
                                 reference.parareal_update(f, g, h, old, norm=norm), strict=True):  # fmt: skip
            assert_same_bits(CPU.to_numpy(got), expected)
        assert_same_bits(CPU.to_numpy(P.slice_norms(tf, told, norm)), reference.slice_norms(f, old, norm=norm))
    assert_same_bits(CPU.to_numpy(P.slice_norms(tf)), reference.slice_norms(f))
    assert_same_bits(CPU.to_numpy(P.extract(tf, 1, 3)), f[1::3])
    assert_same_bits(CPU.to_numpy(P.extract(tf, 0, 2, 2)), f[0:3:2])
    injected = P.inject(CPU.like(g[:2]), tf, 1, 2)
    assert_same_bits(CPU.to_numpy(injected), reference.inject(g[:2], f.copy(), start=1, step=2))
    assert_same_bits(CPU.to_numpy(tf), f)  # the functional inject leaves u alone
    assert_same_bits(CPU.to_numpy(P.c_relax(tf, tg, 0.3)), reference.c_relax(f, g, 0.3))


@pytest.mark.parametrize("name", [f"{name}_" for name in NAMES])
def test_mutating_ops_write_what_the_functional_ones_return(name):
    arguments = mutating()[name]
    written = 2 if "jump" in name else 1
    inputs = arguments[written:]
    if name == "inject_":
        expected = P.inject(arguments[1], arguments[0].clone(), *arguments[2:])
    else:
        expected = getattr(P, name[:-1])(*inputs)
    assert getattr(P, name)(*arguments) is None
    for got, wanted in zip(arguments[:written], expected if written == 2 else (expected,), strict=True):
        assert torch.equal(got, wanted)
    assert arguments[0]._version > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck_of_functional_ops(name, grad):
    torch.library.opcheck(getattr(P, name).default, functional(grad=grad)[name])


@pytest.mark.parametrize("name", [f"{name}_" for name in NAMES])
def test_opcheck_of_mutating_ops(name):
    torch.library.opcheck(getattr(P, name).default, mutating()[name])


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    # gradcheck's own tolerances: central differences of step 1e-6 in float64 on values of size 1.
    op, arguments = getattr(P, name), functional(grad=True)[name]
    assert torch.autograd.gradcheck(op, arguments)
    assert torch.autograd.gradgradcheck(op, arguments)


@pytest.mark.parametrize(("name", "dot"), [("parareal_update", 3), ("extract", 1), ("inject", 2), ("c_relax", 2)])
def test_linear_ops_have_exact_adjoints(name, dot):
    # Integers (and omega a power of two): every product and sum is exact, so <A x, y> == <x, A^T y>.
    arguments = [a.round().mul(8).requires_grad_() if torch.is_tensor(a) else a
                 for a in (x.detach() if torch.is_tensor(x) else x for x in functional()[name])]  # fmt: skip
    if name == "c_relax":
        arguments[2] = 0.25
    value = getattr(P, name)(*arguments)
    y = torch.arange(value.numel(), dtype=torch.float64).reshape(value.shape) - 7
    inputs = arguments[:dot]
    gradients = torch.autograd.grad(value, inputs, y)
    assert (value * y).sum() == sum((x * g).sum() for x, g in zip(inputs, gradients, strict=True))


def test_unweighted_relaxation_has_no_gradient_in_u():
    phi, u = states(2, grad=True)
    P.c_relax(phi, u, 1.0).sum().backward()
    assert torch.equal(phi.grad, torch.ones_like(phi))
    assert u.grad is None


def test_gradient_of_norms_of_halves_is_rounded_once():
    u, old = states(2, (3, 100), torch.bfloat16, grad=True)
    P.slice_norms(u, old).sum().backward()
    expected = (2 * (u.double() - old.double())).to(torch.bfloat16)
    assert torch.equal(u.grad, expected)
    assert torch.equal(old.grad, -expected)


@pytest.mark.parametrize("norm", ["sum_abs", "max_abs"])
def test_other_norms_are_not_differentiable(norm):
    u = states(4, grad=True)
    message = f"^norm: got '{norm}', expected 'sum_squares', the norm that is differentiable$"
    with pytest.raises(NotImplementedError, match=message):
        P.slice_norms(u[0], u[1], norm).sum().backward()
    value, jump = P.parareal_update_jump(*u, norm)
    with pytest.raises(NotImplementedError, match=message):
        jump.sum().backward(retain_graph=True)
    value.sum().backward()  # the state itself is
    assert torch.equal(u[2].grad, -torch.ones_like(u[2]))


def test_mutating_ops_refuse_what_they_would_not_differentiate():
    (f,) = states(1, grad=True)
    g, h, out = states(3)
    before = out.clone()
    with pytest.raises(ValueError, match=r"^f_old: requires grad, expected a detached tensor"):
        P.parareal_update_(out, f, g, h)
    assert torch.equal(out, before)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("name", [*NAMES, *(f"{name}_" for name in NAMES)])
def test_derivatives_that_are_not_there_are_refused(name):
    # torch by itself drops the tangents of forward mode, and of ops that write all of torch.func's, in silence.
    op, forward = getattr(P, name), torch.autograd.forward_ad
    args = list((mutating() if name.endswith("_") else functional())[name])
    at = 2 if name == "parareal_update_jump_" else 1 if name.endswith("_") else 0  # its first input
    x = args[at]

    def f(x):
        outputs = [torch.zeros_like(a) for a in args[:at]]
        found = op(*outputs, x, *args[at + 1 :])
        return sum(y.sum() for y in (outputs or (found if isinstance(found, tuple) else (found,))))

    f(x)
    for transform in (torch.func.grad(f), torch.func.jacrev(f), lambda x: torch.func.jvp(f, (x,), (x,))):
        with pytest.raises(NotImplementedError, match=f"^{name}: got a transform of torch.func, expected torch.autogr"):
            transform(x)
    with forward.dual_level():
        with pytest.raises(NotImplementedError, match=f"^{name}: got a tangent of forward mode"):
            f(forward.make_dual(x, x))
        f(x)  # within, but without a tangent


def test_wrong_arguments_raise_the_errors_of_ops():
    f, g, h = states(3)
    with pytest.raises(TypeError, match=r"^g_old: got dtype float32, expected float64 like f_old$"):
        P.parareal_update(f, g, h.float())
    with pytest.raises(ValueError, match=r"^step: got 0, expected 1 or more$"):
        P.extract(f, 0, 0)
    with pytest.raises(ValueError, match=r"^norm: got 'l2', expected one of "):
        P.slice_norms(f, None, "l2")


def test_lazy_negation_is_resolved_by_the_dispatcher():
    f, g, h = states(3)
    assert torch.equal(P.parareal_update(torch._neg_view(f), g, h), -f + (g - h))


def network(f, g, h, old, v):
    """Uses every functional op once."""
    u, jump = P.parareal_update_jump(f, g, h, old)
    u = P.c_relax(P.parareal_update(u, g, h), f, 0.5)
    coarse = P.extract(P.inject(v, u, 1, 2), 0, 2)
    return (coarse * coarse).sum() + jump.sum() + P.slice_norms(u, old).sum()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_whole_graph_equals_eager(dynamic):
    def arguments():
        return [*states(4, grad=True), *states(1, (2, 2, 3), grad=True, seed=2)]

    eager, compiled = arguments(), arguments()
    torch._dynamo.reset()
    run = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    expected, got = network(*eager), run(*compiled)
    expected.backward()
    got.backward()
    assert torch.equal(got, expected)
    for a, b in zip(compiled, eager, strict=True):
        assert torch.equal(a.grad, b.grad)


def test_mutating_op_in_a_compiled_graph():
    f, g, h = states(3)

    def step(f, g, h):
        out = torch.empty_like(f)
        P.parareal_update_(out, f, g, h)
        P.inject_(out, f[:2], 1, 2)
        return out * 2

    torch._dynamo.reset()
    assert torch.equal(torch.compile(step, fullgraph=True, backend="aot_eager")(f, g, h), step(f, g, h))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on loading inductor
def test_inductor_equals_eager():
    arguments = [*states(4), *states(1, (2, 2, 3), seed=2)]
    torch._dynamo.reset()
    # Inductor sums the final scalar in another order: 3 * 30 terms, each rounding at most 2^-53 of the sum.
    torch.testing.assert_close(torch.compile(network, fullgraph=True)(*arguments), network(*arguments),
                               rtol=90 * 2.0**-53, atol=0)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_vmap_is_a_loop(name, axis):
    op, arguments = getattr(P, name), functional()[name]
    batched = [torch.stack([a, 2 * a, a - 1], axis) if torch.is_tensor(a) else a for a in arguments]
    in_dims = tuple(axis if torch.is_tensor(a) else None for a in arguments)
    got = torch.func.vmap(op, in_dims)(*batched)
    loop = [op(*[a.select(axis, i) if torch.is_tensor(a) else a for a in batched]) for i in range(3)]
    if isinstance(got, tuple):
        for part, parts in zip(got, zip(*loop, strict=True), strict=True):
            assert torch.equal(part, torch.stack(parts))
    else:
        assert torch.equal(got, torch.stack(loop))


def test_vmap_with_one_operand_shared():
    f, h = states(2, (3, 4, 2))
    (shared,) = states(1, (4, 2), seed=3)
    got = torch.func.vmap(P.parareal_update, (0, None, 0))(f, shared, h)
    assert torch.equal(got, f + (shared - h))


def test_vmap_of_a_mutating_op_is_refused():
    f, g, h, out = states(4)
    before = out.clone()
    with pytest.raises(RuntimeError, match="pyparareal::parareal_update_"):
        torch.func.vmap(P.parareal_update_)(out, f, g, h)
    assert torch.equal(out, before)


def test_autocast_leaves_dtypes_alone():
    f, g, h = states(3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        u = P.parareal_update(f, g, h)
    assert u.dtype == torch.float32
    assert torch.equal(u, f + (g - h))


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_cuda_equals_cpu(name):
    got = getattr(P, name)(*functional(torch.float32, device="cuda")[name])
    expected = getattr(P, name)(*functional(torch.float32)[name])
    for a, b in zip(got if isinstance(got, tuple) else (got,), expected if isinstance(got, tuple) else (expected,),
                    strict=True):  # fmt: skip
        assert torch.equal(a.cpu(), b)
