# SPDX-License-Identifier: BSD-3-Clause
"""Parallel execution on CPU threads: the bits of serial, real concurrency, the caller's context, hooks, errors."""

import multiprocessing
import threading
import time
from functools import partial

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from execution_nets import NETS, build, dropout_net, require_close, require_equal, residual_net, step  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal.nn import PararealNetwork  # noqa: E402


def three_parts(make, **options):
    guesses, coarse = [nn.Linear(4, 4) for _ in range(3)], [nn.Linear(4, 4) for _ in range(2)]
    return PararealNetwork([make() for _ in range(3)], preprocess=guesses, coarse=coarse, **options)


class PartsOnly(nn.Module):
    """What the parts hand over, in one row; what follows runs in the caller's thread, with all its threads."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        inputs, outputs = self.net.run_parts(self.net.preprocess, self.net.fine, x)
        return torch.cat([u.flatten() for u in (*inputs[1:], *outputs)])


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("total", [1, 3, 4])
def test_bits_are_those_of_serial_where_a_part_has_as_many_threads(name, total):
    serial, x = build(name)
    parallel, _ = build(name, execution="parallel")
    for _ in range(3):
        torch.set_num_threads(1)
        expected = step(PartsOnly(serial), x)
        torch.set_num_threads(total)  # one for each part: at most four share them
        got = step(PartsOnly(parallel), x)
        assert parallel.executed == "parallel"
        used = [n for n, t in expected.items() if t is not None]  # all but coarse nets and head
        require_equal({n: got[n] for n in used}, {n: expected[n] for n in used})
    torch.set_num_threads(1)
    require_equal(step(parallel, x), step(serial, x))


class Meets(nn.Module):
    """From the second pass on, waits for the other parts, forward and backward: alone it would wait in vain."""

    def __init__(self, together):
        super().__init__()
        self.together, self.passes, self.threads = together, 0, []

    def forward(self, x):
        self.passes += 1
        self.threads.append((threading.get_ident(), torch.get_num_threads()))
        if self.passes > 1:
            self.together.wait(20)
        return Meeting.apply(x, self)


class Meeting(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, meets):
        ctx.meets = meets
        return x * 2

    @staticmethod
    def backward(ctx, g):
        ctx.meets.together.wait(20)
        ctx.meets.threads.append((threading.get_ident(), torch.get_num_threads()))
        return g * 2, None


@pytest.mark.parametrize(("total", "each"), [(3, 1), (7, 2)])
def test_parts_run_at_the_same_time_and_share_the_threads(total, each):
    together = threading.Barrier(3)
    net = three_parts(lambda: Meets(together), execution="parallel")
    torch.set_num_threads(total)
    for _ in range(2):
        net(torch.randn(2, 4)).sum().backward()
    meets = [part[0] for part in net.fine]
    assert all(count == each for m in meets for _, count in m.threads)
    assert len({m.threads[2] for m in meets}) == len({m.threads[3] for m in meets}) == 3
    assert threading.get_ident() not in {ident for m in meets for ident, _ in m.threads}
    assert torch.get_num_threads() == total
    new = []
    thread = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert new == [total]  # threads begun later are not bound by ours


def test_dropout_draws_what_serial_draws():
    torch.manual_seed(0)
    serial, parallel = dropout_net(), dropout_net(execution="parallel")
    parallel.load_state_dict(serial.state_dict())
    x = torch.randn(16, 5)
    torch.set_num_threads(3)
    for seed in range(20):
        require_close(step(parallel, x, seed), step(serial, x, seed), 1e-5)
        state = torch.get_rng_state()
        step(parallel, x, seed)
        assert torch.equal(state, torch.get_rng_state())
    serial.eval(), parallel.eval()
    require_close(step(parallel, x), step(serial, x), 1e-5)


class DrawsLater(nn.Module):
    """The earlier the part, the later it draws: without an order the last part would be the first."""

    draws, delay = False, 0.0

    def forward(self, x):
        if not self.draws:
            return x
        time.sleep(self.delay)
        return x * torch.rand_like(x)


def test_parts_that_begin_to_draw_are_found_and_take_turns():
    torch.manual_seed(0)
    serial, parallel = three_parts(DrawsLater), three_parts(DrawsLater, execution="parallel")
    parallel.load_state_dict(serial.state_dict())
    for j, part in enumerate(parallel.fine):
        part[0].delay = 0.02 * (2 - j)
    x = torch.randn(16, 4)
    torch.set_num_threads(3)
    step(parallel, x)
    for net in (serial, parallel):
        for part in net.fine:
            part[0].draws = True
    step(parallel, x)  # at once, in any order: seen, and from now on in turn
    for seed in range(10):
        require_close(step(parallel, x, seed), step(serial, x, seed), 1e-5)


class Sees(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        found = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        self.seen.append((*found, torch.get_autocast_dtype("cpu") if found[2] else None, torch.empty(0).device.type))
        return x * 1.0


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (torch.enable_grad, (True, False, False, None, "cpu")),
        (torch.no_grad, (False, False, False, None, "cpu")),
        (torch.inference_mode, (False, True, False, None, "cpu")),
        (lambda: torch.autocast("cpu", torch.bfloat16), (True, False, True, torch.bfloat16, "cpu")),
        (lambda: torch.autocast("cpu", torch.float16), (True, False, True, torch.float16, "cpu")),
        (lambda: torch.device("meta"), (True, False, False, None, "meta")),
    ],
)
@pytest.mark.parametrize("total", [1, 3])
def test_the_callers_context_reaches_the_threads_and_stays_the_callers(context, expected, total):
    net = three_parts(Sees, execution="parallel")
    torch.set_num_threads(total)
    with context():
        x = torch.randn(2, 4, device="cpu")
        net(x)
        assert torch.is_grad_enabled() == expected[0]
        net(x)
    net(torch.randn(2, 4))
    for part in net.fine:
        assert part[0].seen == [expected, expected, (True, False, False, None, "cpu")]


def test_hooks_of_parameters_see_the_whole_gradient_once():
    def counted(execution):
        torch.manual_seed(0)
        net = residual_net(execution=execution)
        calls = []
        for p in net.parameters():
            p.register_hook(lambda g: calls.append("before") or g * 2)
            p.register_post_accumulate_grad_hook(lambda _: calls.append("after"))
        net.fine[0].register_full_backward_hook(lambda *_: calls.append("module"))
        net.fine[0].register_forward_hook(lambda *_: calls.append("forward"))
        return net, calls

    torch.set_num_threads(3)
    x = torch.randn(2, 1, 6, 6)
    (serial, expected), (parallel, calls) = counted("serial"), counted("parallel")
    for _ in range(2):
        del calls[:], expected[:]
        require_close(step(parallel, x), step(serial, x), 1e-5)
        assert sorted(calls) == sorted(expected)
        assert calls.count("before") == calls.count("after") == len(list(parallel.parameters()))


class Fails(nn.Module):
    def __init__(self, error, where):
        super().__init__()
        self.error, self.where = error, where

    def forward(self, x):
        if self.where == "forward":
            raise self.error
        return FailsBackward.apply(x, self.error)


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, error):
        ctx.error = error
        return x * 1.0

    @staticmethod
    def backward(ctx, g):
        raise ctx.error


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("total", [1, 3])
def test_exceptions_of_a_part_reach_the_caller_unchanged(where, total):
    errors = [KeyError("part 2"), OSError("part 3")]
    parts = [nn.Linear(4, 4), Fails(errors[0], where), Fails(errors[1], where)]
    net = PararealNetwork(
        parts,
        preprocess=[nn.Linear(4, 4) for _ in range(3)],
        coarse=[nn.Linear(4, 4), nn.Linear(4, 4)],
        execution="parallel",
    )
    torch.set_num_threads(total)
    for _ in range(2):
        with pytest.raises(KeyError) as caught:
            net(torch.randn(2, 4)).sum().backward()
        assert caught.value is errors[0]
    torch.set_num_threads(total)
    net.fine[1] = net.fine[2] = nn.Linear(4, 4)  # and the threads still work
    net(torch.randn(2, 4)).sum().backward()


def test_second_derivatives_are_refused_by_name():
    net, x = build("mixed", execution="parallel")
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="execution='parallel' has no second derivatives"):
        torch.autograd.grad(net(x).sum(), x, create_graph=True)


class Greedy(nn.Linear):
    """Changes the number of threads of whatever thread it runs in."""

    def __init__(self):
        super().__init__(4, 4)

    def forward(self, x):
        if threading.current_thread() is not threading.main_thread():
            torch.set_num_threads(9)
        return super().forward(x)


def test_parts_of_parts():
    def nested(execution):
        torch.manual_seed(0)
        return three_parts(
            lambda: nn.Sequential(Greedy(), three_parts(Greedy, execution=execution)), execution=execution
        )

    serial, parallel = nested("serial"), nested("parallel")
    x = torch.randn(2, 4)
    for total in (1, 2, 3, 9):
        torch.set_num_threads(total)
        require_close(step(parallel, x), step(serial, x), 1e-5)
        assert parallel.fine[0][0][1].executed == "parallel"


def test_a_common_buffer_is_refused():
    shared = nn.BatchNorm1d(4)
    with pytest.raises(ValueError, match=r"got 'parallel' for parts 1 and 3, which share the buffer '0\.running"):
        PararealNetwork(
            [shared, nn.Linear(4, 4), shared],
            preprocess=[nn.Linear(4, 4) for _ in range(3)],
            coarse=[nn.Linear(4, 4), nn.Linear(4, 4)],
            execution="parallel",
        )


class Logs(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **kwargs or {})


class Overrides(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **kwargs or {})


def test_what_sees_one_thread_only_is_refused_by_name():
    net, x = build("mixed", execution="parallel")
    net.eval()
    for mode, name in ((Logs(), "a TorchDispatchMode"), (Overrides(), "Overrides")):
        with mode, pytest.raises(RuntimeError, match=f"execution='parallel' cannot run inside {name}, which sees one"):
            net(x)
    with pytest.raises(RuntimeError, match=r"cannot run inside a torch.func transform"):
        torch.func.vmap(net)(x.unsqueeze(1))


def _in_child(net, x, results):
    try:
        net(x)
    except RuntimeError as error:
        results.put(str(error))
    torch.set_num_threads(1)
    net(x)
    results.put(net.executed)


@pytest.mark.no_sanitize
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_refused_by_name():
    net, x = build("mixed", execution="parallel")
    torch.set_num_threads(2)
    with torch.no_grad():
        net(x)
        fork = multiprocessing.get_context("fork")
        results = fork.SimpleQueue()
        child = fork.Process(target=partial(_in_child, net, x, results))
        child.start()
        child.join(60)
    assert child.exitcode == 0
    assert "execution='parallel' in a forked process" in results.get()
    assert results.get() == "parallel"  # one thread needs no others
