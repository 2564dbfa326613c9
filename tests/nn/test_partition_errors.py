# SPDX-License-Identifier: BSD-3-Clause
"""Every wrong argument of a partition is refused by name, with what was got and expected."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from torch import nn  # noqa: E402
from user_networks import Named  # noqa: E402

from pyparareal.nn import Partition, models, partition  # noqa: E402


def blocks():
    return [nn.Linear(3, 3) for _ in range(4)]


def resnet():
    return models.build("resnet8", channels=1, classes=10, width=2)


class Transposes(nn.Module):
    def forward(self, x):
        return x.t()


class Decides(Named):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


X = torch.empty(2, 3)
IMAGE = torch.empty(2, 1, 8, 8)

WRONG = [
    ({"parts": 5}, ValueError, "parts: got 5 for 4 blocks, expected 1 <= parts <= blocks"),
    ({"parts": 0}, ValueError, "parts: got 0 for 4 blocks"),
    ({"parts": -1}, ValueError, "parts: got -1"),
    ({"parts": 2.0}, TypeError, "parts: got float, expected an int"),
    ({"parts": [2, 2]}, TypeError, "parts: got list, expected an int; group sizes are given as balance"),
    ({"parts": None}, ValueError, "parts: got None, expected the number of parts"),
    ({"balance": "size"}, ValueError, "balance: got 'size', expected one of 'flops', 'time', 'params' or group sizes"),
    ({"balance": [1, 2]}, ValueError, r"balance: got group sizes \[1, 2\], expected positive ints with sum 4"),
    ({"balance": [4, 0]}, ValueError, r"balance: got group sizes \[4, 0\]"),
    ({"balance": [3, True]}, ValueError, r"balance: got group sizes \[3, True\]"),
    ({"balance": [1, 1, 2]}, ValueError, "parts: got 2, but balance makes 3 parts"),
    ({"balance": 2}, TypeError, "balance: got int, expected a str or a sequence of group sizes"),
    ({"balance": "time", "example": X.to("meta")}, ValueError, "example: got a tensor on the meta device"),
    ({"module": [nn.ReLU(), nn.Tanh()]}, ValueError, "balance: got 'flops', which is zero for every block"),
    ({"module": []}, ValueError, "module: got no blocks"),
    ({"module": 3}, TypeError, "module: got int, expected a torch.nn.Module or a list of them"),
    ({"module": [nn.Linear(3, 3), "relu"]}, TypeError, "module: got block 1 of type str"),
    ({"module": nn.Linear(3, 3)}, TypeError, "module: got Linear, expected a Sequential.*it holds no Sequential"),
    ({"module": Named()}, TypeError, r"module: got Named, .*there is 'inner.body' \(ModuleList of 3\)"),
    ({"example": [1.0]}, TypeError, "example: got list, expected a tensor"),
    ({"example": X.double()}, TypeError, "example: got dtype torch.float64, .* as parameter 'block 0: weight'"),
    ({"example": X.long()}, TypeError, "example: got dtype torch.int64, expected torch.float32"),
    ({"module": [nn.LSTM(3, 3)], "parts": 1}, TypeError, "block 0: got an output of type tuple, expected one tensor"),
    ({"module": [nn.Linear(3, 3), Transposes()]}, ValueError, r"block 1: got an output of shape \(3, 2\) for \(2, 3\)"),
    ({"module": [nn.LazyLinear(3), nn.Linear(3, 3)]}, ValueError, "block 0: got lazy parameter 'weight'"),
    ({"body": "body"}, TypeError, "body: got a name for a list of blocks"),
    (
        {"module": resnet(), "body": "layer4", "example": IMAGE},
        ValueError,
        r"'layer4', which ResNet has not; there is 'layer1' \(Seq",
    ),
    (
        {"module": resnet(), "body": "fc", "example": IMAGE},
        ValueError,
        "body: got 'fc', a Linear of 0 modules, expected a Sequential",
    ),
    (
        {"module": resnet(), "body": ["layer2", "layer1"], "example": IMAGE},
        ValueError,
        "whose blocks are not called once each in their order",
    ),
    (
        {"module": resnet(), "body": ["layer1", "layer3"], "example": IMAGE},
        ValueError,
        "block 'layer1.0' has other inputs .* elsewhere",
    ),
    (
        {"module": Named(skip=True), "body": "inner.body"},
        ValueError,
        "'mul' goes past it to the output, expected a chain",
    ),
    (
        {"module": Named(peek=True), "body": "inner.body"},
        ValueError,
        "block 'inner.body.0' has other inputs .* used elsewhere, too; expected a chain",
    ),
    ({"module": Named(order=(0, 1, 1)), "body": "inner.body"}, ValueError, "not called once each"),
    ({"module": Named(noise=True), "body": "inner.body"}, ValueError, "something else in training than in evaluation"),
    ({"module": Decides(), "body": "inner.body"}, ValueError, r"Decides cannot be followed around it .*split\(\)"),
    ({"split_spec": {"7": "END"}}, ValueError, "got '7', at which no block begins or ends; the blocks are 0, 1, 2, 3"),
    ({"split_spec": {"1": "MIDDLE"}}, ValueError, r"split_spec\['1'\]: got 'MIDDLE', expected SplitPoint.BEGINNING or"),
    ({"split_spec": {"0": "BEGINNING"}}, ValueError, "got BEGINNING, which leaves an empty part"),
    ({"split_spec": {"3": "END"}}, ValueError, "got END, which leaves an empty part"),
    ({"split_spec": {"0": "END", "2": "END"}}, ValueError, "parts: got 2, but split_spec makes 3 parts"),
    ({"split_spec": {"0": "END"}, "balance": "params"}, ValueError, "split_spec: got one together with balance"),
]


@pytest.mark.parametrize(("changed", "kind", "message"), WRONG)
def test_wrong_argument(changed, kind, message):
    usual = {"module": blocks(), "parts": 2, "example": X}
    with pytest.raises(kind, match=message):
        partition(**(usual | changed))


def test_example_on_another_device_is_refused():
    net = blocks()
    net[0].to("meta")
    # Parameters on meta have no device to compare with; a second device needs no GPU to be tested for.
    assert partition(net, 2, example=X).parts == 2

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda:0")

    example = torch.empty(2, 3).as_subclass(Elsewhere)
    with pytest.raises(ValueError, match="example: got device cuda:0, expected cpu as parameter 'block 0: weight'"):
        partition(blocks(), 2, example=example)


def test_training_flags_are_restored_after_a_failure():
    net = Named(noise=True)
    net.inner.eval()
    with pytest.raises(ValueError, match="in training"):
        partition(net, 2, example=torch.empty(2, 4), body="inner.body")
    assert net.training
    assert not net.inner.training


def record(**changed):
    return partition(blocks(), 2, example=X).to_config() | changed


CONFIGS = [
    (lambda: record(format="other"), "config: got format 'other', expected 'pyparareal-partition-1'"),
    (dict, "config: got format None"),
    (lambda: {k: v for k, v in record().items() if k != "flops"}, "config: got no entry 'flops'"),
    (lambda: record(sizes=[3, 2]), r"config: got group sizes \[3, 2\], expected positive ints with sum 4"),
    (
        lambda: record(names=["0", "1", "2", "last"]),
        r"of another network, names of block 3: \('last',\) there, \('3',\) here",
    ),
    (lambda: record(parameters=[12, 13, 12, 12]), r"parameters of block 1: \(13,\) there, \(12,\) here"),
    (lambda: record(names=["0", "1", "2"]), r"names of block 3: nothing there, \('3',\) here"),
]


@pytest.mark.parametrize(("config", "message"), CONFIGS)
def test_record_of_another_partition(config, message):
    with pytest.raises(ValueError, match=message):
        Partition.from_config(config(), blocks())


def test_exceptions_of_a_users_module_reach_the_caller_unchanged():
    class Fails(nn.Module):
        def forward(self, x):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        partition([nn.Linear(3, 3), Fails()], 2, example=X)
