# SPDX-License-Identifier: BSD-3-Clause
"""States from rank to rank, bit for bit: through gloo, and through a stand-in for NCCL that records its calls.

The ranks are threads of this process, each with a group of its own.
"""

import os
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

from pyparareal.errors import RankError  # noqa: E402
from pyparareal.runtime import ranks as ranks_module  # noqa: E402
from pyparareal.runtime import wires  # noqa: E402
from pyparareal.runtime.ranks import Ranks  # noqa: E402
from pyparareal.runtime.wires import HostWire, NcclWire  # noqa: E402

pytestmark = pytest.mark.no_sanitize
LIMIT = 100.0  # seconds: nobody waits so long but where something is wrong

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def states(dtype=torch.float64, rows=3):
    """Numbers whose bits all count: subnormal, signed zero, NaN with a payload by chance."""
    u = torch.randn(rows, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    u[0, 0, :4] = torch.tensor([-0.0, float("nan"), float("inf"), torch.finfo(dtype).smallest_normal / 4])
    return u


def bits(u):
    return u.contiguous().view(torch.uint8).tolist()


class Mail:
    """What all stand-ins of one group share."""

    def __init__(self):
        self.lock = threading.RLock()
        self.boxes = defaultdict(list)


class Later:
    """An operation that is complete when ``ready()``; ``wait`` does ``act()`` then."""

    def __init__(self, ready, act):
        self.ready, self.act, self.waits = ready, act, 0

    def is_completed(self):
        return self.ready()

    def wait(self):
        assert self.ready(), "whoever waits longer than the limit hangs"
        self.waits += 1
        self.act()


class StandIn:
    """NCCL's verbs on host memory, as one of the ranks."""

    def __init__(self, mail, rank, size):
        self.mail, self.rank, self.size, self.calls, self.aborted = mail, rank, size, [], False

    def _box(self, source, to, kind):
        with self.mail.lock:  # two threads that ask first would each get a box of their own
            return self.mail.boxes[source, to, kind]

    def send(self, tensors, to, tag, kind="p2p"):
        (data,) = tensors
        self.calls.append(("send", to, tag, len(data), data.dtype))
        with self.mail.lock:
            self._box(self.rank, to, kind).append(data)  # the memory itself, as a device would read it: no copy
        return Later(lambda: True, lambda: None)

    def recv(self, tensors, source, tag, kind="p2p"):
        (data,), box = tensors, self._box(source, self.rank, kind)
        self.calls.append(("recv", source, tag, len(data), data.dtype))
        return Later(lambda: bool(box), lambda: data.copy_(box.pop(0)))

    def broadcast(self, data, source):
        self.calls.append(("broadcast", source, len(data)))
        if self.rank != source:
            return self.recv([data], source, 0, "broadcast")
        for to in range(self.size):
            if to != source:
                self.send([data], to, 0, "broadcast")
        return Later(lambda: True, lambda: None)

    def abort(self):
        self.aborted = True


@pytest.fixture
def nccl(monkeypatch):
    """Lets states on the CPU travel by stand-ins for NCCL, by rank."""
    made, mail = {}, Mail()

    def group(store, rank, size, limit):
        made[rank] = StandIn(mail, rank, size)
        return made[rank]

    monkeypatch.setattr(ranks_module, "nccl_group", group)
    monkeypatch.setattr(ranks_module, "travels_by_nccl", lambda u: isinstance(u, torch.Tensor))
    return made


def on_ranks(size, work, wire="host", timeout=LIMIT):
    """``work(ranks)`` on each of ``size`` ranks, in threads; results, or what was raised."""
    store = torch.distributed.HashStore()
    store.set_timeout(timedelta(seconds=timeout))

    def one(rank):
        try:
            return work(Ranks(store, rank, size, timeout, wire))
        except Exception as error:
            return error

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def chain(ranks, u, numpy=False):
    """``u`` from rank 0 to the last, and then from the last to all; then blocks of all, with ``r + 1`` rows of rank r.

    What the last two leave, and what was sent.
    """
    as_sent = (lambda v: v.numpy()) if numpy else (lambda v: v)  # the same memory
    mine = u.clone() if ranks.rank == 0 else torch.zeros_like(u)
    if ranks.rank > 0:
        ranks.receive(as_sent(mine), "test")
    everywhere = mine.clone()
    if ranks.rank + 1 < ranks.size:
        ranks.send(as_sent(mine), "test")
        mine.zero_()  # a sender may write at once
        everywhere.fill_(1)
    ranks.broadcast(as_sent(everywhere), ranks.size - 1, "test")
    rows = [r + 1 for r in range(ranks.size)]
    block = everywhere[:1].repeat(rows[ranks.rank], 1, 1) + ranks.rank
    together = u.new_zeros(sum(rows), *u.shape[1:])
    ranks.blocks(as_sent(together), rows, as_sent(block), "test")
    ranks.flush("test")
    return everywhere, together, dict(ranks.volume)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wire", ["host", "nccl"])
def test_states_arrive_as_they_were_sent(dtype, wire, nccl):
    u = states(dtype)
    found = on_ranks(3, lambda ranks: chain(ranks, u), wire)
    assert [one for one in found if isinstance(one, Exception)] == []
    blocks = torch.cat([u[:1].repeat(r + 1, 1, 1) + r for r in range(3)])
    for rank, (everywhere, together, volume) in enumerate(found):
        assert bits(everywhere) == bits(u)
        assert bits(together) == bits(blocks)
        kind = "states" if rank < 2 else "broadcasts"
        assert volume == {kind: 1, "bytes": u.nbytes}
    assert sorted(nccl) == ([0, 1, 2] if wire == "nccl" else [])


def test_numpy_travels_through_the_host_whatever_the_wire(nccl):
    u = states(rows=2)
    for everywhere, *_ in on_ranks(2, lambda ranks: chain(ranks, u, numpy=True), "nccl"):
        assert bits(everywhere) == bits(u)
    assert nccl == {}


def test_what_nccl_is_asked_for(nccl):
    u = states()[:, :1]  # not contiguous
    on_ranks(2, lambda ranks: chain(ranks, u), "nccl")
    size = u.nbytes
    row = size // 3
    blocks = [("broadcast", 0, row), ("broadcast", 1, 2 * row)]
    for rank, first in ((0, ("send", 1)), (1, ("recv", 0))):
        calls = [call for call in nccl[rank].calls if call[0] == "broadcast" or call[0:2] == first]
        assert calls[0] == (*first, 0, size, torch.uint8)
        assert [call for call in calls if call[0] == "broadcast"] == [("broadcast", 1, size), *blocks]


def test_a_message_is_kept_until_it_has_left(nccl):
    wire = NcclWire(StandIn(Mail(), 0, 2), 0, LIMIT, lambda: False)
    u = states()
    sent = wire.send(u, 1)
    assert sent._data.data_ptr() != u.data_ptr()
    assert bits(sent._data.view(u.dtype).reshape(u.shape)) == bits(u)
    sent.wait()
    assert sent._data is None


def test_a_wait_ends_at_the_limit_or_when_another_rank_fails():
    empty = StandIn(Mail(), 1, 2)
    u = states()
    before = u.clone()
    with pytest.raises(RuntimeError, match=r"NCCL: nothing came within 0\.05 s"):
        NcclWire(empty, 1, 0.05, lambda: False).receive(u, 0)
    with pytest.raises(RuntimeError, match="NCCL: another rank failed"):
        NcclWire(empty, 1, LIMIT, lambda: True).receive(u, 0)
    assert bits(u) == bits(before)  # nothing half-written


@pytest.mark.parametrize("wire", ["host", "nccl"])
def test_a_failure_reaches_who_waits_for_a_state(wire, nccl):
    def work(ranks):
        u = states()
        if ranks.rank == 0:
            ranks.send(u, "first")
            ranks.flush("first")
            ranks.fail(ArithmeticError("boom"))
            return None
        ranks.receive(u, "first")
        ranks.receive(u, "second")

    _, error = on_ranks(2, work, wire)
    assert isinstance(error, RankError)
    assert str(error) == "rank 1: second, waiting for rank 0: rank 0 failed: ArithmeticError: boom"
    assert wire == "host" or nccl[0].aborted


def test_errors_of_nccl_are_those_of_a_rank(nccl, monkeypatch):
    def broken(self, tensors, to, tag):
        raise torch.distributed.DistBackendError("NCCL error: remote process exited")

    monkeypatch.setattr(StandIn, "send", broken)
    found = on_ranks(1, lambda ranks: ranks.send(states(), "here", to=0), "nccl")
    assert isinstance(found[0], RankError)
    assert "here, sending to rank 0: lost (NCCL error: remote process exited)" in str(found[0])


def test_closing_is_done_once():
    group = StandIn(Mail(), 0, 1)
    wire = NcclWire(group, 0, LIMIT, lambda: False)
    wire.close()
    group.aborted = False
    wire.close()
    assert not group.aborted

    def refuse():
        raise RuntimeError("aborted already")

    NcclWire(SimpleNamespace(abort=refuse), 0, LIMIT, lambda: False).close()


def test_the_group_of_nccl_is_told_to_leave_errors_to_us(monkeypatch):
    """torch reads these when the group is made: with its defaults the watchdog ends the process."""
    seen = []

    class Group:
        Options = SimpleNamespace

        def __init__(self, store, rank, size, options):
            seen.append(({name: os.environ.get(name) for name in wires.ENVIRONMENT}, rank, size, options._timeout))

    monkeypatch.setattr(torch.distributed, "ProcessGroupNCCL", Group, raising=False)
    monkeypatch.setenv("TORCH_NCCL_BLOCKING_WAIT", "0")
    monkeypatch.delenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", raising=False)
    wires.nccl_group(torch.distributed.HashStore(), 1, 2, 7.0)
    assert seen == [(wires.ENVIRONMENT, 1, 2, timedelta(seconds=7))]
    assert os.environ["TORCH_NCCL_BLOCKING_WAIT"] == "0"
    assert "TORCH_NCCL_ASYNC_ERROR_HANDLING" not in os.environ


@pytest.mark.parametrize(
    ("config", "wire", "chosen"),
    [
        ("cpu:gloo,cuda:gloo", "auto", "host"),
        ("cpu:gloo,cuda:nccl", "auto", "nccl"),
        ("cuda:nccl", "auto", "nccl"),
        ("cuda:nccl", "host", "host"),
        ("cpu:gloo,cuda:nccl", "nccl", "nccl"),
    ],
)
def test_the_wire_is_that_of_the_group(config, wire, chosen, monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_backend_config", lambda group: config)
    assert wires.choose(wire, None) == chosen


def test_a_wire_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_backend_config", lambda group: "cpu:gloo,cuda:gloo")
    with pytest.raises(ValueError, match="wire: got 'nccl' for a group with cpu:gloo,cuda:gloo, expected one with"):
        wires.choose("nccl", None)
    with pytest.raises(ValueError, match="wire: got 'mpi', expected one of 'auto', 'host', 'nccl'"):
        wires.choose("mpi", None)


def test_the_host_wire_of_a_closed_group_is_gone():
    wire = HostWire(SimpleNamespace(), 0)
    wire.close()
    assert wire._group is None


@pytest.mark.gpu
def test_cuda_states_go_through_pinned_memory():
    u = states().cuda()
    for everywhere, together, _ in on_ranks(2, lambda ranks: chain(ranks, u)):
        assert everywhere.is_cuda
        assert bits(everywhere.cpu()) == bits(u.cpu())
        assert bits(together[:1].cpu()) == bits(u[:1].cpu() + 0)  # -0 becomes 0
    assert wires.to_bytes(u).is_pinned()
