# SPDX-License-Identifier: BSD-3-Clause
"""The comparisons of MGRIT: that both sides solve the same problem, and that what is missing is never a pass."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import bench_tree
import numpy as np
import pytest

bench_tree.load()

from bench import pymgrit, run, yardstick  # noqa: E402
from bench.cases import CASES, mgrit_speed_cases  # noqa: E402
from bench.cases.mgrit_speed_cases import Sizes, same_history, same_to_rounding  # noqa: E402
from bench.yardstick import children, cycles, memory, problems  # noqa: E402
from pyparareal import ops, serial_solve  # noqa: E402
from pyparareal import problems as published  # noqa: E402
from pyparareal.propagators import Map, RungeKutta  # noqa: E402
from pyparareal.time_grid import TimeGrid  # noqa: E402

SMALL = Sizes(steps=1024, points=15, nx=16, repeats=1)


@pytest.fixture(scope="module")
def program():
    """The C++ yardstick."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    with yardstick.compiled("g++") as run_program:
        yield run_program


@pytest.fixture
def in_process(monkeypatch):
    """Children as plain calls: a process each would take most of the test's time."""

    def call(module, function, *, threads, **arguments):
        return getattr(importlib.import_module(module), function)(**arguments)

    monkeypatch.setattr(children, "call", call)


# The C++ program


@pytest.mark.no_sanitize
@pytest.mark.parametrize("points", [3, 4, 15, 16])
def test_serial_programs_solve_the_heat_equation(program, points):
    problem = problems.heat(32, points)
    exact = problems.heat_exact(problem["u0"], problem["grid"], [32])[0]
    found = program("serial", 32, points, 1.0, 2)
    for way in ("thomas", "both_ends"):
        # 32 steps, none of which amplifies an error, of some units in the last place each
        np.testing.assert_allclose(found[f"{way}_end"], exact, rtol=0, atol=32 * 8 * 2.0**-53)
        assert len(found[way]) == 2
        assert min(found[way]) > 0


@pytest.mark.no_sanitize
@pytest.mark.parametrize(("m", "levels"), [(16, 2), (4, 2), (4, 4)])
def test_plain_mgrit_has_the_residuals_of_the_package(program, m, levels):
    found = program("mgrit", 256, 15, 1.0, m, levels, 5, 1, 1)
    ours = cycles.run_cycles(lambda: problems.heat(256, 15), m, levels, 5)
    sizes = Sizes(256, 15)
    assert same_to_rounding(ours.residuals, found["residuals"], sizes, m)
    assert not same_to_rounding(ours.residuals[1:], found["residuals"][1:][::-1], sizes, m)
    other = cycles.run_cycles(lambda: problems.heat(256, 15), m, levels, 5, measure="end")
    assert not same_to_rounding(other.residuals, found["residuals"], sizes, m)


@pytest.mark.no_sanitize
def test_plain_mgrit_ends_in_the_serial_solution_on_any_number_of_threads(program):
    serial = program("serial", 64, 15, 1.0, 1)["both_ends_end"]
    # 16 slices, two exact in a cycle with FCF-relaxation: all are after 8
    one, two = (program("mgrit", 64, 15, 1.0, 4, 2, 8, threads, 1) for threads in (1, 2))
    np.testing.assert_allclose(one["end"], serial, rtol=0, atol=64 * 8 * 2.0**-53)
    assert (one["end"], one["residuals"]) == (two["end"], two["residuals"])


@pytest.mark.no_sanitize
@pytest.mark.parametrize(("name", "u0"), [("lorenz", [20.0, 5.0, -5.0]), ("brusselator", [0.0, 1.0])])
def test_serial_rk4(program, name, u0):
    grid = TimeGrid(0.0, 0.5, 200)
    chain = serial_solve(RungeKutta(getattr(published, name)().rhs, grid), np.array(u0), grid, m=200, save="coarse")
    # rounding of 200 steps, a few units each; Lorenz multiplies it by e^(0.9 t) or so
    np.testing.assert_allclose(program("rk4", name, 200, 0.5, 1)["end"], chain.u[-1], rtol=200 * 32 * 2.0**-53)


@pytest.mark.no_sanitize
def test_the_program_refuses_what_it_does_not_know(program):
    with pytest.raises(subprocess.CalledProcessError):
        program("serial", 10)


@pytest.mark.no_sanitize
@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_the_case_is_not_run_and_not_passed(monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    entry = run.run_case(CASES["mgrit.heat_cycle"])
    assert entry["error"].startswith("Missing: not run: ")
    assert compiler in entry["error"]
    assert (entry["checked"], entry["metrics"]) == (False, {})


# PyMGRIT


@pytest.mark.parametrize("fails", ["venv", "pip", "-c"])
def test_without_pymgrit_the_case_is_not_run_and_nothing_counts_as_installed(monkeypatch, tmp_path, fails):
    def command(words, **options):
        if "venv" in words:
            Path(words[-1]).mkdir()
        return SimpleNamespace(returncode=int(fails in words), stdout="", stderr="a\nno such wheel\n")

    monkeypatch.setenv(pymgrit.CACHE, str(tmp_path))
    monkeypatch.setattr(pymgrit.subprocess, "run", command)
    entry = run.run_case(CASES["mgrit.vs_pymgrit"])
    assert entry["error"].startswith("Missing: not run: PyMGRIT needs pymgrit==1.0.6, ")
    assert entry["error"].endswith("no such wheel")
    assert (entry["checked"], entry["metrics"]) == (False, {})
    assert not list(tmp_path.glob("*/complete"))


def test_an_environment_is_made_once(monkeypatch, tmp_path):
    made = []

    def command(words, **options):
        made.append(words)
        if "venv" in words:
            Path(words[-1]).mkdir()
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setenv(pymgrit.CACHE, str(tmp_path))
    monkeypatch.setattr(pymgrit.subprocess, "run", command)
    with pymgrit.environment() as first, pymgrit.environment() as second:
        assert first == second
    assert len(made) == 3
    with pymgrit.environment(("pymgrit==1.0.5",)) as other:
        assert other != first


def test_histories_agree_to_six_digits_and_in_length():
    ours = [1.0, 1e-3, 1e-7]
    assert same_history(ours, [1 + 9e-7, 1e-3, 1e-7])
    assert not same_history(ours, [1 + 2e-6, 1e-3, 1e-7])
    assert not same_history(ours, [1.0, 1e-3, 1.1e-7]), "the smallest counts as much as the largest"
    assert not same_history(ours, ours[:2])
    assert not same_history(ours[:2], ours)
    assert same_history(ours, ours[:2], all_of_them=False)
    assert not same_history(ours, [*ours, 1e-9], all_of_them=False)
    assert not same_history(ours, [], all_of_them=False)


@pytest.fixture
def theirs(in_process):
    """What PyMGRIT would have found, by our own cycles, at one second a cycle."""
    found = {}
    for name, one in mgrit_speed_cases._pymgrit_runs(SMALL).items():
        plain = one | {"problem": "heat"} if name == "heat_stock" else one
        history = mgrit_speed_cases._ours(plain, SMALL, 1)["residuals"]
        seconds = float(len(history))
        found[name] = {"solve": seconds, "setup": seconds, "residuals": history, "step": "x", "versions": {}}
    return found


def test_comparison_with_pymgrit_publishes_its_metrics(theirs):
    result = mgrit_speed_cases.compare_with_pymgrit(SMALL, theirs)
    assert result.checked
    for name in ("heat_two_level", "heat_multilevel", "heat_stock", "dahlquist"):
        assert result.metrics[name] == pytest.approx(1 / np.median(result.samples[name]))
        assert result.metrics[f"pymgrit_setup_share_{name}"] == 0.5
    assert 0 < result.metrics["setup_share_dahlquist"] < 1


@pytest.mark.parametrize("name", ["heat_two_level", "heat_multilevel", "heat_stock", "dahlquist"])
def test_comparison_with_pymgrit_notices_another_residual(theirs, name):
    theirs[name]["residuals"][-1] *= 1 + 1e-5
    assert not mgrit_speed_cases.compare_with_pymgrit(SMALL, theirs).checked


# Our side


def test_setup_by_part_and_its_share_of_longer_solves():
    metrics, notes = mgrit_speed_cases.setup_of_longer_solves(SMALL)
    for name in ("heat_two_level_64", "dahlquist_2048"):
        assert 0 < metrics[f"setup_share_{name}_times_as_long"] < 1
    assert metrics["setup_us_dahlquist"] > 0
    assert all(part in notes for part in ("problem", "guess", "solve"))


def test_heat_exact_is_backward_euler():
    problem = problems.heat(50, 9)
    chain = serial_solve(problem["fine"], problem["u0"], problem["grid"]).u
    exact = problems.heat_exact(problem["u0"], problem["grid"], np.arange(51))
    # per step a few units in the last place of numbers up to 1, not amplified; and 9 terms a sum in the eigenvectors
    np.testing.assert_allclose(exact, chain, rtol=0, atol=50 * 8 * 2.0**-53)


def test_calls_of_a_cycle_and_their_time():
    """Two relaxations of m steps, one restriction, S coarse steps and updates, a norm; C-relaxation is none."""
    phi = Map(lambda u: 0.9 * u)
    step = Map.step

    def problem():
        fine = phi
        fine.rediscretise = lambda m: Map(lambda u: 0.9**m * u)
        return {"fine": fine, "u0": np.ones(3), "grid": TimeGrid(0.0, 1.0, 40)}

    kernels = cycles.Kernels()
    found = cycles.run_cycles(problem, 4, 2, 3, kernels=kernels)
    expected = {"Map.step": 2 * 4 + 1 + 10, "_core.parareal_update": 10, "_core.slice_norms": 1}
    assert found.calls == expected
    assert all(0 < inside < whole for inside, whole in zip(found.kernel_seconds, found.seconds, strict=True))
    assert (len(found.seconds), len(found.residuals), Map.step) == (3, 3, step)
    assert kernels.seconds >= sum(found.kernel_seconds)


def test_a_kernel_inside_a_step_counts_and_the_step_does_not():
    class Fused:
        batch_invariant = True

        def step(self, u, points):
            return ops.c_relax(u, u, 1.0)

        def relax(self, u, points, m, out):
            for _ in range(m):
                self.step(out, points)

    kernels = cycles.Kernels()
    u = np.ones((2, 3))
    with kernels.watch(Fused()):
        Fused().relax(u, slice(0, 2, 1), 3, u)
        ops.slice_norms(u)
    ops.slice_norms(u)
    assert kernels.calls == {"_core.c_relax": 3, "_core.slice_norms": 1}


def test_the_path_is_named_by_what_was_called():
    assert cycles.path_of({"_OnGrid.step": 3, "_core.c_relax": 1}) == "not fused: steps in NumPy"
    assert cycles.path_of({"RungeKutta.relax": 3}) == "not fused: steps in NumPy"
    assert cycles.path_of({"_core.relax_tridiagonal": 3}) == "fused (_core.relax_tridiagonal)"


def test_overhead_publishes_its_metrics(in_process):
    result = mgrit_speed_cases.overhead(steps=256, points=7)
    assert result.checked
    assert {"outside_kernels_fraction", "launches_per_cycle"} <= set(result.metrics)
    assert result.metrics["outside_kernels_fraction"] < 1
    assert result.metrics["launches_per_cycle"] > 1


@pytest.mark.no_sanitize
def test_heat_cycle_checks_what_it_times(in_process, monkeypatch, program):
    monkeypatch.setattr(yardstick, "compiled", lambda: contextlib.nullcontext(program))
    result = mgrit_speed_cases.heat_cycle(SMALL, cycles=3)
    assert result.checked
    assert {"us_per_point_two_level", "ratio_to_serial_two_level", "ratio_to_cpp_loop"} <= set(result.metrics)
    monkeypatch.setattr(
        problems, "heat", lambda steps, points, end, heat=problems.heat: heat(steps, points, end * 1.01)
    )
    assert not mgrit_speed_cases.heat_cycle(SMALL, cycles=3).checked


def test_long_axis_converges_to_the_exact_solution_in_few_bytes():
    found = memory.solve_long(5000)
    assert found["status"] == "CONVERGED"
    assert found["error"] <= found["bound"] < 1e-8
    # 5000 / 16 = 312 slices, of which the coarse level has no C-points: it would have 19 < 64 steps
    assert (found["levels"], found["c_point_bytes"]) == (2, 313 * 16 * 8)
    assert found["all_points_bytes"] == 5001 * 16 * 8


@pytest.mark.parametrize(("change", "checked"), [({}, True), ({"status": "STAGNATED"}, False), ({"error": 1.0}, False)])
def test_memory_case_checks_the_solution(monkeypatch, change, checked):
    names = ("c_point_bytes", "all_points_bytes", "peak_rss_bytes", "rss_bytes_before", "cycles", "levels", "seconds")
    found = dict.fromkeys(names, 1) | {"status": "CONVERGED", "error": 0.0, "bound": 1e-8} | change
    asked = {}
    monkeypatch.setattr(children, "call", lambda *words, **named: asked.update(named) or found)
    monkeypatch.setenv(mgrit_speed_cases.TIME_POINTS, "1e4")
    result = mgrit_speed_cases.memory()
    assert result.checked is checked
    assert asked["steps"] == 10000
    assert {"c_point_bytes", "all_points_bytes", "peak_rss_bytes"} <= set(result.metrics)


@pytest.mark.no_sanitize
def test_a_child_has_its_threads_and_its_error_is_told():
    assert children.call("os", "getenv", threads=3, key="OMP_NUM_THREADS") == "3"
    with pytest.raises(RuntimeError, match=r"os\.getenv\(.*\) failed: (.|\n)*TypeError"):
        children.call("os", "getenv", threads=1, nonsense=1)
