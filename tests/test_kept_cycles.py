# SPDX-License-Identifier: BSD-3-Clause
"""Cycles whose calls are kept: the bits and the regions of cycles done anew, without the way that leads to them."""

import contextlib
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pyparareal import MGRIT, LocalRuntime, TimeGrid, _trace, arrays, reference, solve
from pyparareal.hierarchy import Transfer, only_calls
from pyparareal.implicit import ImplicitEuler
from pyparareal.method_runs import MgritRun
from pyparareal.mgrit import Cycles
from pyparareal.runtime.local import Anew, Kept

OPTIONS = [
    {},
    {"measure": "end"},
    {"nu": 2},
    {"levels": 3, "omega": 1.2, "stopping": "jump"},
    {"levels": 4, "cycle": "F", "relative": "state"},
    {"levels": 3, "cycle": "W", "nu": [0, 1]},
    {"levels": 3, "nested": True, "coarsest_sweeps": 2, "lag": 2},
]


class Regions(contextlib.AbstractContextManager):
    """What hears of the regions of cycles, and of nothing else."""

    @classmethod
    def span(cls, kind, name, facts):
        return cls(name) if name.startswith("mgrit.") else contextlib.nullcontext()

    @staticmethod
    def sample(counter, value):
        pass

    @staticmethod
    def note(what, facts):
        pass

    def __exit__(self, *error):
        pass


class EveryTime(LocalRuntime):
    """As slow as it can be: with a verb of its own, it is asked every time."""

    def shift(self, u):
        return super().shift(u)


def heat(steps=89, **options):
    points, grid = 17, TimeGrid(0, 0.1, steps)
    off = np.full(points - 1, (points + 1.0) ** 2)
    fine = ImplicitEuler(off, -2 * np.full(points, (points + 1.0) ** 2), off, grid)
    u0 = np.random.default_rng(0).standard_normal((2, points))
    limits = {"tol": 0.0, "max_iterations": 9, "on_failure": "return"}
    return {"fine": fine, "u0": u0, "grid": grid, "m": 3, "method": MGRIT(stagnation=None, **options), **limits}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("size", [None, 4])
def test_kept_cycles_have_the_bits_and_the_cost_of_new_ones(options, library, size):
    problem = heat(**options)
    if library == "torch":
        problem["u0"] = pytest.importorskip("torch").from_numpy(problem["u0"])
    kept = solve(**problem, runtime=LocalRuntime(slices_per_call=size))
    anew = solve(**problem, runtime=EveryTime(slices_per_call=size))
    assert np.array_equal(arrays.to_numpy(kept.u), arrays.to_numpy(anew.u))
    np.testing.assert_array_equal(kept.residuals, anew.residuals)
    assert len(set(kept.residuals)) > 5  # or nothing happened in the later cycles
    assert kept.stats.steps_per_level == anew.stats.steps_per_level
    assert kept.stats.seconds.keys() == anew.stats.seconds.keys()


@pytest.mark.parametrize(("runtime", "once"), [(LocalRuntime, 2), (EveryTime, 9)])
def test_the_way_to_the_calls_is_gone_once_per_place(runtime, once, monkeypatch):
    gone, way = [], Cycles._once

    def counted(*arguments, **named):
        gone.append(1)
        return way(*arguments, **named)

    monkeypatch.setattr(Cycles, "_once", counted)
    problem = heat() | {"initial": np.zeros((30, 2, 17))}  # no first cycle of another kind
    assert solve(**problem, runtime=runtime()).iterations == 9
    assert len(gone) == once  # FCF-relaxation leaves the C-points in the other of two arrays


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_cycle_has_its_regions(options, monkeypatch):
    entered, left = Counter(), Counter()

    class Listener(Regions):
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            entered[self.name] += 1

        def __exit__(self, *error):
            left[self.name] += 1

    counts = []
    monkeypatch.setattr(_trace, "listener", Listener)
    for runtime in (LocalRuntime(), EveryTime()):
        entered.clear()
        left.clear()
        solve(**heat(**options), runtime=runtime)
        assert entered == left
        counts.append(dict(entered))
    assert counts[0] == counts[1]
    assert (
        counts[0][
            f"mgrit.coarsest.{options.get('levels', 2) - 1}" if "coarsest_sweeps" not in options else "mgrit.relax.0"
        ]
        >= 9
    )


def test_parts_of_a_relaxation_are_not_kept_one_by_one():
    peaks = []
    for runtime in (LocalRuntime(slices_per_call=1), EveryTime(slices_per_call=1)):
        problem = heat(steps=900)
        tracemalloc.start()
        solve(**problem, runtime=runtime)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # About 20 calls are kept, of some 1 KB each; of 300 slices they were 900 in a cycle.
    assert peaks[0] < peaks[1] + 100_000


class Wrapped:
    """A fused propagator that does something else before each relaxation."""

    batch_invariant = fused = True

    def __init__(self, phi, before):
        self.phi, self.before = phi, before

    def step(self, u, points):
        return self.phi.step(u, points)

    def relax(self, u, points, m, out, **more):
        self.before()
        self.phi.relax(u, points, m, out, **more)

    def rediscretise(self, m):
        return Wrapped(self.phi.rediscretise(m), self.before)


def test_a_call_that_uses_the_runtime_itself_is_kept_whole():
    counts = []
    for runtime in (LocalRuntime(), EveryTime()):
        inside = Counter()

        def inner(runtime=runtime, inside=inside):
            with runtime.mark("inner"):
                runtime.do(inside.update, ["do"])
            solve(**heat(), runtime=runtime)

        problem = heat()
        solution = solve(**problem | {"fine": Wrapped(problem["fine"], inner)}, runtime=runtime)
        assert np.array_equal(solution.u, solve(**problem).u)
        counts.append(inside["do"])
    assert counts[0] == counts[1] > 30


def random_options(seed):
    """Options of any kind that go together, and the arguments of ``solve`` beside them."""
    rng = np.random.default_rng(seed)

    def pick(*values):
        return values[rng.integers(len(values))]

    levels, nested, steps = pick(2, 2, 3, 4, None), pick(True, False, False), int(rng.integers(6, 60))
    options = {
        "levels": levels,
        "min_coarse": pick(1, 2, 3),
        "nu": pick(0, 1, 2, [0, 1], [2, 0, 1]),
        "omega": pick(1.0, 1.0, 0.8, [1.0, 0.7], [1.2, 1.0]),
        "cycle": pick("V", "F", "W"),
        "nested": nested,
        "skip_first_down": False if nested else pick(None, True, False),
        "coarsest_sweeps": pick(None, None, 1, 2),
        "measure": pick("descent", "end"),
        "stopping": pick("residual", "jump"),
        "relative": pick(None, "first", "state"),
        "scope": pick("global", "local"),
        "temporal_norm": pick("l2", "l1", "inf"),
        "lag": pick(0, 0, 1, 2),
        "storage": pick("c", "all"),
        "final_residual": pick(True, False),
    }
    more = {
        "m": pick(2, 3, 5),
        "norm": pick("inf", "l1", "l2", "rms"),
        "save": pick("coarse", "all"),
        "tol": pick(0.0, None),
    }
    dtype = pick("float64", "float32")
    problem = heat(steps, **options) | more
    problem["u0"] = problem["u0"].astype(dtype)
    if not nested and pick(True, False):
        problem["initial"] = np.full((steps // problem["m"] + 1, 2, 17), 0.3, dtype)
    return problem, pick(None, 1, 4), int(rng.integers(1, 9))


def told_of(runtime, problem, disturbed):
    """All that a solve says, with a callback that writes into the states after one of the cycles."""
    told = []

    def callback(k, u, residual):
        told.append((u.copy(), residual))
        if k == disturbed:
            u[len(u) // 2 :] *= u.dtype.type(1.125)

    solution = solve(**problem, runtime=runtime, callback=callback)
    stats = solution.stats
    steps = stats.steps_per_level, stats.critical_steps_per_level, sorted(stats.seconds)
    return (solution.u, *(u for u, _ in told)), [r for _, r in told], (solution.status, stats.final_residual, steps)


@pytest.mark.parametrize("first", range(0, 125, 25))
def test_any_options_give_the_bits_of_new_cycles(first):
    for seed in range(first, first + 25):
        problem, size, disturbed = random_options(seed)
        kept, anew = (
            told_of(runtime(slices_per_call=size), problem, disturbed) for runtime in (LocalRuntime, EveryTime)
        )
        for here, there in zip(kept[0], anew[0], strict=True):
            assert here.tobytes() == there.tobytes(), seed
        np.testing.assert_array_equal(kept[1], anew[1], f"seed {seed}")
        assert kept[2] == anew[2], seed


def halve(phi, runtime):
    phi.phi.operator._factors.clear()
    phi.phi.operator.diagonal = phi.phi.operator.diagonal / 2


def replace_relax(phi, runtime):
    def relax(u, points, m, out, **more):
        Wrapped.relax(phi, u, points, m, out, **more)
        if out is not None:
            out *= 0.5

    phi.relax = relax


@pytest.mark.parametrize("change", [halve, replace_relax])
def test_a_propagator_that_changes_between_cycles_is_seen_to(change):
    found = []
    for runtime in (LocalRuntime(), EveryTime(), None):
        problem = heat()
        fine = Wrapped(problem["fine"], lambda: None)

        def callback(k, u, residual, runtime=runtime, fine=fine):
            if k == 4 and runtime is not None:
                change(fine, runtime)

        found.append(solve(**problem | {"fine": fine}, runtime=runtime, callback=callback).u)
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


@pytest.mark.parametrize("verb", ["map", "shift", "chain", "do", "mark"])
def test_a_verb_replaced_in_one_runtime_is_asked_from_then_on(verb):
    asked = []
    for runtime in (LocalRuntime(), EveryTime()):
        calls = Counter()

        def counted(*arguments, runtime=runtime, calls=calls, **named):
            calls[verb] += 1
            return getattr(LocalRuntime, verb)(runtime, *arguments, **named)

        def callback(k, u, residual, runtime=runtime, counted=counted):
            if k == 4:
                setattr(runtime, verb, counted)

        solve(**heat(), runtime=runtime, callback=callback)
        asked.append(calls[verb])
    assert asked[0] == asked[1] >= 5  # of 9 cycles


def test_seconds_exchanged_between_cycles_get_what_follows():
    found = []
    for runtime in (LocalRuntime(), EveryTime()):

        def callback(k, u, residual, runtime=runtime):
            if k == 4:
                runtime.seconds = {}

        solve(**heat(), runtime=runtime, callback=callback)
        found.append(set(runtime.seconds))
    assert found[0] == found[1] >= {"mgrit.relax.0", "mgrit.restrict.1", "mgrit.coarsest.1"}


def test_an_error_in_a_kept_call_leaves_every_region(monkeypatch):
    depth, relaxations = [], []

    class Listener(Regions):
        def __init__(self, name):
            pass

        def __enter__(self):
            depth.append(1)

        def __exit__(self, *error):
            depth.pop()

    def fail():
        relaxations.append(1)
        if len(relaxations) == 30:  # of 4 in a cycle, at least, and two cycles are new
            raise ZeroDivisionError

    monkeypatch.setattr(_trace, "listener", Listener)
    problem, runtime = heat(), LocalRuntime()
    with pytest.raises(ZeroDivisionError):
        solve(**problem | {"fine": Wrapped(problem["fine"], fail)}, runtime=runtime)
    assert not depth
    monkeypatch.setattr(_trace, "listener", None)
    assert np.array_equal(solve(**problem, runtime=runtime).u, solve(**problem).u)


def test_what_another_thread_does_meanwhile_is_not_kept(monkeypatch):
    counts, pool = Counter(), ThreadPoolExecutor(1)

    def elsewhere():
        problem = heat()
        fine = Wrapped(problem["fine"], lambda: counts.update(["relax"]))
        solve(**problem | {"fine": fine}, runtime=EveryTime())

    class Listener(Regions):
        def __init__(self, name):
            monkeypatch.setattr(_trace, "listener", None)
            pool.submit(elsewhere).result()

    with pool:
        elsewhere()
        alone = counts.total()
        monkeypatch.setattr(_trace, "listener", Listener)
        solve(**heat(), runtime=LocalRuntime(), initial=np.zeros((30, 2, 17)))  # its first cycle comes again
    assert counts.total() == 2 * alone > 0


def levels_of(monkeypatch, **changed):
    found = []
    run = MgritRun.run
    monkeypatch.setattr(MgritRun, "run", lambda self, *given: (found.append(self.levels), run(self, *given))[1])
    solve(**heat() | changed)
    return found[0]


def test_only_cycles_that_make_no_new_arrays_are_kept(monkeypatch):
    levels = levels_of(monkeypatch)
    assert only_calls(levels, "l2")
    assert not only_calls(levels, lambda u: abs(u).max((1, 2)))
    same = Transfer(lambda u: u.copy(), lambda u: u.copy())
    assert not only_calls(levels_of(monkeypatch, method=MGRIT(transfer=same)), "l2")
    plain = levels_of(monkeypatch, fine=lambda u: 0.9 * u, coarse=lambda u: 0.7 * u)
    assert not only_calls(plain, "l2")
    for fixed, kind in ((True, Kept), (False, Anew)):
        assert type(LocalRuntime().repeat(np.zeros(1), lambda: None, fixed=fixed)) is kind
    assert type(EveryTime().repeat(np.zeros(1), lambda: None, fixed=True)) is Anew


@pytest.mark.parametrize("count", [*range(18), 63, 64, 65, 1000, 1023, 4097])
def test_sums_over_slices_are_those_of_the_fixed_tree(count):
    values = np.random.default_rng(count).standard_normal(2 * count)
    for given in (values[:count], values[::2], values[::-2]):
        assert LocalRuntime().reduce(given) == float(reference.tree_sum(given))
    if count == 4097:
        assert LocalRuntime().reduce(values[::2]) != np.cumsum(values[::2])[-1]  # or any order would do


def test_sums_over_slices_keep_what_is_not_finite():
    assert np.isnan(LocalRuntime().reduce(np.array([1.0, np.nan, 2.0])))
    assert LocalRuntime().reduce(np.array([1.0, np.inf, 2.0])) == np.inf


def test_sums_over_slices_are_of_float64():
    for values in (np.ones(3, np.float32), np.ones(3, np.int64), np.ones((3, 1))):
        with pytest.raises((TypeError, ValueError), match="values: got"):
            LocalRuntime().reduce(values)


def test_a_pool_gives_what_it_has_and_then_new_memory():
    like = np.zeros((3, 2, 5))
    pool = arrays.Pool(like, 7)
    first, second = pool.take(like, 4), pool.take(like, 3)
    assert first.base is second.base is not None
    assert not np.shares_memory(first, second)
    for other in (like, np.zeros((3, 2, 4)), np.zeros((3, 2, 5), np.float32)):
        taken = pool.take(other, 1)
        assert (taken.shape, taken.dtype, taken.base) == ((1, *other.shape[1:]), other.dtype, None)
    assert arrays.Pool(like, 1).take(like[..., :4], 1).shape == (1, 2, 4)


@pytest.mark.parametrize("cycles", [1, 2])
def test_a_solution_holds_no_memory_but_its_own(cycles):
    u = solve(**heat(steps=87, levels=3) | {"max_iterations": cycles}).u
    while u.base is not None:
        u = u.base
    assert u.nbytes == 30 * 2 * 17 * 8
