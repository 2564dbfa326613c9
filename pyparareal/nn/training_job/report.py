# SPDX-License-Identifier: BSD-3-Clause
"""The result for people: a table for the terminal, curves as PNG, one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

from . import checkpoint

COLOURS = {"serial": "#555555", "parareal": "#0b6fb8"}

PREDICTION_NOTE = (
    "Predicted: slowest device's preprocessing and parts, plus the coarse chain, head and update, forward and "
    "backward, from the times of the pieces measured one by one on this machine, scaled to the measured step for one "
    "device. Assumes equal devices, free communication and no waiting; real devices are slower."
)


def table_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and one row per network."""
    devices = list(next(iter(result["networks"].values()))["predicted_seconds_per_step"])
    header = ["network", "parameters", "test accuracy", "ms/step, measured"]
    header += [f"predicted, {p} device{'s' * (p != '1')}" for p in devices]
    count = result["images"]["test"]
    rows = []
    for name, row in result["networks"].items():
        right = round(row["test_accuracy"] * count)
        cells = [name, f"{row['parameters']:,}", f"{row['test_accuracy']:.2%} ({right}/{count})"]
        cells.append(f"{1e3 * row['seconds_per_step']:.2f}")
        cells += [f"{1e3 * seconds:.2f}" for seconds in row["predicted_seconds_per_step"].values()]
        rows.append(cells)
    return header, rows


def speed_ratios(result: dict[str, Any]) -> dict[str, float]:
    """Serial seconds per step over parareal ones: measured here, and predicted per number of devices; > 1 is faster."""
    networks = result["networks"]
    if "serial" not in networks:
        return {}
    serial, parareal = networks["serial"], networks["parareal"]
    ratios = {"measured": serial["seconds_per_step"] / parareal["seconds_per_step"]}
    for devices, seconds in parareal["predicted_seconds_per_step"].items():
        ratios[devices] = serial["predicted_seconds_per_step"][devices] / seconds
    return ratios


def text_table(result: dict[str, Any]) -> str:
    """The final table, with the speed relative to the serial network under it."""
    header, rows = table_rows(result)
    ratios = speed_ratios(result)
    if ratios:
        rows.append(["serial / parareal", "", "", *(f"{value:.2f}x" for value in ratios.values())])
    heads = [_two_lines(name) for name in header]
    cells = [[h[0] for h in heads], [h[1] for h in heads], *rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    lines.insert(2, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)


def when_it_will_not_help(result: dict[str, Any]) -> str:
    """What the figures of this very run say about using the parareal network at all."""
    ratios = speed_ratios(result)
    if not ratios:
        return "Not compared with the serial network: add --compare-serial to see whether it helps."
    here = ratios.pop("measured")
    best = max(ratios, key=lambda devices: ratios[devices])
    words = [
        f"When it will not help: on this one machine a parareal step takes {1 / here:.2f} times a serial step "
        "(measured). It does more arithmetic, and it gains only where other devices would stand idle."
    ]
    if ratios[best] <= 1:
        words.append(
            f"Nor is it predicted to help on {' or '.join(ratios)} devices: the network is too shallow for its cuts, "
            "preprocessing maps and coarse chain cost as much as the layers they bypass. Use the serial network."
        )
    else:
        words.append(
            f"Predicted on {best} device{'s' * (best != '1')}: {ratios[best]:.2f} times the serial speed at best, "
            "before communication. If one device is not kept waiting by the serial chain, or the data can be "
            "split over the devices instead, use the serial network."
        )
    return " ".join(words)


def write(out: Path, result: dict[str, Any]) -> None:
    """``curves.png`` and ``report.html`` in ``out``."""
    png = curves(result)
    checkpoint.write_atomically(out / "curves.png", png)
    checkpoint.write_atomically(out / "report.html", page(result, png).encode())


def curves(result: dict[str, Any]) -> bytes:
    """PNG: training loss and validation error by epoch, seconds per step by number of devices."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('the curves need matplotlib: pip install "pyparareal[train]"') from error
    figure = Figure(figsize=(13, 4), layout="constrained", dpi=110)
    loss, wrong, speed = figure.subplots(1, 3)
    for name, row in result["networks"].items():
        style = {"color": COLOURS[name], "label": name}
        hollow = {"color": COLOURS[name], "fillstyle": "none"}
        epochs = [entry["epoch"] for entry in row["history"]]
        loss.plot(epochs, [entry["train_loss"] for entry in row["history"]], **style)
        wrong.plot(epochs, [100 * (1 - entry["validation_accuracy"]) for entry in row["history"]], **style)
        predicted = row["predicted_seconds_per_step"]
        speed.plot(
            [int(p) for p in predicted],
            [1e3 * s for s in predicted.values()],
            "o--",
            color=COLOURS[name],
            label=f"{name}, predicted",
        )
        speed.plot([1], [1e3 * row["seconds_per_step"]], "s", markersize=10, label=f"{name}, measured", **hollow)
    loss.set(title="Training loss", xlabel="epoch", ylabel="cross-entropy", yscale="log")
    wrong.set(title="Validation error", xlabel="epoch", ylabel="% of images wrong", ylim=(0, 20))
    speed.set(title="Training step", xlabel="devices", ylabel="ms")
    speed.set_xticks(range(1, result["settings"]["parts"] + 1))
    speed.set_ylim(bottom=0)
    for axes in (loss, wrong, speed):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def page(result: dict[str, Any], png: bytes) -> str:
    """One HTML file: table, curves, honest words, settings. No script, nothing fetched."""
    header, rows = table_rows(result)
    ratios = speed_ratios(result)
    if ratios:
        rows.append(["serial / parareal", "", "", *(f"{value:.2f}x" for value in ratios.values())])
    settings = result["settings"]
    parareal = result["networks"]["parareal"]
    images = result["images"]
    facts = [
        f"{settings['model']} on {settings['data']}: {images['train']:,} training, {images['validation']:,} validation "
        f"and {images['test']:,} test images; the test images were used once, after training.",
        f"Body cut into {settings['parts']} parts of {parareal['part_sizes']} residual units, "
        f"correction {settings['correction']!r}, executed {parareal['execution']!r} (all parts in one process).",
        PREDICTION_NOTE,
    ]
    listed = [
        [k, str(v)]
        for k, v in {**settings, **result["versions"], "seconds of the job": f"{result['seconds']:.0f}"}.items()
    ]
    return PAGE.format(
        title=f"pyparareal: {html.escape(settings['model'])} on {html.escape(settings['data'])}",
        facts="".join(f"<p>{html.escape(fact)}</p>" for fact in facts[:2]),
        table=_html_table(rows, header),
        note=html.escape(facts[2]),
        honest=html.escape(when_it_will_not_help(result)),
        picture=base64.b64encode(png).decode(),
        settings=_html_table(listed),
    )


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222; }}
table {{ border-collapse: collapse; margin: 1em 0; }}
th, td {{ padding: .3em .8em; border-bottom: 1px solid #ddd; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }}
img {{ max-width: 100%; }} .note {{ color: #666; font-size: 90%; }}
.honest {{ border-left: 4px solid #d98200; padding-left: 1em; }}
</style></head><body>
<h1>{title}</h1>{facts}
<h2>Result</h2>{table}<p class="note">{note}</p><p class="honest">{honest}</p>
<h2>Curves</h2><img alt="Training loss, validation error, time of a step" src="data:image/png;base64,{picture}">
<h2>Settings</h2>{settings}
</body></html>
"""


def _html_table(rows: list[list[str]], header: list[str] | None = None) -> str:
    lines = [] if header is None else ["".join(f"<th>{html.escape(cell)}</th>" for cell in header)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _two_lines(name: str) -> tuple[str, str]:
    first, _, second = name.partition(", ")
    return (first, second) if second else ("", first)
