# SPDX-License-Identifier: BSD-3-Clause
"""Bytes an op must move and operations it must do, from the facts of a launch. What is not known is None, never 0.

Bytes are compulsory traffic: each input read once, each output written once (the cold misses of Hill and Smith 1989,
with which the roofline of Williams, Waterman and Patterson 2009 measures intensity). Operations are those that
:mod:`pyparareal.reference` writes down: an addition, subtraction, multiplication, division or square root is 1, a fused
multiply-add 2, a comparison, sign or selection 0; ``sigmoid`` and ``tanh`` are what their polynomials take. What does
not depend on the state (a coefficient times a step size) is not counted, nor what a scan multiplies up besides to be
parallel, nor the gradient of the inputs of a network's first layer: nobody needs it.

Facts
-----
shape, dtype : of the states, ``[slices, batch, features...]``
m : steps of a relaxation
f, g, target, u_old, bias, slopes, start, d_every, only_start : whether there is one; absent is no
every : states written per slice on the way, 0 without
norm : 0 sum of squares, 1 sum of magnitudes, 2 their maximum
coefficients : numbers in ``a``, or ``weights`` of a stencil
rhs, stages, terms, substeps : of a Runge-Kutta step: code of the right-hand side, stages, nonzero coefficients
sizes, count, examples, hidden, last : of a network and of its batch
activation : code
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Facts = Mapping[str, Any]

ITEM = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
NUMBERS = 8  # bytes of a norm, a step size, a learning rate or the number of an example

# expm1 by _POLYNOMIAL of the reference: 10 and 5 multiply-adds, and 10 operations besides.
_EXPM1 = {8: 30, 4: 20, 2: 20}
_NORM = {0: 2, 1: 1, 2: 0}  # of a number: squared and added, added, compared

# Codes of _core: components, and operations of one evaluation. See RIGHT_HAND_SIDES of the reference.
RIGHT_HAND_SIDES = {
    0: ("dahlquist", 1, 1),
    1: ("lorenz", 3, 9),
    2: ("brusselator", 2, 7),
    3: ("fitzhugh_nagumo", 2, 10),
    4: ("van_der_pol", 2, 5),
    5: ("arenstorf", 4, 34),
}


class Cost(NamedTuple):
    """Of one launch."""

    bytes: float | None
    flops: float | None


def cost(op: str, facts: Facts) -> Cost:
    """What is known of a launch of ``op``; ``facts["bytes"]`` and ``["flops"]`` count where nothing better is known."""
    known = COSTS.get(op)
    nbytes, flops = None, None
    if known is not None:
        try:
            nbytes, flops = known(_Launch(facts))
        except (KeyError, TypeError, IndexError):
            pass  # a fact is missing
    return Cost(_or_said(nbytes, facts, "bytes"), _or_said(flops, facts, "flops"))


def _or_said(value: float | None, facts: Facts, name: str) -> float | None:
    if value is not None:
        return float(value)
    said = facts.get(name)
    return float(said) if isinstance(said, int | float) and not isinstance(said, bool) else None


class _Launch:
    """The facts of one launch, under short names."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.shape = [int(n) for n in facts["shape"]]
        self.item = ITEM[str(facts["dtype"])]
        self.size = math.prod(self.shape)  # numbers in the states
        self.slices = self.shape[0]
        self.last = self.shape[-1]
        self.rows = self.size // self.last if self.last else 0

    def has(self, name: str) -> bool:
        return bool(self.facts.get(name, False))

    def number(self, name: str) -> int:
        return int(self.facts[name])

    @property
    def sigmoid(self) -> int:
        """And a product, two sums and a quotient."""
        return _EXPM1[self.item] + 4

    @property
    def tanh(self) -> int:
        """The argument doubled, and what makes a quotient of it."""
        return _EXPM1[self.item] + 7

    def activation(self, name: str) -> int:
        return {"identity": 0, "relu": 0, "sigmoid": self.sigmoid, "tanh": self.tanh}[name]


Pair = tuple[float, float | None]


def _update(op: _Launch) -> Pair:
    """``f + (g_new - g_old)``, and of the jump a difference and the norm."""
    jump = op.has("u_old")
    flops = op.size * (2 + jump * (1 + _NORM[int(op.facts.get("norm", 0))]))
    return op.size * op.item * (4 + jump) + jump * op.slices * NUMBERS, flops


def _slice_norms(op: _Launch) -> Pair:
    both = op.has("u_old")
    return op.size * op.item * (1 + both) + op.slices * NUMBERS, op.size * (both + _NORM[op.number("norm")])


def _moved(op: _Launch) -> Pair:
    """Of what is moved, ``shape``; nothing is computed."""
    return 2 * op.size * op.item, 0


def _c_relax(op: _Launch) -> Pair:
    """``omega phi + (1 - omega) u``; at ``omega = 1`` the second state is not looked at."""
    if float(op.facts["omega"]) == 1.0:
        return 2 * op.size * op.item, 0
    return 3 * op.size * op.item, 3 * op.size


def _relaxation(op: _Launch, each: float | None, others: float) -> Pair:
    """``m`` steps of ``each`` operations on all states, the sides and norms; ``others``: numbers read besides."""
    m, target = op.number("m"), op.has("target")
    every = op.number("every") if op.has("every") else 0
    sides = op.has("f") + op.has("g")
    states = 1 + bool(op.facts.get("out", True)) + m * sides + every + target
    nbytes = op.item * (op.size * states + others) + target * op.slices * NUMBERS
    if each is None:
        return nbytes, None
    norm = target * (1 + _NORM[int(op.facts.get("norm", 0))])
    return nbytes, m * (each + sides * op.size) + norm * op.size


def _diagonal(op: _Launch) -> Pair:
    return _relaxation(op, op.size, op.number("coefficients"))


def _tridiagonal(op: _Launch) -> Pair:
    """``solve_tridiagonal`` of the reference: elimination 2 (n - 2), the middle 3, substitution 3 (n - 1)."""
    n = op.last
    return _relaxation(op, op.rows * (5 * n - 4 if n > 1 else n), 3 * n)


def _stencil(op: _Launch) -> Pair:
    weights = op.number("coefficients")
    return _relaxation(op, op.size * (2 * weights - 1), weights)


def _rk(op: _Launch) -> Pair:
    """Per part of a step one evaluation a stage, and a product and a sum for each coefficient that is not zero.

    Unknown for a right-hand side of one's own.
    """
    columns = op.has("dt_array") + op.has("times_array")
    code = op.facts.get("rhs")
    each = None
    if isinstance(code, int) and code in RIGHT_HAND_SIDES:
        _, components, slope = RIGHT_HAND_SIDES[code]
        evaluations = op.number("stages") * (op.size // components) * slope
        each = op.number("substeps") * (evaluations + 2 * op.number("terms") * op.size)
    nbytes, flops = _relaxation(op, each, 0)
    return nbytes + columns * op.slices * op.number("m") * NUMBERS, flops


def _mlp(op: _Launch) -> Pair:
    """Forward, the errors, the gradient ``delta^T state``, the errors of all layers but the first, and the update."""
    sizes, count, bias = [int(n) for n in op.facts["sizes"]], op.number("count"), int(op.has("bias"))
    layers = list(itertools.pairwise(sizes))
    kinds = [str(op.facts["hidden"])] * (len(layers) - 1) + [str(op.facts["last"])]
    each = sizes[-1]
    for n, ((inputs, outputs), kind) in enumerate(zip(layers, kinds, strict=True)):
        derivative = 3 if kind in ("sigmoid", "tanh") else 0
        each += 4 * (inputs + bias) * outputs + 2 * (n > 0) * inputs * outputs
        each += outputs * (op.activation(kind) + derivative)
    per_step = op.rows * (count * each + 2 * op.last)
    nbytes, flops = _relaxation(op, per_step, op.number("examples") * (sizes[0] + sizes[-1]))
    columns = op.has("alpha_array") + op.has("first")
    return nbytes + columns * op.slices * op.number("m") * NUMBERS, flops


def _gates(op: _Launch) -> int:
    """``r, z, s, n`` of one unit, but for the products: :func:`pyparareal.reference_gru.gru_step`."""
    return 2 * op.sigmoid + op.tanh + 4 + op.has("bias")


def _gru(op: _Launch) -> Pair:
    """Three products with a matrix, the gates, and ``n + z (h - n)``."""
    d = op.last
    each = op.size * (6 * d + _gates(op) + 3)
    return _relaxation(op, each, 3 * op.size * op.number("m") + 3 * d * d + op.has("bias") * d)


def _gru_adjoint(op: _Launch) -> Pair:
    """Of the states ``u [slices, m, ...]``: gates once more, and their gradients, 17 operations, and three products."""
    d, only = op.last, op.has("only_start")
    flops = op.size * (12 * d + _gates(op) + 17 + op.has("d_every"))
    ends = op.size // op.shape[1]
    states = (1 + 3) * op.size + (0 if only else (1 + 3) * op.size) + op.has("d_every") * op.size + 2 * ends
    return op.item * (states + 3 * d * d + op.has("bias") * d), flops


def _newton_gru(op: _Launch) -> Pair:
    """Of ``u [steps + 1, ...]``: gates, step 3, Jacobian 19, its factor, the residual, the scan and the new state."""
    size = op.size - op.size // op.shape[0]
    flops = size * (_gates(op) + 28)
    states = op.size + 7 * size + op.has("jacobians") * size + 3 * op.last + op.has("bias") * op.last
    norms = (op.has("residuals") + op.has("updates")) * (op.slices - 1) * NUMBERS
    return op.item * states + norms, flops


def _dense(op: _Launch) -> Pair:
    """``W u + b``, the activation with its derivative where wanted, and ``u + h act``."""
    d, slopes, m = op.last, op.has("slopes"), op.number("m")
    value, slope = {
        0: (op.tanh, 2), 1: (0, 0), 2: (4, 2), 3: (op.sigmoid, 2), 4: (op.sigmoid + 1, 3),
    }[op.number("activation")]  # fmt: skip
    each = op.size * (2 * d + value + 2 + slopes * (slope + 1))
    others = op.slices * m * d * (d + op.has("bias")) + slopes * m * op.size
    return _relaxation(op, each, others)


def _dense_adjoint(op: _Launch) -> Pair:
    """``v + scale W^T (slopes v)``"""
    d, m = op.last, op.number("m")
    return _relaxation(op, op.size * (2 * d + 3), op.slices * m * d * d + m * op.size)


def _scan(op: _Launch, width: int) -> Pair:
    """The recurrence: ``width`` products and as many sums for each number that has one before it."""
    state, start = op.size // op.slices, int(op.has("start"))
    flops = 2 * width * (op.slices - 1 + start) * state
    return op.item * (op.size * (2 + width) + start * state), flops


COSTS: dict[str, Callable[[_Launch], Pair]] = {
    "parareal_update": _update,
    "slice_norms": _slice_norms,
    "extract": _moved,
    "inject": _moved,
    "c_relax": _c_relax,
    "relax_diagonal": _diagonal,
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
    "scan_block": lambda op: _scan(op, op.last),
}
