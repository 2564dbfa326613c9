# SPDX-License-Identifier: BSD-3-Clause
"""Arguments for the relaxations, for tests: states, coefficients of every op, and right-hand sides."""

from __future__ import annotations

import numpy as np
from ops_backends import random_state

from pyparareal import ops, reference, tableaux

OPS = ("relax_diagonal", "relax_tridiagonal", "relax_stencil", "relax_rk")
DTYPES = (np.dtype("float64"), np.dtype("float32"))
# What the equations are usually studied with.
PARAMETERS = {
    "dahlquist": (-0.5,),
    "lorenz": (10, 28, 8 / 3),
    "brusselator": (1, 3),
    "fitzhugh_nagumo": (0.2, 0.2, 3),
    "van_der_pol": (1.5,),
    "arenstorf": (0.012277471,),
}
# Which of f, g and every are given.
MODES = {"alone": "", "every": "e", "f": "f", "f every": "fe", "f g": "fg", "f g every": "fge"}


def diffusion(n, dtype, rng=None):
    """Factors of a diagonally dominant matrix."""
    off = np.full(max(n - 1, 0), -0.4) if rng is None else -rng.random(max(n - 1, 0))
    diagonal = np.full(n, 1.8) if rng is None else 2 + rng.random(n)
    return tuple(x.astype(dtype) for x in reference.factorise_tridiagonal(off, diagonal, 0.9 * off))


def arguments(op, shape, dtype, m, rng, **choices):
    """``u, positional arguments, keywords`` of a call without right-hand sides."""
    keywords = {}
    if op == "relax_diagonal":
        positional = (random_state(rng, shape[1:], dtype), m)
    elif op == "relax_tridiagonal":
        positional = (*diffusion(shape[-1], dtype, rng), m)
    elif op == "relax_stencil":
        positional = ((rng.standard_normal(choices.get("width", 3)) / 3).astype(dtype), m)
        keywords = {"boundary": choices.get("boundary", "zero")}
    else:
        rhs = choices.get("rhs", "lorenz")
        shape = (*shape[:-1], reference.RIGHT_HAND_SIDES[rhs][0])
        dt = choices.get("dt", 0.01)
        if dt == "own":
            dt = 0.02 * rng.random((shape[0], m))
        positional = (rhs, PARAMETERS[rhs], choices.get("tableau", tableaux.RK4), dt, m)
        keywords = {"substeps": choices.get("substeps", 1)}
    u = rng.standard_normal(shape).astype(dtype) if op == "relax_rk" else random_state(rng, shape, dtype)
    return u, positional, keywords


def right_hand_sides(u, m, mode, rng):
    """Those of ``f`` and ``g`` that ``mode`` names, ``[slices, m, ...]``."""
    shape = (u.shape[0], m, *u.shape[1:])
    return {name: rng.standard_normal(shape).astype(u.dtype) for name in "fg" if name in mode}


def both(op, u, positional, keywords, mode="", like=lambda x: x, to_numpy=lambda x: x, **more):
    """``(end states, every)`` of the kernel and of the reference; ``every`` is None where ``mode`` has none."""
    shape, results = (u.shape[0], positional[-1], *u.shape[1:]), []
    for module in (ops, reference):
        take, give = (like, to_numpy) if module is ops else (lambda x: x,) * 2
        arrays = {name: take(x) if isinstance(x, np.ndarray) else x for name, x in keywords.items()}
        if "e" in mode:
            arrays["every"] = take(np.full(shape, 7, u.dtype))
        if module is ops:
            arrays |= {"out": take(np.full_like(u, 7)), **more}
        first = [take(x) if isinstance(x, np.ndarray) else x for x in (u, *positional)]
        with np.errstate(all="ignore"):
            end = getattr(module, op)(*first, **arrays)
        results.append((give(end), give(arrays["every"]) if "e" in mode else None))
    return results
