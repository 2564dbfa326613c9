# SPDX-License-Identifier: BSD-3-Clause
"""What goes wrong in the backward pass of one rank is an error on all, which says so; and nobody waits for ever."""

import json
import signal
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

from processes import launch  # noqa: E402

HERE = Path(__file__).parent
RANKS = 3
pytestmark = [pytest.mark.slow, pytest.mark.no_sanitize]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failures")
    codes, output = launch(HERE / "failing_gradient_worker.py", RANKS, folder)
    assert codes == [0, -signal.SIGKILL, 0], "\n".join(output)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


DIFFERENCES = {
    "order": "solve of the gradients: rank 1 has the one that ended with exchange ",
    "norm": "gradient.scale: rank 2 has ",
    "gradient": "gradient: rank 1 has ",
    "needed": "needed: rank 2 has (True, False, True, True), rank 0 has (True, True, True, True)",
    "adjoint": "adjoint.method: rank 1 has serial, rank 0 has parareal",
    "option": "adjoint.method: rank 2 has MGRIT(levels=2, min_coarse=2, nu=2,",
    "accept": "adjoint.accept: rank 1 has True, rank 0 has False",
    "graph": "differentiable: rank 1 has False, rank 0 has True",
    "other_operation": "operation: rank 1 has solve, rank 0 has backward",
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_what_differs_is_an_error_on_every_rank(found, name):
    for of_rank in found:
        kind, message = of_rank[name]
        assert kind == "ValueError"
        assert message.startswith(DIFFERENCES[name])
        assert of_rank[f"after {name}"] == ["", ""]  # nothing is lost


ACCIDENTS = [
    ("parareal on 0", 0, "ArithmeticError", "boom going back"),
    ("parareal on 2", 2, "ArithmeticError", "boom going back"),
    ("MGRIT on 1", 1, "ArithmeticError", "boom going back"),
    ("a chain on 1", 1, "ArithmeticError", "boom going back"),
    ("parameters on 2", 2, "ArithmeticError", "boom going back"),
    ("accept on 0", 0, "LookupError", "no such pass"),
]


@pytest.mark.parametrize(("name", "where", "kind", "message"), ACCIDENTS, ids=lambda v: str(v))
def test_an_exception_on_one_rank_raises_on_all(found, name, where, kind, message):
    for rank, of_rank in enumerate(found):
        if rank == where:
            assert of_rank[name] == [kind, message]
        else:
            assert of_rank[name][0] == "RankError"
            assert of_rank[name][1].startswith(f"rank {rank}: backward")
            assert of_rank[name][1].endswith(f"rank {where} failed: {kind}: {message}")
        again = of_rank[f"after {name}"]
        assert again[0] == "RankError"
        assert "this runtime ended with an error" in again[1]


def test_a_rank_that_is_not_called_back_is_an_error_of_the_others(found):
    assert found[1]["absent"] == ["", ""]
    for rank in (0, 2):
        kind, message = found[rank]["absent"]
        assert kind == "RankError"
        assert message.startswith(f"rank {rank}: backward: comparing the gradients, ")
    assert any("rank 1 did not come within 3 s" in found[rank]["absent"][1] for rank in (0, 2))


def test_a_rank_that_dies_on_the_way_back_is_an_error_of_the_others(found):
    assert "dead" not in found[1]
    for rank in (0, 2):
        kind, message = found[rank]["dead"]
        assert kind == "RankError"
        assert message.startswith(f"rank {rank}: backward")
        assert "rank 1: lost (" in message or "lost (Connection" in message


def test_those_that_went_on_without_a_rank_have_the_gradients(tmp_path):
    codes, output = launch(HERE / "lost_gradient_worker.py", RANKS, tmp_path)
    assert codes == [0, -signal.SIGKILL, 0], "\n".join(output)
    for rank in (0, 2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (found["lost"], found["size"], found["states"]) == ([[1]], 2, True)
        assert found["gradients"][:3] == [True] * 3  # exact after as many iterations as slices; b is a sum of all steps
        # What rank 1 had of the solve before is gone with it.
        kind, message = found["before"]
        assert kind == "RankError"
        assert message.startswith("backward: a rank was lost since the solve")
