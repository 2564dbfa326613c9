# SPDX-License-Identifier: BSD-3-Clause
"""The page of ``bench/history.py``: charts of the headline figures by record, verdicts of the last step, tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

from bench import compare, figures, records, verdicts
from bench.headlines import HEADLINES, Headline
from bench.records import Entry
from pyparareal.pages import svg
from pyparareal.pages.style import BASE, themed
from pyparareal.pages.ticks import ticks

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 26
WORDS = (
    verdicts.SLOW,
    compare.BROKEN,
    compare.DIFFERS,
    verdicts.FAST,
    verdicts.AMBIGUOUS,
    verdicts.SAME,
    compare.EQUAL,
)

# Okabe and Ito's hues, darker on white paper and lighter on dark: each 3:1 or more against it.
LIGHT = {"bad": "#b84300", "good": "#00719c", "line": "#0072b2"}
DARK = {"bad": "#ff8d4d", "good": "#56b4e9", "line": "#4da3dd"}

STYLE = """\
* { box-sizing: border-box; } h1 { margin: 0 0 .3em; }
section { border-top: 1px solid var(--rule); padding: .2em 0 1em; }
section h2 { margin: .6em 0 .2em; overflow-wrap: anywhere; }
[hidden] { display: none !important; }
.tools { display: flex; flex-wrap: wrap; gap: .5em 1em; align-items: center; margin: 1em 0; position: sticky; top: 0;
  background: var(--paper); padding: .4em 0; } .tools label { display: flex; gap: .4em; align-items: center; }
input, select { font: inherit; color: var(--ink); background: var(--panel); border: 1px solid var(--quiet);
  border-radius: 4px; padding: .3em .6em; min-height: 2.3em; min-width: 0; }
:focus-visible { outline: 3px solid var(--line); outline-offset: 2px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: .8em 1.2em; }
figure { margin: 0; min-width: 0; max-width: 420px; } figcaption { font-size: .88em; overflow-wrap: anywhere; }
.now { font-weight: 600; white-space: nowrap; }
svg.chart { width: 100%; height: auto; display: block; } svg.chart text { font-size: 11px; }
.curve, .reach { fill: none; stroke: var(--line); stroke-width: 2; } .reach { stroke-width: 1.5; }
.point { fill: var(--line); stroke: var(--paper); }
.point.failed { fill: var(--paper); stroke: var(--bad); stroke-width: 2; }
.chip { font: 600 .72em/1.6 system-ui, sans-serif; border: 1.5px solid var(--quiet); border-radius: 3px;
  padding: 0 .45em; margin-left: .5em; white-space: nowrap; vertical-align: .1em; }
.SLOW, .BROKEN, .DIFFERS { border-color: var(--bad); color: var(--bad); }
.FAST { border-color: var(--good); color: var(--good); }
details { font-size: .88em; margin-top: .5em; } summary { cursor: pointer; min-height: 1.8em; }
td.long { white-space: normal; min-width: 12em; text-align: left; }
@media (max-width: 700px) { body { margin: .8em auto; padding: 0 .7em; } input { flex: 1; } }
"""

SCRIPT = """\
"use strict";
(() => {
  const find = document.getElementById("find"), verdict = document.getElementById("verdict");
  const sections = [...document.querySelectorAll("section")], count = document.getElementById("count");
  const show = () => {
    const words = find.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let shown = 0;
    for (const section of sections) {
      const fits = words.every((word) => section.dataset.words.includes(word))
        && (!verdict.value || section.dataset.verdicts.split(" ").includes(verdict.value));
      section.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${sections.length} cases`;
  };
  find.addEventListener("input", show);
  verdict.addEventListener("change", show);
  document.getElementById("tools").hidden = false;
  show();
})();
"""


def page(cases: Mapping[str, Sequence[Entry]], steps: Mapping[str, Sequence[compare.Row]], commit: str) -> str:
    """One HTML file: a section per case, with ``steps`` the comparison of its last two records."""
    options = "".join(f"<option>{word}</option>" for word in WORDS)
    body = [
        "<h1>pyparareal: measurements over time</h1>",
        f'<p class="note">{escape(_intro(cases, commit))}</p>',
        '<div class="tools" id="tools" hidden><label>find <input type="search" id="find" placeholder="case or words">'
        f'</label><label>last step <select id="verdict"><option value="">any</option>{options}</select></label>'
        '<span id="count" aria-live="polite"></span></div>',
        *(section(runs, steps.get(case, ())) for case, runs in cases.items()),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><title>pyparareal: measurements over time</title>'
        f"<style>{themed(LIGHT, DARK)}{BASE}{STYLE}</style></head><body>\n"
        + "\n".join(body)
        + f"\n<script>{SCRIPT}</script></body></html>\n"
    )


def section(runs: Sequence[Entry], step: Sequence[compare.Row]) -> str:
    """Heading with verdicts, a chart per headline, the last step, all records."""
    last, rows = runs[-1], shown(runs[-1])
    counts = Counter(row.verdict for row in step if row.verdict)
    chips = "".join(f'<span class="chip {word}">{counts[word]} {word}</span>' for word in WORDS if counts[word])
    words = " ".join([last["case"], *(row.words for row in rows)]).lower()
    charts = "".join(chart(row, runs) for row in rows)
    state = last["error"] or ("" if last["checked"] else "differs from the reference")
    note = f"{len(runs)} record{'s' * (len(runs) != 1)}, the last on {records.machine_words(last)}"
    return (
        f'<section data-words="{escape(words)}" data-verdicts="{" ".join(counts)}">'
        f"<h2>{escape(last['case'])}{chips}</h2>"
        f'<p class="note">{escape(note)}{f"; <strong>{escape(state)}</strong>" if state else ""}</p>'
        f'<div class="charts">{charts}</div>{_step(step)}{_records(rows, runs)}</section>'
    )


def shown(entry: Entry) -> list[Headline]:
    """The headlines of a case, or its first metrics where it has none."""
    rows = [row for row in HEADLINES if row.case == entry["case"]]
    return rows or [Headline(entry["case"], name, name) for name in list(entry["metrics"])[:2]]


def chart(row: Headline, runs: Sequence[Entry]) -> str:
    """The figure by record, evenly spaced, from zero, with intervals; other machines are not joined by the line."""
    found = [(i, run, *_value(row, run)) for i, run in enumerate(runs) if row.metric in run["metrics"]]
    if not found:
        return ""
    words = figures.figure(row, found[-1][1]) if found[-1][3] else _plain(row, found[-1][2])
    losing = " (losing)" if row.losing else ""
    caption = f'{escape(row.words)}{losing}: <span class="now">{escape(words)}</span>'
    goal = f", goal {escape(row.goal)}" if row.goal else ""
    if len(found) == 1:
        return f"<figure><figcaption>{caption}{goal}</figcaption></figure>"
    ends = [end for _, _, value, reach in found for end in (value, *(reach or ()))]
    marks = ticks(min(0.0, *ends), max(0.0, *ends) or 1.0, 4)

    def at(i: int, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (i + 0.5) / len(runs)
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - marks[0]) / (marks[-1] - marks[0])

    drawn = _frame(marks, runs)
    for (i, run, a, _), (j, then, b, _) in pairwise(found):
        if records.same_machine(run, then):
            drawn.append(svg.line([at(i, a), at(j, b)], css="curve"))
    for i, run, value, reach in found:
        if reach:
            drawn.append(svg.line([at(i, reach[0]), at(i, reach[1])], css="reach"))
        css = "point" if run["checked"] else "point failed"
        drawn.append(svg.circle(*at(i, value), 4, css=css, title=f"{_when(run)}: {_plain(row, value)}; {_where(run)}"))
    label = f"{row.words}: {_plain(row, found[0][2])} in the first record, {_plain(row, found[-1][2])} in the last"
    picture = svg.picture(WIDTH, HEIGHT, drawn, label, css="chart")
    return f"<figure><figcaption>{caption}{goal}</figcaption>{picture}</figure>"


def _frame(marks: Sequence[float], runs: Sequence[Entry]) -> list[str]:
    drawn = []
    for mark in marks:
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (mark - marks[0]) / (marks[-1] - marks[0])
        drawn.append(svg.line([(LEFT, y), (WIDTH - RIGHT, y)], css="grid"))
        drawn.append(svg.text(LEFT - 6, y + 4, f"{mark:,.6g}", anchor="end"))
    drawn.append(svg.text(LEFT, HEIGHT - 6, _when(runs[0])[:16], anchor="start"))
    drawn.append(svg.text(WIDTH - RIGHT, HEIGHT - 6, _when(runs[-1])[:16], anchor="end"))
    return drawn


def _step(step: Sequence[compare.Row]) -> str:
    rows = [row for row in step if row.verdict or row.note]
    if not rows:
        return ""
    lines = [["verdict", "of", "old", "new", "new / old"]]
    for row in sorted(rows, key=lambda row: WORDS.index(row.verdict) if row.verdict in WORDS else len(WORDS)):
        found, unit = row.found, " s" * (row.kind == "times")
        ratio = f"{found.ratio:.3f} [{found.low:.3f}, {found.high:.3f}]" if found else ""
        old, new = ("" if x is None else f"{x:.4g}{unit}" for x in (row.old, row.new))
        lines.append([row.verdict, f"{row.name} {row.note}".strip(), old, new, ratio])
    return f"<details><summary>last step</summary>{_table(lines)}</details>"


def _records(rows: Sequence[Headline], runs: Sequence[Entry]) -> str:
    metrics = [row for row in rows if any(row.metric in run["metrics"] for run in runs)]
    lines = [["date", "commit", "machine", "load", "checked", *(row.metric for row in metrics)]]
    for run in reversed(runs):
        load, checked = f"{run['machine'].get('load_average', 0):g}", "yes" if run["checked"] else "no"
        values = [_plain(row, _value(row, run)[0]) if row.metric in run["metrics"] else "" for row in metrics]
        lines.append([_when(run), _commit(run), records.machine_words(run), load, checked, *values])
    return f"<details><summary>records</summary>{_table(lines)}</details>"


def _value(row: Headline, run: Entry) -> tuple[float, tuple[float, float] | None]:
    """The figure and its interval, if the record has what that takes."""
    there = all(name in run["metrics"] or run["samples"].get(name) for name in row.interval)
    return figures.value(row, run), figures.interval(row, run) if there else None


def _plain(row: Headline, value: float) -> str:
    return f"{figures.said(value, row.digits)} {row.unit}".rstrip()


def _when(run: Entry) -> str:
    return str(run["date"])[:16].replace("T", " ")


def _commit(run: Entry) -> str:
    commit, dirty, _ = str(run["commit"]).partition("-dirty")
    return f"{commit[:10]}{dirty}"


def _where(run: Entry) -> str:
    return f"commit {_commit(run)}, {records.machine_words(run)}, load {run['machine'].get('load_average', 0):g}"


def _table(lines: Sequence[Sequence[str]]) -> str:
    tags = ["th", *["td"] * (len(lines) - 1)]
    head, *rows = (
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in line) for tag, line in zip(tags, lines, strict=True)
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _intro(cases: Mapping[str, Sequence[Entry]], commit: str) -> str:
    runs = sum(map(len, cases.values()))
    return (
        f"{len(cases)} cases, {runs} records of bench/results up to commit {commit[:10]}. Points stand in the order "
        "they were measured in; bars are 95 % intervals. The last step compares the two latest records: FAST and SLOW "
        "by rank tests and bootstrap intervals beyond 3 %, all cases together; it knows the noise within a run, not "
        "between runs. Code, machine or load may have changed between two records: the tables say which."
    )
