# SPDX-License-Identifier: BSD-3-Clause
"""Cycles recorded once and replayed: the bits of cycles that run; on a stand-in, and on graphs where there is a GPU."""

import itertools
import sys
import types

import numpy as np
import pytest
from mgrit_cases import U0, Decay, decay
from test_mgrit_fused import case as heat

from pyparareal import MGRIT, GraphRuntime, LocalRuntime, Status, TimeGrid, Transfer, arrays, ops, problems, solve
from pyparareal.propagators import RungeKutta
from pyparareal.runtime import graph

OPS = ("relax_tridiagonal", "c_relax", "slice_norms", "extract", "inject", "parareal_update")


class Tape:
    """A recorder for NumPy arrays: kernels are noted instead of started, as in a capture, and started by ``launch``."""

    def __init__(self):
        self.recording, self.recorded, self.launched = False, [], 0

    def record(self, work):
        kernels, originals = [], {name: getattr(ops, name) for name in OPS}

        def note(name):
            def call(*arguments, **named):
                kernels.append((originals[name], arguments, named))
                if name == "inject":
                    return arguments[1]
                out = named.get("out")
                assert out is not None or named.get("every") is not None, f"{name} allocates what it returns"
                return out

            return call

        self.recording = True
        for name in OPS:
            setattr(ops, name, note(name))
        try:
            result = work()
        finally:
            self.recording = False
            for name in OPS:
                setattr(ops, name, originals[name])

        def launch():
            self.launched += 1
            for kernel, arguments, named in kernels:
                kernel(*arguments, **named)

        self.recorded.append(len(kernels))
        return result, launch


def both(problem, **options):
    """The solution as it is, the one by replays, and the tape."""
    common = {"on_failure": "return", "max_iterations": 9, **options}
    tape = Tape()
    plain = solve(**problem, **common, runtime=LocalRuntime())
    return plain, solve(**problem, **common, runtime=GraphRuntime(recorder=tape)), tape


def same(plain, replayed):
    assert np.array_equal(plain.u, replayed.u)
    np.testing.assert_array_equal(plain.residuals, replayed.residuals)
    assert (plain.status, plain.iterations) == (replayed.status, replayed.iterations)
    assert plain.stats.steps_per_level == replayed.stats.steps_per_level
    assert plain.stats.critical_steps_per_level == replayed.stats.critical_steps_per_level
    assert plain.stats.mode == "eager"


# A weight of 1 goes to and fro between two arrays: nu C-relaxations of the finest level per cycle.
@pytest.mark.parametrize("cycle", ["V", "F", "W"])
@pytest.mark.parametrize("nu", [0, 1, 2])
@pytest.mark.parametrize("omega", [1.0, 1.2])
@pytest.mark.parametrize("levels", [2, 3, 4])
def test_replayed_cycles_have_the_bits_of_cycles_that_run(cycle, nu, omega, levels):
    options = {"cycle": cycle, "nu": nu, "omega": omega, "levels": levels, "stagnation": None, "skip_first_down": False}
    problem = heat(89, **options) | {"tol": 0.0, "save": "all"}
    plain, replayed, tape = both(problem)
    same(plain, replayed)
    places = 2 if omega == 1 and nu % 2 else 1
    replays = plain.iterations - 1  # the first cycle runs; one that is recorded is replayed at once
    assert len(tape.recorded) == min(places, replays)
    assert len(set(tape.recorded)) == 1
    assert tape.launched == replays
    assert replayed.stats.mode == f"graph: {replays} of {plain.iterations} cycles"


MORE = [
    {"skip_first_down": True},
    {"skip_first_down": True, "cycle": "F"},
    {"nested": True},
    {"measure": "end"},
    {"measure": "end", "nu": 2, "nested": True},
    {"stopping": "jump"},
    {"relative": "state", "scope": "local"},
    {"lag": 2},
    {"lag": 2, "stopping": "jump", "relative": "state"},
    {"coarsest_sweeps": 3},
    {"final_residual": True},
]


@pytest.mark.parametrize("options", MORE, ids=str)
@pytest.mark.parametrize("tol", [0.0, 1e-6, None])
def test_replayed_cycles_with_every_option(options, tol):
    problem = heat(89, **{"levels": 3, "stagnation": None} | options) | {"tol": tol}
    plain, replayed, tape = both(problem)
    same(plain, replayed)
    assert plain.stats.final_residual == replayed.stats.final_residual
    assert replayed.stats.mode.startswith("graph")
    # The first cycle that only goes up is work of another kind, and so is the first that has ends to start with.
    assert tape.launched >= plain.iterations - 3


def test_a_guess_and_a_callback_that_changes_it():
    problem = heat(89, levels=3, stagnation=None) | {"tol": 0.0, "initial": np.ones((30, 2, 17))}

    def disturb(k, u, residual):
        u[1:] += 0.5**k

    same(*both(problem, callback=disturb)[:2])


def test_a_runtime_serves_one_solve_after_the_other():
    runtime = GraphRuntime(recorder=Tape())
    for points in (17, 9):
        problem = heat(81, points, levels=3) | {"max_iterations": 20}
        assert np.array_equal(solve(**problem, runtime=runtime).u, solve(**problem).u)


# What is not recorded


def test_arrays_on_the_host_have_no_graphs():
    torch = pytest.importorskip("torch")
    problem = heat(81)
    expected = solve(**problem)
    for u0, name in ((problem["u0"], "numpy"), (torch.from_numpy(problem["u0"]), "torch")):
        found = solve(**problem | {"u0": u0}, runtime=GraphRuntime())
        assert found.stats.mode == f"eager: {name} arrays on the CPU have no graphs"
        assert np.array_equal(arrays.to_numpy(found.u), expected.u)


def other(kind):
    grid, options = TimeGrid(0, 1, 64), {"tol": 1e-9}
    if kind == "steps":
        return decay(levels=3) | options, "Decay on level 0 is not capturable"
    if kind == "norm":
        return heat(81) | options | {"norm": lambda u: abs(u).max((1, 2))}, "the norm is not capturable"
    if kind == "transfer":
        space = Transfer(lambda u: u[..., ::2].copy(), lambda v: np.repeat(v, 2, -1)[..., :17])
        problem = heat(81, transfer=space) | options | {"coarse": heat(27, 9)["fine"]}
        return problem, "the transfer on level 0 is not capturable"
    if kind == "times":
        grid = TimeGrid.from_times(np.cumsum(np.linspace(0.01, 0.02, 65)))
        fine = RungeKutta(problems.lorenz().rhs, grid)
        assert fine.fused
        return {"fine": fine, "u0": np.ones((1, 3)), "grid": grid, "m": 4, "method": MGRIT(), **options}, (
            "RungeKutta on level 0 is not capturable"
        )
    return heat(81) | {"u0": heat(81)["u0"].astype(np.float16)} | options | {"tol": 1e-2}, (
        "ImplicitEuler on level 0 is not capturable"
    )


@pytest.mark.parametrize("kind", ["steps", "norm", "times", "float16", "transfer"])
def test_what_is_not_known_to_do_the_same_each_time_runs_as_it_is(kind):
    problem, why = other(kind)
    plain, found, tape = both(problem)
    assert np.array_equal(plain.u, found.u)
    np.testing.assert_array_equal(plain.residuals, found.residuals)
    assert found.stats.mode == f"eager: {why}"
    assert not tape.recorded


def test_a_fused_propagator_promises_nothing_by_being_fused():
    class Fused(type(heat(81)["fine"])):
        capturable = False

    a = heat(81)["fine"].operator
    problem = heat(81) | {"fine": Fused(a.lower, a.diagonal, a.upper, TimeGrid(0, 0.1, 81))}
    assert problem["fine"].fused
    assert both(problem)[1].stats.mode == "eager: Fused on level 0 is not capturable"


def test_a_promise_that_cannot_be_kept_is_noticed():
    tape = Tape()

    class Broken(Decay):
        capturable = True

        def step(self, u, points):
            if tape.recording:
                raise RuntimeError("operation not permitted when stream is capturing\nand more")
            return super().step(u, points)

        def rediscretise(self, m):
            return Broken(self.grid.coarsen(m))

    expected = solve(**decay())
    found = solve(**decay() | {"fine": Broken(TimeGrid(0, 8, 64))}, runtime=GraphRuntime(recorder=tape))
    why = "RuntimeError when a cycle was recorded: operation not permitted when stream is capturing"
    assert found.stats.mode == f"eager: {why}"
    assert np.array_equal(found.u, expected.u)
    assert found.residuals[1:] == expected.residuals[1:]


def test_an_error_of_the_step_itself_reaches_the_caller_unchanged():
    calls = itertools.count()

    class Boom(Exception):
        pass

    class Failing(Decay):
        capturable = True

        def step(self, u, points):
            if next(calls) > 20:
                raise Boom
            return super().step(u, points)

        def rediscretise(self, m):
            return Decay(self.grid.coarsen(m))

    with pytest.raises(Boom):
        solve(**decay() | {"fine": Failing(TimeGrid(0, 8, 64))}, runtime=GraphRuntime(recorder=Tape()))


def test_parareal_does_other_work_in_every_iteration():
    found = solve(**heat(81) | {"method": "parareal"}, runtime=GraphRuntime(recorder=Tape()))
    assert (found.status, found.stats.mode) == (Status.CONVERGED, "eager")


# Graphs, by stand-ins for the libraries


class Context:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def __enter__(self):
        self.log.append(f"enter {self.name}")
        return self

    def __exit__(self, *error):
        self.log.append(f"leave {self.name}")


def torch_double(log):
    class Stream(Context):
        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

    class CUDAGraph:
        def capture_begin(self, pool, capture_error_mode):
            log.append(f"begin {pool} {capture_error_mode}")

        def capture_end(self):
            log.append("end")
            if "fails" in log:
                raise RuntimeError("capture was invalidated")

        def replay(self):
            log.append("replay")

    caller = Stream(log, "caller")
    cuda = types.SimpleNamespace(
        Stream=lambda device: Stream(log, "side"), CUDAGraph=CUDAGraph, graph_pool_handle=lambda: "pool",
        current_stream=lambda device: caller, device=lambda device: Context(log, device), stream=lambda stream: stream,
    )  # fmt: skip
    return types.SimpleNamespace(cuda=cuda)


def cupy_double(log):
    class Stream(Context):
        def record(self):
            return f"event of {self.name}"

        def wait_event(self, event):
            log.append(f"{self.name} waits for {event}")

        def begin_capture(self, mode):
            log.append(f"begin pool {mode}")

        def end_capture(self):
            log.append("end")
            if "fails" in log:
                raise RuntimeError("capture was invalidated")
            return types.SimpleNamespace(launch=lambda: log.append("replay"))

    caller = Stream(log, "caller")
    cuda = types.SimpleNamespace(
        Stream=lambda non_blocking: Stream(log, "side"), MemoryPool=lambda: types.SimpleNamespace(malloc="pool"),
        get_current_stream=lambda: caller, using_allocator=lambda malloc: Context(log, malloc),
        runtime=types.SimpleNamespace(streamCaptureModeRelaxed="relaxed"),
    )  # fmt: skip
    return types.SimpleNamespace(cuda=cuda)


def recorder(library, log, monkeypatch):
    monkeypatch.setitem(sys.modules, library, (torch_double if library == "torch" else cupy_double)(log))
    if library == "torch":
        return graph.TorchRecorder("cuda:0")
    made = graph.CupyRecorder(Context(log, "cuda:0"))
    log.clear()
    return made


@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_a_capture_waits_for_the_caller_and_lasts_as_long_as_the_work(library, monkeypatch):
    log = []
    result, launch = recorder(library, log, monkeypatch).record(lambda: log.append("work") or 7)
    assert result == 7
    order = [log.index(what) for what in ("enter cuda:0", "enter side", "work", "end", "leave side")]
    assert order == sorted(order)
    begin = next(i for i, what in enumerate(log) if what.startswith("begin pool"))
    assert order[1] < begin < order[2]
    assert next(i for i, what in enumerate(log) if what.startswith("side waits for")) < begin
    assert "replay" not in log
    launch()
    launch()
    assert log.count("replay") == 2
    assert (log.count("work"), log.count("end")) == (1, 1)


@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_a_capture_that_fails_is_ended_and_says_what_the_work_said(library, monkeypatch):
    log = []

    def work():
        log.append("fails")
        raise ZeroDivisionError("of the work")

    with pytest.raises(ZeroDivisionError, match="of the work"):
        recorder(library, log, monkeypatch).record(work)
    assert log.count("end") == 1
    assert log.index("end") < log.index("leave side")


# Graphs


@pytest.mark.gpu
@pytest.mark.parametrize("library", ["torch", "cupy"])
@pytest.mark.parametrize(
    "options",
    [{}, {"nu": 0}, {"cycle": "F", "nu": 2}, {"cycle": "W", "omega": 1.2}, {"measure": "end"}, {"lag": 2},
     {"stopping": "jump", "relative": "state"}, {"nested": True, "levels": 4}, {"storage": "all"}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("tol", [1e-9, None])
def test_graphs_on_a_gpu_have_the_bits_of_single_launches(library, options, tol, monkeypatch):
    module = pytest.importorskip(library)
    if library == "torch" and not module.cuda.is_available():
        pytest.skip("no CUDA device")
    problem = heat(89, **{"levels": 3, "stagnation": None} | options)
    u0 = module.asarray(problem["u0"]) if library == "cupy" else module.tensor(problem["u0"], device="cuda")
    problem |= {"u0": u0, "tol": tol, "max_iterations": 9, "on_failure": "return", "save": "all"}
    plain = solve(**problem)
    calls = []
    for name in OPS:
        original = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, original=original, **k: calls.append(1) or original(*a, **k))
    told = []
    found = solve(**problem, runtime=GraphRuntime(), callback=lambda k, u, r: told.append(len(calls)) and False)
    assert np.array_equal(arrays.to_numpy(found.u), arrays.to_numpy(plain.u))
    np.testing.assert_array_equal(found.residuals, plain.residuals)
    assert found.stats.steps_per_level == plain.stats.steps_per_level
    assert found.stats.mode.startswith("graph: "), found.stats.mode
    if tol is not None and not options.get("lag"):
        assert told[-1] == told[-2]  # a replayed cycle starts no kernel by itself


@pytest.mark.gpu
@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_steps_that_wait_for_the_device_are_not_recorded_on_a_gpu(library):
    module = pytest.importorskip(library)
    if library == "torch" and not module.cuda.is_available():
        pytest.skip("no CUDA device")

    class Waits(Decay):
        capturable = True

        def step(self, u, points):
            return super().step(u, points) if float(u.sum()) < 1e300 else u

        def rediscretise(self, m):
            return Waits(self.grid.coarsen(m))

    u0 = module.asarray(U0) if library == "cupy" else module.tensor(U0, device="cuda")
    for fine, why in ((Waits(TimeGrid(0, 8, 64)), "when a cycle was recorded"), (None, "Decay on level 0")):
        problem = decay(levels=3) | {"u0": u0} | ({"fine": fine} if fine else {})
        plain, found = solve(**problem), solve(**problem, runtime=GraphRuntime())
        assert np.array_equal(arrays.to_numpy(found.u), arrays.to_numpy(plain.u))
        assert found.stats.mode.startswith("eager: ")
        assert why in found.stats.mode
        # Nothing of the failed capture is left: the next graph works.
        fused = heat(81) | {"u0": u0.repeat(1, 9)[:, :17] if library == "torch" else module.tile(u0, (1, 9))[:, :17]}
        assert solve(**fused, runtime=GraphRuntime()).stats.mode.startswith("graph")
