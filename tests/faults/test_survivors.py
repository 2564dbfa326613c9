# SPDX-License-Identifier: BSD-3-Clause
"""Theorem: a solve of which ranks die ends in the serial solution, by those that are left; it says who was lost.

The exact slices reach the end after as many iterations as there are slices, whatever the guess: then every bit is that
of the serial chain.
"""

import json
import signal
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

from processes import launch  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.no_sanitize]

RANKS, SLICES, TOL = 4, 24, 1e-9
# The step is a contraction. A jump or a residual below the tolerance leaves at most that error in the end of a slice,
# and slices add theirs up; the factor is that of the l2 norm of MGRIT, over two components, against the largest one.
BOUND = 1.5 * SLICES * TOL


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survivors")
    codes, output = launch(Path(__file__).with_name("survivors_worker.py"), RANKS, folder)
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0, -signal.SIGKILL], "\n".join(output)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


# Case, who lives to its end, what is lost: iterations in which it may be known, ranks, slices, ranks left.
LOSSES = [
    ("the last of four, parareal", [0, 1, 2], (9, 10), [3], [18, 24], 3),
    ("the middle one of three, MGRIT", [0, 2], (1, 2, 3, 4), [1], [8, 16], 2),
    ("the first of two, to the bit", [2], (3, 4), [0], [0, 12], 1),
]


@pytest.mark.parametrize(
    ("case", "survivors", "iterations", "ranks", "slices", "left"), LOSSES, ids=[c[0] for c in LOSSES]
)
def test_what_is_lost_is_recreated_and_named(found, case, survivors, iterations, ranks, slices, left):
    assert [rank for rank in range(RANKS) if case in found[rank]] == survivors
    for rank in survivors:
        told = found[rank][case]
        assert told == found[survivors[0]][case]
        assert told["status"] == "CONVERGED"
        assert told["error"] <= BOUND
        ((iteration, *rest),) = told["losses"]
        assert iteration in iterations
        assert rest == [ranks, [slices], left]
        assert told["said"][0].startswith(
            f"iteration {iteration}: rank {ranks[0]} lost; slices re-created: {slices[0]} to"
        )


def test_all_iterations_give_the_bits_of_the_serial_chain(found):
    told = found[2]["the first of two, to the bit"]
    assert told["error"] == 0.0
    before = told["losses"][0][0] - 1
    assert told["iterations"] == [before + SLICES] * 2, "those before the loss, and as many as there are slices"
    assert told["size"] == 1


def test_what_is_left_is_a_good_guess(found):
    undisturbed, told = found[0]["none lost"], found[0]["the last of four, parareal"]
    before = told["losses"][0][0] - 1
    # The block that was lost has six slices, which are exact once what is to their left is, and six iterations.
    begun, needed = undisturbed["iterations"][0] - before, told["iterations"][0] - before
    assert needed <= 6 + begun < undisturbed["iterations"][0]
    # It is guessed by the coarse chain of six slices, from a better state than that of all 24 at the beginning.
    assert told["residuals"][:before] == undisturbed["residuals"][:before]
    assert undisturbed["residuals"][before] < told["residuals"][before] < undisturbed["residuals"][0]
    assert found[2]["afterwards"]["losses"] == []
    assert found[2]["afterwards"]["error"] <= BOUND


def test_an_error_of_a_rank_is_no_loss(found):
    for rank in range(RANKS):
        assert found[rank]["newton"].startswith("ValueError: on_loss: got 'recreate' with method newton")
        said = found[rank]["an error of its own"]
        if rank == 1:
            assert said == "ArithmeticError: of this rank's own"
        else:
            assert said.startswith("RankError")
            assert "rank 1 failed: ArithmeticError: of this rank's own" in said
