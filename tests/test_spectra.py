# SPDX-License-Identifier: BSD-3-Clause
"""Matrices and common eigenvalues of propagators."""

import numpy as np
import pytest

from pyparareal import problems
from pyparareal.convergence import multilevel_bound
from pyparareal.error_propagation import matrix_error_propagator
from pyparareal.implicit import ImplicitEuler
from pyparareal.propagators import Map, RungeKutta
from pyparareal.spectra import level_matrices, simultaneous_eigenvalues, spectrum
from pyparareal.tableaux import EULER
from pyparareal.time_grid import TimeGrid

EPS = np.finfo(float).eps
GRID = TimeGrid(0, 1, 32)


def heat(points=15):
    case = problems.heat_1d(points=points, slices=8, m=4, t1=0.1)
    eta = -4 * (points + 1) ** 2 * np.sin(np.arange(1, points + 1) * np.pi / (2 * points + 2)) ** 2
    return case["fine"], case["grid"], eta


def upwind(points, grid):
    """Periodic advection, ``u' = (u[i-1] - u[i]) / dx``, explicit Euler."""
    return RungeKutta(lambda t, u: points * (np.roll(u, 1, -1) - u), grid, EULER)


def test_eigenvalues_of_the_heat_equation():
    fine, grid, eta = heat()
    found = spectrum(fine, grid, [4, 2], 15)
    dt = grid.dt()
    assert found.condition == pytest.approx(1, abs=1e-12)
    for level, lam in enumerate(found.eigenvalues):
        assert lam.dtype == np.float64
        order = np.argsort(found.eigenvalues[0])
        expected = np.sort(1 / (1 - dt * [1, 4, 8][level] * eta))
        np.testing.assert_allclose(lam[order], expected, rtol=1e-11)  # the order of modes is that of the finest level
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(15), atol=1e-12)


def test_eigenvalues_of_periodic_advection():
    # A circulant matrix: eigenvalues 1 - c (1 - exp(-i k)), and orthonormal eigenvectors though it is not symmetric.
    n, grid = 12, TimeGrid(0, 1, 48)
    found = spectrum(upwind(n, grid), grid, 2, n)
    wave = 1 - np.exp(-2j * np.pi * np.arange(n) / n)
    for lam, c in zip(found.eigenvalues, (12 / 48, 24 / 48), strict=True):
        distance = np.abs(lam[:, None] - (1 - c * wave)[None])
        assert distance.min(0).max() < 1e-13
        assert distance.min(1).max() < 1e-13
    assert found.condition == pytest.approx(1, abs=1e-12)


def test_common_eigenvectors_that_are_not_orthogonal():
    rng = np.random.default_rng(1)
    v = rng.normal(size=(4, 4))
    lams = [np.array([0.9, 0.5, 0.5, -0.1]), np.array([0.7, 0.3, 0.1, 0.1])]  # multiple in one or the other
    found = simultaneous_eigenvalues([v @ np.diag(lam) @ np.linalg.inv(v) for lam in lams])
    pairs = np.stack(found.eigenvalues, 1)
    for pair in np.stack(lams, 1):
        assert np.abs(pairs - pair).max(1).min() < 1e-12
    assert found.condition > 1.5
    np.testing.assert_allclose(
        found.vectors @ np.diag(found.eigenvalues[1]) @ np.linalg.inv(found.vectors),
        v @ np.diag(lams[1]) @ np.linalg.inv(v),
        atol=1e-12,
    )


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "normal"])
def test_multiple_eigenvalues_of_normal_matrices_have_orthonormal_eigenvectors(symmetric):
    rng = np.random.default_rng(2)
    q = np.linalg.qr(rng.normal(size=(6, 6)) + (0 if symmetric else 1j) * rng.normal(size=(6, 6)))[0]
    turn = 1 if symmetric else np.exp(0.3j * np.array([1, 1, 1, 2, 2, 2]))
    lams = [np.array([0.9, 0.9, 0.9, 0.4, 0.4, 0.1]) * turn, np.array([0.5, 0.5, 0.5, 0.5, 0.5, 0.2]) * turn]
    found = simultaneous_eigenvalues([(q * lam) @ q.conj().T for lam in lams])
    assert found.condition == pytest.approx(1, abs=1e-13)
    assert all(np.isrealobj(lam) == symmetric for lam in found.eigenvalues)
    pairs = np.stack(found.eigenvalues, 1)
    for pair in np.stack(lams, 1):
        assert np.abs(pairs - pair).max(1).min() < 1e-13


def test_the_matrix_route_agrees_with_modes():
    fine, grid, _ = heat(7)
    modes = multilevel_bound(spectrum(fine, grid, [4, 2], 7).eigenvalues, [4, 2], grid.steps, 1, kind="exact").max()
    whole = matrix_error_propagator(level_matrices(fine, grid, [4, 2], 7), [4, 2], grid.steps, 1)
    assert np.linalg.norm(whole, 2) == pytest.approx(modes, rel=1e-10)


@pytest.mark.parametrize(
    "pair",
    [
        ([[0.5, 0.2], [0.0, 0.1]], [[0.5, 0.0], [0.2, 0.1]]),  # do not commute
        ([[0.5, 1.0], [0.0, 0.5]], [[0.2, 1.0], [0.0, 0.2]]),  # commute, but a Jordan block has one eigenvector
    ],
    ids=["commutator", "jordan"],
)
def test_no_common_basis_is_an_error(pair):
    matrices = [np.array(a) for a in pair]
    with pytest.raises(ValueError, match=r"without a common basis of eigenvectors.*matrix_error_propagator"):
        simultaneous_eigenvalues(matrices)
    phis = [Map(lambda u, a=a: u @ a.T) for a in matrices]
    with pytest.raises(ValueError, match="common basis"):
        spectrum(phis[0], GRID, 2, 2, coarse=phis[1])
    assert np.isfinite(matrix_error_propagator(matrices, 2, 8)).all()


def test_affine_steps_are_linear_steps():
    a = np.array([[0.5, 0.2, 0.0], [0.1, 0.3, 0.0], [0.0, 0.0, 0.7]])
    phi = Map(lambda u: u @ a.T + np.array([1.0, 2.0, -1.0]))
    matrices = level_matrices(phi, GRID, 4, 3, coarse=phi)
    np.testing.assert_allclose(matrices, [a, a], rtol=0, atol=8 * EPS)


def test_states_of_several_axes():
    weights = np.arange(1, 7).reshape(2, 3) / 10
    matrices = level_matrices(lambda u: weights * u, GRID, 4, (2, 3), coarse=[lambda u: weights**4 * u])
    np.testing.assert_allclose(matrices[0], np.diag(weights.ravel()), atol=4 * EPS)


def test_torch_propagators():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float64, torch.float32):
        a = torch.diag(torch.tensor([0.5, 0.25], dtype=dtype))
        like = torch.empty(0, dtype=dtype)
        found = spectrum(lambda u, a=a: u @ a, GRID, 2, 2, coarse=lambda u, a=a: u @ a @ a, like=like)
        order = np.argsort(found.eigenvalues[0])
        np.testing.assert_allclose(found.eigenvalues[1][order], [0.0625, 0.25], rtol=1e-6)
    module = torch.nn.Linear(3, 3).double().requires_grad_(False)
    matrices = level_matrices(module, GRID, 2, 3, coarse=module, like=torch.empty(0, dtype=torch.float64))
    np.testing.assert_allclose(matrices[0], module.weight.numpy(), atol=8 * EPS)


def test_single_precision_propagators_have_their_own_tolerance():
    # Eigenvectors of float32 matrices are common to single precision only.
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    lams = np.linspace(0.1, 0.9, 5), np.linspace(0.1, 0.9, 5) ** 2
    found = simultaneous_eigenvalues([((q * lam) @ q.T).astype(np.float32) for lam in lams])
    np.testing.assert_allclose(np.sort(found.eigenvalues[1]), lams[1], rtol=1e-5)


def late(u, points):
    return 0.5 * u if points.start == 0 else 0.4 * u


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: spectrum(lambda u: u * u, GRID, 2, 3, coarse=lambda u: u), ValueError, "fine: is not linear"),
        (lambda: spectrum(lambda u: u, GRID, 2, 3, coarse=np.sin), ValueError, "coarse: is not linear"),
        (
            lambda: spectrum(Map(late, pass_points=True), GRID, 2, 3, coarse=late),
            ValueError,
            "fine: its first and last",
        ),
        (lambda: spectrum(lambda u: u, GRID, 2, 3), TypeError, "coarse: not given, and fine has no rediscretise"),
        (lambda: spectrum(lambda u: u, GRID, [2, 2], 3, coarse=lambda u: u), ValueError, "coarse: got 1 propagators"),
        (lambda: spectrum(lambda u: u[..., :2], GRID, 2, 3, coarse=lambda u: u), ValueError, "fine: returned shape"),
        (lambda: spectrum(3.0, GRID, 2, 3, coarse=lambda u: u), TypeError, "fine: got float"),
        (lambda: spectrum(heat()[0], GRID, 2, 15), ValueError, "fine: lives on"),
        (lambda: spectrum(lambda u: u, GRID, 33, 3, coarse=lambda u: u), ValueError, "m: got 33"),
    ],
)
def test_wrong_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_steps_of_different_sizes_are_not_one_matrix():
    grid = TimeGrid.from_times(np.linspace(0, 1, 9) ** 2)
    off = np.ones(2)
    fine = ImplicitEuler(off, np.full(3, -2.0), off, grid)
    with pytest.raises(ValueError, match="first and last step differ"):
        spectrum(fine, grid, 2, 3)
