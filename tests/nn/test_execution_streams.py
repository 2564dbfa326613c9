# SPDX-License-Identifier: BSD-3-Clause
"""Parallel execution on CUDA streams. The order of streams is tested by delaying them."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from execution_nets import NETS, build, dropout_net, require_close, residual_net, step  # noqa: E402
from torch import nn  # noqa: E402

pytestmark = pytest.mark.gpu

CYCLES = 20_000_000  # about 10 ms: longer than everything else here takes


class Delayed(nn.Module):
    """Keeps its stream busy before it works, forward and backward, so that who does not wait reads too early."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.streams = []

    def forward(self, x):
        self.streams.append(torch.cuda.current_stream())
        torch.cuda._sleep(CYCLES)
        return self.inner(Delay.apply(x))


class Delay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        torch.cuda._sleep(CYCLES)
        return g.clone()


@pytest.fixture(autouse=True)
def _double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("mode", ["batched", "parallel"])
@pytest.mark.parametrize("correction", ["residual", "difference"])
@pytest.mark.parametrize("name", NETS)
def test_values_gradients_and_statistics_are_those_of_serial(name, correction, mode):
    serial, x = build(name, correction=correction)
    other, _ = build(name, correction=correction, execution=mode)
    serial.cuda(), other.cuda()
    for _ in range(3):
        expected, got = step(serial, x.cuda()), step(other, x.cuda())
        assert other.executed == mode
        require_close(got, expected)


@pytest.mark.parametrize("side", [False, True])
def test_every_part_has_a_stream_and_nobody_reads_too_early(side):
    torch.manual_seed(0)
    serial = residual_net().cuda()
    torch.manual_seed(0)
    parallel = residual_net(execution="parallel").cuda()
    for j in range(3):
        parallel.fine[j] = nn.Sequential(Delayed(parallel.fine[j]))
    x = torch.randn(6, 1, 6, 6, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream() if side else torch.cuda.current_stream()):
        torch.cuda._sleep(CYCLES)
        x = x * 2  # ready only after the delay
        for _ in range(5):
            expected, got = step(serial, x), step(parallel, x)
            require_close({n.replace("0.inner.", ""): t for n, t in got.items()}, expected)
        here = torch.cuda.current_stream()
        streams = [part[0].streams[-1] for part in parallel.fine]
    assert len({s.cuda_stream for s in (here, *streams)}) == 4


def test_memory_is_not_reused_while_another_stream_reads_it():
    parallel = residual_net(execution="parallel").cuda()
    for j in range(3):
        parallel.fine[j] = nn.Sequential(Delayed(parallel.fine[j]))
    with torch.no_grad():
        parallel.eval()
        x = torch.randn(6, 1, 6, 6, device="cuda")
        expected = parallel(x)
        torch.cuda.synchronize()
        for _ in range(20):
            u = x.clone()
            y = parallel(u)
            del u
            torch.full_like(x, torch.nan)  # takes the block of u, if that has been given back too early
            assert torch.equal(y, expected)


def test_dropout_draws_what_serial_draws():
    torch.manual_seed(0)
    serial, parallel = dropout_net().cuda(), dropout_net(execution="parallel").cuda()
    parallel.load_state_dict(serial.state_dict())
    x = torch.randn(16, 5, device="cuda")
    for seed in range(5):
        require_close(step(parallel, x, seed), step(serial, x, seed))


def test_autocast():
    nets = [build("residual", execution=e)[0].float().cuda() for e in ("serial", "parallel")]
    x = build("residual")[1].float().cuda()
    with torch.autocast("cuda", torch.bfloat16):
        expected, got = (step(net, x) for net in nets)
        assert torch.is_autocast_cache_enabled()
    require_close(got, expected, tolerance=12 * 4 * 2.0**-8)


def test_captured_in_a_graph():
    net, x = build("residual", execution="parallel")
    net.cuda().eval()
    x = x.cuda()
    with torch.no_grad():
        expected = net(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = net(x)
        x.copy_(torch.randn_like(x))
        graph.replay()
        require_close({"y": y}, {"y": net(x)})
        assert not torch.equal(y, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_parts_on_two_devices():
    serial, x = build("residual")
    parallel, _ = build("residual", execution="parallel")
    serial.cuda(), parallel.cuda()
    parallel.preprocess[1].to("cuda:1"), parallel.fine[1].to("cuda:1")
    expected, got = step(serial, x.cuda()), step(parallel, x.cuda())
    require_close({n: t.cpu() for n, t in got.items()}, {n: t.cpu() for n, t in expected.items()})
