# SPDX-License-Identifier: BSD-3-Clause
"""The problems of the stored MGRIT histories as batched NumPy propagators, for tests and the golden bench case only.

:func:`build` turns the ``problem`` of a row of ``tests/golden/mgrit.json`` into what :func:`pyparareal.solve` takes.
Discretisations follow the programs the histories come from: XBraid's examples ex-01, ex-02, ex-06, ex-07 and
PyMGRIT's applications. Linear implicit steps are solved with one LAPACK or SuperLU factorisation per step size.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from golden_schemes import AdaptiveRK45, Scheme
from scipy import sparse
from scipy.linalg.lapack import dpttrf, dpttrs
from scipy.sparse.linalg import splu

from pyparareal.propagators import RungeKutta
from pyparareal.tableaux import EULER, RK4
from pyparareal.time_grid import TimeGrid


@dataclasses.dataclass
class Setup:
    """Arguments of a solve: ``phis[l]`` lives on level ``l``; ``transfer[l]`` is (restrict, prolong) or ``None``."""

    phis: list[Any]
    factors: list[int]
    u0: np.ndarray
    initial: np.ndarray | None = None
    starts: list[np.ndarray] | None = None  # initial values of all levels, where they are not restrictions of u0
    transfer: list[tuple[Any, Any]] | None = None
    tol: float | None = None
    exact: Any = None  # exact(t) at the points of the state, for rows with a discretisation error
    h: float = 1.0


class Dahlquist(Scheme):
    """``u' = -u``: backward Euler (BE), implicit midpoint (MR), trapezoidal rule (TR), forward Euler (FE)."""

    def __init__(self, grid, method="BE"):
        super().__init__(grid)
        self.method = method

    def step(self, u, points):
        _, h = self.times(points, u)
        return {
            "BE": lambda: u / (1 + h),
            "MR": lambda: (1 - h / 2) / (1 + h / 2) * u,
            "TR": lambda: (1 - h / 2) / (1 + h / 2) * u,
            "FE": lambda: (1 - h) * u,
        }[self.method]()


class Sdirk(Scheme):
    """``u' = -4 u - t + 1`` with backward Euler (1) or SDIRK of two stages and order 3 (2)."""

    def __init__(self, grid, scheme):
        super().__init__(grid)
        self.scheme = scheme

    def step(self, x, points):
        t, h = self.times(points, x)

        def slope(x, t, h):
            return (1 - t - 4 * x) / (1 + 4 * h)

        if self.scheme == 1:
            return x + h * slope(x, t + h, h)
        g = (2 - math.sqrt(2)) / 2
        k = slope(x, t + g * h, g * h)
        y = x + (1 - 2 * g) * h * k
        return x + k * h / 2 + slope(y, t + (1 - g) * h, g * h) * (h / 2)


class Tridiagonal:
    """``(I + h D) x = b`` for ``D = scale * tridiag(-1, 2, -1)``, all rows of ``b [slices, n]`` at once."""

    def __init__(self):
        self.factors = {}

    def solve(self, b, c):
        """``c = h * scale``."""
        n = b.shape[1]
        if n == 1:
            return b / (1 + 2 * c)
        if (n, c) not in self.factors:
            self.factors[n, c] = dpttrf(np.full(n, 1 + 2 * c), np.full(n - 1, -c))[:2]
        return dpttrs(*self.factors[n, c], np.asfortranarray(b.T))[0].T


class Heat02(Scheme):
    """``u_t = u_xx + f`` on ``[0, pi]`` with both boundary points in the state; backward Euler.

    Boundary values come from the exact solution ``sin(x) cos(t)``, then ``h f`` is added everywhere, then the
    tridiagonal system with identity rows at the ends is solved. The number of points is that of the state.
    """

    def __init__(self, grid):
        super().__init__(grid)
        self.system = Tridiagonal()

    def forcing(self, t, n):
        x = np.linspace(0, np.pi, n)
        return np.sin(x) * (np.cos(t) - np.sin(t))

    def coefficient(self, n):
        assert self.grid.uniform
        return self.grid.dt() / (np.pi / (n - 1)) ** 2

    def step(self, u, points):
        t, h = self.times(points, u)
        n, t = u.shape[1], t + h
        b = u.copy()
        b[:, :1], b[:, -1:] = 0.0, np.sin(np.pi) * np.cos(t)
        b = b + h * self.forcing(t, n)
        c = self.coefficient(n)
        inner = b[:, 1:-1].copy()
        inner[:, 0] += c * b[:, 0]
        inner[:, -1] += c * b[:, -1]
        b[:, 1:-1] = self.system.solve(inner, c)
        return b


class Heat02Residual(Heat02):
    """The same scheme with the residual of the implicit system, ``A(v, u) = (I + h D) v - u - h f``."""

    def residual(self, v, u, points):
        t, h = self.times(points, u)
        c = self.coefficient(u.shape[1])
        a = v.copy()
        a[:, 1:-1] += c * (2 * v[:, 1:-1] - v[:, :-2] - v[:, 2:])
        return a - u - h * self.forcing(t + h, u.shape[1])

    def step_with(self, u, points, rhs):
        return self.step(u + rhs, points)


class Heat1D(Scheme):
    """``u_t = u_xx - sin(pi x) (sin t - pi^2 cos t)``, inner points of ``[0, x1]``, backward Euler."""

    def __init__(self, grid, x1):
        super().__init__(grid)
        self.x1, self.system = x1, Tridiagonal()

    def step(self, u, points):
        t, h = self.times(points, u)
        x = np.linspace(0, self.x1, u.shape[1] + 2)
        b = u - h * np.sin(np.pi * x[1:-1]) * (np.sin(t + h) - np.pi**2 * np.cos(t + h))
        return self.system.solve(b, self.grid.dt() / (x[1] - x[0]) ** 2)


class Sparse(Scheme):
    """``(I + h L) u_next = u + h b(t + h)``, one sparse LU per step size."""

    def __init__(self, grid, matrix, source=None):
        super().__init__(grid)
        self.matrix, self.source, self.factors = matrix, source, {}

    def step(self, u, points):
        t, h = self.times(points, u)
        size = self.grid.dt()
        if size not in self.factors:
            self.factors[size] = splu(sparse.csc_matrix(sparse.identity(self.matrix.shape[0]) + size * self.matrix))
        b = u if self.source is None else u + h * self.source(t + h)
        return self.factors[size].solve(b.reshape(len(b), -1).T).T.reshape(u.shape)


class AllenCahn(Scheme):
    """``u_t = Laplace u + u (1 - u^2) / eps^2`` on a periodic unit square, diffusion implicit, reaction explicit."""

    def __init__(self, grid, n, eps):
        super().__init__(grid)
        self.eps = eps
        k = 2 * (1 - np.cos(2 * np.pi * np.arange(n) / n)) * n**2
        self.symbol = k[:, None] + k[None, : n // 2 + 1]

    def step(self, u, points):
        _, h = self.times(points, u)
        b = u + h * (u * (1 - u * u) / self.eps**2)
        return np.fft.irfft2(np.fft.rfft2(b) / (1 + h * self.symbol), s=u.shape[1:])


def lorenz(t, u):
    x, y, z = np.moveaxis(u, -1, 0)
    return np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], -1)


def brusselator(t, u):
    x, y = np.moveaxis(u, -1, 0)
    return np.stack([1 + x**2 * y - 4 * x, 3 * x - x**2 * y], -1)


def arenstorf(u, a=0.012277471):
    b = 1 - a
    x, y, vx, vy = np.moveaxis(u, -1, 0)
    d1, d2 = ((x + a) ** 2 + y**2) ** 1.5, ((x - b) ** 2 + y**2) ** 1.5
    return np.stack(
        [vx, vy, x + 2 * vy - b * (x + a) / d1 - a * (x - b) / d2, y - 2 * vx - b * y / d1 - a * y / d2], -1
    )


def random_guess(points, m, features, ranks):
    """The guess of XBraid's ex-02 at C-points ``0, m, ...``: one stream per rank, ranks own blocks of time points."""
    guess, first = np.zeros(((points - 1) // m + 1, features)), 0
    for rank in range(ranks):
        last, state = first + points // ranks + (rank < points % ranks), 1
        for i in range(first, last):
            if i % m or i == 0:
                continue
            for j in range(features):
                state = (state * 1103515245 + 12345) % 2**64
                guess[i // m, j] = (state // 65536) % 2**32 % 32768 / 32768
        first = last
    return guess


def full_weighting(u):
    c = u[..., ::2].copy()
    c[..., 1:-1] = 0.5 * u[..., 2:-2:2] + 0.25 * u[..., 3:-1:2] + 0.25 * u[..., 1:-3:2]
    return c


def linear(u):
    f = np.zeros((*u.shape[:-1], 2 * u.shape[-1] - 1))
    f[..., ::2] = u
    f[..., 1::2] = 0.5 * u[..., :-1] + 0.5 * u[..., 1:]
    return f


def inner_full_weighting(u):
    return u[..., :-2:2] / 4 + u[..., 1:-1:2] / 2 + u[..., 2::2] / 4


def inner_linear(u):
    f = np.zeros((*u.shape[:-1], 2 * u.shape[-1] + 1))
    f[..., 1::2] = u
    f[..., :-2:2] += u / 2
    f[..., 2::2] += u / 2
    return f


def copy(u):
    return u.copy()


def levels_of(steps, m, max_levels, min_coarse):
    """Coarsening factors of all levels but the coarsest, by the rule of XBraid."""
    factors = []
    while len(factors) + 1 < max_levels and steps // m >= max(min_coarse, 1):
        factors.append(m)
        steps //= m
    return factors


def hierarchy(fine, factors):
    phis = [fine]
    for m in factors:
        phis.append(phis[-1].rediscretise(m))
    return phis


def build(problem, factors):
    """The :class:`Setup` of a row: ``problem`` names one of the functions below, the rest are its arguments."""
    arguments = {k: v for k, v in problem.items() if k != "kind"}
    return PROBLEMS[problem["kind"]](factors=factors, **arguments)


def decay(steps, factors, guess=0.456):
    fine = Dahlquist(TimeGrid(0.0, steps / 2, steps))
    initial = np.full((steps // factors[0] + 1, 1), guess) if factors else None
    return Setup(hierarchy(fine, factors), factors, np.ones(1), initial)


def ode06(steps, factors, scheme):
    fine = Sdirk(TimeGrid(0.0, 0.5, steps), scheme)
    return Setup(hierarchy(fine, factors), factors, np.ones(1), np.full((steps // factors[0] + 1, 1), 0.456))


def ex07(steps, factors, lyapunov_times):
    grid = TimeGrid(0.0, math.log(10) / 0.9 * lyapunov_times, steps)
    u0 = np.array([9.614521163788712, 17.519127090401067, 13.94230712158098])
    fine = RungeKutta(lorenz, grid, EULER)
    return Setup(hierarchy(fine, factors), factors, u0, np.tile(u0, (steps // factors[0] + 1, 1)))


def ex02(steps, factors, space, ranks=1, coarsen=False, residual=False, sequential=False):
    grid, x = TimeGrid(0.0, 2 * np.pi, steps), np.linspace(0, np.pi, space)
    fine = (Heat02Residual if residual else Heat02)(grid)
    m, h = factors[0], np.pi / (space - 1)
    u0, transfer = np.sin(x), None
    if sequential:
        u = [u0]
        for i in range(steps // m * m):
            u.append(fine.step(u[-1][None], slice(i, i + 1, 1))[0])
        initial = np.array(u[::m])
    else:
        initial = random_guess(steps + 1, m, space, ranks)
    if coarsen:
        depth = int(math.log2(space)) - 1
        transfer = [(full_weighting, linear) if at < depth else (copy, copy) for at in range(len(factors))]
    tol = 1e-7 / (math.sqrt(2 * np.pi / (steps - 1)) * math.sqrt(h))

    def exact(t):
        return np.sin(x) * np.cos(t)

    return Setup(hierarchy(fine, factors), factors, u0, initial, transfer=transfer, tol=tol, exact=exact, h=h)


def dahlquist(points, factors, methods=("BE",), t1=5.0):
    fine = Dahlquist(TimeGrid(0.0, t1, points - 1), methods[0])
    phis = hierarchy(fine, factors)
    for at, phi in enumerate(phis):
        phi.method = methods[min(at, len(methods) - 1)]
    return Setup(phis, factors, np.ones(1))


def heat1d(points, factors, nx, x1=1.0, t1=2.0, coarsen=0):
    """``coarsen``: how many levels halve the space of the next; every level samples the initial value itself."""
    fine, x = Heat1D(TimeGrid(0.0, t1, points - 1), x1), np.linspace(0, x1, nx)
    setup = Setup(hierarchy(fine, factors), factors, np.sin(np.pi * x[1:-1]))
    if coarsen:
        depth = [min(at, coarsen) for at in range(len(factors) + 1)]
        setup.starts = [np.sin(np.pi * x[:: 2**d][1:-1]) for d in depth]
        setup.transfer = [(inner_full_weighting, inner_linear) if d < coarsen else (copy, copy) for d in depth[:-1]]
    return setup


def heat2d(points, factors):
    lx, ly, nx, ny, a = 0.75, 1.5, 55, 125, 3.5
    x, y = np.linspace(0, lx, nx)[1:-1, None], np.linspace(0, ly, ny)[None, 1:-1]

    def second(n, h):
        return sparse.diags([-1.0, 2.0, -1.0], [-1, 0, 1], shape=(n, n)) / h**2

    matrix = a * sparse.kronsum(second(ny - 2, ly / (ny - 1)), second(nx - 2, lx / (nx - 1)))

    def source(t):
        return 5 * x * (lx - x) * y * (ly - y) + 10 * a * t * (y * (ly - y) + x * (lx - x))

    fine = Sparse(TimeGrid(0.0, 1.0, points - 1), matrix, source)
    return Setup(hierarchy(fine, factors), factors, np.zeros((nx - 2, ny - 2)))


def brusselator_orbit(points, factors):
    fine = RungeKutta(brusselator, TimeGrid(0.0, 12.0, points - 1), RK4)
    return Setup(hierarchy(fine, factors), factors, np.array([0.0, 1.0]))


def advection(points, factors):
    x = np.linspace(-1, 1, 129)[:-1]
    eye = sparse.identity(128, format="csr")
    matrix = (eye - eye[np.roll(np.arange(128), 1)]) / (x[1] - x[0])
    fine = Sparse(TimeGrid(0.0, 2.0, points - 1), matrix)
    return Setup(hierarchy(fine, factors), factors, np.exp(-(x**2)))


def periodic_diffusion(steps, factors, speed, half_waves, n=16):
    """``u_t + speed u_x = u_xx`` on a ring of ``n`` points a distance of ``1 / (n - 1)`` apart, upwind."""
    x, h, eye = np.linspace(0, 1, n), 1 / (n - 1), sparse.identity(n, format="csr")
    left, right = eye[np.roll(np.arange(n), 1)], eye[np.roll(np.arange(n), -1)]
    matrix = (speed / h) * (eye - left) + (2 * eye - left - right) / h**2
    fine = Sparse(TimeGrid(0.0, 1.0, steps), matrix)
    initial = np.full((steps // factors[0] + 1, n), 6.123451)
    tol = 1e-6 / (math.sqrt(1 / (steps - 1)) * math.sqrt(h))
    return Setup(hierarchy(fine, factors), factors, np.sin(half_waves * np.pi * x), initial, tol=tol)


def arenstorf_orbit(points, factors):
    # The source takes step sizes as differences of the times; the orbit amplifies their rounding by 1e6.
    fine = AdaptiveRK45(TimeGrid.from_times(np.linspace(0.0, 17.06521656015796, points)), arenstorf)
    return Setup(hierarchy(fine, factors), factors, np.array([0.994, 0.0, 0.0, -2.00158510637908]))


def allen_cahn(points, factors, n=128, eps=0.04, radius=0.25):
    x = np.linspace(-0.5, 0.5, n)
    r = np.sqrt(x[:, None] ** 2 + x[None, :] ** 2)
    fine = AllenCahn(TimeGrid(0.0, 0.032, points - 1), n, eps)
    return Setup(hierarchy(fine, factors), factors, np.tanh((radius - r) / (math.sqrt(2) * eps)))


PROBLEMS = {
    f.__name__: f
    for f in (
        *(decay, ode06, ex07, ex02, dahlquist, heat1d, heat2d),
        *(brusselator_orbit, advection, periodic_diffusion, arenstorf_orbit, allen_cahn),
    )
}
