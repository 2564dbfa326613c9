# SPDX-License-Identifier: BSD-3-Clause
"""The adaptive policy: what it does when, on reports made up for it and on networks that train."""

import json
import math

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from torch import nn  # noqa: E402

from pyparareal import Status  # noqa: E402
from pyparareal.adjoint import BackwardPass  # noqa: E402
from pyparareal.nn import LayerParallel  # noqa: E402
from pyparareal.nn.layer_parallel import DepthReport, Policy  # noqa: E402
from pyparareal.nn.layer_parallel.report import Direction  # noqa: E402
from pyparareal.nn.training_job.checkpoint import CheckpointError  # noqa: E402


def report(policy, plan, rho_forward, rho_backward, size=1.0, failure=None):
    """What iterations with these contractions leave; the adjoint goes nowhere, so that errors add up."""
    forward = Direction(Status.FIXED, plan.forward, jumps(plan.forward, rho_forward), failure=failure)
    went = BackwardPass(Status.FIXED, plan.backward, jumps(plan.backward, rho_backward), None, size, 0.0)
    return DepthReport(64, 4, 2, forward, [went], policy.events, policy.batch)


def jumps(count, rho):
    """Errors rho^k after k iterations; the first is a coarse solve without a jump."""
    return (math.nan, *(rho ** (k - 1) * abs(1 - rho) for k in range(2, count + 1)))[:count]


def run(policy, batches, rho_forward, rho_backward, **more):
    plans = []
    for _ in range(batches):
        plan = policy.next()
        plans.append(plan)
        if plan.forward or plan.backward:
            policy.observe(plan, report(policy, plan, rho_forward, rho_backward, **more))
    return plans


def test_probes_are_the_first_batch_and_every_so_many():
    policy = Policy(2, 2, probe_every=5, tol=0.1)
    plans = run(policy, 16, 0.1, 0.1)
    assert [k + 1 for k, plan in enumerate(plans) if plan.probe] == [1, 5, 10, 15]
    assert all((p.forward, p.backward) == ((4, 4) if p.probe else (2, 2)) for p in plans)
    assert policy.events == []


@pytest.mark.parametrize("rho", [0.3, 0.5])
def test_iterations_are_raised_to_what_the_tolerance_needs_and_no_further(rho):
    policy = Policy(2, 2, tol=0.05, most=12)
    run(policy, 1, rho, rho)
    # 0.025 for each direction: the first k with rho^k below it.
    needed = math.ceil(math.log(0.025) / math.log(rho))
    assert (policy.forward, policy.backward) == (needed, needed)
    assert policy.events[0].startswith(f"{needed} iterations forward and {needed} backward from batch 2")
    run(policy, 1200, rho, rho)
    assert len(policy.events) == 1


def test_iterations_that_make_all_exact_are_serial_instead():
    policy = Policy(2, 2, tol=1e-3, most=20)
    plan = policy.next()
    forward, went = Direction(Status.FIXED, 4, jumps(4, 0.5), exact_after=7), report(policy, plan, 0.5, 0.5).passes[0]
    policy.observe(plan, DepthReport(12, 2, 2, forward, [went], (), 1))
    assert "more than 6 iterations needed" in policy.events[0]


def test_only_the_direction_that_needs_it():
    policy = Policy(2, 2, tol=0.05, most=12)
    run(policy, 1, 0.01, 0.5)
    assert (policy.forward, policy.backward) == (2, 6)


def test_more_than_the_most_iterations_are_serial_instead():
    policy = Policy(2, 2, tol=0.05, most=5)
    assert run(policy, 1, 0.5, 0.5)[0].forward != 0
    assert policy.serial
    assert "serial from batch 2: estimated error" in policy.events[0]
    assert run(policy, 1, 0.5, 0.5)[0].forward == 0


@pytest.mark.parametrize(("forward", "backward"), [(1.3, 0.1), (0.1, 1.3)])
def test_a_probe_that_does_not_contract_is_the_last(forward, backward):
    policy = Policy(3, 3, probe_every=4)
    run(policy, 2, 0.05, 0.05)
    assert not policy.serial
    run(policy, 2, forward, backward)
    assert policy.serial
    assert policy.events[-1] == "serial from batch 5: rho 1.3"


def test_a_batch_that_looks_wrong_makes_the_next_one_a_probe():
    policy = Policy(3, 3, probe_every=100, tol=0.1)
    run(policy, 3, 0.1, 0.1)
    assert not run(policy, 1, 0.9, 0.1)[0].probe
    (probe,) = run(policy, 1, 0.1, 0.1)  # a single batch was odd
    assert probe.probe
    assert not policy.serial
    assert not run(policy, 1, 0.1, 0.1)[0].probe


def test_an_estimate_that_the_last_probe_has_found_too_high_does_not_probe_again():
    # Three iterations alone would estimate 0.5^3 in each direction, above twice the tolerance, and do so every time.
    policy = Policy(3, 3, probe_every=100, tol=0.1, most=3)
    policy._usual = 0.25
    policy._probe_next = False
    assert not any(plan.probe for plan in run(policy, 5, 0.5, 0.5))


def test_a_scheduled_probe_without_a_backward_pass_is_repeated():
    policy = Policy(2, 2, probe_every=3)
    run(policy, 2, 0.1, 0.1)
    assert policy.next().probe
    assert run(policy, 1, 0.1, 0.1)[0].probe
    assert not run(policy, 1, 0.1, 0.1)[0].probe


def test_failures():
    policy = Policy(2, 2, probe_every=100)
    run(policy, 2, 0.05, 0.05)
    run(policy, 1, 0.05, 0.05, failure=Status.NON_FINITE)
    assert not policy.serial  # a fallback has served this batch
    assert run(policy, 1, 0.05, 0.05, failure=Status.NON_FINITE)[0].probe
    assert policy.serial
    assert "a probe failed" in policy.events[0]


def test_a_loss_without_a_gradient_tells_nothing():
    policy = Policy(2, 2)
    assert run(policy, 1, 0.05, 0.05, size=math.nan)[0].probe
    assert run(policy, 1, 0.05, 0.05)[0].probe
    assert not run(policy, 1, 0.05, 0.05)[0].probe


def test_one_iteration_is_judged_by_probes_alone():
    policy = Policy(2, 1, probe_every=3, tol=0.1)
    run(policy, 5, 0.05, 0.05)
    assert (policy.forward, policy.backward) == (2, 1)
    policy = Policy(1, 1, tol=0.1)
    run(policy, 1, 0.3, 0.3)
    assert policy.backward > 1


def test_of_one_iteration_backward_the_forward_pass_tells():
    policy = Policy(2, 1, probe_every=100, tol=0.03)
    run(policy, 2, 0.01, 0.001)
    assert not run(policy, 1, 0.5, 0.001)[0].probe  # of its own two it estimates 0.08
    assert run(policy, 1, 0.01, 0.001)[0].probe
    assert (policy.forward, policy.backward) == (2, 1)


@pytest.mark.parametrize("jumps", [(0.5, 0.5), (0.9, 1.0), (1.0,)], ids=str)
def test_what_is_accepted(jumps):
    policy = Policy(2, 2)
    assert not policy.accepts(Direction(Status.FIXED, len(jumps), jumps))
    assert policy.accepts(Direction(Status.FIXED, 2, (math.nan, 0.999)))
    assert policy.accepts(Direction(Status.FIXED, 1, (math.nan,)))
    assert policy.accepts(Direction(Status.FIXED, 2, jumps, floor=2.0))
    assert policy.accepts(Direction(Status.FIXED, 2, jumps, exact_after=1))
    assert policy.accepts(Direction(Status.SERIAL))


def test_states_go_on_where_they_were():
    one = Policy(2, 2, probe_every=7, tol=0.05)
    run(one, 10, 0.3, 0.2)
    state = json.loads(json.dumps(one.state_dict()))
    other = Policy(2, 2, probe_every=7, tol=0.05)
    other.load_state_dict(state)
    assert run(one, 30, 0.3, 0.2) == run(other, 30, 0.3, 0.2)
    assert one.state_dict() == other.state_dict()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"batch": -1}, "batch"),
        ({"forward": 2.0}, "forward"),
        ({"serial": 1}, "serial"),
        ({"forward": 9}, "got 9 \\+ 2 iterations, expected at most 8"),
        ({"usual": "no"}, "usual"),
        ({"usual": -1.0}, "usual"),
        ({"usual": math.nan}, "usual"),
        ({"events": ["a", 1]}, "events"),
        ({"more": 1}, "keys"),
    ],
    ids=str,
)
def test_other_states_are_refused_and_change_nothing(change, match):
    policy = Policy(2, 2)
    before = policy.state_dict()
    with pytest.raises(CheckpointError, match=match):
        policy.load_state_dict({**before, **change})
    assert policy.state_dict() == before


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"forward": -1}, ValueError, "forward: got -1"),
        ({"backward": 1.5}, TypeError, "backward: got 1.5"),
        ({"probe_every": 0}, ValueError, "probe_every: got 0"),
        ({"most": 1}, ValueError, "most: got 1"),
        ({"tol": 0.0}, ValueError, "tol: got 0"),
        ({"tol": "a"}, TypeError, "tol: got 'a'"),
        ({"rho_most": math.inf}, ValueError, "rho_most: got inf"),
    ],
    ids=str,
)
def test_wrong_arguments(options, error, match):
    with pytest.raises(error, match=match):
        Policy(**options)


# With networks


class Growing(nn.Module):
    """``a(u) tanh(W u)``: a long coarse step is fine for small ``a`` and unstable for large ones."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.a = nn.Parameter(torch.ones(()))

    def forward(self, u):
        return self.a * torch.tanh(self.linear(u)) - 0.1 * self.a * u


def network(policy, **options):
    torch.manual_seed(0)
    return LayerParallel([Growing(6) for _ in range(96)], h=0.05, m=4, policy=policy, **options).double()


def batch(net, seed=1):
    torch.manual_seed(seed)
    x = torch.randn(8, 6, dtype=torch.float64)
    net.zero_grad()
    net(x).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def test_training_goes_serial_before_gradients_are_wrong():
    policy = Policy(2, 2, tol=0.3, probe_every=4)
    net, serial = network(policy), network("fixed", mode="serial")
    worst, seen = 0.0, []
    for step in range(50):
        for one in (net, serial):
            with torch.no_grad():
                for name, parameter in one.named_parameters():
                    if name.endswith(".a"):
                        parameter.fill_(1 + 0.1 * step)  # weights grow while training
        error = batch(net, step) - (exact := batch(serial, step))
        worst = max(worst, float(error.norm() / exact.norm()))
        seen.append(net.report.forward.iterations)
        if seen[-2:] == [0, 0]:
            break
    assert policy.serial
    assert seen[1] > 0
    assert seen[-1] == 0
    assert net.report.events == policy.events
    assert policy.events[-1].startswith("serial from batch")
    assert worst < 0.3


def test_passes_that_do_not_train_are_not_counted():
    policy = Policy(2, 2, probe_every=3)
    net = network(policy)
    x = torch.randn(8, 6, dtype=torch.float64)
    with torch.no_grad():
        net(x)
    net.eval()
    net(x)
    assert policy.batch == 0
    assert net.report.forward.iterations == 2
    net.train()
    net.requires_grad_(False)
    net(x)
    assert policy.batch == 0
    net.requires_grad_(True)
    net(x)
    assert policy.batch == 1
    assert net.report.forward.iterations == 4


def test_backward_passes_in_evaluation_teach_nothing():
    policy = Policy(2, 2, tol=1e-9, most=12)
    policy._probe_next = False
    net = network(policy).eval()
    before = policy.state_dict()
    batch(net)
    assert net.report.gradient_error > 2 * policy.tol
    assert policy.state_dict() == before


def test_a_probe_without_a_backward_pass_is_repeated():
    policy = Policy(2, 2, probe_every=100, tol=1.0)
    net = network(policy)
    x = torch.randn(8, 6, dtype=torch.float64)
    net(x)
    batch(net)
    assert net.report.forward.iterations == 4
    batch(net)
    assert net.report.forward.iterations == 2
    assert policy.batch == 3


def test_the_name_makes_a_policy():
    assert network("adaptive").policy.forward == 2
    assert network("adaptive", forward=3, backward=1).policy.backward == 1
    assert network("fixed").policy is None


@pytest.mark.parametrize("a", [4, 24])
@pytest.mark.parametrize("counts", [(2, 2), (2, 1), (0, 2)], ids=str)
def test_what_does_not_contract_never_reaches_the_optimiser(counts, a):
    # Coarse steps are unstable where 0.05 a m is beyond 2: as they are, these gradients are wrong by 1.2 to 1e3 times
    # what they should be.
    policy, serial = Policy(*counts), network("fixed", mode="serial")
    net = network(policy)
    for one in (net, serial):
        with torch.no_grad():
            for name, parameter in one.named_parameters():
                if name.endswith(".a"):
                    parameter.fill_(a)
    found, exact = batch(net), batch(serial)
    # Roundings of float64, which the layers amplify as they do the gradient itself.
    assert float((found - exact).norm() / exact.norm()) < 1e-10
    assert policy.serial
    assert policy.events[0].startswith("serial from batch 2: ")
    assert net.report.gradient_error == 0


def test_values_that_do_not_contract_are_not_used_in_evaluation():
    policy, serial = Policy(2, 2), network("fixed", mode="serial")
    net = network(policy)
    x = torch.randn(8, 6, dtype=torch.float64)
    with torch.no_grad():
        for one in (net, serial):
            for name, parameter in one.named_parameters():
                if name.endswith(".a"):
                    parameter.fill_(24)
        assert torch.allclose(net.eval()(x), serial.eval()(x), rtol=1e-10, atol=1e-10)
    assert net.report.forward.failure is Status.DIVERGED
    assert net.report.forward.rho > 1
    assert (policy.serial, policy.batch) == (False, 0)
