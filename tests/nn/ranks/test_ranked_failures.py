# SPDX-License-Identifier: BSD-3-Clause
"""What goes wrong on one rank of a network is an error on all, which names rank, part and operation; nobody hangs."""

import json
import signal
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

from processes import launch  # noqa: E402
from ranked_failing_worker import LIMIT  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.no_sanitize]
RANKS = 3


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failures")
    codes, output = launch(Path(__file__).parent / "ranked_failing_worker.py", RANKS, folder)
    assert codes == [0, -signal.SIGKILL, 0], "\n".join(output)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


def require_ended(of_rank, name):
    kind, message = of_rank[f"after {name}"]
    assert kind == "RankError"
    assert "this runtime ended with an error" in message
    assert of_rank[f"seconds of {name}"] < LIMIT


CHANGED = "ValueError: got Sent(shape=(4, 3), "
ACCIDENTS = [
    ("raise in a part of 0", 0, "fine[1]", "ArithmeticError: boom"),
    ("raise in a part of 1", 1, "fine[3]", "ArithmeticError: boom"),
    ("raise in a part of 2", 2, "fine[4]", "ArithmeticError: boom"),
    ("kind changes", 2, "head", CHANGED),
]


@pytest.mark.parametrize(("name", "where", "part", "message"), ACCIDENTS, ids=lambda v: str(v)[:20])
def test_an_exception_in_a_part_is_one_on_all_ranks(found, name, where, part, message):
    for rank, of_rank in enumerate(found):
        if rank == where:
            assert ": ".join(of_rank[name]).startswith(message)
        else:
            assert of_rank[name][0] == "RankError"
            assert of_rank[name][1].startswith(f"rank {rank}: forward pass 2, ")
            assert f"rank {where} failed at forward pass 2, {part}: {message}" in of_rank[name][1]
        require_ended(of_rank, name)


@pytest.mark.parametrize("where", [1, 2])
def test_an_exception_in_a_backward_pass_is_one_on_those_that_wait_for_it(found, where):
    """At the next thing that the rank does with the network, if it goes on at all."""
    name = f"raise in backward of {where}"
    assert found[where][name] == ["ArithmeticError", "boom"]
    for rank in range(where):
        assert found[rank][name][0] == "RankError"
        assert found[rank][name][1].startswith(f"rank {rank}: backward pass 2, output, waiting for rank ")
        assert f"rank {where} failed in the backward pass 2" in found[rank][name][1]
    if where == 1:  # rank 2 had no need of rank 1 for its own
        assert found[2][name] == ["", ""]
        assert "rank 1 failed in the backward pass 2" in found[2][f"after {name}"][1]


ELSEWHERE = [
    ("no backward", {1: "forward pass 3"}, "backward pass 2"),
    ("older output", {2: "backward pass 2"}, "backward pass 3"),
    ("other network", {0: "forward pass 2 of network 2"}, "forward pass 2 of network 1"),
    ("other operation", {2: "full_state_dict"}, "clip_grad_norm_"),
]


@pytest.mark.parametrize(("name", "odd", "others"), ELSEWHERE, ids=lambda v: str(v)[:20])
def test_ranks_at_different_places_are_an_error_on_all(found, name, odd, others):
    at = [odd.get(rank, others) for rank in range(RANKS)]
    for rank, of_rank in enumerate(found):
        other = next(r for r in range(RANKS) if at[r] != at[rank])
        assert of_rank[name] == ["RankError", f"rank {rank} is at {at[rank]}, rank {other} at {at[other]}"]
        require_ended(of_rank, name)


def test_a_rank_that_begins_something_else_is_an_error_on_all(found):
    """Not a network's operation: gloo itself would end the process."""
    at = ["forward pass 2", "comparing the arguments", "forward pass 2"]
    for rank, of_rank in enumerate(found):
        other = 0 if rank == 1 else 1
        assert of_rank["checkpoint of one"] == [
            "RankError", f"rank {rank} is at {at[rank]}, rank {other} at something else",
        ]  # fmt: skip
        require_ended(of_rank, "checkpoint of one")


def test_a_rank_that_does_not_come_is_named_after_the_limit(found):
    for rank, of_rank in enumerate(found):
        kind, message = of_rank["late"]
        assert kind == "RankError"
        assert message.startswith(f"rank {rank}: backward pass 2, waiting for all 3 ranks: ")
        assert message.endswith("rank 1 did not come within 4 s")


def test_a_slow_rank_is_waited_for(found):
    assert [of_rank["slow"] + of_rank["after slow"] for of_rank in found] == [[""] * 4] * RANKS


def test_gradients_of_parameters_alone_are_refused(found):
    """The node that sends a gradient to the rank before is not on the way to them."""
    for of_rank in found:
        assert of_rank["selected"][0] == "RankError"
        assert "was not among those asked for; call loss.backward()" in of_rank["selected"][1]


def test_a_checkpoint_around_the_network_is_refused(found):
    assert any(of_rank["checkpoint around"][0] == "RuntimeError" for of_rank in found)
    for of_rank in found:
        assert of_rank["checkpoint around"][0] in ("RuntimeError", "RankError")
        assert "put torch.utils.checkpoint around the blocks of its parts" in of_rank["checkpoint around"][1]


def test_second_derivatives_are_refused_and_nothing_is_lost(found):
    for of_rank in found:
        assert of_rank["second derivatives"] == [
            "RuntimeError", "a network over ranks has no second derivatives (create_graph=True)",
        ]  # fmt: skip
        assert of_rank["after second derivatives"] == ["", ""]


def test_a_dead_rank_is_an_error_of_the_others(found):
    assert "dead" not in found[1]
    for rank in (0, 2):
        kind, message = found[rank]["dead"]
        assert kind == "RankError"
        assert message.startswith(f"rank {rank}: forward pass 2, ")
        assert "rank 1: lost (" in message or "from rank 2 to all: lost (" in message
        assert found[rank]["seconds of dead"] < LIMIT


def test_a_rank_that_dies_in_its_backward_pass_is_an_error_of_the_others(tmp_path):
    codes, output = launch(Path(__file__).parent / "ranked_failing_worker.py", RANKS, tmp_path, "dead in backward")
    assert codes == [0, -signal.SIGKILL, 0], "\n".join(output)
    first, last = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 2))
    assert first["dead in backward"][0] == "RankError"
    assert first["dead in backward"][1].startswith("rank 0: backward pass 2, output, waiting for rank 1: ")
    assert "lost (" in first["dead in backward"][1]  # as seen from here, or by rank 2, where that was first
    assert last["dead in backward"] == ["", ""]  # it had no need of rank 1 for its own
    assert last["after dead in backward"][0] == "RankError"
    assert "rank 1" in last["after dead in backward"][1]
    assert max(one["seconds of dead in backward"] for one in (first, last)) < LIMIT
