# SPDX-License-Identifier: BSD-3-Clause
"""Theorem: coarse levels solved by every rank, or by the first, have the bits of one process; and what that sends."""

import json
from pathlib import Path

import pytest

from pyparareal.runtime.model import RankCosts, Relaxed, cheapest, cycle_seconds

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

from processes import launch  # noqa: E402

HERE = Path(__file__).parent
RANKS = 4
STATE = 16  # bytes: two float64


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coarse")
    codes, output = launch(HERE / "coarse_worker.py", RANKS, folder, timeout=300)
    assert codes == [0] * RANKS, "\n".join(output)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.slow
@pytest.mark.no_sanitize
@pytest.mark.parametrize("ranks", range(1, RANKS + 1))
def test_every_rank_has_what_one_process_has(found, ranks):
    for of_rank in found[:ranks]:
        for coarse, cases in of_rank[str(ranks)].items():
            assert len(cases) > 20
            assert {f"{coarse}, {name}": what for name, what in cases.items() if what} == {}


# Per level in blocks the shifts of a cycle; states that a block has to tell of the level below for each of its units;
# its units; slices of the largest block on the finest level. 75 steps on levels of 75, 37, 18, 9, 4, 2: four ranks have
# one of the four slices of the level of 9. 75 steps on 75, 25, 8: two of eight. 64 on 64, 32, 16: four of sixteen.
VOLUMES = [
    ("V", [3, 4, 4, 4], 3, 1, 13),  # the last block: 37 slices less three times 8
    ("three levels", [3, 4], 2, 2, 7),
    ("residual", [2, 3], 1, 4, 8),  # no pair, so no step of the level below from the C-points
]


@pytest.mark.slow
@pytest.mark.no_sanitize
@pytest.mark.parametrize(("name", "shifts", "kinds", "units", "largest"), VOLUMES, ids=lambda v: str(v))
@pytest.mark.parametrize("coarse", ["redundant", "gathered"])
def test_a_cycle_sends_what_the_formula_says(found, coarse, name, shifts, kinds, units, largest):
    told = [units * kinds + (place == 0) for place in range(RANKS)]
    for rank, of_rank in enumerate(found):
        states = sum(shifts) if rank + 1 < RANKS else 0
        if coarse == "redundant":
            messages, rows = RANKS - 1, sum(told) - told[(rank + 1) % RANKS]
        else:
            messages, rows = (RANKS - 1, (RANKS - 1) * units) if rank == 0 else (1, told[rank])
        expected = {"states": states + messages, "bytes": STATE * (states + rows)}
        assert of_rank["volume"][coarse][name] == expected | {"frames": 1, "numbers": 3 + 2 + largest}


@pytest.mark.slow
@pytest.mark.no_sanitize
def test_by_default_the_cheapest_is_chosen(found):
    for of_rank in found:
        assert [of_rank["chosen"][name][0] for name in ("steps", "bytes")] == [[], []]
        assert of_rank["chosen"]["steps"][1] == of_rank["volume"]["redundant"]["V"]
        assert of_rank["chosen"]["bytes"][1] == of_rank["volume"]["chain"]["V"]


@pytest.mark.slow
@pytest.mark.no_sanitize
def test_a_wrong_choice_is_refused_by_name(found):
    for of_rank in found:
        assert of_rank["refusals"][0].startswith("coarse: got 'all', expected one of 'chain', 'redundant', 'gathered'")
        assert of_rank["refusals"][1] == "costs: got float, expected RankCosts or None"
        assert of_rank["disagreement"] == "coarse: rank 1 has chain, rank 0 has gathered"


LEVELS = [Relaxed(64, 4, 1), Relaxed(16, 4, 1), Relaxed(4, 4, 1)]


def test_with_a_unit_for_every_rank_the_chain_is_relayed():
    for ranks in (1, 2, 3, 4):
        assert cheapest(RankCosts(), 8, LEVELS, 4, ranks) == "chain"
    assert cheapest(RankCosts(1e-9, 1e12), 8, LEVELS, 4, 16) == "redundant"  # 16 ranks, where the chain has room for 4
    assert cheapest(RankCosts(1e-9, 1.0), 8, LEVELS, 4, 16) == "chain"


def test_the_price_of_a_cycle_is_that_of_its_steps_and_messages():
    step, message = RankCosts(0.0, 1e300, 1.0), RankCosts(1.0, 1e300, 0.0)
    # A level: 2 relaxations of 4 steps, one step of the next level, below the finest 3 of interpolation; per slice.
    alone = 64 * 9 + 16 * 12 + 4 * 12 + 4
    assert cycle_seconds(step, 8, LEVELS, 4, 1, "chain") == alone
    assert cycle_seconds(step, 8, LEVELS, 4, 4, "chain") == 16 * 9 + 4 * 12 + 12 + 4
    assert cycle_seconds(step, 8, LEVELS, 4, 16, "redundant") == 4 * 9 + 12 + 4 * 12 + 4
    assert cycle_seconds(message, 8, LEVELS, 4, 1, "chain") == 0
    assert cycle_seconds(message, 8, LEVELS, 4, 4, "chain") == 3 + 4 + 4 + 3
    assert cycle_seconds(message, 8, LEVELS, 4, 16, "redundant") == 3 + 4 + 15
    assert cycle_seconds(message, 8, LEVELS, 4, 16, "gathered") == 3 + 4 + 2 * 15
    # The F-cycle visits the second level twice and the third three times; the W-cycle two and four times.
    assert cycle_seconds(step, 8, LEVELS, 4, 1, "chain", "F") == 64 * 9 + 2 * 16 * 12 + 3 * (4 * 12 + 4)
    assert cycle_seconds(step, 8, LEVELS, 4, 1, "chain", "W") == 64 * 9 + 2 * 16 * 12 + 4 * (4 * 12 + 4)
    narrow = RankCosts(0.0, 8.0, 0.0)  # a second for a state: relaxations, then three for the one unit of each rank
    assert cycle_seconds(narrow, 8, LEVELS, 4, 16, "redundant") == 3 + 4 + 15 * 3
    assert cycle_seconds(narrow, 8, LEVELS, 4, 16, "gathered") == 3 + 4 + 15 * 4


@pytest.mark.parametrize("wrong", [{"latency": -1.0}, {"bandwidth": 0.0}, {"step": float("nan")}, {"step": True}])
def test_wrong_costs_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: got"):
        RankCosts(**wrong)
