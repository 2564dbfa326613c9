# SPDX-License-Identifier: BSD-3-Clause
"""``bench/compare.py``: verdicts hold at their stated rate, are symmetric, and never come from nothing."""

from __future__ import annotations

import itertools
import json
import subprocess

import bench_tree
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = bench_tree.load()

from bench import compare, records, verdicts  # noqa: E402

pytestmark = pytest.mark.no_sanitize  # nothing compiled is looked at
FAST, SLOW, SAME, AMBIGUOUS = verdicts.FAST, verdicts.SLOW, verdicts.SAME, verdicts.AMBIGUOUS
times = st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=40)


def entry(case="a.b", samples=None, **fields):
    machine = {"cpu": "one", "cores": 2, "gpus": []}
    return {
        "case": case, "suite": "quick", "device": "cpu", "commit": "c", "versions": {}, "checked": True, "metrics": {},
        "samples": samples or {}, "notes": "", "error": "", "machine": machine, "date": "2026-01-01T00:00:00+00:00",
        "command": "bench/run.py", "seconds": 1.0,
    } | fields  # fmt: skip


def verdict(a, b, **options):
    (row,) = compare.compare([entry(samples={"t": a})], [entry(samples={"t": b})], **options)
    return row.verdict


def noisy(rng, n, median, sigma):
    """Lognormal: positive, skewed, with a known median."""
    return (median * np.exp(sigma * rng.standard_normal(n))).tolist()


# Theorems


@settings(max_examples=60, deadline=None)
@given(times)
def test_equal_samples_are_never_fast_or_slow(a):
    assert verdict(a, a) in (SAME, AMBIGUOUS)


@settings(max_examples=60, deadline=None)
@given(times, times)
def test_swapping_exchanges_fast_and_slow(a, b):
    there, back = verdicts.compare(a, b), verdicts.compare(b, a)
    assert (there.p_slow, there.p_fast) == (back.p_fast, back.p_slow)
    # A difference of logarithms changes its sign exactly; the two quantiles are interpolated from either side.
    assert there.ratio * back.ratio == pytest.approx(1, rel=1e-12)
    assert (there.low, there.high) == pytest.approx((1 / back.high, 1 / back.low), rel=1e-12)
    assert verdict(b, a) == {FAST: SLOW, SLOW: FAST}.get(verdict(a, b), verdict(a, b))


@settings(max_examples=60, deadline=None)
@given(times, times, st.floats(1e-3, 1e3))
def test_the_unit_does_not_matter(a, b, unit):
    there, scaled = (verdicts.compare(x, y) for x, y in ((a, b), ([unit * v for v in a], [unit * v for v in b])))
    assert scaled.ratio == pytest.approx(there.ratio, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (4, 4), (5, 3)])
def test_the_rank_test_counts_every_arrangement(n, m):
    """Against its definition: the share of all arrangements of n + m ranks with as large a sum."""
    ranks = np.arange(1.0, n + m + 1)
    sums = [sum(chosen) for chosen in itertools.combinations(ranks, m)]
    for chosen in itertools.combinations(ranks, m):
        rest = np.setdiff1d(ranks, chosen)
        expected = sum(s >= sum(chosen) for s in sums) / len(sums)
        assert verdicts.rank_p(rest, np.array(chosen)) == pytest.approx(expected, rel=1e-12)


def test_the_approximation_continues_the_exact_count(monkeypatch):
    """The next term of the Edgeworth series is ``phi(z) (z^3 - 3 z) k / 24``, at most ``0.55 k / 24``; the kurtosis of
    the rank sum is -0.152 at 12 and 12 samples. That is 0.0035, and what remains is smaller by another order."""
    rng = np.random.default_rng(3)
    sets = [(rng.standard_normal(12), rng.standard_normal(12) + shift) for shift in np.linspace(-2, 2, 40)]
    exact = [verdicts.rank_p(a, b) for a, b in sets]
    monkeypatch.setattr(verdicts, "EXACT", 0)
    assert np.abs(np.array([verdicts.rank_p(a, b) for a, b in sets]) - exact).max() < 4e-3


def test_step_up():
    # Benjamini and Hochberg: k = 3 of 4 at rate 0.2, since 0.14 <= 3 * 0.05, though 0.11 > 2 * 0.05
    assert verdicts.step_up([0.14, 0.5, 0.01, 0.11], 0.2) == 0.14
    assert verdicts.step_up([0.2, 0.3], 0.05) == -1
    assert verdicts.step_up([], 0.05) == -1


# Rates, with fixed seeds: the bound is the number of failures that a right rate exceeds once in a million


def most(trials, rate):
    """Smallest k with P(Binomial(trials, rate) > k) < 1e-6."""
    from math import comb

    tail, k = 1.0, -1
    while tail >= 1e-6:
        k += 1
        tail -= comb(trials, k) * rate**k * (1 - rate) ** (trials - k)
    return k


@pytest.mark.parametrize(("n", "sigma"), [(5, 0.1), (7, 0.02), (20, 0.3)])
def test_false_alarms_are_as_rare_as_stated(n, sigma):
    """20 sets at the edge, 3 % slower: in at most 5 % of families any of them may be called SLOW or FAST."""
    rng = np.random.default_rng([n, 1])
    families = 30
    wrong = 0
    for _ in range(families):
        found = [
            verdicts.compare(noisy(rng, n, 1.0, sigma), noisy(rng, n, 1 + verdicts.THRESHOLD, sigma)) for _ in range(20)
        ]
        wrong += bool({FAST, SLOW} & set(verdicts.verdicts(found)))
    assert wrong <= most(families, 0.05)


def test_many_sets_are_judged_together():
    """30 sets whose p-values are those of no change: with 2.5 % a side alone, 53 % of families would hold an alarm."""
    rng = np.random.default_rng(2)
    families, together, alone = 400, 0, 0
    for _ in range(families):
        found = [verdicts.Comparison(2.0, 1.5, 3.0, p, 1.0, 20, 1e-9) for p in rng.random(30)]
        together += SLOW in verdicts.verdicts(found)
        alone += any(SLOW in verdicts.verdicts([c]) for c in found)
    assert together <= most(families, 0.05)
    assert abs(alone / families - 0.53) < 0.13, "five deviations of 400 coins"


def test_ranks_alone_are_no_verdict_on_medians():
    """Of every pair b is larger or equal, but both medians are 2."""
    a, b = [1.0] * 20 + [2.0] * 21, [2.0] * 21 + [3.0] * 20
    assert verdicts.compare(a, b).p_slow < 1e-3
    assert verdict(a, b) == AMBIGUOUS


def test_a_known_ratio_is_found():
    """20 % at 2 % noise with 7 samples each: the sets do not even overlap, so at most one in a hundred is missed."""
    rng = np.random.default_rng(4)
    trials = [
        (noisy(rng, 7, 1e-3, 0.02), noisy(rng, 7, 1e-3 * ratio, 0.02)) for ratio in (1.2, 1 / 1.2) for _ in range(60)
    ]
    said = verdicts.verdicts([verdicts.compare(a, b) for a, b in trials])
    assert sum(word != SLOW for word in said[:60]) <= most(60, 0.01)
    assert sum(word != FAST for word in said[60:]) <= most(60, 0.01)
    equal = [verdicts.compare(noisy(rng, 30, 1.0, 0.005), noisy(rng, 30, 1.0, 0.005)) for _ in range(60)]
    assert sum(word != SAME for word in verdicts.verdicts(equal)) <= most(60, 0.01)


def test_the_interval_covers_the_ratio_as_often_as_it_says():
    """Bootstrap of 30 samples: stated 95 %, and 92 % allowed for what 30 samples do not know of their distribution."""
    rng = np.random.default_rng(5)
    found = [verdicts.compare(noisy(rng, 30, 1.0, 0.2), noisy(rng, 30, 1.1, 0.2)) for _ in range(200)]
    assert sum(not c.low <= 1.1 <= c.high for c in found) <= most(200, 0.08)
    assert sum(not c.low <= 1.1 <= c.high for c in found) > 0, "an interval that never misses says nothing"


def test_few_or_noisy_samples_are_ambiguous():
    rng = np.random.default_rng(6)
    assert verdict([1.0], [1.0]) == AMBIGUOUS
    assert verdict([1.0], [9.0]) == AMBIGUOUS
    assert verdict([1.0, 1.01, 1.02], [9.0, 9.1, 9.2]) == AMBIGUOUS  # p = 1/20 one-sided, and there are two sides
    assert verdict([1.0] * 5, [9.0] * 5) == SLOW
    assert verdict(noisy(rng, 7, 1, 0.5), noisy(rng, 7, 1.1, 0.5)) == AMBIGUOUS


def test_sets_that_can_never_be_judged_do_not_weaken_the_others():
    tight = {"t": [1.0, 1.01, 1.02, 1.03, 1.04, 1.05]}
    a = entry(samples=tight | {f"once {i}": [1.0] for i in range(300)})
    b = entry(samples={"t": [2 * v for v in tight["t"]]} | {f"once {i}": [1.0] for i in range(300)})
    rows = {row.name: row.verdict for row in compare.compare([a], [b])}
    assert rows["t"] == SLOW
    assert set(rows.values()) == {SLOW, AMBIGUOUS}


# What is compared with what

SLOWER = ([1.0, 1.01, 1.02, 1.03, 1.04, 1.05], [2.0, 2.01, 2.02, 2.03, 2.04, 2.05])


@pytest.mark.parametrize(
    ("old", "new", "word", "note"),
    [
        ({}, {"checked": False}, "BROKEN", "NEW differs from the reference"),
        ({}, {"checked": False, "error": "gone"}, "BROKEN", "NEW: gone"),
        ({"checked": False}, {"checked": False}, "", "NEW differs from the reference"),
        ({"checked": False, "error": "was"}, {}, "", "OLD: was"),
        ({"metrics": {"matched": 5}}, {"metrics": {"matched": 4}}, "DIFFERS", ""),
        ({"metrics": {"matched": 5}}, {"metrics": {"matched": 5}}, "EQUAL", ""),
        ({"metrics": {"matched": 5}}, {"metrics": {}}, "DIFFERS", "metrics only in OLD: matched"),
        ({"metrics": {"gbps": 5}}, {"metrics": {"gbps": 4}}, "", ""),
        ({"samples": {"t": SLOWER[0]}}, {"samples": {}}, "", "samples only in OLD: t"),
        ({"samples": {"accuracy": SLOWER[1]}}, {"samples": {"accuracy": SLOWER[0]}}, None, None),
        ({"samples": {"t": []}}, {"samples": {"t": []}}, None, None),
        ({"samples": {"t": SLOWER[0]}}, {"samples": {"t": SLOWER[1]}}, "SLOW", ""),
        ({"samples": {"t": SLOWER[1]}}, {"samples": {"t": SLOWER[0]}}, "FAST", ""),
    ],
)  # fmt: skip
def test_rows(old, new, word, note):
    rows = compare.compare([entry(**old)], [entry(**new)])
    assert [(row.verdict, row.note) for row in rows] == ([] if word is None else [(word, note)])
    assert compare.status(rows) == (word in ("BROKEN", "DIFFERS", "SLOW"))


def test_other_machines_need_force():
    a = entry(samples={"t": SLOWER[0]})
    b = entry(samples={"t": SLOWER[1]}, machine={"cpu": "two", "cores": 2, "gpus": []})
    (row,) = compare.compare([a], [b])
    assert (row.verdict, row.note, row.old, row.new) == ("", "different machines: no verdict", 1.025, 2.025)
    assert compare.compare([a], [b], force=True)[0].verdict == SLOW


def test_cases_in_one_record_only_are_said():
    rows = compare.compare([entry("x"), entry("y")], [entry("y"), entry("z")])
    assert [(row.case, row.note) for row in rows] == [("x", "only in OLD"), ("z", "only in NEW")]


# The command


@pytest.fixture
def files(tmp_path):
    def write(name, *entries):
        (tmp_path / name).write_text(json.dumps(list(entries)))
        return str(tmp_path / name)

    samples = [{"t": SLOWER[0], "u": SLOWER[0]}, {"t": SLOWER[1], "u": SLOWER[0]}]
    return [write(f"{i}.json", entry(samples=s), entry("c.d", metrics={"x": 2.0})) for i, s in enumerate(samples)]


def test_command(files, capsys):
    assert compare.main(files) == 1
    shown = capsys.readouterr().out
    assert "SLOW      t " in shown
    assert shown.splitlines()[-1] == "times: 1 SLOW, 1 SAME"
    assert "x 1" not in shown.split("SAME      u")[0].split("SLOW")[0]
    assert compare.main([*files[::-1]]) == 0, "FAST is nothing worse"
    assert compare.main([*files, "--metric", "u"]) == 0
    assert compare.main([*files, "--case", "c.d"]) == 0
    capsys.readouterr()
    assert compare.main([*files, "--json", "--threshold", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["verdict"] for row in found["rows"]] == [SAME, SAME, ""]
    assert found["rows"][0]["low"] < found["rows"][0]["ratio"] == pytest.approx(2.025 / 1.025)


def status(words):
    try:
        return compare.main(words)
    except SystemExit as stop:
        return stop.code


def test_records_of_a_busy_machine_are_pointed_out(tmp_path, capsys):
    for name, load in (("quiet", 1.0), ("busy", 1.1)):
        machine = {"cpu": "one", "cores": 2, "gpus": [], "load_average": load}
        found = [entry(case, samples={"t": SLOWER[0]}, machine=machine) for case in ("a.b", "c.d")]
        (tmp_path / name).write_text(json.dumps(found))
    assert compare.main([str(tmp_path / "quiet"), str(tmp_path / "busy"), "--case", "c.d"]) == 0
    said = f"{tmp_path / 'busy'}: other work may have shared the machine of c.d\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.json", "{0}"], "nowhere.json: no such file; expected a path or COMMIT:PATH"),
        (["{0}", "{0}", "--case", "no"], "--case: {0} has no no"),
        (["{0}", "{0}", "--threshold", "0"], "--threshold: got 0.0, expected a number above 0"),
        (["{0}", "--upload-pack=x:y"], None),
        (["{0}", "no-such-commit:x.json"], "git show no-such-commit:x.json"),
    ],
)
def test_wrong_arguments(words, said, files, capsys):
    words = [word.format(files[0]) for word in words]
    assert status(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said is None or said.format(files[0]) in shown.err


@pytest.mark.parametrize("content", ["", "{}", "[1]", '[{"case": "a"}]', json.dumps([entry(), entry()])])
def test_a_file_that_is_no_record(content, tmp_path, capsys):
    (tmp_path / "x.json").write_text(content)
    assert compare.main([str(tmp_path / "x.json")] * 2) == 2
    assert f"{tmp_path / 'x.json'}: " in capsys.readouterr().err


@pytest.fixture
def repository(tmp_path):
    """Three commits of r.json: a record, something else, a record twice as slow."""

    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    git("init", "-q")
    for content in (entry(samples={"t": SLOWER[0]}), {"no": "record"}, entry(samples={"t": SLOWER[1]})):
        (tmp_path / "r.json").write_text(json.dumps([content]))
        git("add", "r.json")
        git("commit", "-qm", "r")
    return tmp_path


def test_records_of_commits(repository):
    old, new = records.read("HEAD~2:r.json", repository), records.read("HEAD:r.json", repository)
    assert compare.compare(old, new)[0].verdict == SLOW
    found = records.history("r.json", repository)
    assert [version.entries[0]["samples"]["t"] for version in found] == list(SLOWER)
    assert found[0].date <= found[1].date
    with pytest.raises(ValueError, match=r"HEAD~1:r\.json: result"):
        records.read("HEAD~1:r.json", repository)


def test_our_own_records_compare_with_themselves(capsys):
    path = str(ROOT / "bench" / "results" / "epyc_2_cores.json")
    assert compare.main([path, path]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert SAME in last
    assert SLOW not in last
    assert FAST not in last
