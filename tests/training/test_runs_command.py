# SPDX-License-Identifier: BSD-3-Clause
"""``pyparareal runs``: what it prints is what the run did; one line for each mistake."""

import json

import pytest

torch = pytest.importorskip("torch")

from pyparareal import cli  # noqa: E402
from pyparareal.training import problems  # noqa: E402


def run(*argv):
    try:
        return cli.main(["runs", *argv])
    except SystemExit as stop:
        return stop.code


def test_lines_and_table(capsys):
    assert run("--steps", "200", "--levels", "2", "--cycle", "V") == 0
    shown = capsys.readouterr().out
    result = problems.xor().runs(200, alpha_max=8.0).run()
    lines = shown.splitlines()
    assert lines[0] == "xor: 16 weights, 4 examples, all of them in a step"
    at = lines.index("cycle   residual  factor") + 1
    rows = [line.split() for line in lines[at : at + result.iterations[0]]]
    assert [row[1] for row in rows] == [f"{r:.2e}" for r in result.residuals[0]]
    for word in ("status", "cycles", "error", "step", "measured", "torch.optim", "predicted", "paper's count"):
        assert word in shown


def test_windows_have_headings_of_their_own(capsys):
    assert run("--steps", "64", "--window", "32", "--rules", "solver2") == 0
    shown = capsys.readouterr().out
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
