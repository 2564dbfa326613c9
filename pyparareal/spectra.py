# SPDX-License-Identifier: BSD-3-Clause
"""The matrices of linear propagators, and the eigenvalues they have in one common basis.

These are what :mod:`pyparareal.convergence` predicts with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import arrays
from .checks import propagator
from .time_grid import TimeGrid

Array = Any


@dataclass(frozen=True)
class Spectrum:
    """``Phi_l = V diag(lambda_l) V^-1`` on every level.

    Attributes
    ----------
    eigenvalues : tuple of arrays ``[modes]``, one per level
    vectors : array ``[features, modes]``
        ``V``, columns of length 1.
    condition : float
        ``|V| |V^-1|``; 1 if orthonormal. In the 2-norm of space ``|e_k| <= condition * factor^k |e_0|``.
    """

    eigenvalues: tuple[np.ndarray[Any, Any], ...]
    vectors: np.ndarray[Any, Any]
    condition: float


def spectrum(
    fine: Any,
    grid: TimeGrid,
    m: int | Sequence[int],
    features: int | tuple[int, ...],
    *,
    coarse: Any = None,
    like: Array | None = None,
) -> Spectrum:
    """Eigenvalues of ``fine`` and its coarse propagators in one common basis; arguments as in :func:`level_matrices`.

    Raises
    ------
    ValueError
        If there is no common basis of eigenvectors; :func:`matrix_error_propagator` does without.
    """
    return simultaneous_eigenvalues(level_matrices(fine, grid, m, features, coarse=coarse, like=like))


def level_matrices(
    fine: Any,
    grid: TimeGrid,
    m: int | Sequence[int],
    features: int | tuple[int, ...],
    *,
    coarse: Any = None,
    like: Array | None = None,
) -> list[np.ndarray[Any, Any]]:
    """The matrices ``Phi_l`` of linear (or affine) propagators that are the same in every step.

    Parameters
    ----------
    fine : Propagator or callable
        One step of ``grid``, as for :func:`pyparareal.solve`; its states are ``[slices, batch, features...]``.
    m : int or sequence
        Coarsening factors; an int means two levels.
    features : int or tuple
        Shape of one state.
    coarse : like ``fine``, or a list of them, optional
        One step of each coarser grid; default ``rediscretise``.
    like : array, optional
        The library, dtype and device of the states; default NumPy float64.

    Raises
    ------
    TypeError, ValueError
        If a propagator is not affine to rounding, or its first and last step differ.
    """
    ms = list(m) if isinstance(m, Sequence) else [m]
    given = list(coarse) if isinstance(coarse, (list, tuple)) else [coarse] * (1 if coarse is not None else 0)
    if coarse is not None and len(given) != len(ms):
        raise ValueError(f"coarse: got {len(given)} propagators, expected {len(ms)}: one per coarser level")
    matrices, phi = [_matrix("fine", fine, grid, features, like)], fine
    for level, factor in enumerate(ms):
        grid = grid.coarsen(factor)
        if coarse is None and not hasattr(phi, "rediscretise"):
            raise TypeError("coarse: not given, and fine has no rediscretise(m) to make one")
        phi = given[level] if given else phi.rediscretise(factor)
        matrices.append(_matrix("coarse", phi, grid, features, like))
    return matrices


def simultaneous_eigenvalues(matrices: Sequence[Array]) -> Spectrum:
    """The common eigenvectors of ``matrices [d, d]`` and the eigenvalues of each; orthonormal where that is possible.

    Eigenvectors of a general combination of the matrices are common ones if there are any. Normal matrices are first
    tried through their Hermitian parts, whose eigenvectors are orthonormal also for multiple eigenvalues.
    """
    phis = [np.asarray(phi) for phi in matrices]
    # Rounding of the matrices and of their products, a third of the digits left for gaps between eigenvalues, by which
    # the error of an eigenvector is divided.
    eps = max(float(np.finfo(np.result_type(phi, np.float16)).eps) for phi in phis)
    tolerance = len(phis[0]) * eps ** (2 / 3)
    scaled = [a / (np.linalg.norm(a, 2) or 1.0) for a in (phi.astype(np.result_type(phi, np.float64)) for phi in phis)]
    for vectors in _candidates(scaled, tolerance):
        condition = float(np.linalg.cond(vectors))
        if condition * tolerance > 1:
            continue  # a defective matrix has no basis of eigenvectors
        inverse = np.linalg.inv(vectors)
        diagonal = [inverse @ a @ vectors for a in scaled]
        if all(np.linalg.norm(x - np.diag(np.diag(x)), 2) <= tolerance * condition for x in diagonal):
            return Spectrum(tuple(np.diag(inverse @ phi @ vectors).copy() for phi in phis), vectors, condition)
    raise ValueError(
        "matrices: got propagators without a common basis of eigenvectors, which modes need; matrix_error_propagator "
        "does without"
    )


def _candidates(matrices: Sequence[Array], tolerance: float) -> Iterator[Array]:
    """Eigenvectors of general combinations: of the Hermitian parts, then of the matrices themselves."""
    weights = np.sqrt(np.arange(2.0, 2 + 2 * len(matrices)) ** 3 + 1)  # any without a small integer relation
    parts = [part for a in matrices for part in ((a + a.conj().T) / 2, (a - a.conj().T) / 2j)]
    hermitian: Array = sum(w * h for w, h in zip(weights, parts, strict=True))
    if np.abs(hermitian.imag).max() <= tolerance:  # real symmetric to rounding: real eigenvectors and eigenvalues
        hermitian = hermitian.real
    yield np.linalg.eigh(hermitian)[1]
    general: Array = sum(w * a for w, a in zip(weights, matrices, strict=False))
    yield np.linalg.eig(general)[1]


def _matrix(
    name: str, phi: Any, grid: TimeGrid, features: int | tuple[int, ...], like: Array | None
) -> np.ndarray[Any, Any]:
    """``x -> phi(x) - phi(0)`` as a matrix: ``phi`` applied to 0, the identity and a test state in one batch."""
    phi = propagator(name, phi, grid, False)
    shape = (features,) if isinstance(features, int) else tuple(features)
    d = math.prod(shape)
    test = np.cos(np.arange(1, d + 1))
    states = np.concatenate([np.zeros((1, d)), np.eye(d), test[None]]).reshape(1, d + 2, *shape)
    like = np.empty(0) if like is None else like
    found = []
    for point in (0, grid.steps - 1):
        u = arrays.empty(like, states.shape)
        u[...] = states if isinstance(u, np.ndarray) else arrays.namespace(u).asarray(states, dtype=u.dtype)
        stepped = arrays.to_numpy(phi.step(u, slice(point, point + 1, 1)))
        if stepped.shape != states.shape:
            raise ValueError(f"{name}: returned shape {stepped.shape}, expected {states.shape}")
        y = stepped.reshape(d + 2, d)
        found.append((y[1:-1] - y[0]).T)
        # Half of the digits: inner solvers stop at tolerances of their own.
        atol = math.sqrt(np.finfo(stepped.dtype).eps) * float(np.abs(y).max())
        if not np.allclose(found[-1] @ test, y[-1] - y[0], rtol=0, atol=atol):
            raise ValueError(f"{name}: is not linear, and neither linear plus a constant")
    if not np.allclose(found[0], found[1], rtol=0, atol=atol):
        raise ValueError(f"{name}: its first and last step differ, expected the same matrix in every step")
    return found[0]
