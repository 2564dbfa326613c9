# SPDX-License-Identifier: BSD-3-Clause
"""The command line: lazy commands, exit statuses, and one clear line for each mistake."""

import importlib
import subprocess
import sys
import types

import pytest

from pyparareal import __version__, cli
from pyparareal.errors import PararealError


@pytest.fixture
def command(monkeypatch):
    """Adds a command ``probe`` whose main raises or returns what the test asks for."""

    def add(outcome):
        module = types.ModuleType("probe_command")
        module.configure = lambda parser: parser.add_argument("--size", type=int, default=1)

        def main(args):
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        module.main = main
        monkeypatch.setitem(sys.modules, "probe_command", module)
        monkeypatch.setitem(cli.COMMANDS, "probe", ("probe_command", "a command for this test"))

    return add


def run(*argv):
    try:
        return cli.main(argv)
    except SystemExit as stop:
        return stop.code


def test_every_command_has_its_two_functions():
    for name, (module, text) in cli.COMMANDS.items():
        if name == "train":
            pytest.importorskip("torch")
        loaded = importlib.import_module(module)
        assert callable(loaded.configure)
        assert callable(loaded.main)
        assert text


def test_version_and_help(capsys):
    assert run("--version") == 0
    assert __version__ in capsys.readouterr().out
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "COMMAND"),
        (("trian",), "'trian'"),
        (("--nothing",), "COMMAND"),
        (("doctor", "--nothing"), "--nothing"),
        (("doctor", "again"), "again"),
        (("probe", "--size", "big"), "invalid int value: 'big'"),
    ],
)
def test_a_wrong_command_line_is_named_and_exits_2(argv, said, command, capsys):
    command(0)
    assert run(*argv) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcome", "status", "said"),
    [
        (0, 0, ""),
        (3, 3, ""),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("parts: got 0, expected at least 1"), 2, "error: parts: got 0"),
        (PararealError("did not converge"), 1, "error: did not converge"),
        (FileNotFoundError(2, "No such file", "x.npz"), 1, "x.npz"),
        (ModuleNotFoundError("no", name="sklearn.datasets"), 1, "pip install 'pyparareal[train]'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_outcomes_become_exit_statuses(outcome, status, said, command, capsys):
    command(outcome)
    assert run("probe") == status
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("error", [ZeroDivisionError("bug"), ModuleNotFoundError("no", name="own_module")])
def test_a_bug_keeps_its_traceback(error, command):
    command(error)
    with pytest.raises(type(error)):
        cli.main(["probe"])


def test_traceback_on_request(command):
    command(ValueError("parts"))
    with pytest.raises(ValueError, match="parts"):
        cli.main(["--traceback", "probe"])


@pytest.mark.no_sanitize
def test_module_and_a_command_that_was_not_chosen_is_not_imported():
    code = "import sys; from pyparareal.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit(any(n.startswith('pyparareal.nn') or n == 'torch' for n in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    done = subprocess.run([sys.executable, "-m", "pyparareal", "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == f"pyparareal {__version__}"


def test_a_reader_that_goes_away_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "pyparareal", "solve", "--list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()  # as `| head` does
    _, error = process.communicate()
    assert (process.returncode, error) == (141, b"")
