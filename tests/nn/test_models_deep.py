# SPDX-License-Identifier: BSD-3-Clause
"""VGG-16 and pre-activation residual networks: sizes by formula, the formula of a unit, training up to ResNet-1001."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal.nn import build_parareal, models, partition  # noqa: E402
from pyparareal.nn.models.preact_resnet import PreActBottleneck  # noqa: E402


def size(name, **options):
    with torch.device("meta"):
        return sum(p.numel() for p in models.build(name, **options).parameters())


def preact_size(n, channels, classes, width):
    """He et al. 2016: units of 1x1, 3x3, 1x1 without bias, a norm before each; 1x1 shortcut of each stage's first."""

    def unit(source, b):
        norms = 2 * source + 2 * b + 2 * b
        return norms + source * b + 9 * b * b + 4 * b * b + (source * 4 * b if source != 4 * b else 0)

    total, source = 9 * channels * width, width
    for b in (width, 2 * width, 4 * width):
        total += unit(source, b) + (n - 1) * unit(4 * b, b)
        source = 4 * b
    return total + 2 * source + source * classes + classes


@pytest.mark.parametrize(
    ("name", "n"), [("preact_resnet11", 1), ("preact_resnet20", 2), ("resnet164", 18), ("resnet1001", 111)]
)
@pytest.mark.parametrize(("channels", "classes", "width"), [(3, 10, 16), (1, 100, 4)])
def test_preact_parameter_count(name, n, channels, classes, width):
    assert size(name, channels=channels, classes=classes, width=width) == preact_size(n, channels, classes, width)


def test_published_sizes():
    assert preact_size(18, 3, 10, 16) == 1_703_258  # "1.7M", He et al. 2016, table 4
    assert preact_size(111, 3, 10, 16) == 10_327_706  # "10.2M" there, which leaves out the shortcuts' and norms' 0.1M
    assert size("vgg16_imagenet", channels=3, classes=1000) == 138_357_544  # torchvision's documentation
    assert size("vgg16_bn_imagenet", channels=3, classes=1000) == 138_365_992


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("channels", "classes", "width"), [(3, 10, 64), (1, 7, 16)])
def test_vgg_parameter_count(norm, channels, classes, width):
    widths = [width * k for k in (1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8)]
    features = sum((9 * a + 1 + 2 * norm) * b for a, b in zip([channels, *widths], widths, strict=False))
    last = 8 * width
    name = "vgg16_bn" if norm else "vgg16"
    assert size(name, channels=channels, classes=classes, width=width) == features + (last + 1) * classes
    hidden = 64 * width
    head = (49 * last + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * classes
    assert size(f"{name}_imagenet", channels=channels, classes=classes, width=width) == features + head


def test_parameters_have_the_usual_names():
    with torch.device("meta"):
        plain, norm, cifar, deep = (
            set(models.build(name, channels=3, classes=10).state_dict())
            for name in ("vgg16_imagenet", "vgg16_bn_imagenet", "vgg16", "resnet164")
        )
    convolutions = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    both = ("weight", "bias")
    assert plain == {f"features.{i}.{w}" for i in convolutions for w in both} | {
        f"classifier.{i}.{w}" for i in (0, 3, 6) for w in both
    }
    assert {"features.40.weight", "features.41.running_var", "classifier.6.bias"} <= norm
    assert {"features.28.bias", "classifier.0.weight"} <= cifar
    assert {"conv1.weight", "layer1.0.downsample.weight", "layer3.17.bn3.running_mean", "bn.bias", "fc.weight"} <= deep


@pytest.mark.parametrize("norm", [False, True])
def test_vgg_is_the_published_chain(norm):
    """Conv, (norm,) ReLU, thirteen times; pooling after the 2nd, 4th, 7th, 10th and 13th."""
    net = models.build("vgg16_bn" if norm else "vgg16", channels=2, classes=3, width=4).eval()
    x = u = torch.randn(2, 2, 40, 32)
    layers = iter(net.features)
    for i in range(1, 14):
        conv = next(layers)
        u = F.conv2d(u, conv.weight, conv.bias, padding=1)
        if norm:
            u = next(layers)(u)
        assert isinstance(next(layers), nn.ReLU)
        u = F.relu(u)
        if i in (2, 4, 7, 10, 13):
            next(layers)
            u = F.max_pool2d(u, 2)
    assert next(layers, None) is None
    assert torch.equal(net(x), net.classifier(u.mean((2, 3))))


@pytest.mark.parametrize(("source", "width", "stride"), [(8, 2, 1), (6, 2, 1), (6, 2, 2)])
def test_preact_unit_is_its_formula(source, width, stride):
    unit = PreActBottleneck(source, width, stride).double()
    x = torch.randn(3, source, 5, 5, dtype=torch.float64)

    def a(u):
        mean, var = u.mean((0, 2, 3), keepdim=True), u.var((0, 2, 3), unbiased=False, keepdim=True)
        return ((u - mean) / (var + 1e-5).sqrt()).clamp(min=0)

    s = stride
    first = torch.einsum("oi,bihw->bohw", unit.conv1.weight[:, :, 0, 0], a(x))[:, :, ::s, ::s]
    last = torch.einsum(
        "oi,bihw->bohw", unit.conv3.weight[:, :, 0, 0], a(F.conv2d(a(first), unit.conv2.weight, padding=1))
    )
    shortcut = x
    if source != 4 * width:
        shortcut = torch.einsum("oi,bihw->bohw", unit.downsample.weight[:, :, 0, 0], a(x))[:, :, ::s, ::s]
    else:
        assert unit.downsample is None
    # Sums of at most 9 * 2 products of normalised values, three times: 1e-12 is a thousand roundings.
    assert torch.allclose(unit(x), shortcut + last, rtol=0, atol=1e-12)


SPLITTABLE = [("vgg16", 32, 12), ("vgg16_bn", 32, 12), ("vgg16_imagenet", 32, 12), ("preact_resnet29", 9, 9)]


@pytest.mark.parametrize(("name", "pixels", "blocks"), SPLITTABLE)
def test_split_network_is_the_network(name, pixels, blocks):
    net = models.build(name, channels=1, classes=3, width=4).eval()
    stem, body, head = net.split()
    assert len(body) == blocks
    x = torch.randn(2, 1, pixels, pixels)
    assert torch.equal(nn.Sequential(stem, *body, head)(x), net(x))
    for units in (1, None):
        parareal = models.build_parareal(net, (1, pixels, pixels), 3, coarse_units=units, preprocess_units=units).eval()
        assert parareal(x).shape == (2, 3)
        assert torch.equal(parareal.serial()(x), net(x))


def test_blocks_of_vgg_are_named_by_their_layers():
    net = models.build("vgg16", channels=3, classes=10, width=4)
    spec = {"features.10": "BEGINNING", "features.23": "END"}
    cut = partition(net, example=torch.empty(2, 3, 32, 32), split_spec=spec)
    assert cut.names[:2] == ("features.2..features.4", "features.5..features.6")
    assert cut.sizes == (3, 6, 3)
    assert [shape[2] for shape in cut.interfaces] == [32, 8, 2, 1]


def train(net, x, steps, lr):
    """Losses of a few steps on one batch."""
    y = torch.arange(len(x)) % 3
    optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("name", "width", "pixels", "lr"), [("vgg16_bn", 16, 32, 0.02), ("resnet110", 4, 8, 0.05)])
@pytest.mark.parametrize("parts", [2, 4])
def test_deep_networks_learn_a_batch(name, width, pixels, lr, parts):
    torch.manual_seed(0)
    net = build_parareal(
        models.build(name, channels=1, classes=3, width=width), parts, example=torch.empty(2, 1, pixels, pixels)
    )
    losses = train(net, torch.randn(6, 1, pixels, pixels), 8, lr)
    assert losses[-1] < 0.5 * losses[0]


@pytest.fixture(scope="module")
def resnet1001():
    torch.manual_seed(0)
    return models.build("resnet1001", channels=3, classes=10)


@pytest.mark.parametrize("parts", [3, 6, 9, 18])
def test_resnet1001_splits_and_takes_a_step(resnet1001, parts):
    x = torch.randn(2, 3, 8, 8)
    cut = partition(resnet1001, parts, example=x)
    assert len(cut.names) == 333
    # At 8x8 pixels the dearest unit costs a quarter more than the mean one: no part can be off by more than one unit.
    assert max(cut.part_flops) <= sum(cut.part_flops) / parts + max(cut.flops)
    net = build_parareal(cut)
    before = [p.detach().clone() for p in net.fine.parameters()]
    (loss,) = train(net, x, 1, 1e-3)
    assert 0 < loss < float("inf")
    assert not all(torch.equal(p, old) for p, old in zip(net.fine.parameters(), before, strict=False))
    assert all(p.isfinite().all() for p in net.parameters())
    # The correction reaches the first part, and with it the gradient (1e-7 of the last part's without the shortcuts).
    first, last = (sum(float(p.grad.square().sum()) for p in net.fine[j].parameters()) ** 0.5 for j in (0, -1))
    assert first > 1e-3 * last
    assert all(cost.relative <= 0.1 for cost in map_costs(net))


def map_costs(net):
    from pyparareal.nn.automatic import MapCost

    return [MapCost(**cost) for cost in net.construction["maps"]]


WRONG = [
    (
        lambda: models.build("resnet65", channels=1, classes=3),
        "model: got 'resnet65', expected one of .*resnet1001.*vgg16",
    ),
    (lambda: models.build("vgg16", channels=1, classes=3, width=0), "width: got 0, expected a positive int"),
    (lambda: models.VGG(head="mnist"), "head: got 'mnist', expected one of 'cifar', 'imagenet'"),
    (lambda: models.PreActResNet(True), "n: got True, expected a positive int"),
    (lambda: PreActBottleneck(8, 2, 2), "stride: got 2 for 8 channels in and out, expected 1"),
    (
        lambda: models.build_parareal(models.build("vgg16", channels=1, classes=3, width=1), (1, 8, 8), 2),
        r"image_shape: got \(1, 8, 8\), expected at least 32x32 pixels for VGG",
    ),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_wrong_model(make, message):
    with pytest.raises(ValueError, match=message):
        make()
