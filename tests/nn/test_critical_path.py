# SPDX-License-Identifier: BSD-3-Clause
"""Costs of a parareal network: pieces add up to whole networks, the critical path is that of a simulated schedule."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal.nn import PararealNetwork, models  # noqa: E402
from pyparareal.nn.costs import count_flops  # noqa: E402
from pyparareal.nn.critical_path import ForwardCost, forward_costs  # noqa: E402

X = torch.empty(4, 1, 8, 8, device="meta")


def parareal(parts, **options):
    return models.build_parareal(models.build("resnet20", channels=1, classes=10, width=4), (1, 8, 8), parts, **options)


@pytest.mark.parametrize("parts", [1, 2, 4, 9])
def test_pieces_add_up_to_the_whole_networks(parts):
    network = parareal(parts)
    flops, _ = forward_costs(network, X)
    assert flops.total == count_flops(network, X)
    assert flops.serial_network == count_flops(network.serial(), X)
    assert (len(flops.preprocess), len(flops.fine), len(flops.coarse)) == (parts, parts, parts - 1)


def test_the_difference_correction_runs_each_coarse_net_on_twice_the_batch():
    network = parareal(4, correction="difference")
    flops, layers = forward_costs(network, X)
    assert flops.total == count_flops(network, X)
    assert layers == forward_costs(parareal(4), X)[1]


def test_layers_by_hand():
    _, layers = forward_costs(parareal((2, 7), preprocess_units=1, coarse_units=0), X)
    # Units of two convolutions; C^2 is a convolution and a unit, F^1 one convolution, the head one linear layer.
    assert layers == ForwardCost(preprocess=(1, 3), fine=(4, 14), coarse=(1,), head=1)
    assert layers.serial_network == 20, "ResNet-20"
    assert layers.critical_path == max(1 + 4, 3 + 14) + 1 + 1


def test_equal_blocks_are_told_from_blocks_that_look_equal():
    """Same type, parameters and shapes, other stride or dilation: other FLOPs."""
    blocks = [nn.Conv2d(2, 2, 3, 1, 1), nn.Conv2d(2, 2, 3, 1, 1), nn.Conv2d(2, 2, 3, 2, 1), nn.Conv2d(2, 2, 3, 2, 1)]
    network = PararealNetwork(blocks, 1, preprocess=[nn.Identity()], coarse=[])
    flops, layers = forward_costs(network, torch.empty(1, 2, 8, 8))
    weights = 2 * 2 * 2 * 9
    assert flops.fine == (weights * (64 + 64 + 16 + 4),)
    assert layers.fine == (4,)


def simulated(cost):
    """Each device does its own work in order; a coarse net waits for the message of the device before."""
    free = [c + g for c, g in zip(cost.preprocess, cost.fine, strict=True)]
    message = free[0]
    for device in range(1, len(free)):
        begin = max(free[device], message)
        message = begin + cost.coarse[device - 1]
    return message + cost.head


costs = st.integers(0, 20)


@given(st.data(), st.integers(1, 6))
def test_critical_path_is_the_end_of_the_schedule(data, n):
    def draw(count):
        return tuple(data.draw(costs) for _ in range(count))

    cost = ForwardCost(preprocess=draw(n), fine=draw(n), coarse=draw(n - 1), head=data.draw(costs))
    assert cost.critical_path == simulated(cost)
    slowest = max(c + g for c, g in zip(cost.preprocess, cost.fine, strict=True))
    assert slowest + cost.head <= cost.critical_path <= slowest + sum(cost.coarse) + cost.head <= cost.total
    if n == 1:
        assert cost.critical_path == cost.total == cost.serial_network


def test_free_coarse_nets_and_equal_parts_divide_the_path_by_their_number():
    cost = ForwardCost(preprocess=(0,) * 4, fine=(5,) * 4, coarse=(0,) * 3, head=0)
    assert cost.serial_network / cost.critical_path == 4
    assert cost.coarse_over_fine == 0


def test_coarse_over_fine_is_a_ratio_of_means():
    assert ForwardCost((0, 0, 0), (10, 20, 30), (1, 3), 0).coarse_over_fine == 0.1
    assert ForwardCost((7,), (10,), (), 0).coarse_over_fine == 0


def test_mistakes_are_named():
    with pytest.raises(TypeError, match="network: got Linear, expected a PararealNetwork"):
        forward_costs(nn.Linear(1, 1), X)
    wrong = PararealNetwork([nn.Identity()] * 2, preprocess=[nn.Identity(), nn.Flatten()], coarse=[nn.Identity()])
    with pytest.raises(ValueError, match=r"input of part 2: got shape \(4, 64\), expected \(4, 1, 8, 8\)"):
        forward_costs(wrong, X)


def test_nothing_is_left_on_the_modules():
    network = parareal(2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    forward_costs(network, X)
    assert not any(m._forward_hooks for m in network.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
