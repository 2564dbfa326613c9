# SPDX-License-Identifier: BSD-3-Clause
"""Right-hand sides written in Cython: nogil functions by their capsules, and through the table of the kernels."""

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from ops_backends import assert_same_bits
from own_slopes import PARAMETERS, PYTHON, compiler, numpy_slope, states

import pyparareal
from pyparareal import TimeGrid, reference, tableaux
from pyparareal.compiled import Rhs
from pyparareal.propagators import RungeKutta
from pyparareal.slopes import SlopeFunction

# It starts compilers.
pytestmark = pytest.mark.no_sanitize

USER = """
# distutils: language = c++
# cython: language_level=3, cdivision=True
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from pyparareal cimport cy_ops
from pyparareal.cy_ops cimport DType, input_of, view_of


cdef api void forced(double t, const double* u, double* du, const double* p) noexcept nogil:
    du[0] = u[1] * t
    du[1] = p[0] * u[0] + t * t - p[1] * u[1]


cdef api void forced_lanes(
        int64_t lanes, const float* t, const float* u, float* du, const float* p) noexcept nogil:
    cdef int64_t i
    for i in range(lanes):
        du[i] = u[lanes + i] * t[i]
        du[lanes + i] = p[0] * u[i] + t[i] * t[i] - p[1] * u[lanes + i]


cdef api double energy(double t) noexcept nogil:
    return t


def swing(double[:, ::1] u, double[::1] p, double dt, double[:, ::1] times, int m, int scratch_of):
    '''Euler steps in place, of `forced` straight from its address; scratch for one thread, or too little.'''
    cdef cy_ops.MutableView state = view_of(&u[0, 0], DType.float64, 2, u.shape, NULL), no_states
    cdef cy_ops.ConstView v = cy_ops.as_input(state), absent
    cdef cy_ops.ConstView begins = input_of(&times[0, 0], DType.float64, 2, times.shape, NULL)
    cdef cy_ops.RungeKutta scheme
    cdef cy_ops.Exec exec
    cdef cy_ops.Status status
    scheme.rhs = cy_ops.RightHandSide.function
    scheme.function.address = <const void*>forced
    scheme.function.components = 2
    scheme.function.parameters = &p[0]
    scheme.stages, scheme.b[0], scheme.dt = 1, 1.0, dt
    exec.threads = 1
    exec.workspace_bytes = cy_ops.relax_rk_workspace_bytes(v, scheme, 1) if scratch_of else 8
    with nogil:
        exec.workspace = malloc(exec.workspace_bytes)
        status = cy_ops.relax_rk(
            state, v, scheme, absent, begins, m, absent, absent, no_states, absent, no_states,
            cy_ops.Norm.max_abs, exec)
        free(exec.workspace)
    cy_ops.raise_unless_ok(status)
"""


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """The module above, compiled outside the source tree against the installed package alone."""
    pytest.importorskip("Cython")
    folder, package = tmp_path_factory.mktemp("user"), Path(pyparareal.__file__).parents[1]
    (folder / "user_slopes.pyx").write_text(USER)
    cython = [sys.executable, "-m", "cython", "--cplus", "-I", package, "user_slopes.pyx", "-o", "user_slopes.cpp"]
    subprocess.run(cython, cwd=folder, check=True)
    target = folder / f"user_slopes{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = [f"-I{pyparareal.get_include()}", f"-I{sysconfig.get_path('include')}"]
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared"]
    command = [*compiler("CXX", "c++"), *flags, *include, "user_slopes.cpp", "-o", target]
    subprocess.run(command, cwd=folder, check=True)
    spec = importlib.util.spec_from_file_location("user_slopes", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_capsules_say_what_they_hold(user):
    api = user.__pyx_capi__
    found = SlopeFunction(api["forced"], 2)
    assert (found.dtype, found.lanes) == ("float64", False)
    found = SlopeFunction(api["forced_lanes"], 2)
    assert (found.dtype, found.lanes) == ("float32", True)
    with pytest.raises(TypeError, match=r"^source: got a capsule named 'double \(double\)', expected void"):
        SlopeFunction(api["energy"], 2)


@pytest.mark.parametrize(("name", "dtype"), [("forced", "float64"), ("forced_lanes", "float32")])
def test_steps_of_a_capsule_have_the_bits_of_the_python_steps(user, name, dtype):
    rhs = Rhs(PYTHON["forced"], 2, parameters=PARAMETERS["forced"], cpu=user.__pyx_capi__[name])
    u, grid = states(np.random.default_rng(1), "forced", (37,), dtype), TimeGrid(0.5, 1.5, 200)
    steps = [RungeKutta(one, grid).step(u, slice(3, 186, 5)) for one in (rhs, PYTHON["forced"])]
    assert_same_bits(*steps)


def test_a_function_through_the_table(user):
    rng = np.random.default_rng(2)
    u, times = states(rng, "forced", (9,), "float64"), rng.random((9, 3))
    more = (PARAMETERS["forced"], tableaux.EULER, 0.1, 3)
    expected = reference.relax_rk(u, numpy_slope("forced"), *more, times=times)
    before = u.copy()
    with pytest.raises(ValueError, match=r"^workspace: got 8 bytes, expected \d+ as relax_rk_workspace_bytes says$"):
        user.swing(u, np.array(PARAMETERS["forced"]), 0.1, times, 3, 0)
    assert_same_bits(u, before)
    user.swing(u, np.array(PARAMETERS["forced"]), 0.1, times, 3, 1)
    assert_same_bits(u, expected)
