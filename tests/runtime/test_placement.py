# SPDX-License-Identifier: BSD-3-Clause
"""Several devices in one process have the bits of one; here they are threads; GPUs: test_placement_gpu.py."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from distributed_cases import CASES, parareal  # noqa: E402
from newton_cases import Cell, Logistic  # noqa: E402
from placement_cases import bits, require_same  # noqa: E402
from test_adjoint import Problem  # noqa: E402
from test_kept_cycles import random_options, told_of  # noqa: E402

from pyparareal import MGRIT, DistributedRuntime, GraphRuntime, LocalRuntime, Newton, TimeGrid, solve  # noqa: E402
from pyparareal.propagators import Map  # noqa: E402
from pyparareal.runtime import PlacedRuntime  # noqa: E402
from pyparareal.runtime.placement import Work  # noqa: E402

pytestmark = [
    *(pytest.mark.filterwarnings(f"ignore:{w}:RuntimeWarning") for w in ("overflow", "invalid value", "divide by")),
    pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning"),  # coarse steps take NumPy's sin
]

U0 = np.array([[0.37, 0.2]])
PLACES = {
    "one": {"devices": ["cpu"]},
    "two": {"devices": ["cpu", torch.device("cpu")]},
    "three, uneven": {"devices": ["cpu"] * 3, "shares": [2, 1, 0.5]},
    "nine, two slices a call": {"devices": ["cpu"] * 9, "slices_per_call": 2},  # more than there are slices, at times
}


@pytest.fixture(autouse=True)
def _one_thread():
    """What a block has: matrix products may round otherwise with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# The theorem


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("name", CASES)
def test_blocks_on_several_devices_have_the_bits_of_one(name, places):
    require_same(CASES[name], places)


@pytest.mark.parametrize("storage", ["numpy", "torch"])
@pytest.mark.parametrize("jacobian", ["full", "diagonal", "none"])
def test_newton_has_the_bits_of_one_device(jacobian, storage):
    def problem():
        u0 = U0 if storage == "numpy" else torch.from_numpy(U0)
        ask = {"tol": 0.0, "on_failure": "return", "keep_going": True, "method": Newton(jacobian)}
        return {"fine": Logistic(slope=0.5), "u0": u0, "grid": TimeGrid(0, 1, 27), "m": 2} | ask

    require_same(problem, PLACES["three, uneven"])


def test_newton_by_autograd_has_the_bits_of_one_device():
    def problem():
        cell = Cell(24, like=torch.zeros(1, dtype=torch.float64))
        ask = {"tol": 1e-12, "deterministic": True, "method": Newton("full")}
        return {"fine": Plain(cell), "u0": cell.u0, "grid": cell.grid, "m": 1} | ask

    assert 2 < require_same(problem, PLACES["two"]).iterations < 12  # the Jacobians were of use


class Plain:
    """A cell that keeps its Jacobians to itself."""

    batch_invariant = False

    def __init__(self, cell):
        self.cell = cell

    def step(self, u, points):
        return self.cell.step(u, points)


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_any_options_of_mgrit_give_the_bits_of_one_device(first):
    """Fused relaxations with everything that they take and return."""
    for seed in range(first, first + 10):
        problem, size, disturbed = random_options(seed)
        alone = told_of(LocalRuntime(slices_per_call=size), problem, disturbed)
        placed = told_of(LocalRuntime(slices_per_call=size, devices=["cpu"] * 2), problem, disturbed)
        for here, there in zip(alone[0], placed[0], strict=True):
            assert here.tobytes() == there.tobytes(), seed
        np.testing.assert_array_equal(alone[1], placed[1], f"seed {seed}")
        assert alone[2] == placed[2], seed


@pytest.mark.parametrize("method", ["parareal", MGRIT(levels=3, min_coarse=1, stagnation=None), Newton("full")])
def test_gradients_have_the_bits_of_one_device(method):
    """The backward pass stays on the device of the states."""
    found = []
    for places in ({}, PLACES["three, uneven"]):
        problem = Problem(30)
        # A tolerance above rounding: states that differ by it would give gradients that differ.
        u = solve(problem.phi, problem.u0, problem.grid, m=3, tol=1e-5, rhs=problem.rhs, method=method,
                  runtime=LocalRuntime(**places)).u  # fmt: skip
        u.square().sum().backward()
        found.append([bits(u.detach()), *(bits(t.grad) for t in problem.inputs)])
    assert found[0] == found[1]
    assert None not in found[0]


@pytest.mark.parametrize("method", ["parareal", MGRIT(levels=3, min_coarse=1, stagnation=None), Newton("full")])
def test_the_backward_pass_stays_in_the_thread_of_its_caller(method):
    forward, backward = set(), set()
    weight = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)

    def step(u):
        (backward if u.requires_grad else forward).add(threading.get_ident())
        return weight * torch.tanh(u)

    u0, grid = torch.full((2, 3), 0.4, dtype=torch.float64, requires_grad=True), TimeGrid(0, 1, 24)
    runtime = LocalRuntime(devices=["cpu"] * 2)
    coarse = None if isinstance(method, Newton) else [lambda u: weight**3 * u] * 2
    coarse = coarse[0] if method == "parareal" else coarse
    u = solve(step, u0, grid, m=3, tol=1e-9, coarse=coarse, method=method, runtime=runtime).u
    threads = forward | backward
    backward.clear()
    u.sum().backward()
    assert len(threads) > 1
    assert backward == {threading.get_ident()}


def test_the_rows_of_a_block_are_those_of_its_steps():
    work = Work(None, None, slice(3, 12, 4), 2, None, {}, None)  # steps 3, 4, 7, 8, 11, 12
    assert work.rows == range(3, 13)


# Who takes what


@given(st.integers(0, 50), st.lists(st.integers(1, 9) | st.floats(0.01, 100), min_size=1, max_size=7))
def test_blocks_are_contiguous_and_as_large_as_their_shares(slices, shares):
    blocks = LocalRuntime(devices=["cpu"] * len(shares), shares=shares).blocks(slices)
    assert [n for block in blocks for n in range(block.first, block.last)] == list(range(slices))
    assert all(block.first < block.last for block in blocks)
    assert [block.entry for block in blocks] == sorted({block.entry for block in blocks})
    for block in blocks:
        exact = slices * shares[block.entry] / sum(shares)
        assert abs(block.last - block.first - exact) < 1 + 1e-9
    if slices and not blocks[0].entry:
        assert blocks[0].first == 0
    assert not slices or blocks[0].entry == 0  # a single slice stays where the states are


class Meeting:
    """A step that only returns when as many threads are in it at the same time."""

    batch_invariant = True

    def __init__(self, threads):
        self.barrier, self.seen = threading.Barrier(threads, timeout=100), []

    def step(self, u, points):
        self.barrier.wait()
        self.seen.append((len(u), points, torch.get_num_threads(), torch.is_grad_enabled(), threading.get_ident()))
        return u + 1


@pytest.mark.parametrize("grad", [False, True])
def test_blocks_advance_at_the_same_time_with_one_intra_op_thread_each(grad):
    torch.set_num_threads(2)
    phi, u = Meeting(3), np.zeros((7, 1))
    out = np.empty_like(u)
    with torch.set_grad_enabled(grad):
        LocalRuntime(devices=["cpu"] * 3, shares=[4, 2, 1]).map(phi, u, slice(1, 20, 3), 2, out=out)
    assert (out == 2).all()
    assert torch.get_num_threads() == 2
    assert len({seen[4] for seen in phi.seen}) == 3
    expected = [(4, slice(1, 13, 3)), (2, slice(13, 19, 3)), (1, slice(19, 22, 3))]
    expected += [(n, slice(p.start + 1, p.stop + 1, 3)) for n, p in expected]
    got = sorted((count, list(range(*p.indices(99))), *rest) for count, p, *rest, _ in phi.seen)
    assert got == sorted((count, list(range(*p.indices(99))), 1, grad) for count, p in expected)


def test_a_call_takes_no_more_slices_than_it_may_on_each_device():
    sizes = []

    def step(u):
        sizes.append(len(u))
        return u + 1

    runtime = LocalRuntime(devices=["cpu"] * 2, slices_per_call=2)
    u = np.zeros((9, 1))
    runtime.map(Map(step), u, slice(0, 9, 1), out=u)
    assert (u == 1).all()
    assert sorted(sizes) == [1, 2, 2, 2, 2]  # 5 and 4


# Errors


class Boom(ArithmeticError):
    pass


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_an_error_in_one_block_is_raised_unchanged_when_all_have_ended(bad):
    boom, ended = Boom("here"), []
    others = threading.Barrier(3, timeout=100)

    def step(u, points):
        others.wait()
        if points.start == 2 * bad:
            raise boom
        for _ in range(200):
            u = u + 1
        ended.append(points.start)
        return u

    runtime = LocalRuntime(devices=["cpu"] * 3)
    u, phi = np.zeros((6, 100)), Map(step, pass_points=True)
    with pytest.raises(Boom) as caught:
        runtime.map(phi, u, slice(0, 6, 1), out=np.empty_like(u))
    assert caught.value is boom
    assert sorted(ended) == [n for n in (0, 2, 4) if n != 2 * bad]
    require_same(parareal, {"devices": ["cpu"] * 3})  # nothing is broken


def test_error_states_of_numpy_reach_the_threads():
    def step(u):
        return u / (u - u)

    u = np.ones((4, 1))
    with np.errstate(all="raise"), pytest.raises(FloatingPointError):
        LocalRuntime(devices=["cpu"] * 2).map(Map(step), u, slice(0, 4, 1), out=np.empty_like(u))


def test_autocast_reaches_the_threads():
    dtypes = []
    net = torch.nn.Linear(3, 3).requires_grad_(False)

    def step(u):
        y = net(u)
        dtypes.append(y.dtype)
        return u + y.to(u.dtype)

    u = torch.ones(4, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        LocalRuntime(devices=["cpu"] * 2).map(Map(step), u, slice(0, 4, 1), out=u)
    assert dtypes == [torch.bfloat16] * 2


def test_a_solve_within_a_block_does_not_wait_for_its_own_threads():
    runtime = LocalRuntime(devices=["cpu"] * 2)

    def step(u):
        runtime.map(Map(lambda v: v + 1), u, slice(0, len(u), 1), out=u)
        return u

    u = np.zeros((8, 1))
    runtime.map(Map(step), u, slice(0, 8, 1), 3, out=u)
    assert (u == 3).all()


WRONG = [
    ({"devices": []}, ValueError, "devices: got none, expected at least one"),
    ({"devices": "cpu"}, TypeError, r"devices: got 'cpu', expected a sequence such as \['cuda:0', 'cuda:1'\]"),
    ({"shares": [1]}, TypeError, "devices: got None, expected a sequence"),
    ({"devices": ["tpu"]}, ValueError, "devices: got 'tpu', expected 'cpu' or 'cuda:N'"),
    ({"devices": ["cuda:x"]}, ValueError, "devices: got 'cuda:x', expected 'cpu' or 'cuda:N'"),
    ({"devices": ["cpu:1"]}, ValueError, "devices: got 'cpu:1', expected 'cpu' or 'cuda:N'"),
    ({"devices": [0]}, TypeError, "devices: got int for a device, expected a str or a torch.device"),
    ({"devices": ["cpu", "cuda:99"]}, ValueError, "devices: got 'cuda:99', expected a CUDA device that is there"),
    ({"devices": ["cpu"] * 2, "shares": [1]}, ValueError, "shares: got 1, expected one for each of the 2 devices"),
    ({"devices": ["cpu"], "shares": [0]}, ValueError, "shares: got 0, expected finite numbers above 0"),
    ({"devices": ["cpu"], "shares": [True]}, TypeError, "shares: got True, expected numbers"),
    ({"devices": ["cpu"], "shares": 2}, TypeError, "shares: got 2, expected a number for each of the 1 devices"),
    ({"devices": ["cpu"], "slices_per_call": 0}, ValueError, "slices_per_call: got 0"),
    ({"slices_per_call": 1.5}, TypeError, "slices_per_call: got 1.5, expected an int or None"),
    ({"slices_per_call": True}, TypeError, "slices_per_call: got True, expected an int or None"),
]


@pytest.mark.parametrize(("options", "kind", "message"), WRONG, ids=lambda v: str(v)[:40])
def test_what_is_no_device_is_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        LocalRuntime(**options)


def never(u):
    raise AssertionError("a step was taken")


@pytest.mark.parametrize("method", ["parareal", "mgrit", "newton"])
def test_states_that_are_elsewhere_are_refused_before_any_step(method, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    runtime = LocalRuntime(devices=["cuda:0", "cuda:1"])
    ask = {"grid": TimeGrid(0, 1, 8), "m": 2, "tol": 0.0, "coarse": never, "method": method, "runtime": runtime}
    with pytest.raises(ValueError, match="u0: got a NumPy array, expected torch on a CUDA device for the devices cuda"):
        solve(never, U0, **ask)
    with pytest.raises(ValueError, match="u0: got a tensor on cpu, expected torch on a CUDA device"):
        solve(never, torch.from_numpy(U0), **ask)
    with pytest.raises(ValueError, match="u0: got a tensor on cpu"):
        runtime.map(Map(never), torch.zeros(3, 1), slice(0, 3, 1), out=torch.zeros(3, 1))


def test_only_the_plain_runtime_becomes_a_placed_one():
    assert type(LocalRuntime()) is LocalRuntime
    assert type(LocalRuntime(slices_per_call=3)) is LocalRuntime
    placed = LocalRuntime(devices=["cpu"], slices_per_call=3)
    assert type(placed) is PlacedRuntime
    assert placed.slices_per_call == 3
    with pytest.raises(TypeError, match="devices"):
        GraphRuntime(devices=["cpu"])
    assert not issubclass(DistributedRuntime, PlacedRuntime)


@pytest.mark.no_sanitize
def test_without_torch_there_are_threads_too():
    code = """if True:
        import sys, threading, numpy as np
        from pyparareal import LocalRuntime, TimeGrid, solve
        from pyparareal.propagators import Map
        meeting = threading.Barrier(2, timeout=100)
        def step(u):
            meeting.wait()
            runtime.map(Map(lambda v: 3.9 * v * (1 - v)), u, slice(0, len(u), 1), out=u)  # in this thread
            return u
        runtime, u = LocalRuntime(devices=["cpu", "cpu"]), np.full((4, 1), 0.3)
        runtime.map(Map(step), u, slice(0, 4, 1), 2, out=u)
        assert len(set(u.ravel())) == 1
        def boom(u):
            raise LookupError("boom")
        try:
            runtime.map(Map(boom), u, slice(0, 4, 1), out=u)
        except LookupError:
            assert "torch" not in sys.modules
            print("fine")
    """
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=240)
    assert done.stdout == "fine\n", done.stderr
