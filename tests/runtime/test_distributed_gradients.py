# SPDX-License-Identifier: BSD-3-Clause
"""Theorem: gradients over 1, 2, 3 and 4 processes are those of one, bit for bit, each rank taking its own share."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

from processes import launch  # noqa: E402

HERE = Path(__file__).parent
RANKS = 4
pytestmark = [pytest.mark.slow, pytest.mark.no_sanitize]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradients")
    codes, output = launch(HERE / "gradient_worker.py", RANKS, folder, timeout=300)
    assert codes == [0] * RANKS, "\n".join(output)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("ranks", range(1, RANKS + 1))
def test_every_rank_has_the_gradients_of_one_process(found, ranks):
    for of_rank in found[:ranks]:
        cases = of_rank[str(ranks)]
        assert len(cases) > (0, 12, 25, 25, 50)[ranks]
        assert {name: what for name, what in cases.items() if what} == {}


@pytest.mark.parametrize("name", ["serial", "three cycles"])
def test_each_rank_takes_its_share_of_the_steps_backward(found, name):
    # 72 steps in 18 slices of 4, in blocks of 4, 5, 4 and 5 slices. What is taken of each step is the same for all: it
    # is recomputed where it ends in an F-point, transposed, and differentiated in the parameters.
    assert sum(of_rank["shares"][name][0] for of_rank in found) == found[0]["shares"][name][1]
    for of_rank, slices in zip(found, (4, 5, 4, 5), strict=True):
        ours, all_of_them = of_rank["shares"][name]
        assert ours * 18 == all_of_them * slices


def test_every_rank_has_steps_to_take_backward_however_few_the_coarsest_level_has(found):
    ours = [of_rank["shares"]["to one step"][0] for of_rank in found]
    assert sum(ours) == found[0]["shares"]["to one step"][1]
    # Five units of 8 steps: the last rank has two of them and the 5 steps that fill none, 21 of 45.
    assert max(ours) < 0.5 * sum(ours)


def test_trailing_steps_are_taken_backward_by_the_last_rank(found):
    # Four slices of 4 steps, and 2 trailing ones: per slice 3 recomputed, 4 transposed, 4 differentiated.
    assert [of_rank["shares"]["a slice each"][0] for of_rank in found] == [11, 11, 11, 11 + 3 * 2]


def test_an_adjoint_that_fails_is_the_same_error_on_every_rank(found):
    for of_rank in found:
        alone, ours = of_rank["failing"]
        assert alone[0].startswith("adjoint: ")
        assert ours == alone


def test_one_rank_that_does_not_accept_is_enough(found):
    assert [of_rank["others"]["rejected"] for of_rank in found] == ["DIVERGED"] * RANKS


def test_second_derivatives_are_refused_and_none_are_needed_without_a_graph(found):
    for of_rank in found:
        assert "its gradient is not differentiable again" in of_rank["others"]["twice"]
        assert of_rank["others"]["zero"] == [0.0, 0.0, 0.0]
        assert of_rank["others"]["no grad"] is False
