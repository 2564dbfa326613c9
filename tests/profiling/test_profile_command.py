# SPDX-License-Identifier: BSD-3-Clause
"""``pyparareal profile``: what it runs, what it writes, what it refuses, and how it ends."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyparareal import cli, profile_cases, profile_command, profile_runs
from pyparareal.profiling import Timeline, roofs

SMALL = ["heat-1d", "--points", "15", "--steps", "64", "--m", "4"]
TITLE = "pyparareal: where the time went"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder, and roofs that take no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(roofs, "quick", lambda dtype, threads: roofs.Roof(1e11, 1e10, "made up"))
    return tmp_path


def profile(*words):
    return cli.main(["profile", *map(str, words)])


def script(text, name="program.py"):
    Path(name).write_text(text)
    return name


SOLVES = """
import sys
import numpy as np
from pyparareal import TimeGrid, solve
solution = solve(lambda u: 0.9 * u, np.ones((1, 4)), TimeGrid(0, 1, 32), m=4, tol=1e-12, coarse=lambda u: 0.6 * u)
print("iterations", solution.iterations, *sys.argv[1:])
"""


def test_a_model_problem(capsys):
    assert profile(*SMALL, "--json", "t.json") == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert 3 <= len(lines) <= 5
    assert lines[0].startswith("heat-1d: 64 steps")
    assert lines[-1] == "wrote profile-heat-1d.html"
    assert said.err == "", "not a terminal: no progress"
    assert TITLE in Path("profile-heat-1d.html").read_text()
    record = Timeline.load("t.json").record
    assert len(record.solves) == 1
    assert record.about["serial_seconds"] > 0
    assert record.about["roofs"]


def test_the_serial_chain_beside_it_is_no_first_call(monkeypatch):
    """The first serial solves take a second each on this clock: the others, of both programs, 1 and 2 ms."""
    from pyparareal.time_grid import TimeGrid

    now, calls = [0.0], []

    def serial_solve(*args, m, **options):
        now[0] += 1.0 if m not in calls else 0.001 if m == 64 else 0.002
        calls.append(m)

    monkeypatch.setattr(profile_cases, "serial_solve", serial_solve)
    monkeypatch.setattr(profile_cases.time, "perf_counter", lambda: now[0])
    case = {"fine": None, "u0": None, "grid": TimeGrid(0.0, 1.0, 64), "m": (4, 2)}
    assert profile_cases._serial_seconds(case) == pytest.approx(0.001)
    assert set(calls) == {4, 64}, "slice after slice, and all in one call"


def test_quiet(capsys):
    assert profile(*SMALL, "--quiet", "--out", "a.html") == 0
    assert capsys.readouterr() == ("", "")
    assert Path("a.html").is_file()


def test_options_of_a_model_problem_reach_it():
    assert profile("heat-1d", "--points", 15, "--steps", 64, "--m", "4,2", "--quiet", "--json", "t.json") == 0
    (solve,) = Timeline.load("t.json").record.solves
    assert (solve.facts["m"], solve.facts["levels"], solve.facts["grid_steps"]) == ([4, 2], 3, 64)


def test_what_did_not_converge_is_no_success(capsys):
    assert profile(*SMALL, "--max-iterations", 1) == 1
    assert "did not converge" in capsys.readouterr().out


def test_once_more_before(monkeypatch):

    calls = []
    monkeypatch.setitem(
        profile_cases.CASES, "counted", (lambda *_: profile_cases.Job("counted", lambda: calls.append(1)), "")
    )
    assert profile("counted", "--quiet") == 0
    assert len(calls) == 1
    assert profile("counted", "--quiet", "--repeat") == 0
    assert len(calls) == 3


# Scripts


def test_a_script_has_its_own_arguments_and_output(capsys):
    before = list(sys.argv), list(sys.path)
    name = script(SOLVES)
    assert profile(name, "data.csv", "--out", "p.html", "--epochs", "3", "--", "--out", "theirs") == 0
    out = capsys.readouterr().out
    assert "data.csv --epochs 3 --out theirs" in out
    assert TITLE in Path("p.html").read_text()
    assert (list(sys.argv), list(sys.path)) == before


def test_a_script_finds_what_lies_beside_it(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "beside.py").write_text("x = 1\n")
    assert profile(script("import beside\nassert __name__ == '__main__'\n", "folder/program.py"), "--quiet") == 0


def test_an_exception_is_shown_and_the_report_written(capsys):
    assert profile(script(SOLVES + "raise RuntimeError('boo')\n")) == 1
    said = capsys.readouterr()
    assert "RuntimeError: boo" in said.err
    assert "profile_runs.py" not in said.err, "how it was started is no concern of its author"
    assert "The program failed: RuntimeError: boo" in said.out
    assert "boo" in Path("profile-program.html").read_text()


@pytest.mark.parametrize(("code", "status"), [("0", 0), ("7", 7), ("None", 0), ("'no'", 1)])
def test_exit_codes_are_passed_on(code, status, capsys):
    assert profile(script(f"import sys\nsys.exit({code})\n"), "--quiet") == status
    assert capsys.readouterr().err == ("no\n" if code == "'no'" else "")
    assert Path("profile-program.html").is_file()


def test_an_interrupt_leaves_a_report(capsys):
    assert profile(script(SOLVES + "raise KeyboardInterrupt\n")) == 130
    assert "it was interrupted" in capsys.readouterr().out


# Refusals


def test_an_interrupted_case_leaves_a_report(capsys, monkeypatch):
    def interrupt(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr(profile_cases, "solve", interrupt)
    assert profile("decay") == 130
    assert "it was interrupted" in capsys.readouterr().out
    assert TITLE in Path("profile-decay.html").read_text()


def test_signals_are_told_as_shells_do():
    assert [profile_runs._as_status(code) for code in (-9, 0, 3)] == [137, 0, 3]


@pytest.mark.slow
@pytest.mark.no_sanitize
def test_interrupted_ranks_leave_a_report(capfd, monkeypatch):
    """Both sleep; the wait for them is interrupted once both have said that they do."""
    monkeypatch.setenv("PYTHONPATH", str(Path(profile_command.__file__).parents[1]))
    text = "import os, time\nopen('there' + os.environ['RANK'], 'w').close()\ntime.sleep(600)\n"

    class Impatient:
        def status(self, *args, **options):
            if Path("there0").exists() and Path("there1").exists():
                raise KeyboardInterrupt

    args = SimpleNamespace(what=script(text), ranks=2, repeat=False, rest=[])
    record, status = profile_runs.over_ranks(args, Impatient())
    assert status == 130
    assert record.about["ranks"] == 2
    assert record.about["failed"] == "it was interrupted"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "CASE: got nothing"),
        (["nothing"], "CASE: got 'nothing', expected one of train"),
        (["nothing.py"], "SCRIPT: got 'nothing.py', but there is no such file"),
        ([*SMALL, "--ranks", "0"], "ranks: got 0"),
        ([*SMALL, "--out", "a.txt"], "out: got 'a.txt', expected a name that ends in .html"),
        ([*SMALL, "--json", "a.html"], "json: got 'a.html'"),
        ([*SMALL, "--out", "no/where.html"], "there is no folder no"),
        ([*SMALL, "--quiet", "--progress"], "got --quiet and --progress"),
        (["heat-1d", "--method", "magic"], "method: got 'magic'"),
        (["train", "--run", "nowhere"], "run: got 'nowhere'"),
    ],
)
def test_wrong_arguments_are_one_line(words, said, capsys):
    if "train" in words:
        pytest.importorskip("torch")
    assert profile(*words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not list(Path().glob("*.html"))


@pytest.mark.parametrize("words", [["heat-1d", "--steps", "many"], ["heat-1d", "--magic"], ["--magic"]])
def test_wrong_options_are_one_line(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        profile(*words)
    assert exit_.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_only_our_own_files_are_overwritten(capsys):
    out = Path("profile-heat-1d.html")
    out.write_text("<html>mine</html>")
    assert profile(*SMALL) == 2
    assert "none of ours; --force" in capsys.readouterr().err
    assert out.read_text() == "<html>mine</html>"
    assert profile(*SMALL, "--force", "--quiet") == 0
    assert profile(*SMALL, "--quiet") == 0, "a report of ours"
    Path("t.json").write_text("{}")
    assert profile(*SMALL, "--json", "t.json") == 2
    assert Path("t.json").read_text() == "{}"
    assert profile(*SMALL, "--json", "t.json", "--force", "--quiet") == 0
    assert profile(*SMALL, "--json", "t.json", "--quiet") == 0


def test_list(capsys):
    assert profile("--list") == 0
    out = capsys.readouterr().out
    assert {"train", "layers", "gru", "runs", "heat-1d", "lorenz", "SCRIPT.py"} <= {
        line.split()[0] for line in out.splitlines()
    }


def test_cases_in_one_process_say_so(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert profile("runs") == 2
    assert "ranks: runs runs in one process" in capsys.readouterr().err


# Networks


@pytest.mark.parametrize("words", [["layers", "--layers", 16, "--width", 8], ["gru", "--steps", 64, "--hidden", 8]])
def test_networks(words, capsys):
    pytest.importorskip("torch")
    assert profile(*words, "--json", "t.json") == 0
    regions = {event.name for event in Timeline.load("t.json").record.events if event.kind == "region"}
    assert {"train.forward", "train.backward"} <= regions


def test_runs(capsys):
    pytest.importorskip("torch")
    assert profile("runs", "--steps", 20, "--max-iterations", 30, "--quiet", "--json", "t.json") in (0, 1)
    assert any(event.name == "runs.window" for event in Timeline.load("t.json").record.events)


def test_the_network_of_the_latest_run_is_watched(capsys, monkeypatch):
    """A run of one epoch, then three of its steps: whose weights they are, where they went, what more devices give."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    safetensors = pytest.importorskip("safetensors.torch")
    from pyparareal.nn.training_job import step_time, watching

    arguments = ["--model", "resnet8", "--width", "4", "--parts", "2", "--epochs", "1", "--quiet"]
    assert cli.main(["train", *arguments]) == 0
    capsys.readouterr()
    monkeypatch.setattr(watching, "measure", lambda *a, **k: step_time.measure(*a, **(k | {"repeats": 1})))
    threads = torch.get_num_threads()
    assert profile("train", "--steps", 3, "--json", "t.json") == 0
    assert torch.get_num_threads() == threads
    out = capsys.readouterr().out
    assert "weights of runs/" in out
    assert "Where a training step goes" in out
    record = Timeline.load("t.json").record
    assert sum(event.name == "train.update" for event in record.events) == 3, "those that warm up are not in it"
    network = record.about["network"]
    assert network["parts"] == 2
    assert network["steps"] == 3
    assert set(network["predicted_seconds"]) == {"1", "2"}
    assert network["flops"]["critical_path"] < network["flops"]["total"]
    fine = [event for event in record.events if event.name == "fine[0]"]
    assert len(fine) == 3
    assert all(event.facts["flops"] > 0 for event in fine)
    saved = safetensors.load_file(next(Path("runs").glob("*/parareal.safetensors")))
    found = watching.watched_training(None).net.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in saved.items())


# Several processes


RANKED = """
import os, sys, time
import numpy as np
from pyparareal import ops
rank = int(os.environ["RANK"])
ops.slice_norms(np.ones((2, 3)))
print("rank", rank, "of", os.environ["WORLD_SIZE"], *sys.argv[1:])
if "fail" in sys.argv and rank == 1:
    raise RuntimeError("boo")
if "fail" in sys.argv:
    time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.no_sanitize
def test_two_ranks(capfd, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(profile_command.__file__).parents[1]))
    assert profile(script(RANKED), "--ranks", 2, "--json", "t.json", "x") == 0
    out = capfd.readouterr().out
    assert "rank 0 of 2 x" in out
    assert "rank 1" not in out.partition("program.py:")[0], "rank 0 speaks for all"
    record = Timeline.load("t.json").record
    assert {event.rank for event in record.events} == {0, 1}
    assert len(record.clocks) == 2


@pytest.mark.slow
@pytest.mark.no_sanitize
def test_a_rank_that_fails_is_told_and_none_is_left(capfd, monkeypatch):
    """Rank 0 would sleep for ten minutes; it is interrupted, and leaves what it has seen."""
    monkeypatch.setenv("PYTHONPATH", str(Path(profile_command.__file__).parents[1]))
    monkeypatch.setattr(profile_runs, "GRACE", 0.2)
    started = []
    popen = profile_runs.subprocess.Popen
    monkeypatch.setattr(profile_runs.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    assert profile(script(RANKED), "--ranks", 2, "fail", "--json", "t.json") == 1
    assert Timeline.load("t.json").record.about["ranks"] == 2
    said = capfd.readouterr()
    assert "rank 1 ended with status 1" in said.err
    assert "RuntimeError: boo" in said.err
    assert "Rank 1 ended with status 1: RuntimeError: boo" in said.out
    assert len(started) == 2
    for worker in started:
        assert worker.poll() is not None
    assert TITLE in Path("profile-program.html").read_text()
