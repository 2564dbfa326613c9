# SPDX-License-Identifier: BSD-3-Clause
"""Every rule finds what is planted, says its numbers, and is silent where there is nothing; so is a healthy run."""

import pytest
from planted import launch, message, record, region, solve

from pyparareal.profiling import analyse
from pyparareal.profiling.analysis import wording
from pyparareal.profiling.analysis.findings import findings
from pyparareal.profiling.analysis.results import SEVERITIES
from pyparareal.profiling.events import Event

ROOF = {"device": "cpu", "dtype": "float64", "flops_per_second": 1e9, "bytes_per_second": 1e9, "how": "", "threads": 4}
FACTS = {"shape": [64, 8], "dtype": "float64", "given": [], "norm": 0, "m": 4}


def diagonal(start, end, fraction, **fields):
    """A relaxation that reaches this fraction of the roof, by the bytes it moves."""
    facts = {**FACTS, "op": "relax_diagonal", "coefficients": 8, "bytes": fraction * (end - start) * 1e9}
    return launch(start, end, "relax_diagonal", facts=facts, **fields)


def healthy(*more, solves=None, fraction=0.4, **about):
    """Launches that fill a solve of ten seconds."""
    work = [diagonal(n / 10, (n + 1) / 10, fraction, level=0, region="mgrit.relax.0") for n in range(100)]
    return record(*work, *more, solves=[solve(0.0, 10.0)] if solves is None else solves, roofs=[ROOF], **about)


def found(made):
    return {one["rule"]: one for one in analyse(made).findings}


def priced(seconds=(8.0, 4.0), serial=20.0, changes=(), solve_number=0, measured=None):
    """What a solve costs on 1 and 2 processors."""
    row = {"change": "as it is", "m": [4], "levels": 2, "serial_seconds": serial, "coarse_share": 0.1}
    rows = [
        row | {"processors": 1 << n, "seconds": one, "speedup": serial / one} for n, one in enumerate(seconds)
    ]  # fmt: skip
    what_if = [row | {"processors": 2, "change": c, "seconds": s, "speedup": serial / s} for c, s in changes]
    return {
        "solve": solve_number, "what": "parareal", "unit": "seconds", "measured_seconds": 10.0, "model_seconds": 8.0,
        "ratio": 1.25, "costs": [], "regions": [], "processors": rows, "what_if": what_if, "serial_seconds": serial,
        "serial_measured": measured, "serial_wins": all(serial <= one for one in seconds), "reason": None,
    }  # fmt: skip


def with_prices(made, *prices):
    analysis = analyse(made)
    analysis.predicted = list(prices)
    return {one["rule"]: one for one in findings(analysis)}


def test_a_healthy_run_has_nothing_to_mend():
    assert set(found(healthy())) == {"nothing-to-mend"}
    assert found(healthy())["nothing-to-mend"]["severity"] == "good"


def test_small_launches():
    def spread(part, count=100, apart=1e-3):
        tiny = [launch(n * apart, (n + part) * apart) for n in range(count)]
        return found(record(*tiny, solves=[solve(0.0, count * apart)]))

    one = spread(0.1)["small-launches"]
    assert one["severity"] == "serious"
    assert one["seconds"] == pytest.approx(0.0891)  # the last launch ends at 0.0991
    assert "90 %" in one["words"]
    assert "100 launches" in one["words"]
    assert "small-launches" not in spread(0.1, count=20), "too few to say"
    assert "small-launches" not in spread(0.9)
    seldom = spread(0.1, apart=10e-3)
    assert "small-launches" not in seldom, "9 ms between two launches are not the cost of calling them"
    assert "Most of the work is outside" in seldom["outside-launches"]["title"]


def test_waiting():
    waits = Event("wait", "message", 0.0, 3.0)
    one = found(record(waits, launch(3.0, 10.0)))["waiting"]
    assert one["seconds"] == 3
    assert "30 %" in one["title"]
    assert "waiting" not in found(record(Event("wait", "message", 0.0, 1.0), launch(1.0, 10.0)))
    assert "waiting" not in found(record(waits, launch(0.0, 10.0, stream="other"))), "something ran meanwhile"


def test_copies():
    one = found(record(Event("copy", "to host", 0.0, 2.0), launch(2.0, 10.0)))["copying"]
    assert one["seconds"] == 2
    assert "copying" not in found(record(Event("copy", "to host", 0.0, 1.0), launch(1.0, 10.0)))


def test_one_part_is_idle():
    uneven = [launch(0.0, 10.0, rank=0), launch(0.0, 2.0, rank=1)]
    one = found(record(*uneven))["idle"]
    assert one["title"].startswith("Rank 1")
    assert one["seconds"] == 4  # of two ranks each could have taken 6
    streams = [launch(0.0, 10.0, stream="main"), launch(0.0, 2.0, stream="second")]
    assert "Thread second" in found(record(*streams))["idle"]["title"]
    assert "idle" not in found(record(launch(0.0, 10.0, rank=0), launch(0.0, 9.0, rank=1)))
    assert "idle" not in found(healthy())


def test_set_up():
    one = found(healthy(seconds=30.0))["set-up"]
    assert one["seconds"] == pytest.approx(20)
    assert "set-up" not in found(healthy(seconds=15.0))


def test_warm_up():
    first = launch(0.0, 2.0)
    others = [launch(2 + n / 10, 2.1 + n / 10) for n in range(80)]
    one = found(record(first, *others))["warm-up"]
    assert one["seconds"] == pytest.approx(1.9)
    assert "relax_rk" in one["words"]
    assert "warm-up" not in found(record(launch(1.4, 2.0), *others)), "six times as long is no warm-up"


def test_far_below_the_roof():
    one = found(healthy(fraction=0.05))["far-below-roof"]
    assert "5.0 %" in one["words"]
    assert one["seconds"] == pytest.approx(9.5)
    assert "far-below-roof" not in found(healthy(fraction=0.2))
    rare = record(launch(0.0, 9.0), diagonal(9.0, 10.0, 0.01), roofs=[ROOF])
    assert "far-below-roof" not in found(rare), "a tenth of the time"


@pytest.mark.parametrize(("fraction", "words"), [(0.8, "held by memory"), (3.0, "live in caches")])
def test_at_the_roof(fraction, words):
    one = found(healthy(fraction=fraction))["at-the-roof"]
    assert one["severity"] == "note"
    assert words in one["words"]
    assert "at-the-roof" not in found(healthy(fraction=0.4))


def test_held_by_arithmetic():
    dense = launch(0.0, 1.0, "relax_dense", facts={**FACTS, "bytes": 8.0, "activation": 1})
    flops = 4 * 512 * (2 * 8 + 2)
    made = record(dense, roofs=[ROOF | {"flops_per_second": flops / 0.75}])
    assert "held by arithmetic" in found(made)["at-the-roof"]["words"]


def test_fewer_slices_than_threads():
    made = healthy(solves=[solve(0.0, 10.0, slices=2)])
    one = found(made)["few-slices"]
    assert one["seconds"] == 5
    assert "2 slices leave 2 of 4 threads" in one["words"]
    assert "few-slices" not in found(healthy(solves=[solve(0.0, 10.0, slices=4)]))


def coarse(seconds):
    """A solve of ten seconds with a chain that long."""
    chain = [launch(0.0, seconds, region="parareal.coarse", level=1)]
    return record(*chain, launch(seconds, 10.0, region="parareal.fine", level=0), solves=[solve(0.0, 10.0)])


def test_the_coarse_chain():
    one = found(coarse(6.1))["coarse-chain"]
    assert "61 % of the critical path" in one["words"]
    assert one["seconds"] == pytest.approx(6.1)
    assert "A larger m or another level" in one["suggestion"]
    assert "coarse-chain" not in found(coarse(3.0))


def test_what_a_change_would_save_is_said_in_seconds():
    told = with_prices(coarse(6.1), priced(changes=[("m = 8 instead of 4", 3.0), ("3 levels instead of 2", 1.0)]))
    words = told["coarse-chain"]["suggestion"]
    assert "With 3 levels instead of 2" in words
    assert "3 s of 4 s on 2 processors (predicted" in words
    told = with_prices(coarse(6.1), priced(changes=[("m = 8 instead of 4", 3.9)]))
    assert "With" not in told["coarse-chain"]["suggestion"], "a fortieth is not worth it"


def test_the_serial_chain_wins():
    told = with_prices(healthy(), priced(serial=2.0))
    one = told["serial-wins"]
    assert one["severity"] == "serious"
    assert one["seconds"] == 8
    assert "would take about 2 s" in one["words"]
    assert "(predicted, communication free)" in one["words"]
    half = with_prices(healthy(), priced(serial=2.0) | {"ratio": 2.0})["serial-wins"]["words"]
    assert "without the 50 % of the time that went into no step" in half
    assert "took 2 s" in with_prices(healthy(), priced(serial=2.0, measured=2.0))["serial-wins"]["words"]
    one = with_prices(healthy(), priced(serial=2.0, measured=30.0))["serial-wins"]
    assert "would take about 2 s in one call (30.0 s as it was run here)" in one["words"], "no reason to call it paid"
    told = with_prices(healthy(), priced(serial=5.0))
    assert told["pays-from"]["title"] == "Serial is faster here; it pays from 2 processors on"
    assert (told["pays-from"]["severity"], told["pays-from"]["seconds"]) == ("serious", 5)
    assert "takes 1.60 times as long" in told["pays-from"]["words"]
    told = with_prices(healthy(), priced(serial=20.0))
    assert {"pays", "nothing-to-mend"} == set(told)
    assert told["pays"]["severity"] == "good"
    told = with_prices(healthy(), priced(serial=9.0, measured=9.0))
    assert (told["pays"]["severity"], told["pays"]["seconds"]) == ("warning", 1), "it took ten, the serial chain nine"
    assert "Measured here: 10.0 s, and 9 s" in told["pays"]["words"]
    assert "pays" not in with_prices(healthy(), priced(serial=8.2, seconds=(8.0,))), "a fortieth is nothing"


@pytest.mark.parametrize("seconds", [(8.0, 4.0), (18.0, 4.0), (19.0, 18.0)])
@pytest.mark.parametrize(("serial", "measured"), [(9.0, None), (9.0, 9.0), (16.0, 3.0)])
def test_what_lost_in_this_run_is_never_good(seconds, serial, measured):
    """Whatever is predicted: it took ten seconds."""
    told = with_prices(healthy(), priced(seconds, serial=measured or serial, measured=measured))
    assert "nothing-to-mend" not in told
    assert {one["severity"] for one in told.values()} <= {"serious", "warning"}
    (one,) = told.values()
    assert one["seconds"] == 10 - (measured or serial)
    assert "erial" in one["title"]


def test_what_was_faster_in_this_run_pays():
    one = with_prices(healthy(), priced((30.0, 20.0), serial=15.0, measured=15.0))["pays"]
    assert one["severity"] == "good", "faster than measured beside it, whatever the model thinks"
    assert "1.50 times as fast, measured" in one["words"]


def test_a_network_loses_in_all_its_steps():
    updates = [region(float(n), n + 0.1, "train.update") for n in range(10)]
    slow = priced((1.0, 0.9), serial=0.6, solve_number=-1, measured=0.6) | {"measured_seconds": 1.0}
    one = with_prices(healthy(*updates), slow)["serial-wins"]
    assert one["seconds"] == pytest.approx(4.0), "0.4 s in each of ten steps"
    assert one["severity"] == "serious"


def test_one_finding_for_several_solves():
    rows = [priced(serial=9.0 - n, solve_number=n, measured=9.0 - n, seconds=(12.0, 11.0)) for n in range(3)]
    analysis = analyse(healthy())
    analysis.predicted = rows
    (one,) = (one for one in findings(analysis) if one["rule"] == "serial-wins")
    assert one["seconds"] == 1 + 2 + 3
    assert one["evidence"]["solves"] == [1, 2, 3]
    assert "Of 3 solves (1, 2, 3), here of solve 3: One step after the other took 7 s" in one["words"]
    bad = [solve(n, n + 1.0, status=status) for n, status in enumerate(("DIVERGED", "DIVERGED", "STAGNATED"))]
    titles = [one["title"] for one in analyse(healthy(solves=bad)).findings if one["rule"] == "trouble"]
    assert sorted(titles) == ["2 solves did not converge", "Solve 3 did not converge"]


def test_most_of_the_work_is_outside_ops():
    few = [launch(n, n + 0.2) for n in range(10)]
    told = found(record(*few, solves=[solve(0.0, 10.0)]))
    assert told["outside-launches"]["severity"] == "serious"
    assert "nothing-to-mend" not in told
    assert "outside-launches" not in found(healthy())
    one = with_prices(healthy(), priced(serial=5.0, solve_number=-1, measured=5.0))["pays-from"]
    assert "devices" in one["title"]
    assert "Measured here: 10.0 s a step, and 5 s one of the serial network" in one["words"]


def test_nearly_as_many_iterations_as_slices():
    def made(iterations, slices):
        return healthy(solves=[solve(0.0, 10.0, "parareal", iterations, slices=slices)])

    assert "15 iterations for 20 slices" in found(made(15, 20))["many-iterations"]["words"]
    assert "many-iterations" not in found(made(13, 20))
    assert "many-iterations" not in found(made(3, 3)), "so few say nothing"


def test_slow_convergence():
    slow = [0.9**k for k in range(20)]
    made = healthy(solves=[solve(0.0, 10.0, iterations=20, residuals=slow)])
    assert "factor of 0.90" in found(made)["slow-convergence"]["words"]
    both = healthy(solves=[solve(0.0, 10.0, "parareal", 60, residuals=slow)])
    assert "slow-convergence" not in found(both), "said already by the other rule"
    assert "slow-convergence" not in found(healthy())


@pytest.mark.parametrize("status", ["SERIAL_FALLBACK", "STAGNATED", "DIVERGED", "MAX_ITERATIONS", "NON_FINITE"])
def test_a_solve_that_did_not_converge(status):
    one = found(healthy(solves=[solve(0.0, 10.0, status=status)]))["trouble"]
    assert one["severity"] == "serious"
    assert one["evidence"]["status"] == status


def test_every_bad_end_of_a_solve_has_words():
    from pyparareal.profiling.analysis.rules_method import _TROUBLE
    from pyparareal.solution import Status

    good = {"CONVERGED", "FIXED", "SERIAL", "STOPPED"}
    assert {status.name for status in Status} - good == set(_TROUBLE)


def test_where_a_training_step_goes():
    events = []
    for n in (0.0, 10.0):
        events += [region(n, n + 3, "train.forward"), region(n + 3, n + 9, "train.backward")]
        events += [
            region(n + 9, n + 10, "train.update"),
            launch(n, n + 1.5, "fine[0]"),
            launch(n + 1.5, n + 3, "fine[1]"),
        ]
    one = found(record(*events))["training-step"]
    assert "takes 10.0 s: 30 % forward, 60 % backward, 10 % updating the weights (2 steps)" in one["words"]
    assert "100 % in the parts themselves" in one["words"]
    assert "training-step" not in found(healthy())


def test_a_program_that_failed():
    made = found(healthy(failed="ValueError: no"))
    assert "ValueError: no" in made["failed"]["words"]
    assert "nothing-to-mend" not in made


def test_events_left_out_are_told():
    one = found(healthy(**{"left out": {"events": 1000, "seconds": 3.0}}))["left-out"]
    assert "After 100 events, 10.0 s, no more were kept: 1,000 or more came in the 3 s" in one["words"]
    assert "left-out" not in found(healthy())


def test_nothing_seen():
    assert set(found(record(region(0.0, 1.0, "solve")))) == {"nothing-seen"}


def test_the_costliest_comes_first():
    uneven = [launch(0.0, 10.0, rank=0), launch(0.0, 2.0, rank=1), message(2.0, 6.0, "a", 1)]
    rows = analyse(record(*uneven, seconds=40.0, solves=[solve(0.0, 10.0, status="STAGNATED")])).findings
    keys = [(SEVERITIES.index(row["severity"]), -(row["seconds"] or 0.0)) for row in rows]
    assert keys == sorted(keys)
    assert len(rows) > 2


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (wording.duration(0.01234), "12.3 ms"),
        (wording.duration(1.5e-7), "150 ns"),
        (wording.duration(0), "0 s"),
        (wording.duration(123.4), "123 s"),
        (wording.percent(0.614), "61 %"),
        (wording.percent(0.05), "5.0 %"),
        (wording.rate(13.44e9, "B"), "13.4 GB/s"),
        (wording.count(1, "launch", "launches"), "1 launch"),
        (wording.count(3, "rank"), "3 ranks"),
    ],
)
def test_numbers_as_people_read_them(said, expected):
    assert said == expected
