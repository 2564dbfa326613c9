# SPDX-License-Identifier: BSD-3-Clause
"""Batched execution: every layer fused as each would be run alone, which parts are congruent, what is refused."""

import copy
import re

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from execution_nets import build, require_close, step  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal.nn import PararealNetwork  # noqa: E402
from pyparareal.nn.execution import fused  # noqa: E402
from pyparareal.nn.execution.congruence import congruent_groups, first_difference  # noqa: E402
from pyparareal.nn.models.preact_resnet import PreActBottleneck  # noqa: E402
from pyparareal.nn.residual_unit import ResidualUnit  # noqa: E402

IMAGE, ROW, SEQUENCE = (3, 4, 6, 6), (3, 4), (3, 4, 6)


@pytest.fixture(autouse=True)
def _double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    yield
    torch.set_default_dtype(before)


class Unknown(nn.Module):
    """A module no rule knows, with a statistic that it changes in place."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += x.mean()
        return self.norm(x * self.scale).sin() + x


LAYERS = [
    (lambda: nn.Conv2d(4, 5, 3, padding=1), IMAGE),
    (lambda: nn.Conv2d(4, 8, 3, 2, bias=False), IMAGE),
    (lambda: nn.Conv2d(4, 8, 3, groups=2, dilation=2, padding="same"), IMAGE),
    (lambda: nn.Conv2d(4, 5, 3, padding=(1, 2), padding_mode="circular"), IMAGE),
    (lambda: nn.Conv1d(4, 5, 3, padding=1), SEQUENCE),
    (lambda: nn.Conv3d(4, 2, 2), (2, 4, 3, 3, 3)),
    (lambda: nn.BatchNorm2d(4), IMAGE),
    (lambda: nn.BatchNorm2d(4, affine=False, momentum=0.3), IMAGE),
    (lambda: nn.BatchNorm2d(4, track_running_stats=False), IMAGE),
    (lambda: nn.BatchNorm1d(4), ROW),
    (lambda: nn.BatchNorm1d(4), SEQUENCE),
    (lambda: nn.GroupNorm(2, 4), IMAGE),
    (lambda: nn.LayerNorm(4), ROW),
    (lambda: nn.LayerNorm([6, 6], bias=False), IMAGE),
    (lambda: nn.LayerNorm(6, elementwise_affine=False), IMAGE),
    (lambda: nn.Linear(4, 5), ROW),
    (lambda: nn.Linear(6, 5, bias=False), IMAGE),
    (lambda: nn.Linear(6, 5), SEQUENCE),
    (lambda: nn.ReLU(inplace=True), IMAGE),
    (lambda: nn.GELU(), ROW),
    (lambda: nn.Identity(), ROW),
    (lambda: nn.MaxPool2d(2), IMAGE),
    (lambda: nn.AvgPool2d(3, 1, 1), IMAGE),
    (lambda: nn.AdaptiveAvgPool2d(1), IMAGE),
    (lambda: nn.AdaptiveMaxPool1d(2), SEQUENCE),
    (lambda: nn.ZeroPad2d(1), IMAGE),
    (lambda: nn.Flatten(), IMAGE),
    (lambda: nn.Flatten(0, 1), IMAGE),
    (lambda: nn.Flatten(-2), IMAGE),
    (lambda: nn.Sequential(nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)), IMAGE),
    (lambda: nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (3, 2)), nn.Conv1d(3, 2, 1)), ROW),
    (lambda: ResidualUnit(4, 4), IMAGE),
    (lambda: ResidualUnit(4, 7, 2, final_activation=False), IMAGE),
    (lambda: PreActBottleneck(4, 1), IMAGE),
    (lambda: PreActBottleneck(4, 2, 2), IMAGE),
    (lambda: nn.ConvTranspose2d(4, 3, 2), IMAGE),  # no rule: vmap
    (lambda: nn.PReLU(4), IMAGE),
    (lambda: nn.InstanceNorm2d(4, affine=True), IMAGE),
    (Unknown, ROW),
]


def members_of(make, count=3):
    found = [make() for _ in range(count)]
    for m in found:
        for t in (*m.parameters(), *(b for b in m.buffers() if b.is_floating_point())):
            t.data.add_(torch.rand_like(t))
    return found


def outcome(members, inputs, run):
    """Values, gradients and buffers."""
    outputs = run(members, inputs)
    sources = [*{id(u): u for u in inputs}.values(), *(p for m in members for p in m.parameters())]
    weights = [torch.linspace(-1, 1, y.numel()).view_as(y) for y in outputs]
    gradients = torch.autograd.grad(sum((y * w).sum() for y, w in zip(outputs, weights, strict=True)), sources)
    tensors = [*outputs, *gradients, *(b.double() for m in members for b in m.buffers())]
    return dict(enumerate(tensors))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", ["own", "shared", "stacked"])
@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_fused_layers_are_the_layers_one_by_one(make, shape, layout, training):
    members = [m.train(training) for m in members_of(make)]
    twins = copy.deepcopy(members)
    if layout == "shared":
        inputs = [torch.randn(shape, requires_grad=True)] * 3
    else:
        inputs = [torch.randn(shape, requires_grad=True) for _ in range(3)]

    def together(members, inputs):
        if layout == "stacked":
            start = fused.Fused(torch.stack(inputs), "stacked", 3)
            return fused.call(members, start).states()
        return fused.run_fused(members, inputs)

    def one_by_one(members, inputs):
        return [m(u.clone()) for m, u in zip(members, inputs, strict=True)]  # a clone, for layers that work in place

    before = [u.detach().clone() for u in inputs]
    assert first_difference(members[0], members[1]) is None
    require_close(outcome(members, inputs, together), outcome(twins, inputs, one_by_one))
    assert all(torch.equal(u, v) for u, v in zip(inputs, before, strict=True))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Dropout(0.25), ROW), (nn.Dropout(0.25, inplace=True), IMAGE), (nn.Dropout2d(0.25), IMAGE)]
)
def test_dropout_draws_for_every_part_from_the_same_distribution(layer, shape, shared):
    shape = (4000, *shape[1:])
    x = torch.ones(shape)
    inputs = [x] * 3 if shared else [torch.ones(shape) for _ in range(3)]
    outputs = fused.run_fused([copy.deepcopy(layer) for _ in range(3)], inputs)
    assert float(x.min()) == 1
    for y in outputs:
        assert set(y.unique().tolist()) == {0.0, 1 / 0.75}
        units = y.flatten(2)[:, :, 0] if y.ndim == 4 and isinstance(layer, nn.Dropout2d) else y
        assert isinstance(layer, nn.Dropout) or bool((y == units[:, :, None, None]).all())
        # 16,000 independent draws at least: the rate is within five standard deviations, 5 sqrt(3/16/16000) = 0.017.
        assert abs(float((units == 0).double().mean()) - 0.25) < 0.017
    a, b = ((y == 0).double().flatten() for y in outputs[:2])
    rows = len(a) if isinstance(layer, nn.Dropout) else len(a) // 36
    assert abs(float(((a - 0.25) * (b - 0.25)).mean()) / (0.25 * 0.75)) < 5 / rows**0.5  # uncorrelated between parts


class UnknownDropout(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5)


def test_unknown_modules_draw_for_every_part():
    a, b = fused.run_fused([UnknownDropout(), UnknownDropout()], [torch.ones(1000), torch.ones(1000)])
    # Equal masks would agree in all places, independent ones in half: 500, five standard deviations are 79.
    assert abs(int((a == b).sum()) - 500) < 79


def test_congruent_parts_run_as_one_and_the_others_by_themselves(monkeypatch):
    from pyparareal.nn.execution import batched

    ran = []
    run_fused = batched.run_fused
    monkeypatch.setattr(batched, "run_fused", lambda members, inputs: ran.append(members) or run_fused(members, inputs))
    net, x = build("mixed", execution="batched")
    net(x)
    assert ran[-2:] == [[net.fine[0], net.fine[2]], [net.fine[1], net.fine[3]]]
    assert ran[0] == [net.preprocess[1], net.preprocess[3]]
    calls = []
    net.fine[0].register_forward_hook(lambda *_: calls.append("hook"))
    del ran[:]
    net(x)
    assert calls == ["hook"]  # a part with hooks runs by itself, so that they are called
    assert ran[-1] == [net.fine[1], net.fine[3]]
    net.fine[3].eval()
    with pytest.raises(ValueError, match="no two have equal structure"):
        net(x)


def test_groups_need_equal_inputs():
    pools = [nn.AdaptiveAvgPool2d(1) for _ in range(3)]
    inputs = [torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 5, 5), torch.zeros(2, 3, 4, 4)]
    assert congruent_groups(pools, inputs) == [[0, 2], [1]]


class Flagged(nn.Module):
    def __init__(self, **values):
        super().__init__()
        vars(self).update(values)

    def forward(self, x):
        return x


class Other(Flagged):
    pass


def hooked():
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    return layer


same = torch.nn.BatchNorm1d(3)
DIFFERENCES = [
    (nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3, stride=2), r"^stride \(1, 1\) against \(2, 2\)"),
    (nn.Linear(2, 3), nn.Linear(2, 4), "^out_features 3 against 4"),
    (nn.Linear(2, 3), nn.Linear(2, 3, bias=False), "^bias is missing in one"),
    (nn.Linear(2, 3), nn.Linear(2, 3).double(), "^weight of dtype torch.float32 against torch.float64"),
    (nn.Linear(2, 3), nn.Linear(2, 3, device="meta"), "^weight of device cpu against meta"),
    (nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU(), nn.ReLU()), "^1 modules against 2"),
    (nn.Sequential(nn.Sequential(nn.ReLU())), nn.Sequential(nn.Sequential(nn.ELU())), "^0.0: ReLU against ELU"),
    (nn.BatchNorm1d(3), nn.BatchNorm1d(3).eval(), "^training True against False"),
    (nn.ParameterList([torch.ones(2)]), nn.ParameterList([torch.ones(3)]), r"shape \(2,\) against \(3,\)"),
    (Flagged(a=1), Flagged(a=2), "^a 1 against 2"),
    (Flagged(a=1), Flagged(), "^a is set in one"),
    (Flagged(a=torch.ones(2)), Flagged(a=torch.zeros(2)), "^a tensor"),
    (Flagged(a=lambda x: x), Flagged(a=lambda x: x), "^a <function"),
    (Flagged(), Other(), "^Flagged against Other"),
    (hooked(), nn.Linear(2, 2), "has hooks"),
    (same, same, "^share the buffer running_mean"),
]


@pytest.mark.parametrize(("a", "b", "message"), DIFFERENCES)
def test_the_first_difference_is_named(a, b, message):
    found = first_difference(a, b)
    assert found is not None
    assert re.search(message, found), found


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Flagged(a=torch.ones(2), b=(1, "x")), Flagged(a=torch.ones(2), b=(1, "x"))),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))),
    ],
)
def test_values_of_parameters_and_statistics_make_no_difference(a, b):
    assert first_difference(a, b) is None


def test_parts_without_a_congruent_one_are_refused_before_anything_runs():
    parts = [nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4, bias=False))]
    arguments = {"preprocess": [nn.Linear(4, 4), nn.Linear(4, 4)], "coarse": [nn.Linear(4, 4)]}
    message = r"execution: got 'batched' for 2 parts .* fine\[0\] and fine\[1\] differ first in 0.0: bias is missing"
    with pytest.raises(ValueError, match=message):
        PararealNetwork(parts, execution="batched", **arguments)
    net = PararealNetwork(parts, **arguments)
    with pytest.raises(ValueError, match=message):
        net.execution = "batched"
    assert net.execution == "serial"


def unknown_parts(kind):
    parts = [kind(), kind()]
    return PararealNetwork(
        parts, preprocess=[nn.Linear(4, 4), nn.Linear(4, 4)], coarse=[nn.Linear(4, 4)], execution="batched"
    )


class Decides(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Assigns(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen = self.seen + x.mean().detach()
        return x * 2


class Fails(nn.Module):
    def forward(self, x):
        raise KeyError("mine")


def test_what_vmap_cannot_do_is_refused_by_name():
    x = torch.randn(3, 4)
    with pytest.raises(RuntimeError, match="execution='batched' cannot run Decides for several parts at once"):
        unknown_parts(Decides)(x)
    with pytest.raises(RuntimeError, match="Assigns assigns its buffer 'seen'"):
        unknown_parts(Assigns)(x)
    with pytest.raises(RuntimeError, match="cannot run BatchNorm1d"):
        unknown_parts(lambda: nn.BatchNorm1d(4, momentum=None))(x)
    with pytest.raises(KeyError, match="mine"):
        unknown_parts(Fails)(x)


def test_second_derivatives():
    def curvature(execution):
        net, x = build("mixed", execution=execution)
        net.eval()
        x.requires_grad_()
        (g,) = torch.autograd.grad(net(x).sin().sum(), x, create_graph=True)
        g.square().sum().backward()
        return {"x": x.grad}

    require_close(curvature("batched"), curvature("serial"))


def test_groups_are_found_again_for_other_inputs_and_forgotten_modules():
    net, x = build("residual", execution="batched")
    step(net, x)
    for size in range(3, 70):  # more kinds of input than are remembered
        with torch.no_grad():
            net(torch.randn(1, 1, size % 9 + 3, size))
    twin = copy.deepcopy(net)
    twin.execution = "serial"
    require_close(step(net, x), step(twin, x))
