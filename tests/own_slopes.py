# SPDX-License-Identifier: BSD-3-Clause
"""Right-hand sides as a user would bring them, for tests: the same equations in Python, in C and in CUDA C++.

No function of a math library is called, so that the bits of all forms are the same.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess

import numpy as np
import pytest

from pyparareal.arrays import namespace
from pyparareal.slopes import SlopeFunction

DTYPES = ("float64", "float32")
PARAMETERS = {"lorenz": (10.0, 28.0, 8 / 3), "forced": (-1.5, 0.25), "ring": (0.3,)}
COMPONENTS = {"lorenz": 3, "forced": 2, "ring": 9}

# In CUDA C++, with the names it knows there; C gets the same lines.
TEXT = {
    "lorenz": """\
const T x = u[0], y = u[1], z = u[2];
du[0] = p[0] * (y - x);
du[1] = p[1] * x - y - x * z;
du[2] = x * y - p[2] * z;""",
    "forced": """\
du[0] = u[1] * t;
du[1] = p[0] * u[0] + t * t - p[1] * u[1];""",
    "ring": """\
for (int i = 0; i < 9; ++i) du[i] = p[0] * (u[(i + 1) % 9] - u[i]) + t * u[i];""",
}

_C = """\
#include <stdint.h>
#define FORMS(T, name)                                                                                     \\
  void name##_##T(T t, const T* u, T* du, const T* p) { name(T) }                                            \\
  void name##_lanes_##T(int64_t lanes, const T* times, const T* states, T* slopes, const T* p) {              \\
    for (int64_t lane = 0; lane < lanes; ++lane) {                                                          \\
      T u[9], du[9], t = times[lane];                                                                       \\
      for (int i = 0; i < components_##name; ++i) u[i] = states[i * lanes + lane];                          \\
      { name(T) }                                                                                           \\
      for (int i = 0; i < components_##name; ++i) slopes[i * lanes + lane] = du[i];                         \\
    }                                                                                                       \\
  }
"""


def lorenz(t, u):
    (sigma, rho, beta), (x, y, z) = PARAMETERS["lorenz"], (u[..., i] for i in range(3))
    return namespace(u).stack([sigma * (y - x), rho * x - y - x * z, x * y - beta * z], -1)


def forced(t, u):
    (a, b), (x, v) = PARAMETERS["forced"], (u[..., i] for i in range(2))
    t = t[..., 0]
    return namespace(u).stack([v * t, a * x + t * t - b * v], -1)


def ring(t, u):
    (rate,) = PARAMETERS["ring"]
    return rate * (namespace(u).roll(u, -1, -1) - u) + t * u


PYTHON = {"lorenz": lorenz, "forced": forced, "ring": ring}


def compiler(name="CC", default="cc"):
    command = shlex.split(os.environ.get(name, default))
    if shutil.which(command[0]) is None:
        pytest.skip(f"no compiler: {command[0]} is not found")
    return command


def c_library(folder):
    """The functions ``{name}_{T}`` and ``{name}_lanes_{T}``, compiled in C."""
    source = _C
    for name, text in TEXT.items():
        one_line = " ".join(text.splitlines())
        source += f"enum {{ components_{name} = {COMPONENTS[name]} }};\n#define {name}(T) {one_line}\n"
        source += "".join(f"FORMS({number}, {name})\n" for number in ("double", "float"))
    (folder / "slopes.c").write_text(source)
    command = [*compiler(), "-O2", "-fPIC", "-shared", "-ffp-contract=off", "slopes.c", "-o", "slopes.so"]
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "slopes.so"))


def c_function(library, name, dtype="float64", lanes=False):
    """One of them as a ctypes function with its prototype."""
    number = {"float64": ctypes.c_double, "float32": ctypes.c_float}[dtype]
    pointer = ctypes.POINTER(number)
    leading = [ctypes.c_int64, pointer] if lanes else [number]
    suffix = "double" if dtype == "float64" else "float"
    address = ctypes.cast(getattr(library, f"{name}{'_lanes' * lanes}_{suffix}"), ctypes.c_void_p).value
    return ctypes.CFUNCTYPE(None, *leading, pointer, pointer, pointer)(address)


def slope(library, name, dtype="float64", lanes=False):
    return SlopeFunction(c_function(library, name, dtype, lanes), COMPONENTS[name])


def states(rng, name, shape, dtype):
    return rng.standard_normal((*shape, COMPONENTS[name])).astype(dtype)


def numpy_slope(name):
    """``slope(t, u, parameters)`` for the reference, in NumPy."""
    return lambda t, u, parameters: PYTHON[name](np.broadcast_to(t, (*u.shape[:-1], 1)), u)
