# SPDX-License-Identifier: BSD-3-Clause
"""The report as one HTML file: light and dark, wide and narrow; no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from . import tables
from .confusion import confusion_tables
from .curves import charts
from .partition_picture import partition_picture
from .style import STYLE
from .timeline import timeline


def page(result: dict[str, Any]) -> str:
    """Results, curves, confusion, partition, one step in time, settings."""
    settings = result["settings"]
    title = f"pyparareal: {settings['model']} on {settings['data']}"
    listed = {**settings, **result["versions"], "seconds of the job": f"{result['seconds']:.0f}"}
    sections = [
        f"<h1>{escape(title)}</h1>{_facts(result)}",
        f"<h2>Result</h2>{_table(_result_rows(result))}{_table(_speed_rows(result))}",
        _note(tables.PREDICTION_NOTE),
        f'<p class="honest">{escape(tables.when_it_will_not_help(result))}</p>',
        f'<h2>Curves</h2><div class="charts">{charts(result)}</div>',
        f'<h2>Confusion</h2><div class="flow">{confusion_tables(result)}</div>',
        f'<h2>Partition</h2><div class="scroll">{partition_picture(result)}</div>',
        _note(_partition_words(result)),
        _table(tables.part_rows(result)),
        _table(tables.map_rows(result)),
        _note(f"In all: {tables.cost_words(result)}."),
        f"<h2>One training step</h2>{timeline(result)}",
        _note(_timeline_words(result)),
        f"<h2>Settings</h2>{_table([['name', 'value'], *([k, _value(v)] for k, v in listed.items())])}",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def _facts(result: dict[str, Any]) -> str:
    settings, images = result["settings"], result["images"]
    parareal = result["networks"]["parareal"]
    facts = [
        f"{settings['model']} on {settings['data']}: {images['train']:,} training, {images['validation']:,} validation "
        f"and {images['test']:,} test images; the test images were used once, after training.",
        f"Body cut into {len(parareal['part_sizes'])} parts of {_value(parareal['part_sizes'])} blocks, correction "
        f"“{settings['correction']}”, executed “{parareal['execution']}”{_chosen(parareal)} in one process on "
        f"{settings['device']} in {settings['precision']}.",
    ]
    return "".join(f"<p>{escape(fact)}</p>" for fact in facts)


def _chosen(row: dict[str, Any]) -> str:
    """What ``execution="auto"`` measured for the training step, if it did."""
    for kind, entry in row["measured_modes"].items():
        if "backward" in kind:
            found = ", ".join(f"{mode} {1e3 * seconds:.3g} ms" for mode, seconds in entry["seconds"].items())
            return f" (measured once: {found})"
    return ""


def _result_rows(result: dict[str, Any]) -> list[list[str]]:
    rows = [["network", "parameters", "MFLOP per image", "test accuracy", "ms per step, measured"]]
    for name, row in result["networks"].items():
        flops = f"{result['body']['flops'][name] / 1e6:,.2f}"
        accuracy = tables.accuracy_words(result, row)
        rows.append([name, f"{row['parameters']:,}", flops, accuracy, f"{1e3 * row['seconds_per_step']:.2f}"])
    return rows


def _speed_rows(result: dict[str, Any]) -> list[list[str]]:
    """One row per number of devices."""
    networks, ratios = result["networks"], tables.speed_ratios(result)
    rows = [["devices, predicted", *(f"{name}, ms" for name in networks), *["serial / parareal"] * bool(ratios)]]
    for devices in networks["parareal"]["predicted_seconds_per_step"]:
        times = [f"{1e3 * row['predicted_seconds_per_step'][devices]:.2f}" for row in networks.values()]
        rows.append([devices, *times, *([f"{ratios[devices]:.2f}x"] if ratios else [])])
    return rows


def _partition_words(result: dict[str, Any]) -> str:
    dashed = "Dashed: the guess a part began with, which is "
    if result["settings"]["correction"] == "residual":
        dashed += "taken from what it should have been"
    else:
        dashed += "the x of the coarse net's F(U) - F(x)"
    return f"{dashed}. Parts: {tables.cut_words(result)}. Costs in per cent are relative to the mean part."


def _timeline_words(result: dict[str, Any]) -> str:
    row = result["networks"]["parareal"]
    return (
        "Measured: median times of the pieces, each alone in this process, laid end to end in the order of "
        f"execution; the line is the whole step, measured at once ({1e3 * row['seconds_per_step']:.3g} ms, executed "
        f"“{row['execution']}”). Predicted: the same pieces with one device per part, scaled so that on one device "
        "they add up to the whole step; equal devices, free communication, no waiting, the update undivided. "
        "Outlined pieces are on the critical path."
    )


def _note(words: str) -> str:
    return f'<p class="note">{escape(words)}</p>'


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "automatic" if value is None else str(value)


def _table(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the header; columns of words are set to the left."""
    words = [not row[-1][:1].isdigit() for row in zip(*rows, strict=True)]
    lines = [
        "".join(
            f"<{cell}{' class=words' * left}>{escape(value)}</{cell}>" for value, left in zip(row, words, strict=True)
        )
        for cell, row in zip(["th", *["td"] * (len(rows) - 1)], rows, strict=True)
    ]
    return f'<div class="scroll"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'
