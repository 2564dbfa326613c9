# SPDX-License-Identifier: BSD-3-Clause
"""Bytes an op must move and operations it must do, from the facts of a launch. What is not known is None, never 0.

Bytes are compulsory traffic, each input read once and each output written once: the cold misses with which the roofline
of Williams, Waterman and Patterson (Communications of the ACM 52, 2009, pp. 65-76) measures intensity. They are those
of the arrays of the call. Operations are those that :mod:`pyparareal.reference` writes down: an addition, subtraction,
multiplication, division or square root is 1, a fused multiply-add 2, a comparison, sign or selection 0; ``sigmoid`` and
``tanh`` are what their polynomials take; a norm of n numbers adds n times. What does not depend on the state (a
coefficient times a step size) is not counted, nor what a scan multiplies up besides to be parallel, nor the gradient of
the inputs of a network's first layer: nobody needs it.

Facts
-----
Those of :func:`pyparareal.traced_ops.facts_of`:

shape, dtype : of the states, ``[slices, batch, features...]``
bytes : of all arrays of the call, inputs and outputs
given : names of the optional arrays that are there
m : steps of a relaxation
norm : 0 sum of squares, 1 sum of magnitudes, 2 their maximum
coefficients : numbers in ``a``, or ``weights`` of a stencil
rhs, substeps, tableau : of a Runge-Kutta step: code of the right-hand side; stages and nonzero coefficients
sizes, count, hidden, last, biases : of a network and of its batch, codes of the activations
activation : code
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Facts = Mapping[str, Any]

# expm1 by _POLYNOMIAL of the reference: 10 and 5 multiply-adds, and 10 operations besides.
_EXPM1 = {"float64": 30, "float32": 20}
_NORM = {0: 2, 1: 1, 2: 0}  # of a number: squared and added, added, compared

RIGHT_HAND_SIDES = {0: (1, 1), 1: (3, 9), 2: (2, 7), 3: (2, 10), 4: (2, 5), 5: (4, 34)}
"""By code of ``_core``: components, and operations of one evaluation. Names: RIGHT_HAND_SIDES of the reference."""


class Cost(NamedTuple):
    """Of one launch."""

    bytes: float | None
    flops: float | None


def cost(op: str, facts: Facts) -> Cost:
    """What is known of a launch of ``op``. Of what is no op, such as a step of one's own, what its facts say."""
    nbytes, flops = _said(facts, "bytes"), _said(facts, "flops")
    count = FLOPS.get(op)
    if count is None:
        return Cost(nbytes, flops)
    try:
        launch = _Launch(facts)
        flops = count(launch)
        if op == "c_relax" and flops == 0 and nbytes is not None:
            nbytes = nbytes * 2 / 3  # phi is copied, u not looked at
    except (KeyError, TypeError, IndexError, ValueError):
        return Cost(nbytes, None)  # a fact is missing
    return Cost(nbytes, None if flops is None else float(flops))


def _said(facts: Facts, name: str) -> float | None:
    said = facts.get(name)
    return float(said) if isinstance(said, int | float) and not isinstance(said, bool) else None


class _Launch:
    """The facts of one launch, under short names."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.shape = [int(n) for n in facts["shape"]]
        self.size = math.prod(self.shape)  # numbers in the states
        self.d = self.shape[-1]
        self.rows = self.size // self.d if self.d else 0
        self.given = facts.get("given", ())

    def has(self, name: str) -> bool:
        return name in self.given

    def number(self, name: str) -> int:
        return int(self.facts[name])

    def norm(self) -> int:
        return _NORM[self.number("norm")]

    @property
    def sigmoid(self) -> int:
        """And a product, two sums and a quotient."""
        return _EXPM1[str(self.facts["dtype"])] + 4

    @property
    def tanh(self) -> int:
        """The argument doubled, and what makes a quotient of it."""
        return _EXPM1[str(self.facts["dtype"])] + 7

    def steps(self, each: float) -> float:
        """``m`` steps of so many operations on all states, with their right-hand sides, and norms of the ends."""
        sides = self.has("f") + self.has("g")
        norm = (1 + self.norm()) * self.size if self.has("target") else 0
        return self.number("m") * (each + sides * self.size) + norm


def _update(op: _Launch) -> float:
    """``f + (g_new - g_old)``, and of the jump a difference and the norm."""
    return op.size * (2 + (1 + op.norm() if op.has("u_old") else 0))


def _slice_norms(op: _Launch) -> float:
    return op.size * (op.has("u_old") + op.norm())


def _moved(op: _Launch) -> float:
    return 0


def _c_relax(op: _Launch) -> float:
    """``omega phi + (1 - omega) u``"""
    return 0 if float(op.facts["omega"]) == 1.0 else 3 * op.size


def _tridiagonal(op: _Launch) -> float:
    """``solve_tridiagonal`` of the reference: elimination 2 (n - 2), the middle 3, substitution 3 (n - 1)."""
    return op.steps(op.rows * (5 * op.d - 4 if op.d > 1 else op.d))


def _stencil(op: _Launch) -> float:
    return op.steps(op.size * (2 * op.number("coefficients") - 1))


def _rk(op: _Launch) -> float | None:
    """Per part of a step one evaluation a stage, and a product and a sum for each coefficient that is not zero.

    Unknown for a right-hand side of one's own.
    """
    if op.facts["rhs"] is None:
        return None
    components, slope = RIGHT_HAND_SIDES[op.number("rhs")]
    stages, terms = op.facts["tableau"]
    return op.steps(op.number("substeps") * op.size * (stages * slope / components + 2 * terms))


def _mlp(op: _Launch) -> float:
    """Forward, the errors, the gradient ``delta^T state``, the errors of all layers but the first, and the update."""
    sizes, bias = [int(n) for n in op.facts["sizes"]], int(bool(op.facts["biases"]))
    layers = list(itertools.pairwise(sizes))
    kinds = [op.number("hidden")] * (len(layers) - 1) + [op.number("last")]
    each = sizes[-1]
    for n, ((inputs, outputs), kind) in enumerate(zip(layers, kinds, strict=True)):
        value, slope = {0: (0, 0), 1: (0, 0), 2: (op.sigmoid, 3), 3: (op.tanh, 3)}[kind]
        each += 4 * (inputs + bias) * outputs + 2 * (n > 0) * inputs * outputs + outputs * (value + slope)
    return op.steps(op.rows * (op.number("count") * each + 2 * op.d))


def _gates(op: _Launch) -> int:
    """``r, z, s, n`` of one unit, but for the products: ``gru_step`` of :mod:`pyparareal.reference_gru`."""
    return 2 * op.sigmoid + op.tanh + 4 + op.has("bias")


def _gru(op: _Launch) -> float:
    """Three products with a matrix, the gates, and ``n + z (h - n)``."""
    return op.steps(op.size * (6 * op.d + _gates(op) + 3))


def _gru_adjoint(op: _Launch) -> float:
    """Of the states ``u [slices, m, ...]``: gates once more, 17 operations of their gradients, and three products."""
    return op.size * (12 * op.d + _gates(op) + 17 + op.has("d_every"))


def _newton_gru(op: _Launch) -> float:
    """Of ``u [steps + 1, ...]``: gates, step 3, Jacobian 19, its factor, the residual, scan 2, sum 2."""
    return (op.size - op.size // op.shape[0]) * (_gates(op) + 28)


def _dense(op: _Launch) -> float:
    """``W u + b``, the activation and where wanted its derivative times ``h``, and ``u + h act``."""
    value, slope = {0: (op.tanh, 3), 1: (0, 1), 2: (4, 3), 3: (op.sigmoid, 3), 4: (op.sigmoid + 1, 4)}[
        op.number("activation")
    ]
    return op.steps(op.size * (2 * op.d + value + 2 + slope * op.has("slopes")))


def _dense_adjoint(op: _Launch) -> float:
    """``v + scale W^T (slopes v)``"""
    return op.steps(op.size * (2 * op.d + 3))


def _scan(op: _Launch, width: int) -> float:
    """The recurrence: ``width`` products and as many sums for each number that has a state before it."""
    steps = op.shape[0]
    return 2 * width * (steps - 1 + op.has("start")) * (op.size // steps)


FLOPS: dict[str, Callable[[_Launch], float | None]] = {
    "parareal_update": _update,
    "slice_norms": _slice_norms,
    "extract": _moved,
    "inject": _moved,
    "c_relax": _c_relax,
    "relax_diagonal": lambda op: op.steps(op.size),
    "relax_tridiagonal": _tridiagonal,
    "relax_stencil": _stencil,
    "relax_rk": _rk,
    "relax_mlp_sgd": _mlp,
    "relax_gru": _gru,
    "relax_gru_adjoint": _gru_adjoint,
    "newton_gru": _newton_gru,
    "relax_dense": _dense,
    "relax_dense_adjoint": _dense_adjoint,
    "scan_diag": lambda op: _scan(op, 1),
    "scan_block": lambda op: _scan(op, op.d),
}
