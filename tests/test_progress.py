# SPDX-License-Identifier: BSD-3-Clause
"""Progress: live where a terminal looks, silent where none does or ``--quiet`` says so, and gone when it is over."""

from __future__ import annotations

import io
import json

import pytest
from terminal import ROOT, Terminal, screen, watched

from pyparareal import cli
from pyparareal._progress import CLEAR, Live, bar, seconds_words, wanted

# The line at the bottom


def test_one_line_is_rewritten_and_wiped():
    out, now = Terminal(), [0.0]
    with Live(out=out, clock=lambda: now[0]) as live:
        assert live.active
        live.status("one")
        live.status("too soon")
        live.status("two", at_once=True)
        now[0] = 0.2
        live.status("three\nfour")
        live.line("stays")
        live.status("x" * 1000, at_once=True)
    said = out.getvalue().split(CLEAR)
    assert said == ["", "one", "two", "three", "stays\n", "x" * (len(said[5])), ""]
    assert 10 <= len(said[5]) < 1000, "cut to the width: a line that wraps could not be wiped"
    assert screen(out.getvalue()) == ["stays", ""]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_whatever_ends_it_the_line_is_wiped(error):
    out = Terminal()

    def work():
        with Live(out=out) as live:
            live.status("working")
            raise error

    with pytest.raises(error):
        work()
    assert out.getvalue() == f"{CLEAR}working{CLEAR}"


@pytest.mark.parametrize(
    ("out", "asked", "said"),
    [(io.StringIO, None, ""), (io.StringIO, False, ""), (Terminal, False, ""), (io.StringIO, True, "line\n")],
)
def test_where_nobody_looks_nothing_is_written(out, asked, said):
    live = Live(asked, out := out())
    with live:
        live.status("status", at_once=True)
        live.line("line")
    assert out.getvalue() == said
    assert live.active is bool(said)


def test_words():
    assert [wanted(False, False), wanted(True, False), wanted(False, True)] == [None, False, True]
    with pytest.raises(ValueError, match="got --quiet and --progress"):
        wanted(True, True)
    found = [seconds_words(s) for s in (0.42, 9.94, 59.4, 59.6, 185, 7205)]
    assert found == ["0.42 s", "9.9 s", "59 s", "1:00", "3:05", "2:00:05"]
    assert [bar(x, 5) for x in (-1, 0.4, 2)] == ["-----", "##---", "#####"]


# Commands, in processes of their own

TRAIN = ["train", "--model", "resnet8", "--width", "2", "--parts", "2", "--threads", "1", "--epochs", "1", "--out"]
COMMANDS = {
    "solve": (["-m", "pyparareal", "solve", "heat-1d"], "cycle 2, residual", "iterations"),
    "runs": (["-m", "pyparareal", "runs", "--steps", "100"], "cycle 2, residual", "cycles"),
    "verify": (["-m", "pyparareal", "verify", "decay"], "serial chain", "right"),
    "profile": (["-m", "pyparareal", "profile", "decay", "--out"], "cycle 2, residual", "wrote"),
    "train": (["-m", "pyparareal", *TRAIN], "parareal   ", "Report:"),
    "bench": (
        ["-m", "pyparareal", "bench", "--case", "mgrit.theorems", "--json", "-"],
        "[1/1] mgrit.theorems",
        '"held"',
    ),
}


def command(name, folder):
    words, live, result = COMMANDS[name]
    if name == "bench" and not (ROOT / "bench" / "run.py").exists():
        pytest.skip("bench/ is not beside tests/")
    if name in ("runs", "train"):
        for library in ("torch", "sklearn", "safetensors"):
            pytest.importorskip(library)
    return [*words, str(folder / "out.html")] if words[-1] == "--out" else words, live, result


@pytest.mark.slow
@pytest.mark.no_sanitize
@pytest.mark.parametrize("name", COMMANDS)
def test_live_on_a_terminal(name, tmp_path):
    words, live, result = command(name, tmp_path)
    status, out, shown = watched(words)
    assert status == 0, shown
    assert live in shown
    assert result in out
    assert CLEAR not in out
    assert screen(shown)[-1] == "", "the last line is wiped"


@pytest.mark.slow
@pytest.mark.no_sanitize
@pytest.mark.parametrize("name", ["solve", "bench"])
def test_quiet_on_a_terminal(name, tmp_path):
    words, _, result = command(name, tmp_path)
    status, out, shown = watched([*words, "--quiet"])
    assert (status, shown) == (0, "")
    assert result in out


@pytest.mark.slow
@pytest.mark.no_sanitize
def test_an_interrupt_leaves_the_terminal_as_it_was():
    words = ["-m", "pyparareal", "solve", "heat-2d", "--points", "63", "--steps", "4096", "--tol", "0"]
    status, out, shown = watched(words, interrupt_at="cycle 1")
    assert (status, out) == (130, "")
    assert screen(shown)[-2:] == ["interrupted", ""]


# bench through the command


def test_bench_runs_and_compares(capsys):
    if not (ROOT / "bench" / "run.py").exists():
        pytest.skip("bench/ is not beside tests/")
    record = str(ROOT / "bench" / "results" / "epyc_2_cores.json")
    assert cli.main(["bench", "--list"]) == 0
    assert "mgrit.theorems" in capsys.readouterr().out
    assert cli.main(["bench", "--compare", record, record, "--case", "depth.dense", "--metric", "w16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["case"] for row in found["rows"]} == {"depth.dense"}
    assert all("w16" in row["name"] for row in found["rows"])
    assert cli.main(["bench", "--case", "no.such"]) == 2
    assert "'no.such', which is no case" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--metric x", "metric: only with --compare"),
        ("--list --case x", "list, case, suite: got more than one"),
        ("--compare a b --suite full", "compare: not with --list, --suite"),
        ("--quiet --progress --list", "progress: got --quiet and --progress"),
    ],
)
def test_bench_arguments_that_do_not_go_together(words, said, capsys):
    if not (ROOT / "bench" / "run.py").exists():
        pytest.skip("bench/ is not beside tests/")
    assert cli.main(["bench", *words.split()]) == 2
    assert said in capsys.readouterr().err


def test_bench_takes_every_option_of_its_programs():
    if not (ROOT / "bench" / "run.py").exists():
        pytest.skip("bench/ is not beside tests/")
    import argparse

    from pyparareal import bench_command

    parser = argparse.ArgumentParser()
    bench_command.configure(parser)
    ours = {option for action in parser._actions for option in action.option_strings}
    for program in ("run", "compare"):
        theirs = bench_command._load(program)._parser()._actions
        assert {option for action in theirs for option in action.option_strings} <= ours
    assert bench_command.SUITES == bench_command._load("run").cases.SUITES


def test_bench_of_an_installed_package_says_where_the_cases_are(tmp_path, monkeypatch, capsys):
    from pyparareal import bench_command

    monkeypatch.setattr(bench_command, "__file__", str(tmp_path / "site-packages" / "pyparareal" / "bench_command.py"))
    assert cli.main(["bench"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "in the folder bench of its source tree" in shown.err
    assert shown.err.count("\n") == 1
