# SPDX-License-Identifier: BSD-3-Clause
"""How fast a chain amplifies errors: logarithms of the norms of Jacobians, of single slices and of the whole chain.

A Jacobian is like the states ``[slices, ...]`` (diagonal) or ``[slices, groups, d, d]``, as in :mod:`.linearise`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import arrays

Array = Any

# The estimate is at least |J| c^(1/17), where c is the cosine between the start and the direction that grows most.
POWER_STEPS = 8


@dataclass(frozen=True)
class Growth:
    """What Jacobians say of a chain.

    Attributes
    ----------
    exponent : float
        The largest ``log |J| / m`` of a slice, in the 2-norm, of those with a finite J.
    slice : int
        Which.
    chain : float, optional
        ``log |J_{S-1} ... J_0| / (S m)``: the growth per step over the whole chain, or as far as all J are finite.
    """

    exponent: float
    slice: int
    chain: float | None = None


def growth_of(jacobians: Array, m: int, *, diagonal: bool) -> Growth | None:
    """The :class:`Growth` of a chain of slices of ``m`` steps; None if not even one Jacobian is finite."""
    if not math.prod(jacobians.shape):
        return None
    logs = slice_logs(jacobians, diagonal=diagonal)
    finite = leading_finite(logs)
    part = product_of(jacobians[:finite], diagonal=diagonal) if finite else None
    return growth_from(logs, m, None if part is None else log_of([part], diagonal=diagonal))


def growth_from(logs: Any, m: int, chain: float | None = None) -> Growth | None:
    """The same from the logarithms of the norms, float64 ``[slices]``, and of that of the product of the finite ones.

    ``logs`` that are NaN or infinite are of Jacobians that are not finite.
    """
    known = ~np.isnan(logs) & (logs < math.inf)
    if not known.any():
        return None
    worst = int(np.argmax(np.where(known, logs, -math.inf)))
    return Growth(float(logs[worst]) / m, worst, None if chain is None else chain / (leading_finite(logs) * m))


def slice_logs(jacobians: Array, *, diagonal: bool) -> np.ndarray[Any, Any]:
    """The largest ``log |J|`` of the batch, float64 ``[slices]`` on the host."""
    with np.errstate(all="ignore"):
        logs = arrays.to_numpy(log_norms(jacobians, diagonal=diagonal))
    return logs.reshape(len(jacobians), -1).max(axis=1) if math.prod(logs.shape) else np.zeros(len(jacobians))


def leading_finite(logs: Any) -> int:
    """How many Jacobians are finite before the first that is not."""
    known = ~np.isnan(logs) & (logs < math.inf)
    return len(known) if known.all() else int(np.argmin(known))


def product_of(jacobians: Array, *, diagonal: bool) -> tuple[Array, ...]:
    """The product of some neighbouring Jacobians, at least one, for :func:`log_of`: arrays of one row."""
    with np.errstate(all="ignore"):
        return (_of_diagonals(jacobians),) if diagonal else _of_blocks(jacobians, 0.0 * _log(_largest(jacobians)))


def log_of(parts: Sequence[tuple[Array, ...]], *, diagonal: bool) -> float:
    """``log |J_{S-1} ... J_0|``, the largest of all groups or features, of the products of parts of the chain."""
    joined = [arrays.namespace(same[0]).concatenate(same) for same in zip(*parts, strict=True)]
    with np.errstate(all="ignore"):
        if diagonal:
            return float(arrays.to_numpy(joined[0].sum(0)).max())
        product, logs = _of_blocks(*joined)
        return float(arrays.to_numpy(logs + log_norms(product, diagonal=False)).max())


def log_norms(jacobians: Array, *, diagonal: bool) -> Array:
    """``log |J|`` in the 2-norm, float64 ``[slices, batch]``; blocks: ``[slices, groups]``, from below by iteration."""
    xp = arrays.namespace(jacobians)
    if diagonal:
        lead = jacobians.shape[:2] if jacobians.ndim > 2 else (len(jacobians), 1)
        return xp.log(arrays.float64_copy(xp.amax(xp.abs(jacobians.reshape(*lead, -1)), -1)))
    size = _largest(jacobians)
    scaled = jacobians / size
    transposed = scaled.swapaxes(-1, -2)
    v = _start(scaled)
    for _ in range(POWER_STEPS):
        v = transposed @ (scaled @ v)
        v = v / _positive(xp.sqrt((v * v).sum(-2)[..., None]))
    w = scaled @ v
    return xp.log(arrays.float64_copy(xp.sqrt((w * w).sum(-2))[..., 0])) + _log(size)


def bounded(jacobians: Array, *, diagonal: bool) -> Array:
    """``J min(1, 1 / |J|)``, each slice and state of the batch by itself."""
    if not math.prod(jacobians.shape):
        return jacobians
    xp = arrays.namespace(jacobians)
    logs = log_norms(jacobians, diagonal=diagonal)
    scale = arrays.empty(jacobians, (*logs.shape, *[1] * (jacobians.ndim - logs.ndim)))
    scale[...] = xp.exp(-xp.maximum(logs, xp.zeros_like(logs))).reshape(scale.shape)
    return jacobians * scale


def _of_diagonals(jacobians: Array) -> Array:
    """The logarithm of the product for each feature, float64 ``[1, features]``."""
    xp = arrays.namespace(jacobians)
    rows = jacobians.reshape(len(jacobians), -1)
    return xp.log(xp.abs(arrays.float64_copy(rows))).sum(0)[None]


def _of_blocks(product: Array, logs: Array) -> tuple[Array, Array]:
    """The product ``[1, groups, d, d]`` and the logarithm of its scale ``[1, groups]``.

    By a tree of products, each scaled against over- and underflow.
    """
    xp = arrays.namespace(product)
    while len(product) > 1:
        size = _largest(product)
        product, logs = product / size, logs + _log(size)
        pairs = len(product) // 2 * 2
        product = xp.concatenate([product[1:pairs:2] @ product[0:pairs:2], product[pairs:]])
        logs = xp.concatenate([logs[1:pairs:2] + logs[0:pairs:2], logs[pairs:]])
    return product, logs


def _largest(jacobians: Array) -> Array:
    """The largest number of each, 1 where all are zero: ``[slices, groups, 1, 1]``."""
    xp = arrays.namespace(jacobians)
    return _positive(xp.amax(xp.abs(jacobians).reshape(*jacobians.shape[:2], -1), -1)[..., None, None])


def _positive(sizes: Array) -> Array:
    return sizes + (sizes == 0)


def _log(size: Array) -> Array:
    """Of what :func:`_largest` returns: float64 ``[slices, groups]``."""
    return arrays.namespace(size).log(arrays.float64_copy(size[..., 0, 0]))


def _start(jacobians: Array) -> Array:
    """A vector like no eigenvector: the fractions of the multiples of the golden ratio, ``[d, 1]``."""
    d = jacobians.shape[-1]
    values = 0.5 + np.arange(1, d + 1) * 0.6180339887498949 % 1
    v = arrays.empty(jacobians, (d, 1))
    v[...] = arrays.float64_like(values[:, None], jacobians)
    return v
