# SPDX-License-Identifier: BSD-3-Clause
"""``torch.ops.pyparareal.scan_diag`` and ``scan_block``: the bits of the kernels, adjoints, torch's own checks."""

import numpy as np
import pytest
from ops_backends import assert_same_bits
from scan_cases import expected, problem

torch = pytest.importorskip("torch", reason="torch is not installed")
from pyparareal import torch_ops  # noqa: E402

torch_ops.register()
P = torch.ops.pyparareal
WAYS = {"from a start": (True, False), "from zero": (False, False), "reverse": (False, True)}
every_way = pytest.mark.parametrize(("with_start", "reverse"), WAYS.values(), ids=WAYS)
every_size = pytest.mark.parametrize("d", [None, 2, 5], ids=lambda d: "diag" if d is None else f"block{d}")


def scan_of(d):
    return P.scan_diag if d is None else P.scan_block


def arguments(d, with_start, reverse, steps=7, dtype=np.float64, grad=True):
    arrays = problem(np.random.default_rng(3), np.dtype(dtype), steps, (2,), d)
    a, b, start = (torch.from_numpy(array).requires_grad_(grad) for array in arrays)
    return a, b, start if with_start else None, reverse


@every_size
@every_way
def test_values_are_the_reference(d, with_start, reverse):
    given = arguments(d, with_start, reverse, 300, np.float32, grad=False)
    wanted = expected(*(None if u is None else u.numpy() for u in given[:3]), d, reverse)
    assert_same_bits(scan_of(d)(*given).numpy(), np.ascontiguousarray(wanted))


@every_size
@every_way
def test_opcheck(d, with_start, reverse):
    torch.library.opcheck(scan_of(d).default, arguments(d, with_start, reverse))


@every_size
@every_way
def test_gradients(d, with_start, reverse):
    # gradcheck's own tolerances: central differences of step 1e-6 in float64 on values of size 1.
    given = arguments(d, with_start, reverse, steps=4)
    assert torch.autograd.gradcheck(scan_of(d), given)
    assert torch.autograd.gradgradcheck(scan_of(d), given)


@every_size
@every_way
def test_gradients_are_those_of_a_loop(d, with_start, reverse):
    # Over chunks and a group: both sum the same products of numbers of size one, a few hundred roundings apart.
    def loop(a, b, start, reverse):
        product = (lambda a, x: a * x) if d is None else lambda a, x: (a @ x[..., None])[..., 0]
        rows, state = [], start
        for i in range(len(b))[:: -1 if reverse else 1]:
            factor = a[i] if not reverse or i + 1 == len(b) else a[i + 1] if d is None else a[i + 1].mT
            state = b[i] if state is None else product(factor, state) + b[i]
            rows.append(state)
        return torch.stack(rows[::-1] if reverse else rows)

    gradients = []
    for scan in (scan_of(d), loop):
        given = arguments(d, with_start, reverse, steps=280)
        u = scan(*given)
        u.mul(torch.linspace(-1, 1, u.numel()).reshape(u.shape)).sum().backward()
        gradients.append([x.grad for x in given[:3] if x is not None])
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
        assert wanted.abs().max() > 0.1


def test_gradients_of_no_rows():
    for d in (None, 2):
        a, b, start, _ = arguments(d, True, False, steps=0)
        scan_of(d)(a, b, start).sum().backward()
        assert a.grad.shape == a.shape
        assert (start.grad == 0).all()


@every_size
@every_way
def test_vmap_adds_a_batch_axis(d, with_start, reverse):
    a, b, start, _ = arguments(d, with_start, reverse, grad=False)
    many = torch.stack([b, 2 * b, -b], 1)
    mapped = torch.func.vmap(lambda b: scan_of(d)(a, b, start, reverse), in_dims=1, out_dims=1)(many)
    for i in range(3):
        assert torch.equal(mapped[:, i], scan_of(d)(a, many[:, i], start, reverse))


def network(a, b, start, blocks, rows):
    u = P.scan_diag(a, b, start)
    v = P.scan_diag(a, u * u, None, True)
    return (v * v).sum() + P.scan_block(blocks, rows).sum()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_whole_graph_equals_eager(dynamic):
    def everything():
        return [*arguments(None, True, False)[:3], *arguments(3, False, False)[:2]]

    eager, compiled = everything(), everything()
    torch._dynamo.reset()
    run = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    wanted, got = network(*eager), run(*compiled)
    wanted.backward()
    got.backward()
    assert torch.equal(got, wanted)
    for x, y in zip(compiled, eager, strict=True):
        assert torch.equal(x.grad, y.grad)


def test_wrong_arguments_raise_the_errors_of_ops():
    a, b, start, _ = arguments(None, True, False, grad=False)
    with pytest.raises(TypeError, match=r"^a: got dtype float32, expected float64 like b$"):
        P.scan_diag(a.float(), b)
    with pytest.raises(ValueError, match=r"^start: got an array, expected none with reverse"):
        P.scan_diag(a, b, start, True)


@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)  # forward mode of torch itself
@pytest.mark.parametrize("name", ["scan_diag", "scan_block"])
def test_derivatives_that_are_not_there_are_refused(name):
    # torch by itself drops tangents of forward mode in silence, and names a setup_context under torch.func.grad.
    op, own = getattr(torch.ops.pyparareal, name), (3,) if name == "scan_block" else ()
    a, b = torch.randn(5, 2, *own, *own), torch.randn(5, 2, *own)

    def f(b):
        return op(a, b).sum()

    transforms = (
        lambda: torch.func.grad(f)(b),
        lambda: torch.func.jacrev(f)(b),
        lambda: torch.func.jvp(f, (b,), (b,)),
        lambda: torch.func.vmap(torch.func.grad(f))(torch.stack([b, b])),
    )
    for transform in transforms:
        with pytest.raises(
            NotImplementedError, match=f"{name}: got a transform of torch.func, expected torch.autograd"
        ):
            transform()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(b, b)
        with pytest.raises(NotImplementedError, match=f"{name}: got a tangent of forward mode"):
            f(dual)
        f(b)  # within, but without a tangent
