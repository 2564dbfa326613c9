# SPDX-License-Identifier: BSD-3-Clause
"""Networks that look like those of the kernel and are not: trained by torch, to torch's weights, and said."""

import copy
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from networks import examples, largest, mlp  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal.training import HalfSquaredError, TrainingRuns  # noqa: E402

STEPS = 20


def make(net, data=None, **options):
    return TrainingRuns(net, HalfSquaredError(), data or examples(), steps=STEPS, lr=0.01, **options)


def by_hand(net):
    (x, y), optimiser = examples(), torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(STEPS):
        optimiser.zero_grad()
        HalfSquaredError()(net(x), y).backward()
        optimiser.step()
    return {name: p.detach() for name, p in net.named_parameters()}


def assert_trained_by_torch(change, said):
    net, other = mlp(), mlp()
    change(net)
    change(other)
    runs = make(net)
    assert said in runs.why_not_fused
    ours = runs.serial()
    assert ours.path == "torch"
    # 20 steps of weights of order 1, which round a few times each.
    assert largest(dict(ours.weights), by_hand(other)) < 1e-13
    with pytest.raises(ValueError, match="fused: got True, but"):
        make(net, fused=True)


def reordered(net):
    for layer in (net[0], net[2]):
        weight = layer.weight
        del layer.weight
        layer.weight = nn.Parameter(weight.detach())


def forward_hook(net):
    net[0].register_forward_hook(lambda layer, inputs, output: 3 * output)


def pre_hook_of_the_module(net):
    net.register_forward_pre_hook(lambda layer, inputs: (2 * inputs[0],))


def hook_of_an_activation(net):
    net[1].register_forward_hook(lambda layer, inputs, output: output + 1)


def own_forward(net):
    net[0].forward = lambda x: nn.functional.linear(x, net[0].weight) * 2


def one_more_parameter(net):
    net.register_parameter("scale", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    net.register_forward_hook(lambda layer, inputs, output: output * net.scale)


def spectral(net):
    torch.manual_seed(0)
    nn.utils.spectral_norm(net[0])
    net.eval()


def parametrised(net):
    torch.manual_seed(0)
    nn.utils.parametrizations.spectral_norm(net[0])
    net.eval()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (reordered, "parameter 0 is 0.bias [5], where the kernel has 0.weight [5, 3]"),
        (forward_hook, "layer 0 (Linear) has hooks"),
        (pre_hook_of_the_module, "the module (Sequential) has hooks"),
        (hook_of_an_activation, "layer 1 (Tanh) has hooks"),
        (own_forward, "layer 0 (Linear) has a forward of its own"),
        (one_more_parameter, "the module (Sequential) has hooks"),
        (spectral, "layer 0 (Linear) has hooks"),
        (parametrised, "not Linear layers with one activation"),
    ],
)
def test_changed_layers_are_trained_as_torch_trains_them(change, said):
    assert_trained_by_torch(change, said)


def test_parameters_of_no_layer_are_not_the_kernels():
    net = mlp()
    net.register_parameter("scale", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    assert "parameter 0 is scale [2], where the kernel has 0.weight [5, 3]" in make(net).why_not_fused
    net = mlp()
    net[2].register_parameter("scale", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    assert "parameter 4 is 2.scale [2], where the kernel has no more" in make(net).why_not_fused


@pytest.mark.parametrize("hook", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_hooks_of_the_backward_pass_are_never_passed_over(hook):
    """torch cannot take several gradients through one, and says so: no step is taken without it."""
    net = mlp()
    getattr(net[0], hook)(lambda layer, *gradients: None)
    with pytest.raises(ValueError, match="cannot be taken for several slices at once"):
        make(net)


def test_a_hook_of_the_loss_is_not_passed_over():
    loss = HalfSquaredError()
    loss.register_forward_hook(lambda layer, inputs, output: 2 * output)
    runs = TrainingRuns(mlp(), loss, examples(), steps=STEPS, lr=0.01)
    assert "the loss (HalfSquaredError) has hooks" in runs.why_not_fused


def test_what_no_name_tells_one_step_does():
    """A hook of all modules, and a class with another forward: a step of the kernel is compared with one of torch's."""
    hook = nn.modules.module.register_module_forward_hook(
        lambda layer, inputs, output: output + 0.1 if isinstance(layer, nn.Tanh) else None
    )
    try:
        runs = make(mlp())
    finally:
        hook.remove()
    assert "differs from torch's by" in runs.why_not_fused
    assert make(mlp()).why_not_fused == ""


def test_another_forward_of_a_class_is_found(monkeypatch):
    monkeypatch.setattr(nn.Tanh, "forward", lambda self, x: torch.tanh(x) * (1 + 1e-6))
    runs = make(mlp())
    assert "differs from torch's by" in runs.why_not_fused
    with pytest.raises(ValueError, match=r"fused: got True, but the gradient of .* differs"):
        make(mlp(), fused=True)


def test_what_cannot_be_compared_is_not_fused(monkeypatch):
    def narrow(self, x):
        if x.dtype == torch.float64:
            raise TypeError("float32 only")
        return torch.tanh(x)

    monkeypatch.setattr(nn.Tanh, "forward", narrow)
    runs = make(mlp(dtype=torch.float32), examples(dtype=torch.float32))
    assert runs.why_not_fused == "a step of it cannot be compared with torch's: float32 only"
    assert runs.serial().path == "torch"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_no_difference(dtype):
    """Nets of one to eight layers and 1 to 64 neurons, weights that saturate them, data that they fit exactly."""
    generator = torch.Generator().manual_seed(7)
    for trial in range(24):
        sizes = torch.randint(1, 65, (2 + trial % 8,), generator=generator).tolist()
        kind = (nn.Sigmoid, nn.Tanh, nn.ReLU, nn.Identity)[trial % 4]
        torch.manual_seed(trial)
        layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), kind())]
        net = nn.Sequential(*layers[: len(layers) - trial // 4 % 2]).to(dtype)
        x = torch.randn(5, sizes[0], generator=generator).to(dtype)
        with torch.no_grad():
            if trial % 3 == 1 and kind is not nn.Identity:
                net[0].weight.mul_(30)
            y = net(x).clone() if trial % 3 == 2 else torch.randn(5, sizes[-1], generator=generator).to(dtype)
        assert make(net, (x, y)).why_not_fused == ""


def test_networks_larger_than_the_kernels_are_trained_by_torch():
    def deep(layers):
        torch.manual_seed(0)
        return nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(3, 3), nn.Tanh()))).double()

    x, _ = examples()
    assert make(deep(8), (x, x)).run().path == "fused"
    runs = make(deep(9), (x, x))
    assert runs.why_not_fused == "the module has 9 layers, and the kernel takes at most 8"
    assert runs.run().path == "torch"
    wide = (1 << 20) + 1
    runs = make(nn.Linear(wide, 1, bias=False), (torch.zeros(1, wide), torch.zeros(1, 1)))
    assert "Linear, not Sequential" in runs.why_not_fused
    runs = make(nn.Sequential(nn.Linear(wide, 1, bias=False)), (torch.zeros(1, wide), torch.zeros(1, 1)))
    assert f"a layer has {wide} neurons, and the kernel takes at most {1 << 20}" in runs.why_not_fused
    assert runs.serial().path == "torch"


def test_autocast_is_not_the_kernels():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        runs = make(mlp(dtype=torch.float32), examples(dtype=torch.float32))
    assert runs.why_not_fused == "autocast is on, which the kernel does not know"


def test_targets_that_torch_repeats_are_torchs():
    x, y = examples()
    net = mlp()
    runs = make(copy.deepcopy(net), (x, y[:, :1]))
    assert runs.why_not_fused == "the targets have 1 features, the last layer 2"
    whole = make(net, (x, y[:, :1].repeat(1, 2)), fused=False)
    assert largest(dict(runs.serial().weights), dict(whole.serial().weights)) < 1e-13


@pytest.mark.parametrize("hook", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_of_parameters_are_refused(hook):
    """They act on the gradients of loss.backward(), which is not called: training with them is another one."""
    net = mlp()
    getattr(net[2].weight, hook)(lambda gradient: None)
    with pytest.raises(ValueError, match=r"module: 2.weight has a hook .* expected parameters without"):
        make(net)
