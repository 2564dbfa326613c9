# SPDX-License-Identifier: BSD-3-Clause
"""The figures of README and docs are those of the records: none is stale, none is left out because it loses."""

from __future__ import annotations

import json
import math
import re

import bench_tree
import pytest
import test_bench_compare

ROOT = bench_tree.load()
if not (ROOT / "docs").is_dir() or not (ROOT / "README.md").exists():
    pytest.skip("docs/ and README.md are not beside tests/", allow_module_level=True)

from bench import cases, claims, docs_claims, figures  # noqa: E402
from bench.headlines import ELSEWHERE, HEADLINES, NOT_HEADLINES, Headline  # noqa: E402

pytestmark = pytest.mark.no_sanitize  # nothing compiled is looked at
RECORDED = figures.recorded()
README = (ROOT / "README.md").read_text()
PARAGRAPHS = claims.paragraphs(README)
SHOWN = [row for row in HEADLINES if row.case in RECORDED]
name = lambda row: f"{row.case}:{row.metric}"  # noqa: E731


@pytest.fixture(scope="module", autouse=True)
def known():
    return cases.discover()


# The page


def test_the_page_is_what_the_records_give(capsys):
    assert figures.main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_page_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "PAGE", tmp_path / "figures.rst")
    assert figures.main(["--check"]) == 1, "none is there"
    assert figures.main([]) == 0
    assert figures.main(["--check"]) == 0
    (tmp_path / "figures.rst").write_text(figures.PAGE.read_text().replace("121", "122"))
    assert figures.main(["--check"]) == 1
    assert "run make figures" in capsys.readouterr().err


def test_every_recorded_case_is_a_headline_or_says_why_not():
    headlines = {row.case for row in HEADLINES}
    assert set(RECORDED) - headlines - set(NOT_HEADLINES) == set()
    assert headlines & set(NOT_HEADLINES) == set()
    assert set(NOT_HEADLINES) <= set(RECORDED), "a reason for a case that is not there"


def test_every_case_named_exists(known):
    planned = {row.case for row in HEADLINES} - set(known)
    assert planned & set(RECORDED) == set(), "recorded by a case that is gone"
    assert set(ELSEWHERE) <= set(known)
    assert {figure.case for claim in claims.CLAIMS for figure in claim.figures if not isinstance(figure, str)} <= set(
        known
    )


@pytest.mark.parametrize("row", SHOWN, ids=name)
def test_a_headline_is_in_the_record_and_in_its_interval(row):
    entry = RECORDED[row.case]
    value = figures.value(row, entry)
    assert math.isfinite(value)
    if ends := figures.interval(row, entry):
        assert ends[0] <= value <= ends[1]
    assert entry["checked"], "a headline is not checked"


@pytest.mark.parametrize("row", [row for row in SHOWN if row.goal], ids=name)
def test_what_misses_its_goal_is_among_the_losing(row):
    word, number = re.fullmatch(r"(at least|at most|within) ([\d./]+)", row.goal).groups()
    limit = float(number.split("/")[0]) / float((number + "/1").split("/")[1])
    value, ends = figures.value(row, RECORDED[row.case]), figures.interval(row, RECORDED[row.case])
    reached = {
        "at least": value >= limit,
        "at most": value <= limit,
        "within": max(map(abs, ends or (value,))) <= limit,
    }[word]
    assert row.losing is not reached


def test_counts_that_are_not_full_are_not_shown_as_if_they_were():
    """Where the words say "of N" the record says N, or the row is among the losing."""
    checked = 0
    for row in SHOWN:
        if row.kind == "tested" and (found := re.search(r", of ([\d,]+)$", row.words)):
            full = figures.value(row, RECORDED[row.case]) == float(found[1].replace(",", ""))
            assert full, name(row)
            checked += 1
    assert checked >= 8


@pytest.mark.parametrize("row", HEADLINES, ids=name)
def test_each_row_reads_by_itself(row):
    """The losing ones are torn from their neighbours."""
    assert "the same" not in row.words
    assert row.kind in ("measured", "tested", "computed")


def test_losing_rows_stand_first_and_only_there():
    text = figures.page(RECORDED, cases.CASES)
    losing, rest = text.split("Kernels\n-------")
    assert all((row.words in losing) is row.losing for row in SHOWN)
    assert all((row.words in rest) is not row.losing for row in SHOWN)


def entry(**fields):
    return {"metrics": {"x": 20.0, "x_low": 19.0, "x_high": 22.0}, "samples": {}} | fields


def test_intervals():
    row = Headline("a", "x", "w", "ms", interval=("x_low", "x_high"))
    assert figures.figure(row, entry()) == "20 [19, 22] ms"
    assert figures.figure(Headline("a", "x", "w", interval=("x_low", "x_high"), scale=0.1), entry()) == "2 [1.90, 2.20]"
    steady = {"t": [0.02] * 5, "half": [0.01] * 5}
    assert figures.interval(Headline("a", "x", "w", interval=("t",)), entry(samples=steady)) == pytest.approx((20, 20))
    assert figures.interval(Headline("a", "x", "w", interval=("t", "half")), entry(samples=steady)) == pytest.approx(
        (2, 2)
    )
    assert figures.interval(Headline("a", "x", "w"), entry()) is None


@pytest.mark.parametrize(
    ("x", "words"),
    [(0, "0"), (980, "980"), (6974.0, "6,974"), (0.0516, "0.0516"), (1682.6, "1,683"), (3.758e-10, "3.76e-10"),
     (23.946, "23.9"), (-0.455, "-0.455"), (1.005, "1.00")],
)  # fmt: skip
def test_digits(x, words):
    assert figures.said(x) == words


def test_the_latest_good_record_counts(tmp_path):
    def record(name, day, **fields):
        found = test_bench_compare.entry(
            "a.b", date=f"2026-01-0{day}T00:00:00+00:00", **({"metrics": {"day": day}} | fields)
        )
        (tmp_path / name).write_text(json.dumps([found]))

    record("a.json", 2)
    record("b.json", 3)
    record("c.json", 1)
    record("d.json", 4, checked=False, error="gone", metrics={})
    (tmp_path / "e.json").write_text('{"other": "kind"}')
    assert figures.recorded(tmp_path)["a.b"]["metrics"] == {"day": 3}


# README


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: claim.quote[:40])
def test_readme_prints_what_the_records_say(claim):
    assert claim.quote in claims.plain(README), "README has other words: change the claim with it"
    compare_printed(claims.numbers(claim.quote), claim.figures, "README")


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: claim.quote[:40])
def test_the_case_of_a_claim_stands_beside_it(claim):
    (paragraph,) = (text for text in PARAGRAPHS if claim.quote in text)
    for figure in claim.figures:
        if not isinstance(figure, str):
            assert f"`{figure.case}`" in paragraph
        elif figure == claims.PREDICTED:
            assert re.search(r"make train|python examples/\w+\.py", paragraph)


@pytest.mark.parametrize("text", [p for p in PARAGRAPHS if "*measured*" in p], ids=lambda text: text[:40])
def test_every_number_of_a_measured_paragraph_has_its_claim(text):
    rest = text
    for claim in claims.CLAIMS:
        rest = rest.replace(claim.quote, " ")
    assert claims.numbers(rest) == []


# docs


def compare_printed(printed, found, where):
    assert len(printed) == len(found), printed
    for number, figure in zip(printed, found, strict=True):
        if not isinstance(figure, str):
            value = figure.value(RECORDED[figure.case]["metrics"])
            assert claims.agrees(number, value), f"{where}: {number}, {figure.case} {figure.metric}: {value}"


def test_tables_of_docs_print_what_the_records_say():
    for row in docs_claims.ROWS:
        lines = (ROOT / "docs" / row.page).read_text().splitlines()
        (rest,) = (line[found.end() :] for line in lines if (found := re.match(row.label, line)))
        compare_printed(claims.numbers(rest), row.figures, f"{row.page}, {row.label}")
    assert len(docs_claims.ROWS) > 45


@pytest.mark.parametrize("page", docs_claims.PROSE)
def test_sentences_of_docs_print_what_the_records_say(page):
    text = claims.plain((ROOT / "docs" / page).read_text())
    for claim in docs_claims.PROSE[page]:
        assert text.count(claim.quote) == 1, f"{page} has other words: change the claim with it: {claim.quote}"
        compare_printed(claims.numbers(claim.quote), claim.figures, page)


def test_a_measured_paragraph_of_docs_names_its_case_or_says_why_not(known):
    reasons = set()
    for page in sorted((ROOT / "docs").glob("*.rst")):
        for text in map(claims.plain, re.split(r"\n\s*\n", page.read_text())):
            if page.name in ("figures.rst", "profiling.rst", "verify.rst") or not re.search(r"\*[Mm]easured\*", text):
                continue
            if why := next((begin for begin in docs_claims.UNRECORDED if text.startswith(begin)), None):
                reasons.add(why)
            else:
                assert any(re.search(rf"(?<![\w.]){re.escape(case)}(?!\w)", text) for case in known), text
    assert reasons == set(docs_claims.UNRECORDED), "a reason for a paragraph that is gone"


# Both


def test_enough_is_looked_at():
    assert sum("*measured*" in text for text in PARAGRAPHS) >= 8
    assert sum(isinstance(figure, claims.Figure) for claim in claims.CLAIMS for figure in claim.figures) >= 40


def test_commands_of_readme_exist(known):
    for script in re.findall(r"python (examples/\w+\.py|bench/\w+\.py)", README):
        assert (ROOT / script).exists(), script
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    prefixes = {case.partition(".")[0] for case in known}
    for found in re.findall(r"`([a-z]+\.[a-z0-9_]+)`", README):
        assert found.partition(".")[0] not in prefixes or found in known or found.endswith((".h", ".py")), found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ResNet-1001 in 6 parts takes 0.70 s", ["6", "0.70"]),
        ("16,384 steps, +0.06 points, -0.46; `m=10` and FSDP2, 2 + 2.", ["16,384", "+0.06", "-0.46", "2", "2"]),
        ("2.8 ms, 58 times (Schroder 2017)", ["2.8", "58"]),
    ],
)
def test_numbers(text, found):
    assert claims.numbers(text) == found


@pytest.mark.parametrize(
    ("printed", "value", "right"),
    [("1.8", 1.791, True), ("1.8", 1.85, True), ("1.8", 1.86, False), ("58", 58.36, True), ("58", 58.6, False),
     ("0.010", 0.009669, True), ("0.010", 0.0094, False), ("-0.46", -0.4553, True), ("16,384", 16384, True)],
)  # fmt: skip
def test_agreement_to_the_printed_digits(printed, value, right):
    assert claims.agrees(printed, value) is right
