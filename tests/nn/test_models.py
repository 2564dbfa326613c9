# SPDX-License-Identifier: BSD-3-Clause
"""Residual networks: parameter counts by formula, usual names, and the same values in every arrangement."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from pyparareal.nn import models  # noqa: E402


def parameter_count(n, channels, classes, width):
    """3x3 convolutions without bias, two numbers per batch-norm channel, shortcuts without parameters."""

    def conv_and_norm(source, target):
        return 9 * source * target + 2 * target

    widths = (width, 2 * width, 4 * width)
    total = conv_and_norm(channels, width) + widths[-1] * classes + classes
    for source, target in zip((width, *widths), widths, strict=False):
        total += conv_and_norm(source, target) + (2 * n - 1) * conv_and_norm(target, target)
    return total


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("name", "n"), [("resnet8", 1), ("resnet20", 3), ("resnet32", 5), ("resnet110", 18)])
@pytest.mark.parametrize(("channels", "classes", "width"), [(3, 10, 16), (1, 10, 4), (3, 100, 16)])
def test_parameter_count(name, n, channels, classes, width):
    assert count(models.build(name, channels=channels, classes=classes, width=width)) == parameter_count(
        n, channels, classes, width
    )


def test_resnet20_for_cifar_has_the_published_size():
    assert parameter_count(3, 3, 10, 16) == 269_722  # "0.27M", He et al. 2015, table 6


@pytest.mark.parametrize("size", [32, 28, 8, 7])
def test_output_is_one_logit_per_class(size):
    net = models.build("resnet8", channels=3, classes=11, width=4)
    assert net(torch.randn(2, 3, size, size)).shape == (2, 11)


def test_parameters_have_the_usual_names():
    names = set(models.build("resnet20", channels=3, classes=10).state_dict())
    expected = {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer3.2.bn2.bias", "fc.weight"}
    assert expected <= names


def test_split_network_is_the_network():
    net = models.build("resnet20", channels=1, classes=10, width=4).eval()
    stem, body, head = net.split()
    x = torch.randn(3, 1, 8, 8)
    assert len(body) == 9
    assert torch.equal(torch.nn.Sequential(stem, *body, head)(x), net(x))


@pytest.mark.parametrize("size", [32, 8, 7])
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 9, (1, 5, 3)])
def test_parareal_version_meets_at_every_interface(parts, size):
    net = models.build("resnet20", channels=3, classes=10, width=4).eval()
    parareal = models.build_parareal(net, (3, size, size), parts, coarse_units=1, preprocess_units=0).eval()
    x = torch.randn(2, 3, size, size)
    assert parareal(x).shape == (2, 10)
    assert torch.equal(parareal.serial()(x), net(x))
    assert {id(p) for p in net.parameters()} <= {id(p) for p in parareal.parameters()}


def test_equal_seeds_give_the_same_body():
    nets = []
    for parts in (1, 4):
        torch.manual_seed(5)
        net = models.build("resnet20", channels=1, classes=10, width=4)
        nets.append(models.build_parareal(net, (1, 8, 8), parts).serial().eval())
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(nets[0](x), nets[1](x))


@pytest.mark.parametrize(("source", "target"), [((1, 8, 8), (4, 8, 8)), ((1, 8, 8), (6, 2, 2)), ((4, 7, 7), (8, 4, 4))])
@pytest.mark.parametrize("units", [0, 1, 2])
def test_interface_map_sees_every_pixel_and_signs_only_corrections(source, target, units):
    x = torch.randn(3, *source, requires_grad=True)
    for signed in (False, True):
        y = models.InterfaceMap(source, target, units=units, signed=signed)(x)
        assert y.shape == (3, *target)
        assert bool((y < 0).any()) == signed
        (gradient,) = torch.autograd.grad((y * torch.randn_like(y)).sum(), x)
        assert bool((gradient.abs().sum((0, 1)) > 0).all())
