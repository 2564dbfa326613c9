# SPDX-License-Identifier: BSD-3-Clause
"""Seconds and residuals of PyMGRIT: ``histories.py RUNS OUT``, in an environment that has PyMGRIT.

RUNS is a JSON list of objects ``{"problem": "heat" | "heat-stock" | "dahlquist", "steps", "m", "levels", "tol",
"max_iter"}`` and for heat ``"nx"``, which counts both boundary points as PyMGRIT does. OUT gets the list of results.
One process: the communicator has one rank.
"""

import json
import statistics
import sys
import time

import numpy as np
import scipy
from pymgrit import Dahlquist, Heat1D, Mgrit, Vector
from scipy.linalg import lapack
from scipy.sparse.linalg import splu

NO_LOG = 30


class LeanVector(Vector):
    """Heat's vector without the array of zeros that PyMGRIT's own makes and throws away in every operation."""

    def __init__(self, values):
        self.values = values

    def __add__(self, other):
        return LeanVector(self.values + other.values)

    def __sub__(self, other):
        return LeanVector(self.values - other.values)

    def __mul__(self, factor):
        return LeanVector(self.values * factor)

    def norm(self):
        return np.linalg.norm(self.values)

    def clone(self):
        return LeanVector(self.values.copy())

    def clone_zero(self):
        return LeanVector(np.zeros_like(self.values))

    def clone_rand(self):
        return LeanVector(np.random.default_rng(0).random(self.values.shape))

    def set_values(self, values):
        self.values = values

    def get_values(self):
        return self.values

    def pack(self):
        return self.values

    def unpack(self, values):
        self.values = values


def solvers(matrix):
    """Ways to solve ``matrix x = b`` many times, symmetric positive definite and tridiagonal: by name, prepared."""
    d, e, info = lapack.dpttrf(matrix.diagonal().copy(), matrix.diagonal(1).copy())
    assert info == 0
    dpttrs = lapack.dpttrs
    lu = splu(matrix.tocsc())
    inverse = np.linalg.inv(matrix.toarray())
    return {"dpttrs": lambda b: dpttrs(d, e, b)[0], "splu": lu.solve, "dense inverse": inverse.dot}


def fastest(ways, b):
    """The name of the fastest, and the seconds of one call of each."""
    seconds = {}
    for name, solve in ways.items():
        samples = []
        for _ in range(7):
            begin = time.perf_counter()
            for _ in range(200):
                solve(b)
            samples.append((time.perf_counter() - begin) / 200)
        seconds[name] = statistics.median(samples)
    return min(seconds, key=seconds.get), seconds


class FastHeat(Heat1D):
    """Heat without a source, its matrix factorised once per level in the way called ``way``."""

    def __init__(self, way, *args, **kwargs):
        super().__init__(*args, **kwargs)
        h = (self.t[-1] - self.t[0]) / (len(self.t) - 1)
        self.solve = solvers(h * self.space_disc + self.identity)[way]
        self.vector_template = LeanVector(np.zeros(self.nx))
        self.vector_t_start = LeanVector(self.init_cond(self.x))

    def step(self, u_start, t_start, t_stop):
        return LeanVector(self.solve(u_start.values))


def start(x):
    """1 left of the middle, 0 right of it."""
    return np.where(x < 0.5, 1.0, 0.0)


def levels_of(run):
    """``(times of level l)`` for every level."""
    t = np.linspace(0.0, run["end"], run["steps"] + 1)
    return [t[:: run["m"] ** level] for level in range(run["levels"])]


def applications(run, way):
    """PyMGRIT's description of the problem, level by level."""
    if run["problem"] == "dahlquist":
        return [Dahlquist(constant_lambda=-1, method="BE", t_interval=t) for t in levels_of(run)]
    arguments = {"x_start": 0, "x_end": 1, "nx": run["nx"], "a": 1, "init_cond": start}
    if run["problem"] == "heat-stock":
        return [Heat1D(**arguments, t_interval=t) for t in levels_of(run)]
    return [FastHeat(way, **arguments, t_interval=t) for t in levels_of(run)]


def choose(run):
    """The fastest way to solve for one step of the finest level."""
    if run["problem"] != "heat":
        return "as PyMGRIT has it", {}
    plain = Heat1D(x_start=0, x_end=1, nx=run["nx"], a=1, init_cond=start, t_interval=levels_of(run)[0])
    h = run["end"] / run["steps"]
    return fastest(solvers(h * plain.space_disc + plain.identity), start(plain.x))


def measure(run):
    way, ways = choose(run)
    begin = time.perf_counter()
    mgrit = Mgrit(
        applications(run, way),
        cf_iter=1,
        cycle_type="V",
        nested_iteration=False,
        tol=run["tol"],
        max_iter=run["max_iter"],
        logging_lvl=NO_LOG,
    )
    setup = time.perf_counter() - begin
    begin = time.perf_counter()
    found = mgrit.solve()
    return {
        "setup": setup,
        "solve": time.perf_counter() - begin,
        "residuals": [float(r) for r in found["conv"]],
        "step": way,
        "step_seconds": ways,
        "versions": {"numpy": np.__version__, "scipy": scipy.__version__, "python": sys.version.split()[0]},
    }


if __name__ == "__main__":
    results = [measure(run) for run in json.loads(sys.argv[1])]
    with open(sys.argv[2], "w") as file:
        json.dump(results, file)
