# SPDX-License-Identifier: BSD-3-Clause
"""``pyparareal runs``: what it prints is what the run did; one line for each mistake."""

import dataclasses
import json
import math

import pytest

torch = pytest.importorskip("torch")

from pyparareal import cli, runs_report  # noqa: E402
from pyparareal.prediction import Prediction  # noqa: E402
from pyparareal.training import problems  # noqa: E402
from pyparareal.training.speed import OWN_STEP, Speed  # noqa: E402


def run(*argv):
    try:
        return cli.main(["runs", *argv])
    except SystemExit as stop:
        return stop.code


def test_lines_and_table(capsys):
    assert run("--steps", "200", "--levels", "2", "--cycle", "V", "--progress") == 0
    shown, progress = capsys.readouterr()
    result = problems.xor().runs(200, alpha_max=8.0).run()
    lines = progress.splitlines()
    assert lines[0] == "xor: 16 weights, 4 examples, all of them in a step"
    at = lines.index("cycle   residual  factor") + 1
    rows = [line.split() for line in lines[at : at + result.iterations[0]]]
    assert [row[1] for row in rows] == [f"{r:.2e}" for r in result.residuals[0]]
    for word in ("status", "cycles", "error", "step", "measured", "torch.optim", "predicted", "paper's count"):
        assert word in shown


def test_windows_have_headings_of_their_own(capsys):
    assert run("--steps", "64", "--window", "32", "--rules", "solver2", "--progress") == 0
    shown = capsys.readouterr().err
    assert shown.count("cycle   residual  factor") == 2
    assert "steps 0 to 32" in shown
    assert "steps 32 to 64" in shown


def test_json_is_one_document(capsys):
    assert run("--problem", "adder", "--steps", "40", "--rules", "solver2", "--seed", "3", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    runs = problems.adder(3).runs(40, rules="solver2", levels=None, cycle="F", alpha_max=0.2)
    result = runs.run()
    assert found["windows"][0]["iterations"] == result.iterations[0]
    assert found["windows"][0]["residuals"] == list(result.residuals[0])
    assert found["learning_rates"] == [0.025, 0.05, 0.1]
    assert found["converged"] is True
    assert 0 < found["largest_difference_to_serial"] < 1e-6
    assert found["speedup_measured"] > 0
    assert found["seconds_driver"] >= 0
    assert len(found["speedup_predicted"]) >= 2


@pytest.mark.slow
def test_digits_show_accuracies(capsys):
    assert run("--problem", "digits", "--steps", "40", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == found["accuracy_serial"]


def test_a_run_that_needs_too_many_cycles_is_trained_serially(capsys):
    assert run("--steps", "80", "--rules", "naive", "--max-iterations", "2", "--quiet") == 0
    shown = capsys.readouterr().out
    assert "serial solution" in shown
    assert "0.00e+00 from the weights of serial training" in shown


def test_a_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert run("--steps", "40", "--quiet", "--plot", str(tmp_path / "a.png")) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_takes_no_number_along(tmp_path, capsys, monkeypatch):
    def full(path, found):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs_report, "draw", full)
    assert run("--steps", "40", "--json", "--plot", str(tmp_path / "a.png")) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["converged"] is True
    assert shown.err == "pyparareal: error: [Errno 28] No space left on device\n"
    (tmp_path / "b.png").mkdir()
    assert run("--steps", "40", "--plot", str(tmp_path / "b.png")) == 2
    assert "a folder, expected a file" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_written_is_met_before_any_step(capsys):
    assert run("--steps", "40", "--checkpoint", "/proc/run.npz") == 1
    shown = capsys.readouterr()
    assert "checkpoint: /proc/run.npz cannot be written" in shown.err
    assert (len(shown.err.splitlines()), shown.out) == (1, "")


def outcome(best, driver):
    """Of a run whose steps take 1 s on one processor and 0.1 s on 4, and ``driver`` s more as measured."""
    runs = problems.xor().runs(40, alpha_max=8.0)
    result = runs.run()
    result = dataclasses.replace(result, windows=(dataclasses.replace(result.windows[0], seconds=1.0 + driver),))
    predictions = tuple(Prediction(p, 6, seconds, best, {}) for p, seconds in ((1, 1.0), (4, 0.1)))
    serial = {OWN_STEP: 3 * best, "torch.optim": best}
    speed = Speed(result.seconds, serial, dict.fromkeys(serial, 40), math.nan, predictions)
    return runs_report.Outcome(problems.xor(), runs, result, 0.0, speed, None, None)


def test_the_table_says_over_what_and_names_the_driver_overhead():
    shown = " ".join(outcome(best=0.25, driver=0.25).text().split())
    assert "predicted speed-up 0.25 on 1, 2.5 on 4 processors over torch.optim" in shown
    assert "without driver overhead; measured on 1: 0.2, with 0.25 s of driver overhead in 1.2 s" in shown
    assert "Here it took 5 times as long as the best serial program (torch.optim)." in shown
    assert "at most 2.5 times, 62 % of each processor, without driver overhead." in shown
    assert outcome(best=0.05, driver=0.25).verdict().endswith("It does not pay with 4 processors either.")


def test_the_picture_shows_the_numbers_of_the_table(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure
    drawn = []
    monkeypatch.setattr(figure, "savefig", lambda self, path, **options: drawn.append(self) or path.touch())
    runs_report.draw(tmp_path / "a.png", outcome(best=0.25, driver=0.25))
    right = drawn[0].axes[1]
    lines = {line.get_label(): list(line.get_ydata()) for line in right.get_lines()}
    assert lines["predicted, without driver overhead"] == [0.25, 2.5]
    assert lines["measured on one device, driver included"] == [0.2, 0.2]
    assert right.get_ylabel() == "speed-up over torch.optim"


def test_what_was_trained_serially_is_not_called_converged(capsys):
    assert run("--steps", "8", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["converged"]) == ("serial", False)
    assert "no window has a coarse level" in found["message"]
    assert found["verdict"].startswith("Nothing was solved in parallel. Here it ")
    assert run("--steps", "8", "--quiet") == 0
    shown = capsys.readouterr().out
    assert "solved serially" in shown
    assert "converged" not in shown
    assert "in parallel on" not in shown


def test_a_checkpoint(tmp_path, capsys):
    path = tmp_path / "run.npz"
    assert run("--steps", "40", "--checkpoint", str(path), "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert run("--steps", "40", "--checkpoint", str(path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["windows"] == first["windows"]


def test_cuda_where_there_is_none(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("--device", "cuda") == 2
    shown = capsys.readouterr()
    assert "device: got 'cuda', expected one that is here: cpu (torch finds no CUDA device)" in shown.err
    assert (len(shown.err.splitlines()), shown.out) == (1, "")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--problem", "mnist"], "problem: got 'mnist', expected one of xor, adder, digits"),
        (["--rules", "solver3"], "rules: got 'solver3'"),
        (["--optimiser", "lamb"], "optimiser: got 'lamb'"),
        (["--batch", "2"], "batch: got 2 for --rules solver1"),
        (["--steps", "0"], "steps: got 0"),
        (["--lr", "-1"], "lr: got -1.0"),
        (["--window", "3"], "window: got 3"),
        (["--cycle", "Z"], "cycle: got 'Z'"),
        (["--steps", "many"], "invalid int value: 'many'"),
        (["--plot", "a.txt"], "plot: got 'a.txt'"),
        (["--device", "foo"], "device: got 'foo', expected cpu, cuda, cuda:<number> or auto"),
        (["--device", "meta"], "device: got 'meta'"),
        (["--device", "cuda:99"], "device: got 'cuda:99', expected one that is here"),
        (["--seed", "-1"], "seed: got -1, expected an integer from 0 to 4294967295"),
        (["--problem", "digits", "--seed", "-1"], "seed: got -1"),
        (["--seed", str(2**32)], "seed: got 4294967296"),
    ],
)
def test_one_line_for_a_mistake(argv, said, capsys):
    assert run(*argv) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""
