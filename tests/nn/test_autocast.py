# SPDX-License-Identifier: BSD-3-Clause
"""bfloat16 and float16 autocast: every mode computes what serial computes, in the same dtypes, forward and backward."""

import threading
import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from execution_nets import NETS, build, require_close, step  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal.nn import PararealNetwork, build_parareal  # noqa: E402

MODES = ["serial", "batched", "parallel"]
BITS = {torch.bfloat16: 8, torch.float16: 11}  # of the significand


def tolerance(dtype, layers=12, gain=4):
    """``layers`` one after the other, each of which rounds and amplifies by up to ``gain`` in all."""
    return layers * gain * 2.0 ** -BITS[dtype]


class Residual(nn.Module):
    """A user's own module, for which there is no rule."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        return x + self.inner(x)


class Wide(nn.Module):
    """Ends in float32, whatever autocast says, as norms do on CUDA."""

    def forward(self, x):
        return x.float().tanh()


LAST = {
    "linear": lambda: nn.Linear(6, 6),
    "relu": nn.ReLU,
    "layer norm": lambda: nn.LayerNorm(6),
    "batch norm": lambda: nn.BatchNorm1d(6),
    "group norm": lambda: nn.GroupNorm(2, 6),
    "softmax": lambda: nn.Softmax(1),
    "gelu": nn.GELU,
    "prelu": nn.PReLU,
    "residual": Residual,
    "wide": Wide,
}


def ending_with(last, mode, correction="residual"):
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(6, 6), LAST[last]()) for _ in range(3)]
    guesses, coarse = [nn.Linear(6, 6) for _ in range(3)], [nn.Linear(6, 6) for _ in range(2)]
    return PararealNetwork(parts, preprocess=guesses, coarse=coarse, execution=mode, correction=correction)


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("mode", ["batched", "parallel"])
@pytest.mark.parametrize("last", LAST)
def test_interfaces_have_the_dtypes_and_values_of_serial(last, mode, dtype):
    serial, net = ending_with(last, "serial"), ending_with(last, mode)
    x = torch.randn(8, 6)
    torch.set_num_threads(3)
    for _ in range(2):  # parallel finds out in its first pass which parts draw random numbers
        with torch.autocast("cpu", dtype):
            expected = serial.run_parts(serial.preprocess, serial.fine, x)
            got = net.run_parts(net.preprocess, net.fine, x)
        assert net.executed == mode
        for side, other in zip(got, expected, strict=True):
            assert [u.dtype for u in side] == [v.dtype for v in other]
            for u, v in zip(side, other, strict=True):
                require_close({"u": u}, {"u": v}, tolerance(dtype))
    assert got[0][1].dtype == dtype
    assert got[1][1].dtype == (torch.float32 if last == "wide" else dtype)


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("mode", ["batched", "parallel", "auto"])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("correction", ["residual", "difference"])
def test_gradients_and_statistics(name, mode, dtype, correction):
    nets = [build(name, execution=e, correction=correction)[0].float() for e in ("serial", mode)]
    x = build(name)[1].float()
    torch.set_num_threads(len(nets[0].fine))
    for _ in range(2):
        found = []
        for net in nets:
            with torch.autocast("cpu", dtype):
                loss = net(x).square().sum()
            net.zero_grad()
            loss.backward()  # outside, as torch recommends
            gradients = {n: p.grad for n, p in net.named_parameters()}
            found.append(gradients | {n: b.clone() for n, b in net.named_buffers()} | {"loss": loss.detach()})
        require_close(found[1], found[0], tolerance(dtype, layers=24))  # forward and backward
    assert {g.dtype for n, g in found[1].items() if "weight" in n} == {torch.float32}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("correction", ["residual", "difference"])
def test_a_narrow_guess_of_a_wide_state_is_summed_in_the_wider_type(mode, correction):
    """Residual blocks on the raw input: float32 states, bfloat16 guesses. Without autocast that is a mistake."""
    torch.manual_seed(0)
    net = build_parareal([Residual() for _ in range(3)], 3, example=torch.empty(2, 6), correction=correction)
    net.execution = mode
    x = torch.randn(8, 6)
    expected = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = net(x)
        inputs, outputs = net.run_parts(net.preprocess, net.fine, x)
    assert (inputs[0].dtype, inputs[1].dtype, outputs[0].dtype) == (torch.float32, torch.bfloat16, torch.float32)
    require_close({"y": got}, {"y": expected}, tolerance(torch.bfloat16))
    assert not torch.equal(got, expected)
    got.sum().backward()
    net.preprocess[1].bfloat16()
    with pytest.raises((TypeError, RuntimeError), match="dtype"):
        net(x)


def test_integer_states_and_other_shapes_stay_refused():
    class Whole(nn.Module):
        def forward(self, x):
            return x.long()

    class Narrow(nn.Module):
        def forward(self, x):
            return x[:, :1]

    for guess, kind, message in [(Whole(), TypeError, "got dtype torch.int64"), (Narrow(), ValueError, "got shape")]:
        net = PararealNetwork(
            [nn.Linear(6, 6), nn.Linear(6, 6)], preprocess=[nn.Identity(), guess], coarse=[nn.Identity()]
        )
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(kind, match=message):
            net(torch.randn(2, 6))


class Sees(nn.Linear):
    def __init__(self):
        super().__init__(6, 6)
        self.seen = []

    def forward(self, x):
        on = torch.is_autocast_enabled("cpu")
        self.seen.append((threading.get_ident(), on, torch.get_autocast_dtype("cpu") if on else None))
        return super().forward(x)


@pytest.mark.parametrize("dtype", BITS)
def test_the_threads_of_the_parts_see_the_callers_autocast_and_forget_it(dtype):
    blocks, coarse = [Sees() for _ in range(3)], [nn.Linear(6, 6) for _ in range(2)]
    net = PararealNetwork(blocks, preprocess=[Sees() for _ in range(3)], coarse=coarse, execution="parallel")
    torch.set_num_threads(3)
    x = torch.randn(4, 6)
    with torch.autocast("cpu", dtype):
        net(x)
        net(x)
        with torch.autocast("cpu", enabled=False):
            net(x)
    net(x)
    for m in (*blocks, *net.preprocess):
        assert [s[1:] for s in m.seen] == [(True, dtype), (True, dtype), (False, None), (False, None)]
        assert threading.get_ident() not in {ident for ident, *_ in m.seen}


@pytest.mark.parametrize("mode", MODES)
def test_float16_with_a_gradient_scaler(mode):
    """The usual loop: a scale that overflows is halved and the step left out; then the steps are those of serial."""

    def losses(execution):
        net = build("mixed", execution=execution)[0].float()
        optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
        found = []
        for i in range(14):
            torch.manual_seed(i)
            x = torch.randn(16, 5)
            optimiser.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = (net(x).float() - 1).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            found.append(loss.item())
        return found, scaler.get_scale()

    torch.set_num_threads(4)
    expected, scale = losses("serial")
    assert scale < 2.0**24  # it did overflow
    assert expected[-1] < 0.7 * expected[0]
    got, same = losses(mode)
    assert same == scale
    torch.testing.assert_close(got, expected, rtol=tolerance(torch.float16), atol=0)


@pytest.mark.parametrize("mode", ["serial", "batched"])
def test_compiled_under_autocast(mode):
    eager, net, x = ending_with("relu", "serial"), ending_with("relu", mode), torch.randn(8, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, about itself
        torch._dynamo.reset()
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        with torch.autocast("cpu", torch.bfloat16):
            got, expected = step(compiled, x), step(eager, x)
        torch._dynamo.reset()
    assert got["y"].dtype == expected["y"].dtype == torch.bfloat16
    require_close({n.replace("_orig_mod.", ""): t for n, t in got.items()}, expected, tolerance(torch.bfloat16, 24))
