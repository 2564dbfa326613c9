# SPDX-License-Identifier: BSD-3-Clause
"""The capsule of the kernels, used by a foreign Cython module as a user would write it."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from ops_backends import assert_same_bits, random_state

import pyparareal
from pyparareal import reference, tableaux

# It starts compilers.
pytestmark = pytest.mark.no_sanitize

USER = """
# distutils: language = c++
# cython: language_level=3
from libc.stdlib cimport free, malloc
from pyparareal cimport cy_ops
from pyparareal.cy_ops cimport DType, Norm, input_of, view_of


def iterate(double[:, ::1] u, const double[:, :] g_new, const double[:, :] g_old, int times):
    '''u = u + (g_new - g_old), `times` times, without the GIL.'''
    cdef cy_ops.MutableView out = view_of(&u[0, 0], DType.float64, 2, u.shape, u.strides)
    cdef cy_ops.ConstView f = cy_ops.as_input(out), absent
    cdef cy_ops.ConstView g = input_of(&g_new[0, 0], DType.float64, 2, g_new.shape, g_new.strides)
    cdef cy_ops.ConstView h = input_of(&g_old[0, 0], DType.float64, 2, g_old.shape, g_old.strides)
    cdef cy_ops.MutableView no_jump
    cdef cy_ops.Exec exec
    cdef int k
    with nogil:
        for k in range(times):
            cy_ops.raise_unless_ok(
                cy_ops.parareal_update(out, f, g, h, absent, no_jump, Norm.sum_squares, exec))


def norms(const float[:, :] u, double[::1] out):
    cdef cy_ops.ConstView state = input_of(&u[0, 0], DType.float32, 2, u.shape, u.strides), absent
    cdef cy_ops.MutableView result = view_of(&out[0], DType.float64, 1, out.shape, NULL)
    cdef cy_ops.Exec exec
    cdef cy_ops.Status status
    exec.workspace_bytes = cy_ops.slice_norms_workspace_bytes(state)
    with nogil:
        exec.workspace = malloc(exec.workspace_bytes)
        status = cy_ops.slice_norms(result, state, absent, Norm.max_abs, exec)
        free(exec.workspace)
    cy_ops.raise_unless_ok(status)


def coarse_and_back(double[:, ::1] u, double[:, ::1] v, double omega):
    '''v = u[::2]; v = relaxed with itself; u[1::2] = v[:-1]'''
    cdef cy_ops.MutableView fine = view_of(&u[0, 0], DType.float64, 2, u.shape, NULL)
    cdef cy_ops.MutableView coarse = view_of(&v[0, 0], DType.float64, 2, v.shape, NULL)
    cdef cy_ops.ConstView c = cy_ops.as_input(coarse)
    cdef cy_ops.Exec exec
    with nogil:
        cy_ops.raise_unless_ok(cy_ops.extract(coarse, cy_ops.as_input(fine), 0, 2, exec))
        cy_ops.raise_unless_ok(cy_ops.c_relax(coarse, c, c, omega, exec))
        cy_ops.raise_unless_ok(cy_ops.inject(fine, c, 1, 2, exec))


def diffuse(double[:, ::1] u, double[::1] ratio, double[::1] scale, double[::1] coupling, int m,
            double[:, :, ::1] f, double[:, ::1] target, double[::1] norms, int threads, int scratch_of):
    '''m steps in place, and the largest distances from `target`; scratch for `scratch_of` threads only.'''
    cdef cy_ops.MutableView state = view_of(&u[0, 0], DType.float64, 2, u.shape, NULL), no_states
    cdef cy_ops.ConstView r = input_of(&ratio[0], DType.float64, 1, ratio.shape, NULL), absent
    cdef cy_ops.ConstView p = input_of(&scale[0], DType.float64, 1, scale.shape, NULL)
    cdef cy_ops.ConstView c = input_of(&coupling[0], DType.float64, 1, coupling.shape, NULL)
    cdef cy_ops.ConstView aim = input_of(&target[0, 0], DType.float64, 2, target.shape, NULL)
    cdef cy_ops.MutableView distances = view_of(&norms[0], DType.float64, 1, norms.shape, NULL)
    cdef cy_ops.ConstView sides = input_of(&f[0, 0, 0], DType.float64, 3, f.shape, NULL)
    cdef cy_ops.Exec exec
    cdef cy_ops.Status status
    exec.threads = threads
    exec.workspace_bytes = cy_ops.relax_tridiagonal_workspace_bytes(cy_ops.as_input(state), scratch_of)
    exec.workspace_bytes += cy_ops.slice_norms_workspace_bytes(aim)
    if scratch_of == 0:
        exec.workspace_bytes = 8
    with nogil:
        exec.workspace = malloc(exec.workspace_bytes)
        status = cy_ops.relax_tridiagonal(
            state, cy_ops.as_input(state), r, p, c, m, sides, absent, no_states, aim, distances,
            cy_ops.Norm.max_abs, exec)
        free(exec.workspace)
    cy_ops.raise_unless_ok(status)


def swing(double[:, ::1] u, double mu, double dt, int m, double[:, ::1] weights):
    '''Euler steps of Van der Pol, then a stencil over both components.'''
    cdef cy_ops.MutableView state = view_of(&u[0, 0], DType.float64, 2, u.shape, NULL), no_states
    cdef cy_ops.ConstView v = cy_ops.as_input(state), absent
    cdef cy_ops.ConstView w = input_of(&weights[0, 0], DType.float64, 1, weights.shape + 1, NULL)
    cdef cy_ops.RungeKutta scheme
    cdef cy_ops.Exec exec
    scheme.rhs = cy_ops.RightHandSide.van_der_pol
    scheme.parameters[0], scheme.stages, scheme.b[0], scheme.dt = mu, 1, 1.0, dt
    with nogil:
        cy_ops.raise_unless_ok(cy_ops.relax_rk(state, v, scheme, absent, absent, m, absent, absent, no_states, absent,
                                               no_states, cy_ops.Norm.sum_abs, exec))
        exec.workspace_bytes = cy_ops.relax_stencil_workspace_bytes(v, 1)
        exec.workspace = malloc(exec.workspace_bytes)
        cy_ops.relax_stencil(state, v, w, cy_ops.Boundary.periodic, m, absent, absent, no_states, absent, no_states,
                             cy_ops.Norm.sum_abs, exec)
        free(exec.workspace)
        cy_ops.raise_unless_ok(cy_ops.relax_diagonal(state, v, w, m, absent, absent, no_states, absent, no_states,
                                                     cy_ops.Norm.sum_abs, exec))
"""


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """The module above, compiled outside the source tree against the installed package alone."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        pytest.skip(f"no C++ compiler {compiler}")
    if importlib.util.find_spec("Cython") is None:
        pytest.skip("Cython is not installed")
    folder = tmp_path_factory.mktemp("user")
    (folder / "user_kernels.pyx").write_text(USER)
    package = Path(pyparareal.__file__).parents[1]
    cython = [sys.executable, "-m", "cython", "--cplus", "-I", package, "user_kernels.pyx", "-o", "user_kernels.cpp"]
    subprocess.run(cython, cwd=folder, check=True)
    target = folder / f"user_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = [f"-I{pyparareal.get_include()}", f"-I{sysconfig.get_path('include')}"]
    command = [compiler, "-std=c++17", "-O1", "-fPIC", "-shared", *include, "user_kernels.cpp", "-o", target]
    subprocess.run(command, cwd=folder, check=True)
    spec = importlib.util.spec_from_file_location("user_kernels", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def states(count, shape=(4, 37), dtype=np.float64):
    rng = np.random.default_rng(1)
    return [random_state(rng, shape, dtype) for _ in range(count)]


def test_a_nogil_loop_gives_the_bits_of_the_reference(user):
    u, g, h = states(3)
    expected = u
    for _ in range(5):
        expected = reference.parareal_update(expected, g, h)
    user.iterate(u, g, h, 5)
    assert_same_bits(u, expected)


@pytest.mark.parametrize("view", [np.s_[:, ::2], np.s_[::-1, ::-2], np.s_[:, 1:38]])
def test_memoryview_strides_become_element_strides(user, view):
    (u,) = states(1, (4, 37))
    g, h = (x[view] for x in states(2, (4, 74)))
    u = u[:, : g.shape[1]].copy()
    expected = reference.parareal_update(u, g, h)
    user.iterate(u, g, h, 1)
    assert_same_bits(u, expected)


def test_norms_with_scratch(user):
    (u,) = states(1, (3, 5000), np.float32)
    out = np.empty(3)
    user.norms(u, out)
    assert_same_bits(out, reference.slice_norms(u, norm="max_abs"))


def test_the_transfer_ops(user):
    (u,) = states(1, (6, 5))
    expected = u.copy()
    expected[1::2] = reference.c_relax(u[::2], u[::2], 0.3)
    v = np.empty((3, 5))
    user.coarse_and_back(u, v, 0.3)
    assert_same_bits(u, expected)


@pytest.mark.parametrize(("threads", "scratch_of"), [(1, 1), (3, 1), (3, 2), (2, 8)])
def test_relaxation_with_scratch_for_fewer_or_more_threads(user, threads, scratch_of):
    rng = np.random.default_rng(2)
    u, f = rng.standard_normal((40, 1300)), rng.standard_normal((40, 4, 1300))
    off, target, norms = -rng.random(1299), rng.standard_normal((40, 1300)), np.full(40, 7.0)
    factors = reference.factorise_tridiagonal(off, np.full(1300, 3.0), off)
    expected = reference.relax_tridiagonal(u, *factors, 4, f=f)
    user.diffuse(u, *factors, 4, f, target, norms, threads, scratch_of)
    assert_same_bits(u, expected)
    assert_same_bits(norms, reference.slice_norms(expected, target, norm="max_abs"))


def test_relaxation_without_scratch_is_refused(user):
    u, one = np.ones((3, 5)), np.ones(5)
    with pytest.raises(ValueError, match=r"^workspace: got 8 bytes, expected 384 as relax_tridiagonal_workspace_bytes"):
        user.diffuse(u, one, one, one, 1, np.ones((3, 1, 5)), np.ones((3, 5)), np.ones(3), 1, 0)
    u, one = np.ones((1, 1300)), np.ones(1300)
    message = r"^workspace: got 8 bytes, expected \d+ as slice_norms and relax_tridiagonal_workspace_bytes"
    with pytest.raises(ValueError, match=message):
        user.diffuse(u, one, one, one, 1, np.ones((1, 1, 1300)), np.ones((1, 1300)), np.ones(1), 1, 0)
    assert (u == 1).all()


def test_the_other_relaxations(user):
    u = np.random.default_rng(3).standard_normal((40, 2))
    weights = np.array([[0.25, 0.75]])
    with pytest.raises(ValueError, match=r"^u: got shape \[40, 3\], expected 2 components on the last axis$"):
        user.swing(np.ones((40, 3)), 1.5, 0.01, 3, weights)
    expected = reference.relax_rk(u, "van_der_pol", (1.5,), tableaux.EULER, 0.01, 3)
    expected = reference.relax_diagonal(expected, weights[0], 3)  # an even stencil is refused, and so not applied
    user.swing(u, 1.5, 0.01, 3, weights)
    assert_same_bits(u, expected)


def test_a_refusal_is_the_exception_of_ops(user):
    u, g = states(2)
    before = u.copy()
    with pytest.raises(ValueError, match=r"^g_new: got shape \[4, 36\], expected \[4, 37\] like f_old$"):
        user.iterate(u, g[:, 1:], g[:, 1:], 1)
    with pytest.raises(ValueError, match=r"^omega: got nan, expected a finite weight$"):
        user.coarse_and_back(u, np.empty((2, 37)), float("nan"))
    assert_same_bits(u, before)


def test_strides_between_elements_are_refused(user):
    (u,) = states(1)
    odd = np.zeros((4, 37), [("u", "f8"), ("flag", "i4")])["u"]
    with pytest.raises(ValueError, match=r"^g_new: got shape|^g_new: got -1 axes"):
        user.iterate(u, odd, odd, 1)


FAKE = """
import ctypes, sys
from pyparareal import _core
kept = b"pyparareal._core.ops_table"
table = (ctypes.c_uint32 * 64)({version}, {size})
new = ctypes.pythonapi.PyCapsule_New
new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_core.ops_table = {table}
import pyparareal.cy_ops
"""


@pytest.mark.parametrize(("version", "size", "message"), [
    (99, 256, "ImportError: pyparareal._core.ops_table: got version 99 of 256 bytes, expected version 4 of at least "),
    (4, 8, "ImportError: pyparareal._core.ops_table: got version 4 of 8 bytes, expected version 4 of at least "),
    (None, 0, "ImportError: pyparareal._core.ops_table: expected the capsule of the kernels; reinstall pyparareal"),
    (4, 256, ""),
])  # fmt: skip
def test_a_table_of_another_version_is_refused(version, size, message):
    table = "None" if version is None else "new(ctypes.addressof(table), kept, None)"
    code = FAKE.format(version=version or 0, size=size, table=table)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert message in run.stderr
    assert (run.returncode == 0) == (message == "")


def test_headers_and_pxd_are_installed():
    package = Path(pyparareal.__file__).parent
    assert (package / "cy_ops.pxd").is_file()
    for header in ("ops.h", "types.h", "capsule.h"):
        assert (Path(pyparareal.get_include()) / "pyparareal" / header).is_file()
