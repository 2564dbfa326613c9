# SPDX-License-Identifier: BSD-3-Clause
"""The result as rows of text: accuracy and time per network, parts and maps, and what to make of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...partitioning import aligned

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
    rows = []
    for name, row in result["networks"].items():
        cells = [name, f"{row['parameters']:,}", accuracy_words(result, row), f"{1e3 * row['seconds_per_step']:.2f}"]
        cells += [f"{1e3 * seconds:.2f}" for seconds in row["predicted_seconds_per_step"].values()]
        rows.append(cells)
    return header, rows


def accuracy_words(result: dict[str, Any], row: dict[str, Any]) -> str:
    """Share and number of test images that are right."""
    count = result["images"]["test"]
    return f"{row['test_accuracy']:.2%} ({round(row['test_accuracy'] * count)}/{count})"


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


def body_tables(result: dict[str, Any]) -> str:
    """Parts and maps with their costs, for the terminal."""
    parts, maps = part_rows(result), map_rows(result)
    return "\n".join([*aligned(parts), cut_words(result), "", *aligned(maps), cost_words(result)])


def part_rows(result: dict[str, Any]) -> list[list[str]]:
    """Header and one row per part."""
    parts = result["body"]["parts"]
    measured = any(part["seconds"] is not None for part in parts)
    largest = max(part["flops"] for part in parts) or 1
    rows = [["part", "blocks", "first .. last", "parameters", "MFLOP", "of largest", *["ms"] * measured, "output"]]
    for j, part in enumerate(parts, start=1):
        span = part["first"] if part["blocks"] == 1 else f"{part['first']} .. {part['last']}"
        costs = [f"{part['parameters']:,}", f"{part['flops'] / 1e6:,.3f}", f"{part['flops'] / largest:.0%}"]
        seconds = [f"{1e3 * part['seconds']:.3f}"] if measured else []
        rows.append([str(j), str(part["blocks"]), span, *costs, *seconds, _shape(part["shape"])])
    return rows


def map_rows(result: dict[str, Any]) -> list[list[str]]:
    """Header and one row per preprocessing map and coarse net; costs relative to the mean part."""
    rows = [["map", "is", "from", "to", "parameters", "MFLOP", "of a part"]]
    for cost in result["body"]["maps"]:
        relative = "-" if cost["relative"] is None else f"{cost['relative']:.1%}"
        ends = [_shape(cost["source"]), _shape(cost["target"])]
        rows.append(
            [cost["name"], cost["what"], *ends, f"{cost['parameters']:,}", f"{cost['flops'] / 1e6:,.3f}", relative]
        )
    return rows


def cut_words(result: dict[str, Any]) -> str:
    how = {"blocks": "equal numbers of blocks", "sizes": "sizes given", "params": "balanced by parameters"}
    balance = result["body"]["balance"]
    return f"{how.get(balance, f'balanced by {balance}')}; FLOPs of a forward pass of one image"


def cost_words(result: dict[str, Any]) -> str:
    """What the parareal network costs more than the serial one."""
    body = result["body"]
    chain = [cost["relative"] or 0.0 for cost in body["maps"] if cost["name"].startswith("F")]
    flops = body["flops"]
    more = "" if not flops["serial"] else f" (serial network {flops['serial'] / 1e6:,.3f})"
    mean = f", {sum(chain) / len(chain):.1%} each on average" if chain else ""
    return (
        f"the serial coarse chain costs {sum(chain):.1%} of a part{mean}; "
        f"the whole parareal network {flops['parareal'] / 1e6:,.3f} MFLOP per image{more}"
    )


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


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "1"


def _two_lines(name: str) -> tuple[str, str]:
    first, _, second = name.partition(", ")
    return (first, second) if second else ("", first)
