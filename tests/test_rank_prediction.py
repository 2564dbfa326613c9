# SPDX-License-Identifier: BSD-3-Clause
"""What ranks would take: the blocks, chains and messages of a solve over ranks, priced."""

import math

import pytest

from pyparareal import MGRIT, TimeGrid
from pyparareal.prediction import predict
from pyparareal.runtime.model import RankCosts, StepCost

FREE = RankCosts(0.0, 1e300, 0.0, 0.0)
MESSAGES = RankCosts(1.0, 1e300, 0.0, 1e9)  # a second each, and never hidden: a call would cost more
NOTHING, STEPS = [StepCost(0.0, 0.0)] * 6, [StepCost(0.0, 1.0)] * 6
DOWN = {"skip_first_down": False}


def ask(steps=128, m=4, ranks=4, costs=NOTHING, link=MESSAGES, iterations=3, levels=2, coarse="chain", **options):
    method = MGRIT(levels=levels, **DOWN | options)
    kinds = costs[:levels]
    return predict(TimeGrid(0, 1, steps), kinds, m=m, iterations=iterations, processors=ranks, method=method,
                   ranks=link, coarse=coarse)  # fmt: skip


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("nu", [0, 1, 2])
def test_a_cycle_has_the_messages_that_the_documentation_says(nu, levels):
    # nu + 2 shifts on the finest level, one more on the others; the relay of the chain, and of the norms to all.
    shifts = sum(nu + 2 + (level > 0) for level in range(levels - 1))
    for ranks in (1, 2, 4):
        expected = 3 * (shifts * (ranks > 1) + 2 * (ranks - 1))
        assert ask(nu=nu, levels=levels, ranks=ranks).seconds == expected


def test_parareal_relays_its_guess_and_its_chains():
    found = predict(TimeGrid(0, 1, 64), NOTHING, m=4, iterations=3, processors=4, ranks=MESSAGES)
    # The guess; then in each iteration a shift, the chain and the jumps.
    assert found.seconds == 3 + 3 * (1 + 3 + 3)
    assert (found.working, found.coarse) == (4, "chain")


@pytest.mark.parametrize("coarse", ["chain", "redundant", "gathered"])
def test_equal_blocks_and_free_messages_are_processors(coarse):
    for ranks in (1, 2, 4):
        priced = ask(ranks=ranks, costs=STEPS, link=FREE, coarse=coarse)
        free = predict(TimeGrid(0, 1, 128), STEPS[:2], m=4, iterations=3, processors=ranks, method=MGRIT(**DOWN))
        assert priced.seconds == free.seconds


def test_the_largest_block_decides():
    # 75 steps on levels of 75, 37, 18, 9, 4, 2. Four ranks have one of 4 slices of the level of 9 each: 8, 8, 8 and 13
    # slices of the finest; two relaxations of two steps. For ``chain`` there are two units, of 16 and 21 slices.
    deep = {"steps": 75, "m": 2, "levels": 6, "costs": STEPS, "link": FREE, "iterations": 1}
    many, few = ask(coarse="redundant", **deep), ask(coarse="chain", **deep)
    assert (many.working, few.working) == (4, 2)
    assert many.regions["mgrit.relax.0"] == 2 * 2 * 13
    assert few.regions["mgrit.relax.0"] == 2 * 2 * 21
    assert many.regions["mgrit.relax.4"] == 2 * 2 * 2  # whole
    assert many.regions["mgrit.coarsest.5"] == few.regions["mgrit.coarsest.5"] == 2


def test_what_is_solved_whole_is_told_to_all():
    deep = {"steps": 75, "m": 2, "levels": 6, "iterations": 1}
    shifts = 3 + 4 + 4 + 4
    assert ask(coarse="redundant", **deep).seconds == shifts + 3 + 3  # along the ring, and the norm
    assert ask(coarse="gathered", **deep).seconds == shifts + 2 * 3 + 3
    # Of 8 bytes a second: a state for each shift; three for the unit of each rank; 37 numbers in the frames of four.
    narrow = RankCosts(0.0, 8.0, 0.0, 1e9)
    assert ask(coarse="redundant", link=narrow, **deep).seconds == shifts + 3 * 3 + 3 * 37 / 4


def test_the_choice_is_that_of_the_ranks():
    deep = {"steps": 75, "m": 2, "levels": 6, "coarse": None}
    assert ask(link=RankCosts(0.0, 1e12, 1e-3), **deep).coarse == "redundant"
    assert ask(link=RankCosts(0.0, 1e3, 0.0), **deep).coarse == "chain"


def test_a_message_is_hidden_behind_the_other_slices():
    # 8 slices of 4 steps of a second on each rank, of which one goes first; a call costs nothing.
    for message, left in ((20.0, 0.0), (100.0, 100.0 - 4 * 7)):
        link = RankCosts(message, 1e300, 0.0, 0.0)
        shown = RankCosts(message, 1e300, 0.0, 1e9)
        early, late = (ask(costs=STEPS, link=each, iterations=1).seconds for each in (link, shown))
        assert math.isclose(late - early, message - left)


def test_of_processors_there_is_nothing_to_say():
    found = predict(TimeGrid(0, 1, 64), STEPS[:2], m=4, iterations=1, processors=4)
    assert (found.working, found.coarse) == (None, None)
