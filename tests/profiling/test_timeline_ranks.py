# SPDX-License-Identifier: BSD-3-Clause
"""Timelines of two real processes: both ranks, an arrow for each message, and clocks that agree with the machine's."""

import json
from collections import Counter
from pathlib import Path

import pytest
import trace_schema

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

from processes import launch, run_example  # noqa: E402

from pyparareal.profiling import Timeline, arrows, merge  # noqa: E402
from pyparareal.profiling.clocks import MESSAGES, SHARED  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.no_sanitize]
HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "ranks_timeline.py"
RANKS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timelines")
    codes, output = launch(HERE / "timeline_worker.py", RANKS, folder)
    assert codes == [0] * RANKS, "\n".join(output)
    return folder


@pytest.fixture(scope="module")
def own(folder):
    return [Timeline.load(folder / f"own.rank{rank}.json").record for rank in range(RANKS)]


def messages(record, name="state"):
    return [e for e in record.events if e.kind == "message" and e.name == name]


@pytest.mark.parametrize("how", ["own", "gathered"])
def test_both_ranks_and_an_arrow_for_each_state_that_was_sent(folder, own, how):
    record = merge(own) if how == "own" else Timeline.load(folder / "gathered.json").record
    assert record.about["ranks"] == RANKS
    assert [clock.how for clock in record.clocks][1:] == [SHARED] * (RANKS - 1)
    assert {e.rank for e in record.events} == set(range(RANKS))
    sent = [e for e in messages(record) if "to" in e.facts]
    received = [e for e in messages(record) if "source" in e.facts]
    assert sent
    assert Counter((e.flow, e.rank, e.facts["to"]) for e in sent) == Counter(
        (e.flow, e.facts["source"], e.rank) for e in received
    )
    drawn = [(record.events[i], record.events[j]) for i, j in arrows(record.events)]
    assert sum(a.name == "state" for a, _ in drawn) == len(sent)
    assert all(a.rank != b.rank and a.start <= b.end for a, b in drawn if a.kind == "message")


def test_the_merged_file_is_valid(folder):
    data = json.loads((folder / "gathered.json").read_bytes())
    assert trace_schema.all_problems(data["traceEvents"]) == []
    names = {e["args"]["name"] for e in data["traceEvents"] if e["name"] == "process_name"}
    assert names == {f"rank {rank}, cpu" for rank in range(RANKS)}
    between = {}
    for event in data["traceEvents"]:
        if event["ph"] in "sf" and event["cat"] == "message":
            between.setdefault(event["id"], set()).add(event["pid"])
    assert between
    assert all(len(pids) == 2 for pids in between.values())


def test_messages_alone_lay_the_clocks_as_the_machine_does(own):
    """As on two machines: the offset that the messages give is the true one to within the error that they state."""
    true = own[1].about["clock"]["zero"] - own[0].about["clock"]["zero"]
    for record in own:
        record.about = {key: value for key, value in record.about.items() if key != "clock"}
    clock = merge(own).clocks[1]
    assert clock.how == MESSAGES
    # 1e-7: the readings, in seconds since the machine started, are rounded to a few nanoseconds.
    assert abs(clock.offset - true) <= clock.error + 1e-7


def test_the_example_writes_one_timeline_of_two_ranks(tmp_path):
    said = run_example(EXAMPLE, str(tmp_path / "both.json.gz"), ranks=RANKS)
    record = Timeline.load(tmp_path / "both.json.gz").record
    assert {e.rank for e in record.events} == set(range(RANKS))
    assert "2 ranks" in said
    assert len(arrows(record.events)) > 0
