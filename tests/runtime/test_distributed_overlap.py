# SPDX-License-Identifier: BSD-3-Clause
"""A block's last slice goes first where that hides its message: same bits, same messages, sent before the others."""

import json
from pathlib import Path

import numpy as np
import pytest

from pyparareal.propagators import Blocked, Map
from pyparareal.runtime.block import BlockRuntime
from pyparareal.runtime.model import RankCosts

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

from processes import launch  # noqa: E402

HERE = Path(__file__).parent
RANKS = 3


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("overlap")
    codes, output = launch(HERE / "overlap_worker.py", RANKS, folder, timeout=300)
    assert codes == [0] * RANKS, "\n".join(output)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.slow
@pytest.mark.no_sanitize
@pytest.mark.parametrize("how", ["always", "never"])
def test_the_bits_are_those_of_one_process(found, how):
    for of_rank in found:
        assert len(of_rank["bits"][how]) > 12
        assert {name: what for name, what in of_rank["bits"][how].items() if what} == {}


@pytest.mark.slow
@pytest.mark.no_sanitize
def test_as_much_is_sent_as_without(found):
    for rank, of_rank in enumerate(found):
        assert of_rank["volume"]["always"] == of_rank["volume"]["never"]
        # FCFCF on two levels: 4 and 4 + 1 shifts, and one state of the coarsest chain.
        assert of_rank["volume"]["always"].get("states", 0) == (10 if rank + 1 < RANKS else 0)


def relaxed(first, end):
    """Two steps of the slices from point ``first`` to before ``end``, all at once."""
    return [f"step {first + j}:{end + j}:2" for j in range(2)]


@pytest.mark.slow
@pytest.mark.no_sanitize
def test_the_end_of_a_block_leaves_before_the_others_are_computed(found):
    # 9 slices of 2 steps, 3 for each rank. Shift; F-relaxation; shift; F-relaxation; the step of the coarse level from
    # the C-points, with a shift; the coarse chain; the norm.
    rest = ["send", "send", "numbers"]
    first = found[0]["order"]
    assert first["always"] == ["send", *relaxed(4, 5), "send", *relaxed(0, 3), *relaxed(0, 5), *rest]
    assert first["never"] == ["send", *relaxed(0, 5), "send", *relaxed(0, 5), *rest]
    assert first["of a company"] == first["never"]  # a step whose bits depend on how many slices share the call
    # What comes from the left is asked for before the work, and waited for after it.
    rest = ["send", "receive", "receive", "send", "numbers"]
    middle = [*relaxed(10, 11), "send", *relaxed(6, 9), "receive", *relaxed(6, 11)]
    assert found[1]["order"]["always"] == ["send", "receive", "expect", *middle, *rest]
    # The last has nobody to send to.
    rest = ["receive", "receive", "numbers"]
    middle = [*relaxed(12, 17), "receive", *relaxed(12, 17)]
    assert found[2]["order"]["always"] == ["receive", "expect", *middle, *rest]


@pytest.mark.slow
@pytest.mark.no_sanitize
def test_a_rank_that_takes_five_times_as_long_breaks_nothing(found):
    assert [of_rank["slow"] for of_rank in found] == [[]] * RANKS


class Recorded:
    """The ranks of a block that has a right neighbour."""

    rank = 0

    def __init__(self):
        self.log = []

    def send(self, u, what, to):
        self.log.append((u.copy(), to))


def block(costs):
    return BlockRuntime(Recorded(), [4, 4], {}, None, costs=costs)


HALF = Map(lambda u: u / 2, batch_invariant=True)


def test_another_array_than_announced_is_refused():
    u = np.ones((5, 1))
    runtime = block(RankCosts(call=0.0))
    runtime.map(HALF, u[:-1], slice(0, 4, 1), out=u[1:], shifted=u)
    (sent, to), = runtime._ranks.log  # fmt: skip
    assert (sent.tolist(), to) == ([[0.5]], 1)
    with pytest.raises(RuntimeError, match="got another array than the one whose end was sent ahead"):
        runtime.shift(u.copy())


def test_it_has_to_pay():
    # A message of 8 bytes takes 1 ms here; a call 0.3 ms, so that more than three cost more than they hide.
    costs = RankCosts(latency=1e-3, call=3e-4, step=1e-4)
    blocked = [Blocked(HALF, 4 * m, block=4) for m in (1, 2)]
    for phi, m, early in ((HALF, 3, True), (HALF, 4, False), (blocked[0], 1, True), (blocked[1], 2, False)):
        u, runtime = np.ones((5, 1)), block(costs)
        runtime.map(phi, u[:-1].copy(), slice(0, 4 * m, m), m, out=u[1:], shifted=u)
        assert len(runtime._ranks.log) == early, (phi, m)
