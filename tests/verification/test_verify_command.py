# SPDX-License-Identifier: BSD-3-Clause
"""``pyparareal verify``: 0 right, 1 a fault, 2 the caller's mistake; and what it prints."""

import io
import json
import sys
from pathlib import Path

import pytest

from pyparareal import cli, verify_command
from pyparareal._progress import CLEAR

EXAMPLE = str(Path(__file__).resolve().parents[2] / "examples" / "verify_step.py")
with_example = pytest.mark.skipif(not Path(EXAMPLE).exists(), reason="examples/ is not beside tests/")


def run(*argv):
    try:
        return cli.main(["verify", *argv])
    except SystemExit as stop:
        return stop.code


def test_a_model_problem(capsys):
    assert run("decay") == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("decay: u' = -u, u(0) = 1: right")
    assert shown.err == ""


@pytest.mark.parametrize("method", verify_command.METHODS)
def test_options_reach_the_solve(capsys, method):
    assert run("dahlquist", "--method", method, "--m", "5", "--tol", "1e-6", "--steps", "40", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert (found["facts"]["m"], found["facts"]["steps"], found["facts"]["tolerance"]) == (5, 40, 1e-6)
    assert len(found["comparisons"][0]["slices"]) == 8


@with_example
def test_a_fault(capsys):
    assert run(EXAMPLE, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [f["fault"] for f in found["findings"] if f["severity"] == "fault"] == ["hidden_state"]
    assert run(EXAMPLE) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "FAULT HIDDEN_STATE: slice 0, step 0" in shown
    assert "fine.force changed" in shown
    assert run(f"{EXAMPLE}:mended") == 0
    assert capsys.readouterr().out.startswith("solve: right")


def test_progress_on_a_terminal_only(capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run("decay") == 0
    assert "serial chain" in terminal.getvalue()
    assert terminal.getvalue().endswith(CLEAR)
    shown = len(terminal.getvalue())
    assert run("decay", "--quiet") == 0
    assert len(terminal.getvalue()) == shown


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nothing"], "expected one of decay"),
        (["nothing.py"], "no file"),
        (["no_such_module:case"], "no module"),
        pytest.param([f"{EXAMPLE}:absent"], "no function absent", marks=with_example),
        (["decay", "--method", "magic"], "expected one of parareal"),
        (["decay", "--m", "0"], "m: got 0"),
        (["decay", "--dtype", "float16"], "dtype"),
        (["decay", "--points", "4"], "points"),
        ([EXAMPLE, "--steps", "4"], "only for a model problem"),
        (["json:loads"], "TARGET: json:loads raised TypeError"),
        ([], "required"),
    ],
)
def test_mistakes(capsys, argv, words):
    assert run(*argv) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""


def test_a_target_that_returns_no_chain(capsys, tmp_path):
    (tmp_path / "chains.py").write_text("def case():\n    return 3, 4\n")
    assert run(str(tmp_path / "chains.py")) == 2
    assert "got int without grid= and m=" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["def case():\n    raise KeyError('lost')\n", "x = (\n"])
def test_what_the_file_raises_is_no_fault_that_was_found(tmp_path, capsys, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert run(str(path)) == 2
    assert f"TARGET: {path} raised" in capsys.readouterr().err
