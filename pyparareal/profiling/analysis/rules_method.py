# SPDX-License-Identifier: BSD-3-Clause
"""Findings about the method: its serial part, its convergence, and whether it pays."""

from __future__ import annotations

from collections.abc import Iterator

from .results import Analysis, Finding, Predicted, Priced, SolveRow
from .rules import finding, severity
from .wording import count, duration, percent

COARSE_SHARE = 0.35  # of the critical path
CLOSE = 0.7  # iterations over slices: with as many as slices every solve is exact, and no faster than serial
SLOW = 0.8  # residuals shrink by less than a fifth in an iteration
PAYS = 1.05  # times as fast as the serial chain: less is within what a measurement varies
LEFT_OUT = 1.5  # measured over predicted, from which a reader has to know
FEW = 2  # iterations that say something about convergence

_TROUBLE = {
    "SERIAL_FALLBACK": "It did not converge, and was solved serially instead: both were paid for.",
    "STAGNATED": "The residual no longer shrank, and the solve was given up.",
    "DIVERGED": "The residual grew, and the solve was given up.",
    "MAX_ITERATIONS": "It ended at the largest number of iterations, not converged.",
    "ROUND_OFF": "The residual is at the rounding of the dtype, above the tolerance.",
    "NON_FINITE": "A step produced infinity or NaN.",
    "NON_FINITE_GUESS": "The starting guess holds infinity or NaN: the coarse step may be unstable.",
}


def coarse_chain(analysis: Analysis) -> Iterator[Finding]:
    """The chain that must happen one slice after the other is most of the critical path."""
    path = analysis.critical_path
    if path is None or path["coarse_share"] < COARSE_SHARE:
        return
    better = _best_change(analysis)
    told = "A larger m or another level makes it shorter"
    if better is not None:
        was, row = better
        saved = was["seconds"] - row["seconds"]
        told = (
            f"With {row['change']}, a solve would save about {duration(saved)} of {duration(was['seconds'])} on "
            f"{count(row['processors'], 'processor')} (predicted; as many iterations assumed)"
        )
    yield finding(
        "coarse-chain",
        severity(analysis, path["coarse_seconds"]),
        "The coarse chain holds everything up",
        f"The coarse chain is {percent(path['coarse_share'])} of the critical path, "
        f"{duration(path['coarse_seconds'])} of {duration(path['seconds'])}: its steps come one after the other, "
        "and no processor more makes it faster.",
        {"coarse_share": path["coarse_share"], "coarse_seconds": path["coarse_seconds"]},
        f"{told}.",
        path["coarse_seconds"],
    )


def _best_change(analysis: Analysis) -> tuple[Priced, Priced] | None:
    """The schedule as it is and the change that saves most, of the longest solve that was priced."""
    priced = [row for row in analysis.predicted if row["what_if"]]
    if not priced:
        return None
    row = max(priced, key=lambda one: one["measured_seconds"])
    best = min(row["what_if"], key=lambda one: one["seconds"])
    was = next(one for one in row["processors"] if one["processors"] == best["processors"])
    return (was, best) if best["seconds"] < 0.95 * was["seconds"] else None


SAME_STEP = (
    "The serial chain here is this very step, one state at a time: if a kernel or a compiled loop can take all steps "
    "in one call, hold it against that."
)


def serial_wins(analysis: Analysis) -> Iterator[Finding]:
    """Whether it pays: what was measured has the last word, then what the schedule is predicted to take."""
    for row in analysis.predicted:
        if not row["processors"] or row["serial_seconds"] is None:
            continue
        best = min(row["processors"], key=lambda one: one["seconds"])
        first = next((one for one in row["processors"] if one["speedup"] >= PAYS), None)
        measured = row["serial_measured"] if row["solve"] >= 0 else None
        if measured is not None and row["measured_seconds"] < min(measured, _serial(row)):
            yield _paid(row, measured, best)
        elif row["serial_wins"] or first is None:
            yield _never_pays(analysis, row, best)
        else:
            yield _pays(analysis, row, first, best)


def _paid(row: Predicted, serial: float, best: Priced) -> Finding:
    """It was faster than the serial chain beside it."""
    times = serial / row["measured_seconds"]
    words = (
        f"The {_what(row)} took {duration(row['measured_seconds'])}, {duration(serial)} one step after the other: "
        f"{times:.2f} times as fast, measured. At best {best['speedup']:.2f} times on {best['processors']} "
        f"({_basis(row)})."
    )
    evidence = {**_solve(row), "measured speedup": times, "speedup": best["speedup"], "processors": best["processors"]}
    return finding("pays", "good", "It pays", words, evidence, SAME_STEP)


def _pays(analysis: Analysis, row: Predicted, first: Priced, best: Priced) -> Finding:
    """By the prediction, from so many processors on; not if this very run lost."""
    at_best = f"{best['speedup']:.2f} times on {best['processors']} ({_basis(row)})."
    evidence = {**_solve(row), "speedup": best["speedup"], "processors": best["processors"]}
    lost, told = _lost(analysis, row), ""
    if row["serial_measured"] is not None:
        took, serial = duration(row["measured_seconds"]), duration(row["serial_measured"])
        told = f" Measured here: {took}, and {serial} one step after the other."
        if row["solve"] < 0:
            told = f" Measured here: {took} a step, and {serial} one of the serial network."
    if first["processors"] > 1:
        longer = 1 / row["processors"][0]["speedup"] if row["processors"][0]["speedup"] > 0 else 0.0
        title = f"It pays from {count(first['processors'], _unit(row))} on"
        words = (
            f"On one, the {_what(row)} takes {longer:.2f} times as long as the serial one; on {first['processors']} it "
            f"is {first['speedup']:.2f} times as fast, at best {at_best}"
        )
        if lost <= 0:
            return finding("pays-from", "note", title, words + told, evidence, _on_devices(row))
        title = f"Serial is faster here; it pays from {count(first['processors'], _unit(row))} on"
        return finding(
            "pays-from", severity(analysis, lost), title, words + told, evidence, _on_devices(row), lost
        )  # fmt: skip
    faster = f"{row['processors'][0]['speedup']:.2f} times as fast as the serial one on one {_unit(row)}"
    words = f"By what its steps cost, the {_what(row)} is {faster}, and {at_best}"
    if lost > 0:
        told = told or f" It took {duration(row['measured_seconds'])}."
        why = " The rest is what the model leaves out: Python between the steps, norms, waiting."
        title = "Serial is faster here; it would pay without overheads"
        return finding("pays", severity(analysis, lost), title, words + told + why, evidence, "", lost)
    return finding("pays", "good", "It pays", words + told, evidence, SAME_STEP if row["solve"] >= 0 else "")


def _lost(analysis: Analysis, row: Predicted) -> float:
    """Seconds by which this run was slower than the serial chain; of a network in all its steps."""
    steps = sum(one["calls"] for one in analysis.by_region if one["region"] == "train.update")
    return (row["measured_seconds"] - _serial(row)) * (1 if row["solve"] >= 0 else max(1, steps))


def _serial(row: Predicted) -> float:
    """Seconds of the best serial program that is known of: the one that speeds are relative to."""
    return row["processors"][0]["serial_seconds"]


def _solve(row: Predicted) -> dict[str, int]:
    """Its number as people count, if it is a solve."""
    return {"solve": row["solve"] + 1} if row["solve"] >= 0 else {}


def _on_devices(row: Predicted) -> str:
    if row["solve"] >= 0:
        return "Take so many processors (pyparareal.distributed, LocalRuntime(devices=...)), or solve it serially."
    return "Give each part a device of its own (execution='parallel'); on one device train the serial network."


def _basis(row: Predicted) -> str:
    """What a prediction is worth."""
    free = "predicted, communication free"
    if row["ratio"] is None or row["ratio"] < LEFT_OUT:
        return free
    return f"{free}, without the {percent(1 - 1 / row['ratio'])} of the time that went into no step"


def _unit(row: Predicted) -> str:
    return "device" if row["solve"] < 0 else "processor"


def _what(row: Predicted) -> str:
    return "parareal network" if row["solve"] < 0 else f"{row['what']} solve"


def _never_pays(analysis: Analysis, row: Predicted, best: Priced) -> Finding:
    serial, measured = _serial(row), row["serial_measured"]
    lost = max(0.0, _lost(analysis, row))
    took = f"took {duration(serial)}" if measured == serial else f"would take about {duration(serial)}"
    if measured is None:
        took += " by what its steps cost here"
    elif measured > serial:
        took += f" in one call ({duration(measured)} as it was run here)"
    return finding(
        "serial-wins",
        severity(analysis, lost),
        "The serial chain is faster",
        f"One step after the other {took}; this {_what(row)} took "
        f"{duration(row['measured_seconds'])}, and on {count(best['processors'], _unit(row))}, the best number, "
        f"would take {duration(best['seconds'])} ({_basis(row)}).",
        {**_solve(row), "serial_seconds": serial, "best_seconds": best["seconds"], "processors": best["processors"]},
        "Solve it serially, or make the problem larger: more work in a fine step, a cheaper coarse step, or a better "
        "coarse propagator, which takes fewer iterations.",
        lost,
    )


def training_step(analysis: Analysis) -> Iterator[Finding]:
    """Where the time of a training step goes."""
    rows = {row["region"]: row for row in analysis.by_region}
    steps = rows["train.update"]["calls"] if "train.update" in rows else 0
    if not steps or "train.forward" not in rows:
        return
    named = {"train.forward": "forward", "train.backward": "backward", "train.update": "updating the weights"}
    spent = {words: rows[region]["seconds"] / steps for region, words in named.items() if region in rows}
    step = sum(spent.values())
    parts = ", ".join(f"{percent(seconds / step)} {words}" for words, seconds in spent.items())
    told = [f"A training step takes {duration(step)}: {parts} ({count(steps, 'step')})."]
    pieces = {row["op"]: row["seconds"] / steps for row in analysis.by_op if row["op"] in _PIECES}
    if pieces and spent["forward"] > 0:
        shares = ", ".join(f"{percent(seconds / spent['forward'])} {_PIECES[op]}" for op, seconds in pieces.items())
        told.append(f"Of the forward pass: {shares}.")
    yield finding(
        "training-step", "note", "Where a training step goes", " ".join(told),
        {"seconds": step, **{f"{words} seconds": seconds for words, seconds in spent.items()}}, "", step * steps,
    )  # fmt: skip


_PIECES = {
    "fine": "in the parts themselves",
    "coarse": "in the coarse chain between them",
    "preprocess": "guessing their inputs",
    "head": "in the head",
}


def many_iterations(analysis: Analysis) -> Iterator[Finding]:
    """About as many iterations as there are slices: then parallel is no faster than serial."""
    for number, solve in enumerate(analysis.solves, 1):
        slices, iterations = solve["slices"], solve["iterations"]
        if solve["method"] != "parareal" or not slices or slices < 4 or iterations < CLOSE * slices:
            continue
        yield finding(
            "many-iterations",
            severity(analysis, solve["seconds"]),
            "Nearly as many iterations as slices",
            f"It took {iterations} iterations for {slices} slices. After as many as slices every state is exact "
            "whatever the coarse propagator does, and nothing was gained over the serial chain.",
            {"solve": number, "iterations": iterations, "slices": slices},
            "Use a better coarse propagator (a higher order, a smaller coarsening factor m), a looser tol, or a "
            "shorter interval; a chaotic problem can only be solved so over short times.",
            solve["seconds"],
        )


def slow_convergence(analysis: Analysis) -> Iterator[Finding]:
    """The residual hardly shrinks."""
    for number, solve in enumerate(analysis.solves, 1):
        factor, iterations = solve["factor"], solve["iterations"]
        if factor is None or iterations <= FEW or factor < SLOW or _is_close(solve):
            continue
        yield finding(
            "slow-convergence",
            severity(analysis, solve["seconds"]),
            "Convergence is slow",
            f"An iteration shrank the residual by a factor of {factor:.2f} only; {iterations} of them took "
            f"{duration(solve['seconds'])}.",
            {"solve": number, "factor": factor, "iterations": iterations},
            "FCF-relaxation (nu = 1), a smaller m or a coarse propagator closer to the fine one converge faster.",
            solve["seconds"],
        )


def _is_close(solve: SolveRow) -> bool:
    slices = solve["slices"]
    return solve["method"] == "parareal" and bool(slices) and solve["iterations"] >= CLOSE * (slices or 0)


def failed(analysis: Analysis) -> Iterator[Finding]:
    """The program did not end well."""
    why = analysis.summary["failed"]
    if why is not None:
        yield finding(
            "failed",
            "serious",
            "The program failed",
            f"{why}. What is here is what happened until then.",
            {"failed": why},
            "",
            analysis.summary["seconds"],
        )


def left_out(analysis: Analysis) -> Iterator[Finding]:
    """The run had more events than are kept."""
    told = analysis.summary["left_out"]
    if told is not None:
        yield finding(
            "left-out",
            "warning",
            "This is the beginning of the run only",
            f"After {analysis.summary['events']:,} events, {duration(analysis.summary['seconds'])}, no more were kept: "
            f"{told['events']:,} or more came in the {duration(told['seconds'])} that followed. All figures are of "
            "what was kept.",
            dict(told),
            "Watch fewer steps, or put a Timeline around the part that matters.",
        )


def trouble(analysis: Analysis) -> Iterator[Finding]:
    """A solve did not converge."""
    for number, solve in enumerate(analysis.solves, 1):
        words = _TROUBLE.get(solve["status"])
        if words is not None:
            yield finding(
                "trouble",
                "serious",
                f"Solve {number} did not converge",
                f"{words} It took {duration(solve['seconds'])} and {count(solve['iterations'], 'iteration')}.",
                {"solve": number, "status": solve["status"], "iterations": solve["iterations"]},
                "Look at its residuals. A better coarse propagator, a smaller m or more relaxation (nu) converge "
                "where this did not.",
                solve["seconds"],
            )


RULES = (failed, left_out, training_step, coarse_chain, serial_wins, many_iterations, slow_convergence, trouble)
