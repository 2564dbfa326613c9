# SPDX-License-Identifier: BSD-3-Clause
"""Records made by hand."""

from pyparareal.profiling.events import Event, Record, Solve


def launch(start, end, name="relax_rk", **fields):
    facts = fields.pop("facts", {})
    return Event("launch", name, start, end, facts=facts, **fields)


def region(start, end, name, **fields):
    return Event("region", name, start, end, **fields)


def message(start, end, flow, rank, **facts):
    return Event("message", "state", start, end, rank=rank, flow=flow, facts=facts)


def solve(start, end, method="mgrit", iterations=3, status="CONVERGED", residuals=(1.0, 1e-3, 1e-6), **facts):
    """Without the facts that a price needs, unless they are given."""
    return Solve(method, start, end, iterations, status, list(residuals), facts={"slices": 64, **facts})


def record(*events, solves=(), samples=(), **about):
    return Record(list(events), list(samples), solves=list(solves), about=about)
