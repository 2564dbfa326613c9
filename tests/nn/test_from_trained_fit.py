# SPDX-License-Identifier: BSD-3-Clause
"""The warm start: new maps fitted to a trained serial network, which does not notice."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from torch import nn  # noqa: E402
from user_networks import Named  # noqa: E402

from pyparareal.nn import PararealNetwork, build_parareal, fit_maps, models  # noqa: E402


def body(width=6):
    return nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(6)))


SERIAL = {
    "sequential": (body, {"parts": 3}, (16, 6)),
    "named body": (Named, {"parts": 2, "body": "inner.body"}, (16, 4)),
    "resnet": (lambda: models.build("resnet8", channels=1, classes=3, width=4), {"parts": 3}, (8, 1, 8, 8)),
}


def built(kind, seed=0, **options):
    make, how, shape = SERIAL[kind]
    torch.manual_seed(seed)
    network = build_parareal(make(), example=torch.empty(shape), coarse_budget=0.5, **how, **options)
    for m in network.modules():  # running statistics of a trained network
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
    return network, [torch.randn(shape) for _ in range(2)]


def state(module):
    return {n: t.clone() for n, t in module.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(t, b[n]) for n, t in a.items())


def distance(network, batches):
    with torch.no_grad():
        pairs = [(network.corrected(x), network.serial()[:-1](x)) for x in batches]
        return sum((a - b).square().sum() for a, b in pairs).sqrt() / sum(b.square().sum() for _, b in pairs).sqrt()


@pytest.mark.parametrize("correction", ["residual", "difference"])
@pytest.mark.parametrize("kind", SERIAL)
def test_the_maps_come_closer_and_the_serial_network_stays_bit_for_bit(kind, correction):
    network, batches = built(kind, correction=correction)
    serial, flags = state(network.serial()), {n: m.training for n, m in network.named_modules()}
    network.coarse[0].requires_grad_(False)
    network.head.register_parameter("extra", nn.Parameter(torch.ones(2)))
    network.head.extra.grad = gradient = torch.ones(2)
    network.eval()
    before = distance(network, batches)
    network.train()
    # Batch norm begins with corrections of variance one, which Adam makes small by at most the rate in every step.
    fit = fit_maps(network, batches, epochs=100 if kind == "resnet" else 40, lr=3e-2)
    assert [m.name for m in fit.maps] == [f"C^{j + 2}" for j in range(network.parts - 1)] + [
        f"F^{j + 1}" for j in range(network.parts - 1)
    ]
    assert all(m.after < m.before for m in fit.maps)
    assert fit.state_after < 0.9 * fit.state_before
    assert equal({n: t for n, t in state(network.serial()).items() if "extra" not in n}, serial)
    assert {n: m.training for n, m in network.named_modules() if n in flags} == flags
    assert not any(p.requires_grad for p in network.coarse[0].parameters())
    assert network.head.extra.grad is gradient
    assert all(p.grad is None for n, p in network.named_parameters() if n != "head.extra")
    network.eval()
    torch.testing.assert_close(fit.state_before, float(before), rtol=1e-5, atol=0)
    torch.testing.assert_close(fit.state_after, float(distance(network, batches)), rtol=1e-5, atol=0)
    assert str(fit).count("\n") == 2 * (network.parts - 1) + 1


class Zero(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


@pytest.mark.parametrize("correction", ["residual", "difference"])
def test_of_a_linear_network_the_coarse_nets_become_the_parts_themselves(correction):
    """With guesses of zero ``F^j`` has to be ``g^{j+1}``, which is in reach, and then the consistency theorem holds."""
    torch.manual_seed(0)
    # Orthogonal parts and white inputs: least squares of condition number near 1.
    blocks = [nn.utils.parametrizations.orthogonal(nn.Linear(4, 4, bias=False)) for _ in range(3)]
    network = build_parareal(
        blocks,
        3,
        example=torch.empty(2, 4),
        preprocess=[None, Zero(), Zero()],
        coarse=[nn.Linear(4, 4, bias=False) for _ in range(2)],
        correction=correction,
    )
    fit = fit_maps(network, [torch.randn(64, 4) for _ in range(4)], epochs=200, lr=1e-2)
    assert fit.left_alone == ("C^2", "C^3")
    # float32, and Adam with a rate that ends at zero: well below the 1 it began with.
    assert fit.state_before > 0.5
    assert fit.state_after < 1e-3
    for j, f in enumerate(network.coarse):
        torch.testing.assert_close(f.weight.data, blocks[j + 1].weight.data, atol=1e-3, rtol=0)


def test_a_map_that_would_end_worse_is_put_back():
    network, batches = built("resnet")
    before = state(network)
    fit = fit_maps(network, batches, epochs=1, lr=1e6)
    assert all(m.after <= m.before for m in fit.maps)
    kept = [m.name for m in fit.maps if m.after == m.before]
    assert kept
    for name in kept:
        kind, j = ("preprocess", int(name[2:]) - 1) if name[0] == "C" else ("coarse", int(name[2:]) - 1)
        now = {n: t for n, t in state(network).items() if n.startswith(f"{kind}.{j}.")}
        assert now
        assert equal(now, {n: before[n] for n in now})


def test_maps_that_are_the_serial_networks_own_are_left_alone():
    blocks = [nn.Linear(3, 3) for _ in range(3)]
    network = PararealNetwork(blocks, preprocess=[nn.Identity(), nn.Linear(3, 3), blocks[0]], coarse=blocks[1:])
    before = state(network.serial())
    fit = fit_maps(network, [torch.randn(8, 3)])
    assert fit.left_alone == ("C^3", "F^1", "F^2")
    assert "left alone: C^3, F^1, F^2" in str(fit)
    assert [m.name for m in fit.maps] == ["C^2"]
    assert equal(state(network.serial()), before)


def test_inputs_may_come_with_labels_and_from_an_iterator():
    results = []
    for wrap in (
        lambda b: b,
        lambda b: [(x, torch.zeros(len(x))) for x in b],
        iter,
        lambda b: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.cat(b)), batch_size=len(b[0])),
    ):
        network, batches = built("sequential")
        torch.manual_seed(1)
        results.append((fit_maps(network, wrap(batches), epochs=2), state(network)))
    for fit, found in results[1:]:
        assert fit == results[0][0]
        assert equal(found, results[0][1])


def test_one_part_has_nothing_to_fit():
    network = build_parareal(body(), 1, example=torch.empty(2, 6))
    fit = fit_maps(network, [torch.randn(2, 6)])
    assert (fit.maps, fit.left_alone, fit.state_before, fit.state_after) == ((), (), 0, 0)


X = [torch.randn(2, 6)]
WRONG = [
    ({"network": body()}, TypeError, "network: got Sequential, expected a PararealNetwork"),
    ({"epochs": 0}, ValueError, "epochs: got 0, expected a positive int"),
    ({"epochs": True}, ValueError, "epochs: got True, expected a positive int"),
    ({"lr": 0}, ValueError, "lr: got 0, expected a positive number"),
    ({"lr": float("nan")}, ValueError, "lr: got nan"),
    ({"batches": X[0]}, TypeError, "batches: got Tensor, expected a sequence of batches"),
    ({"batches": 3}, TypeError, "batches: got int, expected a sequence of batches"),
    ({"batches": []}, ValueError, "batches: got none, expected at least one"),
    ({"batches": [["a"]]}, TypeError, "batches: got a batch of str, expected a tensor"),
]


@pytest.mark.parametrize(("changed", "kind", "message"), WRONG)
def test_wrong_argument(changed, kind, message):
    network = build_parareal(body(), 2, example=torch.empty(2, 6))
    before = state(network)
    with pytest.raises(kind, match=message):
        fit_maps(**{"network": network, "batches": X, **changed})
    assert equal(state(network), before)
    assert network.training
