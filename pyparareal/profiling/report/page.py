# SPDX-License-Identifier: BSD-3-Clause
"""The report as one HTML file: nothing is fetched, and nothing in it but its own script can run."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib.resources import files

from ...pages.style import BASE, themed
from ..analysis.results import Analysis, Finding
from ..events import Record
from . import charts, tables, words
from .packing import Packed, pack

SCRIPTS = ("unpack.js", "lanes.js", "colours.js", "paint.js", "tip.js", "controls.js", "start.js")
# Okabe and Ito's hues, darkened for white paper and lightened for dark: each 3:1 or more against it.
LIGHT = {
    "blue": "#0072b2", "vermilion": "#d55e00", "green": "#00805e", "purple": "#a5548a", "ochre": "#a87400",
    "sky": "#3a8fc7", "plain": "#7d838a", "mark": "#b3261e",
}  # fmt: skip
DARK = {
    "blue": "#4da3dd", "vermilion": "#e8752a", "green": "#1faf87", "purple": "#cc79a7", "ochre": "#e6a519",
    "sky": "#8ccbf0", "plain": "#8b9198", "mark": "#ff9d94",
}  # fmt: skip
OUTSIDE = 0.5  # of the wall time is work; below, that is said first
SEVERITY_WORDS = {"serious": "Serious", "warning": "Worth a change", "note": "Note", "good": "Good"}


def page(record: Record, analysis: Analysis) -> str:
    """What ``record`` holds and ``analysis`` says of it, as one HTML file for any browser of the last years.

    Names and facts in it may be anyone's: they are escaped, or packed where no markup is read, and the page's policy
    (Content-Security-Policy) lets no script run but the one that it was written with.
    """
    packed = pack(record, _busy(analysis))
    title = f"pyparareal: where the time went{' in ' * bool(analysis.summary['title'])}{analysis.summary['title']}"
    sections = [
        f"<header><h1>{escape(title)}</h1><button type=button id=theme hidden>Dark</button></header>",
        f"<p class=answer>{escape(answer(analysis))}</p>",
        _section("Findings", _findings(analysis)),
        _section("At a glance", _tiles(record, analysis)),
        _section("Timeline", _timeline(packed)),
        _section(
            "Time by op and level",
            tables.by_op(analysis) + tables.by_level(analysis) + tables.by_region(analysis) + tables.critical(analysis),
        ),
        _section("Predicted beside measured", tables.predicted(analysis)),
        _section(
            "Residuals",
            charts.residuals(record.solves) + tables.solves(analysis) + charts.counters(record, packed.begin),
        ),
        _section("Roofline", charts.roofline(analysis.roofline)),
        _section("Devices and streams", tables.devices(analysis, packed.begin)),
        _section("Host overhead", tables.host(analysis)),
        _section("Memory", charts.memory(record, packed.begin)),
        _section("Command, machine and clocks", tables.facts(record)),
        "<div id=tip role=tooltip hidden></div><p id=said class=unseen aria-live=polite></p>",
    ]
    script = '"use strict";\n(() => {\n' + "".join(_source(name) for name in SCRIPTS) + "})();\n"
    style = themed(LIGHT, DARK) + BASE + _source("report.css")
    html = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(style, script)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f"<style>{style}</style></head><body>\n" + "\n".join(sections) + f"\n<script>{script}</script></body></html>\n"
    )
    return html.encode("utf-8", "replace").decode()  # half a surrogate pair in a name is no reason to lose the page


def answer(analysis: Analysis) -> str:
    """Where the time went, in a sentence or two."""
    summary = analysis.summary
    if not summary["events"]:
        return "Nothing was traced: there is no time to tell of."
    work, whole = summary["work_seconds"], summary["seconds"]
    text = f"{words.seconds(work)} of work ({words.seconds(whole)} traced)"
    if work < OUTSIDE * whole:
        text = (
            f"{words.share(1 - work / whole)} of {words.seconds(whole)} passed outside solves and training steps: "
            f"imports, data, building the problem. Of the {words.seconds(work)} of work"
        )
    if analysis.host_overhead:
        worst = min(analysis.host_overhead, key=lambda row: row["launch_seconds"] / (row["seconds"] or 1.0))
        whole = worst["seconds"] or 1.0
        rank = f"on rank {worst['rank']}, " if len(analysis.host_overhead) > 1 else ""
        parts = [
            (worst["launch_seconds"], "computing in kernels and innermost steps"),
            (worst["overhead_seconds"], "on the host outside kernels (Python, or what is not traced)"),
            (worst["copy_seconds"], "copying"),
            (worst["wait_seconds"], "waiting"),
        ]
        told = [
            f"{words.share(seconds / whole)} {where}" for seconds, where in sorted(parts, reverse=True) if seconds > 0
        ]
        text += f": {rank}{', '.join(told) or 'nothing measurable'}"
    if analysis.by_op:
        most, ranks = analysis.by_op[0], " on all ranks" if summary["ranks"] > 1 else ""
        took = f"{words.seconds(most['seconds'])}{ranks}, {words.share(most['share'])} of all launches"
        around = f" {tables.AROUND} (Python)" * most["encloses"]
        text += f". The most went to {most['op']}{around} ({took})"
    levels = [row for row in analysis.by_level if row["level"] is not None]
    if len(levels) > 1:
        top = max(levels, key=lambda row: row["seconds"])
        text += f"; level {top['level']}{', the finest,' * (top['level'] == 0)} took {words.share(top['share'])}"
    return text + "."


def _section(title: str, body: str) -> str:
    return f'<section aria-label="{escape(title)}"><h2>{escape(title)}</h2>{body}</section>'


def _findings(analysis: Analysis) -> str:
    if not analysis.findings:
        return words.missing("No findings: no rule had anything to say of this run.")
    return f"<ol class=findings>{''.join(map(_finding, analysis.findings))}</ol>"


def _finding(found: Finding) -> str:
    cost = "" if found["seconds"] is None else f" <span class=cost>{words.seconds(found['seconds'])}</span>"
    advice = f"<p class=advice>{escape(found['suggestion'])}</p>" if found["suggestion"] else ""
    evidence = words.keyed(found["evidence"].items()) if found["evidence"] else ""
    details = f"<details><summary>Evidence</summary>{evidence}</details>" if evidence else ""
    severity = found["severity"] if found["severity"] in SEVERITY_WORDS else "note"
    label = f"<span class=severity>{SEVERITY_WORDS[severity]}</span>"
    return (
        f"<li class={severity}><h3>{label} {escape(found['title'])}{cost}</h3>"
        f"<p>{escape(found['words'])}</p>{advice}{details}</li>"
    )


def _tiles(record: Record, analysis: Analysis) -> str:
    summary = analysis.summary
    tiles = [("traced", words.seconds(summary["seconds"])), ("kernels at work", words.share(summary["busy_share"]))]
    if analysis.host_overhead:
        spent = sum(row["overhead_seconds"] for row in analysis.host_overhead)
        whole = sum(row["seconds"] for row in analysis.host_overhead)
        tiles.append(("host outside kernels", words.share(spent / whole if whole else 0.0)))
    if analysis.critical_path:
        tiles.append(("coarse chain, of critical path", words.share(analysis.critical_path["coarse_share"])))
    tiles += [("launches", words.count(summary["launches"])), ("events", words.count(summary["events"]))]
    if record.solves:
        tiles.append(("solves", words.count(len(record.solves))))
        tiles.append(("iterations", words.count(sum(solve.iterations for solve in record.solves))))
    names = ", ".join(summary["devices"]) if len(summary["devices"]) < 4 else words.count(len(summary["devices"]))
    tiles += [("ranks", words.count(summary["ranks"])), ("devices", names or "none")]
    if summary["bytes"] is not None:
        tiles.append(("bytes, of known ops", words.amount(summary["bytes"], "B")))
    if summary["flops"] is not None:
        tiles.append(("FLOPs, of known ops", words.amount(summary["flops"], "FLOP")))
    if analysis.memory:
        top = max(analysis.memory, key=lambda row: row["peak"])
        tiles.append((f"most {top['counter']}", words.amount(top["peak"], "B")))
    return f"<dl class=tiles>{''.join(f'<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in tiles)}</dl>"


def _busy(analysis: Analysis) -> dict[tuple[int, str, str | None], str]:
    """Beside the name of a track: how busy it was. Where a device has one stream, its row is that of the stream."""
    return {
        (row["rank"], row["device"], row["stream"]): f", busy {words.share(row['busy_share'])}"
        for row in analysis.devices
    }


def _timeline(packed: Packed) -> str:
    out = words.note(f"{packed.left_out} events have no finite time and are left out.") if packed.left_out else ""
    if not packed.events:
        return words.missing("No events: nothing was traced in this run.") + out
    data = f"<script type=text/plain id=events>{packed.text}</script>"
    return _source("timeline.html") + out + data + tables.longest(packed)


def _policy(style: str, script: str) -> str:
    def name(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; style-src {name(style)}; script-src {name(script)}; base-uri 'none'; form-action 'none'"
    )


def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
