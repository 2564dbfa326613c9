# SPDX-License-Identifier: BSD-3-Clause
"""``pyparareal solve``: what it prints, in every form, agrees with the solve; and one line for each mistake."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
from terminal import Terminal

from pyparareal import MGRIT, cli, predicted_speedup, solve, solve_command
from pyparareal._progress import CLEAR, Live
from pyparareal.problems import CATALOGUE, model_problem
from pyparareal.solution import Status
from pyparareal.solve_report import BAR, Outcome, Progress
from pyparareal.solver import serial_solve


def run(*argv):
    try:
        return cli.main(["solve", *argv])
    except SystemExit as stop:
        return stop.code


def document(capsys, *argv, status=0):
    assert run(*argv, "--json") == status
    shown = capsys.readouterr()
    assert bool(shown.err) == bool(status)
    return json.loads(shown.out)


# What is printed


def test_lines_and_table(capsys):
    assert run("decay", "--progress") == 0
    shown = capsys.readouterr()
    p = model_problem("decay")
    solution = solve(**p.arguments(), method=MGRIT())
    lines = shown.err.splitlines()
    assert lines[0] == f"decay: {p.equation}"
    assert lines[2].split() == ["cycle", "residual", "factor"]
    cycles = [line.split() for line in lines[3:]]
    assert len(cycles) == solution.iterations
    assert cycles[0] == ["1", "-", "-"]  # the first cycle has nothing to measure
    for row, residual, before in zip(cycles[1:], solution.residuals[1:], solution.residuals[:-1], strict=True):
        assert row[1] == f"{residual:.2e}"
        assert row[2] == ("-" if math.isnan(before) else f"{residual / before:.3f}")
    for word in ("status", "iterations", "levels", "error", "measured", "predicted", solution.status.value):
        assert word in shown.out
    assert p.remark in " ".join(shown.out.split())
    assert "#" not in shown.err  # bars are for terminals


@pytest.mark.parametrize("words", [(), ("--quiet",)])
def test_nobody_is_looking(words, capsys):
    assert run("decay", *words) == 0
    shown = capsys.readouterr()
    assert "cycle " not in shown.out
    assert "status" in shown.out
    assert shown.err == ""


def progress(tol, limit=None, seconds=()):
    out = Terminal()
    ticks = iter([0.0, *seconds])
    found = Progress(Live(out=out), limit, clock=lambda: next(ticks, 0.0))
    found.tol, found.heading = tol, "heading"
    return found, out


def test_bars_are_logarithmic():
    found, out = progress(1e-4)
    for k, residual in enumerate([math.nan, 1.0, 1e-2, 1e-4, 1e-7, 0.0, math.inf, 1e9], start=1):
        assert found(k, None, residual) is None  # a true value would stop the solve
    lines = [line for line in out.lasting() if line[:5].strip().isdigit()]
    assert [line.count("#") for line in lines] == [0, BAR, BAR // 2, 0, 0, 0, 0, 2 * BAR]
    assert [line.split()[2] for line in lines] == ["-", "-", "0.010", "0.010", "0.001", "0.000", "-", "-"]
    found, out = progress(0.0)  # tolerance 0: nothing to draw to
    for residual in (1.0, 1e-30):
        found(2, None, residual)
    assert out.getvalue().count("#") == BAR


@pytest.mark.parametrize(
    ("tol", "limit", "left"),
    [
        (1e-8, None, "about 3 cycles, 3 s left"),  # 1e-2, then 1e-4, 1e-6, 1e-8 at a hundredth a cycle
        (1e-5, None, "about 2 cycles, 2 s left"),
        (1e-8, 3, "about 1 cycle, 1 s left"),  # no more are taken
        (1e-3, None, "about 1 cycle, 1 s left"),
        (0.0, 10, "about 8 cycles, 8 s left"),  # no tolerance: up to the limit
        (0.0, None, "2 s"),
        (1e-1, 10, "2 s"),  # there
    ],
)
def test_the_rest_is_what_the_rate_says(tol, limit, left):
    found, out = progress(tol, limit, [1.0, 2.0])
    found(1, None, 1.0)
    found(2, None, 1e-2)
    said = out.getvalue().rpartition(CLEAR)[2]
    assert said.endswith(left)
    assert said.startswith("cycle 2, residual 1.00e-02, 2 s")
    found, out = progress(tol, limit, [1.0])
    found(1, None, math.nan)
    assert out.getvalue().rpartition(CLEAR)[2] == "cycle 1, 1 s"


def test_json_says_what_the_solve_says(capsys):
    got = document(
        capsys, "heat-1d", "--steps", "64", "--m", "4,2", "--points", "15", "--integrator", "sdirk2", "--tol", "1"
    )
    p = model_problem("heat-1d", steps=64, points=15)
    case = p.arguments("sdirk2") | {"m": (4, 2), "tol": 1}  # so loose that both solutions have different errors
    solution = solve(**case, method=MGRIT(levels=3))
    chain = serial_solve(case["fine"], p.u0, p.grid, m=4, save="coarse")
    assert got["residuals"] == [None, *solution.residuals[1:]]
    assert (got["status"], got["converged"], got["iterations"]) == ("converged", True, solution.iterations)
    assert (got["method"], got["integrator"], got["unknowns"], got["m"]) == ("mgrit", "sdirk2", 15, [4, 2])
    assert [row["grid"] for row in got["levels"]] == [64, 16, 8]
    assert [row["taken"] for row in got["levels"]] == list(solution.stats.steps_per_level)
    assert [row["one_after_another"] for row in got["levels"]] == list(solution.stats.critical_steps_per_level)
    assert got["errors"]["to_serial"] == np.abs(solution.u - chain.u).max()
    assert got["errors"]["to_truth"] == p.error(solution.t, solution.u).max()
    assert got["errors"]["serial_to_truth"] == p.error(chain.t, chain.u).max()
    assert got["errors"]["truth"] == "exact"
    assert len(set(got["errors"].values())) == 4
    assert min(got["seconds_measured"].values()) > 0


def test_options_reach_the_method(capsys):
    argv = (
        "decay --levels 3 --m 2 --cycle F --nu 2,0 --omega 1.3 --nested --tol 1e-9 --max-iterations 9 --dtype float64"
    )
    got = document(capsys, *argv.split())
    method = MGRIT(levels=3, cycle="F", nu=(2, 0), omega=1.3, nested=True)
    case = model_problem("decay").arguments() | {"tol": 1e-9}
    assert got["residuals"] == list(solve(**case, method=method, max_iterations=9).residuals)
    parareal = document(capsys, "decay", "--method", "parareal", "--m", "10", "--dtype", "float32", "--tol", "1e-3")
    assert (parareal["method"], parareal["dtype"], parareal["tol"]) == ("parareal", "float32", 1e-3)


def test_list(capsys):
    assert run("--list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[::2]] == list(CATALOGUE)
    assert [row["name"] for row in document(capsys, "--list")] == list(CATALOGUE)


# Predictions and verdicts


def outcome(name="decay", **options):
    p = model_problem(name, **options)
    method = MGRIT(levels=p.levels) if p.method == "mgrit" else p.method
    case = p.arguments()
    solution = solve(**case, method=method)
    return Outcome(p, None, method, case, solution, serial_solve(case["fine"], p.u0, p.grid, m=p.m), 2.0, 1.0)


def test_predicted_speedup_of_mgrit_counts_levels_one_after_the_other():
    found = outcome("decay")
    fine, coarse = found.steps
    assert (fine["cost"], coarse["cost"]) == (1, 1)
    processors, best = found.predicted[-1]
    assert processors == 50
    assert fine["taken"] / 50 == fine["one_after_another"]  # every slice has a processor
    assert best == 100 / (fine["one_after_another"] + coarse["one_after_another"])
    assert found.predicted[0] == (4, pytest.approx(100 / (fine["taken"] / 4 + coarse["one_after_another"])))


def test_predicted_speedup_of_parareal_is_the_formula():
    p = model_problem("heat-1d", steps=256, points=15)
    case = p.arguments() | {"m": 16}
    solution = solve(**case, method="parareal")
    found = Outcome(p, None, "parareal", case, solution, solution, 1.0, 1.0)
    assert [row["cost"] for row in found.steps] == [1, 1]
    processors, best = found.predicted[-1]
    assert processors == 16
    assert best == pytest.approx(predicted_speedup(solution.iterations, 16, 1 / 16), rel=1e-12)
    speedups = [x for _, x in found.predicted]
    assert speedups == sorted(speedups)
    assert found.predicted[0][1] <= 4  # never more than there are processors


def test_coarse_steps_that_are_cut_cost_more():
    p = model_problem("brusselator", steps=200)
    case = p.arguments() | {"m": 8}
    solution = solve(**case, method="parareal", max_iterations=1, on_failure="return")
    found = Outcome(p, None, "parareal", case, solution, solution, 1.0, 1.0)
    assert [row["cost"] for row in found.steps] == [1, 5]  # fine steps of 0.5 are two of 0.25, coarse ones of 4 ten


def test_verdicts():
    assert outcome("advection-1d", points=32).verdict().startswith("It does not pay: even on 32 processors")
    found = outcome("heat-1d", points=7)
    assert found.verdict().startswith("It may pay: at best ")
    assert "2 times the serial time" in found.verdict()
    assert "0.5 of the serial time" in dataclasses.replace(found, seconds=0.5).verdict()
    assert outcome("decay").verdict().startswith("It ")
    failed = dataclasses.replace(found, solution=dataclasses.replace(found.solution, status=Status.STAGNATED))
    assert failed.verdict().startswith("Not solved after 7 iterations: the residual no longer falls")


def test_one_level_is_the_serial_solve(capsys):
    got = document(capsys, "decay", "--levels", "1")
    assert got["status"] == "serial"
    assert "only one level" in got["verdict"]
    assert got["errors"]["to_serial"] == 0


# Failures


def test_not_converged_exits_1_and_says_so(capsys):
    got = document(capsys, "heat-1d", "--steps", "64", "--points", "5", "--max-iterations", "2", status=1)
    assert (got["status"], got["converged"], len(got["residuals"])) == ("max_iterations", False, 2)
    assert got["verdict"].startswith("Not solved after 2 iterations")
    assert run("heat-1d", "--steps", "64", "--points", "5", "--max-iterations", "2", "--quiet") == 1
    shown = capsys.readouterr()
    assert "not solved: the iteration limit was reached" in shown.err
    assert "Not solved after 2" in shown.out


def test_overflow_is_a_status(capsys):
    # Explicit reaction with steps far above 0.04^2
    got = document(capsys, "allen-cahn", "--points", "8", "--steps", "32", "--m", "4", "--levels", "3", status=1)
    assert got["status"] in ("non_finite", "diverged", "stagnated", "max_iterations")
    assert not got["converged"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("", "NAME: got nothing, expected one of decay"),
        ("heet", "name: got 'heet', expected one of decay"),
        ("decay --method newton", "method: got 'newton', expected parareal or mgrit"),
        ("decay --method parareal --levels 3", "levels: only for --method mgrit"),
        ("decay --method parareal --nested", "nested: only for --method mgrit"),
        ("lorenz --m 3,4", "m: got 3,4, but parareal has one coarsening factor"),
        ("decay --points 5", "points: got 5, but decay is an ordinary differential equation"),
        ("decay --integrator rk4", "integrator: got 'rk4', decay has backward-euler"),
        ("decay --m 1", "m: got 1, expected a coarsening factor of at least 2"),
        ("decay --m 101", "m: got 101, expected at most the 100 steps"),
        ("decay --m 4,x", "argument --m: invalid int or row of ints value: '4,x'"),
        ("decay --tol -1", "tol: got -1.0, expected a finite number of at least 0"),
        ("decay --tol nan", "tol: got nan"),
        ("decay --steps 0", "steps: got 0, expected at least 1"),
        ("heat-2d --points 1", "points: got 1, expected at least 3"),
        ("decay --cycle X", "cycle: got 'X', expected one of 'V', 'F', 'W'"),
        ("decay --omega 2.5", "omega: got 2.5, expected a number between 0 and 2"),
        ("decay --nu -1", "nu: got -1, expected at least 0"),
        ("decay --levels 0", "levels: got 0, expected at least 1"),
        ("decay --max-iterations 0", "max_iterations: got 0, expected at least 1"),
        ("decay --dtype float16", "dtype: got 'float16', expected float64 or float32"),
    ],
)
def test_wrong_command_lines(argv, said, capsys):
    assert run(*argv.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert shown.err.count("\n") == 1


def test_interrupt(monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(solve_command, "solve", interrupted)
    assert run("decay") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_out_of_memory(monkeypatch, capsys):
    def too_large(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(solve_command, "solve", too_large)
    assert run("decay") == 1
    assert "not enough memory" in capsys.readouterr().err


# Pictures


def test_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "heat.png"
    assert run("heat-2d", "--points", "5", "--steps", "32", "--quiet", "--plot", str(picture)) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["heat.png"]
    assert f"wrote {picture}" in capsys.readouterr().out
    # A solution that is not finite leaves gaps, not a traceback; --json stays one document.
    document(capsys, "allen-cahn", "--points", "8", "--steps", "8", "--plot", str(tmp_path / "x.svg"), status=1)
    assert (tmp_path / "x.svg").exists()


@pytest.mark.parametrize(
    ("name", "said"), [("x.txt", "ends in .png, .pdf or .svg"), ("no/x.png", "there is no folder")]
)
def test_a_picture_that_cannot_be_written_is_refused_first(name, said, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(solve_command, "solve", None)
    assert run("decay", "--plot", str(tmp_path / name)) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_picture_leaves_the_old_one(tmp_path, capsys, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    picture = tmp_path / "old.png"
    picture.write_bytes(b"old")

    def fails(self, path, **options):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure.Figure, "savefig", fails)
    assert run("decay", "--quiet", "--plot", str(picture)) == 1
    assert "disk full" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["old.png"]
    assert picture.read_bytes() == b"old"


def test_without_matplotlib_a_plot_is_refused_first(tmp_path, capsys, monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(solve_command, "solve", None)
    assert run("decay", "--plot", str(tmp_path / "x.png")) == 1
    assert "matplotlib" in (said := capsys.readouterr().err)
    assert "pip install" in said
