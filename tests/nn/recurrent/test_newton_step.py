# SPDX-License-Identifier: BSD-3-Clause
"""Newton's method on a GRU by its fused step: the same states as by steps, Jacobians and a scan, and when it is not."""

import math

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from pyparareal import TimeGrid, solve  # noqa: E402
from pyparareal.newton import Newton, NewtonIteration  # noqa: E402
from pyparareal.newton_fused import FusedNewton, fuses  # noqa: E402
from pyparareal.nn import GRU  # noqa: E402
from pyparareal.nn.recurrent.cells import GRUStep  # noqa: E402
from pyparareal.runtime import LocalRuntime  # noqa: E402
from pyparareal.runtime.model import ModelRuntime  # noqa: E402

STEPS, BATCH, HIDDEN = 300, 3, 20
# A step sums 20 products of numbers of size 1 in another order, and a Jacobian some ten terms: errors of 30 roundings,
# of which the chain, whose steps contract, keeps the last few.
ROUNDINGS = 200


def gru(dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    weight = torch.randn(3 * HIDDEN, HIDDEN, dtype=dtype) * 0.3 / math.sqrt(HIDDEN)
    return GRUStep(
        torch.randn(STEPS, BATCH, 3 * HIDDEN, dtype=dtype), weight, torch.randn(HIDDEN, dtype=dtype) if bias else None
    )


def start(dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(BATCH, HIDDEN, dtype=dtype)


def solved(phi, u0, fused, monkeypatch, **more):
    """The solution, and how often the fused step was taken."""
    calls = []
    step = GRUStep.newton_step
    monkeypatch.setattr(GRUStep, "newton_step", lambda *a, **k: calls.append(1) or (step(*a, **k) if fused else None))
    given = {"method": Newton("diagonal"), "tol": 1e-12, "save": "all", "parameters": phi.parameters} | more
    solution = solve(phi, u0, TimeGrid(0, STEPS, STEPS), m=1, **given)
    monkeypatch.setattr(GRUStep, "newton_step", step)
    return solution, len(calls)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("damping", [0.0, 0.25])
def test_the_iterates_are_those_of_steps_jacobians_and_a_scan(monkeypatch, bias, damping):
    phi, u0 = gru(bias=bias), start()
    method = Newton("diagonal", damping)
    fused, calls = solved(phi, u0, True, monkeypatch, method=method)
    plain, _ = solved(phi, u0, False, monkeypatch, method=method)
    assert calls == fused.iterations == plain.iterations > 3
    assert fused.status.ok
    eps = ROUNDINGS * torch.finfo(u0.dtype).eps
    assert float((fused.u - plain.u).abs().max()) <= eps
    assert fused.residuals == pytest.approx(plain.residuals, rel=1e-6, abs=eps)
    assert fused.stats.converged_slices == plain.stats.converged_slices
    assert fused.stats.fine_steps == plain.stats.fine_steps
    assert fused.stats.exponent == pytest.approx(plain.stats.exponent, abs=1e-9)
    assert fused.stats.worst_slice == plain.stats.worst_slice


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_iteration_is_linearise_and_the_scan(dtype):
    from pyparareal.linearise import Linearised, source_of

    phi = gru(dtype)
    torch.manual_seed(2)
    guess = torch.randn(STEPS + 1, BATCH, HIDDEN, dtype=dtype)
    found = []
    for kind in (NewtonIteration, FusedNewton):
        u, f = guess.clone(), torch.empty_like(guess[1:])
        iteration = kind(
            phi, Linearised(phi, source_of(phi, u[:1]), "diagonal"), None, TimeGrid(0, STEPS, STEPS), 1, 0.0, None,
            1e-6, 9, "inf", True, False, LocalRuntime(),
        )  # fmt: skip
        iteration.jacobians = torch.full_like(f, math.nan)
        found.append([u, iteration.jacobians, *iteration._iterate(u, f, 4)])  # of which four states are final
        assert torch.equal(u[:5], guess[:5])
        assert iteration.fine_steps == STEPS - 4
    eps = ROUNDINGS * torch.finfo(dtype).eps
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        kept = ~torch.isnan(one)
        assert torch.equal(kept, ~torch.isnan(other))
        assert float((one - other)[kept].abs().max()) <= eps * float(one[kept].abs().max())


def test_gradients_are_those_of_the_serial_chain(monkeypatch):
    phi, u0 = gru(), start().requires_grad_()
    for tensor in phi.parameters:
        tensor.requires_grad_()
    solution, calls = solved(phi, u0, True, monkeypatch)
    assert calls > 0
    seed = torch.randn_like(solution.u)
    wanted = torch.autograd.grad((phi.serial(u0, STEPS) * seed).sum(), [u0, *phi.parameters])
    for got, right in zip(torch.autograd.grad((solution.u * seed).sum(), [u0, *phi.parameters]), wanted, strict=True):
        # tol is that of the states, which the gradients depend on by sums of 900 terms.
        assert float((got - right).abs().max()) <= 1e-9 * float(right.abs().max())


def test_the_layer_is_torchs(monkeypatch):
    torch.manual_seed(3)
    theirs = torch.nn.GRU(5, HIDDEN, batch_first=True)
    ours = GRU.from_torch(theirs, method="newton", jacobian="diagonal")
    calls, step = [], GRUStep.newton_step
    monkeypatch.setattr(GRUStep, "newton_step", lambda *a, **k: calls.append(1) or step(*a, **k))
    x = torch.randn(2, STEPS, 5)
    with torch.no_grad():
        assert float((ours(x)[0] - theirs(x)[0]).abs().max()) < 1e-4  # the layer's tolerance for float32
    assert len(calls) == ours.report[0].iterations > 1


@pytest.mark.parametrize("trust", [0.05, 1.0])
def test_a_trust_region_in_force_is_not_passed_over(monkeypatch, trust):
    phi, u0 = gru(), start()
    method = Newton("diagonal", trust=trust)
    parts, taken = [], NewtonIteration._relax
    monkeypatch.setattr(NewtonIteration, "_relax", lambda *a: parts.append(1) or taken(*a))
    fused, calls = solved(phi, u0, True, monkeypatch, method=method)
    by_parts = len(parts)
    plain, _ = solved(phi, u0, False, monkeypatch, method=method)
    assert calls == fused.iterations == plain.iterations
    assert 0 < by_parts < fused.iterations  # the first changes are as large as the states, the last ones are not
    eps = ROUNDINGS * torch.finfo(u0.dtype).eps
    assert float((fused.u - plain.u).abs().max()) <= eps
    assert fused.residuals == pytest.approx(plain.residuals, rel=1e-6, abs=eps)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"kind": "full"}, "it has diagonals alone"),
        ({"m": 2}, "it takes one step per slice"),
        ({"damping": "adaptive"}, "its damping is one number"),
        ({"tol": None}, "iterations are counted for results that are exact to the bit"),
        ({"norm": "l2"}, "its norms are the largest magnitudes"),
        ({"runtime": LocalRuntime(slices_per_call=8)}, "it takes all slices at once"),
        ({"runtime": ModelRuntime(4)}, "the cost of its parts is to be told"),
        ({"fine": object()}, "there is none"),
    ],
)
def test_when_it_is_not_taken(changed, why):
    given = {"fine": gru(), "kind": "diagonal", "m": 1, "damping": 0.0, "tol": 1e-6, "norm": "inf"}
    given |= {"runtime": LocalRuntime()}
    assert fuses(**given)
    assert not fuses(**given | changed), why


def test_a_cell_without_kernels_has_none():
    phi = gru()
    assert phi.newton_kinds == ("diagonal",)
    assert phi.rediscretise(2).newton_kinds == ()
    assert GRUStep(phi.gates.half(), phi.weight.half(), None).newton_kinds == ()


def test_counted_iterations_stay_exact_to_the_bit(monkeypatch):
    phi, u0 = gru(), start()
    solution, calls = solved(phi, u0, True, monkeypatch, tol=None, max_iterations=STEPS)
    assert calls == 0
    assert torch.equal(solution.u, phi.serial(u0, STEPS))
