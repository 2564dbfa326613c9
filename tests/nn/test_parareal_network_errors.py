# SPDX-License-Identifier: BSD-3-Clause
"""Every wrong argument of the parareal network is refused by name, with what was got and expected."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from torch import nn  # noqa: E402

from pyparareal.nn import PararealNetwork, models  # noqa: E402


class Refuses(nn.Module):
    """Fails if anything is computed with it."""

    def forward(self, x):
        raise AssertionError("computed before checking")


def arguments(**changed):
    usual = {
        "blocks": [Refuses() for _ in range(4)],
        "parts": 2,
        "preprocess": [Refuses(), Refuses()],
        "coarse": [Refuses()],
    }
    return usual | changed


WRONG = [
    ({"blocks": []}, ValueError, "blocks: got none"),
    ({"blocks": 3}, TypeError, "blocks: got int, expected a sequence of modules"),
    ({"blocks": nn.Linear(2, 2)}, TypeError, "blocks: got one Linear, expected a sequence"),
    ({"blocks": [nn.Linear(2, 2), "relu"]}, TypeError, r"blocks\[1\]: got str, expected a torch.nn.Module"),
    ({"parts": 5}, ValueError, "parts: got 5 for 4 blocks, expected 1 <= parts <= blocks"),
    ({"parts": 0}, ValueError, "parts: got 0 for 4 blocks"),
    ({"parts": 2.0}, TypeError, "parts: got float, expected an int"),
    ({"parts": True}, TypeError, "parts: got bool, expected an int"),
    ({"parts": "2"}, TypeError, "parts: got str"),
    ({"parts": [1, 2]}, ValueError, r"parts: got group sizes \[1, 2\], expected positive ints with sum 4"),
    ({"parts": [True, 3]}, ValueError, r"parts: got group sizes \[True, 3\]"),
    ({"parts": [4, 0]}, ValueError, r"parts: got group sizes \[4, 0\]"),
    ({"preprocess": [Refuses()]}, ValueError, "preprocess: got 1 modules, expected 2"),
    ({"preprocess": [Refuses(), None]}, TypeError, r"preprocess\[1\]: got NoneType"),
    ({"coarse": []}, ValueError, "coarse: got 0 modules, expected 1, one net F"),
    ({"coarse": [Refuses(), Refuses()]}, ValueError, "coarse: got 2 modules, expected 1"),
    ({"correction": "newton"}, ValueError, "correction: got 'newton', expected one of 'residual', 'difference'"),
    ({"execution": "fast"}, ValueError, "execution: got 'fast', expected one of 'serial', 'batched', 'parallel', 'a"),
    ({"execution": ["serial"]}, ValueError, r"execution: got \['serial'\], expected one of 'serial'"),
    ({"head": "softmax"}, TypeError, "head: got str, expected a torch.nn.Module or None"),
    ({"example": [1.0]}, TypeError, "example: got list, expected a tensor"),
    (
        {"coarse": [nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.1))], "correction": "difference"},
        ValueError,
        r"coarse\[0\]: got batch norm together with dropout",
    ),
]


@pytest.mark.parametrize(("changed", "kind", "message"), WRONG)
def test_wrong_argument(changed, kind, message):
    with pytest.raises(kind, match=message):
        PararealNetwork(**arguments(**changed))


def chain(*, guess=None, coarse=None, **options):
    """Parts ``3 -> 5 -> 6 -> 4`` with correct maps, except for those given."""
    return PararealNetwork(
        [nn.Linear(3, 5), nn.Linear(5, 6), nn.Linear(6, 4)],
        preprocess=[nn.Identity(), guess or nn.Linear(3, 5), nn.Linear(3, 6)],
        coarse=[nn.Linear(5, 6), coarse or nn.Linear(6, 4)],
        **options,
    )


SHAPES = [
    ({"guess": nn.Linear(3, 1)}, r"interface 1: preprocess\[1\] .* got shape \(2, 1\), expected \(2, 5\)"),
    ({"coarse": nn.Linear(6, 1)}, r"interface 2: output of coarse\[1\] .* got shape \(2, 1\), expected \(2, 4\)"),
    ({"guess": nn.Sequential(nn.Linear(3, 5), nn.Flatten(0))}, r"interface 1: .* got shape \(10,\)"),
]


@pytest.mark.parametrize("correction", ["residual", "difference"])
@pytest.mark.parametrize(("wrong", "message"), SHAPES)
def test_shapes_that_would_broadcast_are_refused_naming_the_interface(wrong, message, correction):
    chain(example=torch.empty(2, 3), correction=correction)
    with pytest.raises(ValueError, match=message):
        chain(**wrong, example=torch.empty(2, 3, device="meta"), correction=correction)
    with pytest.raises(ValueError, match=message):
        chain(**wrong, correction=correction)(torch.zeros(2, 3))


class Promotes(nn.Linear):
    def forward(self, x):
        return super().forward(x).double()


def test_dtypes_that_would_be_promoted_are_refused():
    with pytest.raises(TypeError, match=r"interface 1: .* got dtype torch.float64, expected torch.float32"):
        chain(guess=Promotes(3, 5))(torch.zeros(2, 3))


def test_a_module_that_returns_no_tensor_is_named():
    with pytest.raises(TypeError, match="got an output of type tuple, expected one tensor"):
        PararealNetwork([nn.LSTM(3, 3)], preprocess=[nn.Identity()], coarse=[], example=torch.empty(2, 4, 3))


def test_exceptions_of_a_users_module_reach_the_caller_unchanged():
    with pytest.raises(AssertionError, match="computed before checking"):
        PararealNetwork(**arguments())(torch.zeros(2, 3))


MODELS = [
    (lambda: models.build("resnet21", channels=1, classes=10), "model: got 'resnet21', expected one of resnet8"),
    (lambda: models.build("resnet8", channels=1, classes=0), "classes: got 0, expected a positive int"),
    (lambda: models.build("resnet8", channels=1, classes=2, width=1.5), "width: got 1.5, expected a positive int"),
    (lambda: models.build_parareal(net(), (1, 8, 8), 4), "parts: got 4 for 3 blocks"),
    (lambda: models.build_parareal(net(), (8, 8), 2), r"image_shape: got \(8, 8\), expected \(channels, height"),
    (lambda: models.InterfaceMap((1, 8, 8), (2, 3, 3), units=-1), "units: got -1, expected 0 or more"),
    (lambda: models.InterfaceMap((1, 8, 8), (2, 4, 3)), r"target: got height and width \(4, 3\) from \(8, 8\)"),
    (lambda: models.InterfaceMap((1, 8), (2, 4)), r"source: got \(1, 8\), expected \(channels, height, width\)"),
]


def net():
    return models.build("resnet8", channels=1, classes=10, width=4)


@pytest.mark.parametrize(("make", "message"), MODELS)
def test_wrong_model(make, message):
    with pytest.raises(ValueError, match=message):
        make()
