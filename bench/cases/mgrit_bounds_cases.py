# SPDX-License-Identifier: BSD-3-Clause
"""Does MGRIT converge as fast as theory says it must?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bench.cases import Result, case

STEPS, CYCLES = 96, 5
# An error ratio is known to the rounding of the states over that error: states are of size 1, and cycles that leave
# less than this are not looked at, so that 10 units per step of a chain of 96 leave five digits.
SMALLEST = 1e-8
ROUNDING = 10 * STEPS * 2.0**-52 / SMALLEST


@case("mgrit.bounds", suite="quick")
def bounds() -> Result:
    """Largest measured/bound of the errors at the C-points, over all problems, methods, guesses and cycles.

    Two-level bounds for two levels, and the multilevel ones for all, from eigenvalues of the very propagators that run.
    ``checked``: nothing exceeds its bound, the guess that is the worst by theory meets the exact factor, and the lower
    bounds of two levels lie below that factor.
    """
    ratios: dict[str, float] = {}
    worst_guess: list[float] = []
    lower = 0.0
    for name, problem in _problems().items():
        for method in _methods():
            found = _compare(*problem, **method)
            ratios[name] = max(ratios.get(name, 0.0), found["ratio"])
            worst_guess.append(found["worst_guess"])
            lower = max(lower, found["lower"])
    largest = max(ratios.values())
    return Result(
        metrics={
            "largest_ratio": largest,
            "worst_guess_over_exact_min": min(worst_guess),
            "worst_guess_over_exact_max": max(worst_guess),
            "lower_bound_over_exact": lower,
            "runs": float(len(worst_guess)),
            **{f"ratio_{name}": ratio for name, ratio in ratios.items()},
        },
        checked=largest <= 1 and max(abs(np.array(worst_guess) - 1)) <= ROUNDING and lower <= 1 + ROUNDING,
        notes=f"{STEPS} steps; ratios of the errors of neighbouring cycles, {CYCLES} of them and down to {SMALLEST:g} "
        "of the guess, over the smallest upper bound that applies; no times",
    )


def _problems() -> dict[str, tuple[Any, Any]]:
    """Propagator and its grid: diffusion, advection, oscillation, gradient descent."""
    from pyparareal import tableaux
    from pyparareal.implicit import DiagonallyImplicit
    from pyparareal.operators import PeriodicUpwind, Rates, Tridiagonal
    from pyparareal.time_grid import TimeGrid

    grid, n = TimeGrid(0, 1, STEPS), 15
    off = np.full(n - 1, (n + 1.0) ** 2)
    heat, advection = Tridiagonal(off, np.full(n, -2 * (n + 1.0) ** 2), off), PeriodicUpwind(16, 16.0)
    spiral = Rates(np.array([-1 + 8j, -4 + 30j, -0.5 + 60j]))
    return {
        "heat_backward_euler": (DiagonallyImplicit(heat, grid), grid),
        "heat_sdirk_2": (DiagonallyImplicit(heat, grid, tableaux.SDIRK_2), grid),
        "heat_crank_nicolson": (DiagonallyImplicit(heat, grid, tableaux.CRANK_NICOLSON), grid),
        "advection_backward_euler": (DiagonallyImplicit(advection, grid), grid),
        "advection_sdirk_3": (DiagonallyImplicit(advection, grid, tableaux.SDIRK_3), grid),
        "spiral_backward_euler": (DiagonallyImplicit(spiral, grid), grid),
        "gradient_descent": (_Descent(np.geomspace(0.01, 1, 8), 0.1, grid), grid),
    }


class _Descent:
    """``u - alpha mu u`` on a quadratic; a coarser grid has a larger learning rate: Schroder 2017, eq. (14)."""

    batch_invariant = True

    def __init__(self, mu: np.ndarray, alpha: float, grid: Any) -> None:
        self.mu, self.alpha, self.grid, self.features = mu, alpha, grid, mu.shape

    def step(self, u: np.ndarray, points: slice) -> np.ndarray:
        return u - self.alpha * self.mu * u

    def rediscretise(self, m: int) -> _Descent:
        return _Descent(self.mu, m * self.alpha, self.grid.coarsen(m))


def _methods() -> list[dict[str, Any]]:
    factors = ([2, 2], [4, 2], [2, 2, 2])
    two = [{"m": [m], "nu": nu, "cycle": "V"} for m in (2, 4, 8) for nu in (0, 1, 2)]
    return two + [{"m": m, "nu": nu, "cycle": cycle} for m in factors for nu in (0, 1) for cycle in "VFW"]


def _compare(fine: Any, grid: Any, m: list[int], nu: int, cycle: str) -> dict[str, float]:
    from pyparareal.convergence import multilevel_bound, spectrum, two_level_bound

    shape = getattr(fine, "features", None) or fine.operator.shape
    modes = spectrum(fine, grid, m, shape)
    lams = modes.eigenvalues
    upper = [
        float(multilevel_bound(lams, m, STEPS, nu, cycle=cycle, kind=k).max())
        for k in ("sqrt_1_inf", "submultiplicative")
    ]
    exact = multilevel_bound(lams, m, STEPS, nu, cycle=cycle, kind="exact")
    lower = 0.0
    if len(m) == 1:
        kinds = ("sqrt_1_inf", "asymptotic", "tight_upper", "quadratic_upper")
        upper += [float(two_level_bound(*lams, m[0], STEPS, nu, k).max()) for k in kinds]
        for kind in ("tight_lower", "quadratic_lower"):
            lower = max(lower, float((two_level_bound(*lams, m[0], STEPS, nu, kind) / exact).max()))
    # The eigenvectors of all problems here are orthonormal: the 2-norm in space is that of the theory.
    assert abs(modes.condition - 1) < 1e-8
    worst = _worst_guess(modes, m, nu, cycle, int(np.argmax(exact)))
    rng = np.random.default_rng(0)
    guesses = np.concatenate([rng.normal(size=worst[:, :1].shape), worst], axis=1)
    guesses = guesses.reshape(len(worst), -1, *shape)
    norms = _errors(fine, grid, guesses, m, nu, cycle)
    kept = norms[1:] > SMALLEST * norms[0]
    measured = float(np.divide(norms[1:], norms[:-1], out=np.zeros_like(norms[1:]), where=kept).max())
    # A complex guess is two real ones; their factor is that of both together.
    together = np.sqrt((norms[:2, 1:] ** 2).sum(1))
    met = float(together[1] / together[0] / exact.max())
    return {"ratio": measured / min(upper), "worst_guess": met, "lower": lower}


def _worst_guess(modes: Any, m: list[int], nu: int, cycle: str, mode: int) -> np.ndarray:
    """Right singular vector of ``E`` times eigenvector: real and imaginary part ``[C-points, 2, features]``."""
    from pyparareal.error_propagation import error_propagator

    matrix = error_propagator([lam[mode] for lam in modes.eigenvalues], m, STEPS, nu, cycle=cycle)
    guess = np.linalg.svd(matrix)[2][0].conj()[:, None] * modes.vectors[:, mode]
    return np.stack([guess.real, guess.imag], 1)


def _errors(fine: Any, grid: Any, guesses: np.ndarray, m: list[int], nu: int, cycle: str) -> np.ndarray:
    """Norms ``[cycles + 1, batch]`` of the states at the C-points, which are the errors: the solution is 0."""
    from pyparareal.mgrit import MGRIT
    from pyparareal.solver import solve

    initial = np.concatenate([np.zeros_like(guesses[:1]), guesses])
    axes = (0, *range(2, initial.ndim))
    norms = [np.sqrt((initial**2).sum(axes))]
    solve(
        fine,
        initial[0],
        grid,
        m=m,
        tol=0.0,
        method=MGRIT(levels=len(m) + 1, nu=nu, cycle=cycle, divergence=math.inf, measure="descent"),
        norm="l2",
        initial=initial,
        max_iterations=CYCLES,
        on_failure="return",
        callback=lambda k, u, residual: norms.append(np.sqrt((u**2).sum(axes))),
    )
    return np.array(norms)
