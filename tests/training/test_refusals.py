# SPDX-License-Identifier: BSD-3-Clause
"""What cannot be solved in parallel is refused by name before any step; what does not fit is estimated first."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from networks import examples, mlp  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from pyparareal.training import SGD, Rules, TrainingRuns  # noqa: E402


def make(net, **options):
    options = {"steps": 8, "lr": 0.1, **options}
    return TrainingRuns(net.double(), nn.MSELoss(), options.pop("data", examples()), **options)


class Forward(nn.Module):
    """A layer, then a function of what it gives."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(3, 2), function
        self.register_buffer("seen", torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        return self.function(self, self.layer(x))


def counted(self, z):
    self.seen += 1
    return z


def drifting(self, z):
    """By little: the calls are counted where no buffer shows it."""
    self.calls = getattr(self, "calls", 0) + 1
    return z * 0.99999**self.calls


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)), r"1 \(Dropout\) draws a new mask .* set p=0"),
        (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), r"1 \(BatchNorm1d\) keeps running statistics"),
        (nn.Sequential(nn.Linear(3, 2), nn.RReLU()), r"1 \(RReLU\) draws random numbers"),
        (nn.TransformerEncoderLayer(4, 2), r"self_attn \(MultiheadAttention\) has dropout=0.1|Dropout"),
        (Forward(lambda self, z: z * torch.rand_like(z)), "Forward draws random numbers in its forward pass"),
        (Forward(counted), "seen|cannot be taken for several slices"),
        (Forward(lambda self, z: z * float("nan")), "its gradient at the initial weights is not finite"),
        (Forward(lambda self, z: z if z.sum() > 0 else -z), "cannot be taken for several slices at once"),
        (nn.Linear(4, 2), r"float64 inputs \[16, 3\] and float64 targets \[16, 2\] cannot"),
        (Forward(drifting), "gives another gradient when asked twice"),
        (Forward(lambda self, z: z.detach()), "loss: got one that depends on no parameter"),
        (nn.Sequential(nn.LazyLinear(2)), r"module: 0\.weight has no shape yet; call the module once"),
        (nn.Linear(3, 2, device="meta"), "module: got parameters on meta, expected them on a CPU or a CUDA"),
        (nn.Linear(3, 2).requires_grad_(False), "without a parameter that requires grad"),
    ],
)
def test_steps_that_do_not_repeat_are_refused(net, said):
    with pytest.raises(ValueError, match=said):
        make(net)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.0)),
        nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5).eval()),
        nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2).eval()),
        nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)),
        nn.Sequential(nn.Linear(3, 2), nn.GroupNorm(1, 2)),
    ],
)
def test_their_harmless_forms_are_not(net):
    runs = make(net)
    assert runs.run().status.ok


def test_kinds_of_parameters():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2).double())
    with pytest.raises(ValueError, match="module: got parameters of float32 on cpu, float64 on cpu"):
        TrainingRuns(net, nn.MSELoss(), examples(), steps=4, lr=0.1)
    with pytest.raises(ValueError, match="module: got bfloat16 parameters"):
        TrainingRuns(net.bfloat16(), nn.MSELoss(), examples(), steps=4, lr=0.1)
    with pytest.raises(TypeError, match="module: got function"):
        TrainingRuns(examples, nn.MSELoss(), examples(), steps=4, lr=0.1)
    with pytest.raises(TypeError, match="loss: got str"):
        TrainingRuns(mlp(), "mse", examples(), steps=4, lr=0.1)


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"steps": 0}, ValueError, "steps: got 0, expected at least 1"),
        ({"m": 1}, ValueError, "m: got 1"),
        ({"m": 2.0}, TypeError, "m: got 2.0, expected an integer"),
        ({"cycle": "X"}, ValueError, "cycle: got 'X'"),
        ({"guess": "ones"}, ValueError, "guess: got 'ones', expected one of zeros, constant, coarse"),
        ({"on_failure": "ignore"}, ValueError, "on_failure"),
        ({"tol": -1.0}, ValueError, "tol"),
        ({"divergence": 1.0}, ValueError, "divergence"),
        ({"divergence": None}, TypeError, "divergence: got None, expected a number above 1"),
        ({"alpha_max": "8"}, TypeError, "alpha_max: got '8', expected a number"),
        ({"levels": 0}, ValueError, "levels"),
        ({"deterministic": "no"}, TypeError, "deterministic: got 'no', expected True or False"),
        ({"stagnation": 0}, ValueError, "stagnation"),
        ({"window": 5}, ValueError, "window: got 5, expected a multiple of m = 2"),
        ({"window": 0}, ValueError, "window: got 0"),
        ({"memory": 0}, ValueError, "memory: got 0"),
        ({"fused": 1.5}, TypeError, "fused: got 1.5"),
    ],
)
def test_wrong_options_are_refused(wrong, error, said):
    with pytest.raises(error, match=said):
        make(mlp(), **wrong)


def test_numbers_of_numpy_are_numbers():
    given = {"steps": np.int64(20), "tol": np.float32(1e-6), "alpha_max": np.float64(8), "divergence": np.float32(1e6)}
    plain = {name: value.item() for name, value in given.items()}
    runs, other = make(mlp(), window=np.int32(8), **given), make(mlp(), window=8, **plain)
    assert json.dumps(runs.identity()) == json.dumps(other.identity())
    assert runs.run().steps == 20


class Half(nn.Module):
    """Of its two layers one is not used."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.used(x)


def test_weight_decay_of_what_the_loss_does_not_see():
    """torch's optimisers pass over parameters without a gradient; a gradient of zero would be another thing."""
    with pytest.raises(
        ValueError, match=r"module: the loss does not depend on idle\.weight, which torch's weight decay"
    ):
        make(Half(), optimiser=SGD(weight_decay=0.1))
    net, other = Half(), Half().double()
    assert make(net).run().status.ok
    assert torch.equal(net.idle.weight, other.idle.weight)
    net.idle.requires_grad_(False)
    assert make(net, optimiser=SGD(weight_decay=0.1)).run().status.ok


def test_a_module_that_has_changed_since_is_refused():
    for change, said in [
        (lambda net: net.train(), r"2 \(Dropout\) draws a new mask"),
        (lambda net: net.__setitem__(0, nn.Linear(3, 7).double()), "have other names, shapes, dtypes or devices than"),
        (lambda net: net.float(), "make a new one"),
        (lambda net: net[0].bias.requires_grad_(False), "make a new one"),
    ]:
        net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Dropout(0.5)).eval()
        runs = make(net)
        change(net)
        for train in (runs.run, runs.serial):
            with pytest.raises(ValueError, match=said):
                train()


def test_where_torch_records_nothing():
    a = make(mlp()).run().weights
    with torch.inference_mode():
        b = make(mlp()).run().weights
    with torch.no_grad():
        c = make(mlp()).run().weights
    assert all(torch.equal(a[name], b[name]) and torch.equal(a[name], c[name]) for name in a)


# Memory


def test_what_memory_holds_decides_on_windows():
    """State of 32 doubles; a window of n steps is estimated at 10 states per slice of two steps."""
    runs = make(mlp(), steps=200, memory=50_000)
    assert runs.window < 200
    assert runs.window % 2 == 0
    state = 32 * 8
    assert 0.9 * 37_500 < 10 * state * (runs.window // 2 + 1) <= 37_500
    result = runs.run()
    assert result.status.ok
    assert len(result.windows) == -(-200 // runs.window)
    assert make(mlp(), steps=200, memory=10_000_000).window == 200


def test_gradients_are_taken_in_parts_where_memory_is_short():
    """16 examples of 5 activations and a few more are kept per slice: thousands of bytes, so not 100 slices at once."""
    runs, free = make(mlp(), steps=200, memory=400_000), make(mlp(), steps=200, memory=1_000_000_000)
    assert runs.window == 200
    assert 1 <= runs.slices_per_call < 100
    assert free.slices_per_call is None
    a, b = runs.run(), free.run()
    assert a.steps_per_call == runs.slices_per_call
    assert max(float((a.weights[name] - b.weights[name]).abs().max()) for name in a.weights) < 1e-7


class Chosen(TorchDispatchMode):
    """Bytes of the largest choice of examples."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.index.Tensor:
            self.most = max(self.most, out.nbytes)
        return out


def fifty(level, points, stride):
    return (points[:, None] + range(50)) % 60


@pytest.mark.parametrize("data", ["serial", "averaged", fifty])
def test_the_batches_of_all_slices_are_within_the_memory_too(data):
    """50 examples of 400 doubles are 160 kB per batch, for 300 slices 48 MB; the states of all steps 14 MB."""
    wide = (torch.randn(60, 400).double(), torch.randn(60, 1).double())
    runs = TrainingRuns(
        nn.Linear(400, 1).double(), nn.MSELoss(), wide, steps=600, lr=1e-4, rules=Rules(data=data, batch=50),
        memory=20_000_000, levels=None, max_iterations=1, on_failure="return",
    )  # fmt: skip
    assert runs.window == 600
    with Chosen() as chosen:
        runs.run()
    assert 160_000 <= chosen.most <= 20_000_000 // 4


def test_too_little_memory_for_anything_is_said_beforehand():
    with pytest.raises(MemoryError, match=r"memory: got 0.001 MB, expected at least .* for two slices of 2 steps"):
        make(mlp(), memory=1000)
    with pytest.raises(MemoryError, match=r"window: got 900 steps, but 0.1 MB hold windows of"):
        make(mlp(), steps=1000, memory=100_000, window=900)
