# SPDX-License-Identifier: BSD-3-Clause
"""What goes wrong on one rank is an error on all, which names the rank and the place; and nobody waits for ever."""

import json
import signal
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

from processes import launch  # noqa: E402

from pyparareal import distributed  # noqa: E402

HERE = Path(__file__).parent
RANKS = 3
pytestmark = [pytest.mark.slow, pytest.mark.no_sanitize]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failures")
    codes, output = launch(HERE / "failing_worker.py", RANKS, folder)
    assert codes == [0, -signal.SIGKILL, 0], "\n".join(output)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


DIFFERENCES = {
    "shape": "u0.shape: rank 2 has (1, 3), rank 0 has (1, 2)",
    "dtype": "u0.dtype: rank 1 has float64, rank 0 has float32",
    "value": "u0: rank 1 has ",
    "library": "u0.dtype: rank 1 has torch.float64, rank 0 has float64",
    "grid": "grid: rank 1 has TimeGrid(t0=0.0, t1=2.0, steps=50), rank 0 has TimeGrid(t0=0.0, t1=1.0, steps=50)",
    "m": "m: rank 1 has 5, rank 0 has 4",
    "option": "nu: rank 2 has 2, rank 0 has 1",
    "callback": "callback: rank 1 has True, rank 0 has False",
    "forced": "rhs: rank 2 has values with checksum ",
    "guess": "initial: rank 1 has values with checksum ",
    "weights": "fine: rank 2 has values with checksum ",
    "constant": "fine._phi with a: rank 1 has values with checksum ",
    "everyone's mistake": "tol: got -1.0",
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_different_arguments_are_an_error_on_every_rank(found, name):
    for of_rank in found:
        kind, message = of_rank[name]
        assert kind == "ValueError"
        assert message.startswith(DIFFERENCES[name])
        assert of_rank[f"after {name}"] == ["", ""]  # nothing is lost


@pytest.mark.parametrize(("name", "own"), [("own mistake", ["ValueError", "tol: got -1.0"]), ("method", ["TypeError"])])
def test_a_mistake_on_one_rank_is_told_to_the_others(found, name, own):
    assert found[1][name][0] == own[0]
    for rank in (0, 2):
        assert found[rank][name][0] == "RankError"
        assert found[rank][name][1].startswith(f"rank {rank}: rank 1 failed: {': '.join(own)}")
    assert all(of_rank[f"after {name}"] == ["", ""] for of_rank in found)


ACCIDENTS = [
    ("raise in parareal on 0", 0, "ArithmeticError", "boom at the step of this rank"),
    ("raise in parareal on 2", 2, "ArithmeticError", "boom at the step of this rank"),
    ("raise in FCF on 1", 1, "ArithmeticError", "boom at the step of this rank"),
    ("raise in three levels, nested on 2", 2, "ArithmeticError", "boom at the step of this rank"),
    ("raise in the callback", 2, "LookupError", "no such callback"),
]


@pytest.mark.parametrize(("name", "where", "kind", "message"), ACCIDENTS, ids=lambda v: str(v))
def test_an_exception_on_one_rank_raises_on_all(found, name, where, kind, message):
    for rank, of_rank in enumerate(found):
        if rank == where:
            assert of_rank[name] == [kind, message]
        else:
            assert of_rank[name][0] == "RankError"
            assert of_rank[name][1].startswith(f"rank {rank}: ")
            assert of_rank[name][1].endswith(f"rank {where} failed: {kind}: {message}")
            assert "slices" in of_rank[name][1]
        again = of_rank[f"after {name}"]
        assert again[0] == "RankError"
        assert "this runtime ended with an error" in again[1]


def test_a_solve_within_a_solve_is_refused(found):
    kinds = {of_rank["nested"][0] for of_rank in found}
    assert kinds <= {"ValueError", "RankError"}  # of those that have come there, and of those who waited for them
    assert all("runtime: got one that is at work on a solve" in of_rank["nested"][1] for of_rank in found)


def test_whoever_is_interrupted_lets_nobody_wait(found):
    assert found[1]["interrupted"][0] == "KeyboardInterrupt"
    for rank in (0, 2):
        kind, message = found[rank]["interrupted"]
        assert kind == "RankError"
        assert message.endswith("rank 1 failed: KeyboardInterrupt")


def test_nobody_waits_longer_than_the_limit(found):
    for rank, of_rank in enumerate(found):
        kind, message = of_rank["late"]
        assert kind == "RankError"
        assert message.startswith(f"rank {rank}: ")
    assert any("the limit is 3 s" in of_rank["late"][1] for of_rank in found)


def test_a_dead_rank_is_an_error_of_the_others(found):
    assert "dead" not in found[1]
    for rank in (0, 2):
        kind, message = found[rank]["dead"]
        assert kind == "RankError"
        assert message.startswith(f"rank {rank}: ")
        assert "rank 1: lost (" in message or "lost (Connection" in message


def test_without_a_process_group_there_is_no_runtime():
    with pytest.raises(ValueError, match="mesh_or_group: there is no process group"):
        distributed()
    with pytest.raises(ValueError, match="timeout: got 0"):
        distributed(timeout=0)
