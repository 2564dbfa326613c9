# SPDX-License-Identifier: BSD-3-Clause
"""Right-hand sides with forms of their own in RungeKutta: bits of the Python steps, and no disagreement in silence."""

import textwrap
from pathlib import Path

import numpy as np
import pytest
from own_slopes import COMPONENTS, DTYPES, PARAMETERS, PYTHON, TEXT, c_function, c_library, slope, states

from pyparareal import MGRIT, Status, TimeGrid, arrays, solve, tableaux
from pyparareal.compiled import CompiledRhs, Rhs
from pyparareal.cuda_slopes import CudaSlope
from pyparareal.propagators import RungeKutta, is_fused
from pyparareal.slopes import SlopeFunction

DOCS = Path(__file__).resolve().parents[1] / "docs" / "solver.rst"
GRIDS = {"uniform": TimeGrid(0.3, 0.9, 14), "graded": TimeGrid.from_times(0.3 + np.linspace(0, 0.7, 15) ** 1.5)}
OPTIONS = [{}, {"tableau": tableaux.MIDPOINT, "substeps": 3}, {"tableau": tableaux.COOPER_VERNER_8}]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return c_library(tmp_path_factory.mktemp("slopes"))


def own(library, name, lanes=False, **changes):
    cpu = [slope(library, name, dtype, lanes) for dtype in DTYPES]
    return Rhs(PYTHON[name], COMPONENTS[name], **({"parameters": PARAMETERS[name], "cpu": cpu} | changes))


def pair_of(library, name, grid, lanes=False, **options):
    """The same scheme by the kernel and by the plain function."""
    plain = RungeKutta(PYTHON[name], grid, batch_invariant=True, **options)
    return RungeKutta(own(library, name, lanes), grid, batch_invariant=True, **options), plain


@pytest.mark.parametrize("name", PYTHON)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("dtype", [*DTYPES, "float16"])
@pytest.mark.parametrize("array", ["numpy", "torch"])
@pytest.mark.parametrize("lanes", [False, True], ids=["one column", "lanes"])
@pytest.mark.parametrize("options", OPTIONS)
def test_kernel_and_function_give_the_same_bits(library, name, grid, dtype, array, lanes, options):
    kernel, plain = pair_of(library, name, grid, lanes, **options)
    assert kernel.fused
    assert not is_fused(plain)
    u = states(np.random.default_rng(1), name, (3, 2), dtype)
    if array == "torch":
        u = pytest.importorskip("torch").from_numpy(u)
    points = slice(1, 10, 4)
    assert np.array_equal(kernel.step(u, points), plain.step(u, points))
    ends = [arrays.empty_like(u), arrays.empty_like(u)]
    kernel.relax(u, points, 4, ends[0])
    plain.relax(u, points, 4, ends[1])
    assert np.array_equal(*ends)


@pytest.mark.parametrize("name", ["lorenz", "forced"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("method", [MGRIT(levels=3, stagnation=None), "parareal"])
def test_a_solve_by_kernels_is_that_by_functions(library, name, grid, method):
    grid = TimeGrid(0.3, 0.9, 200) if grid.uniform else TimeGrid.from_times(0.3 + np.linspace(0, 0.7, 201) ** 1.5)
    u0 = states(np.random.default_rng(2), name, (1,), "float64")[0]
    more = {"m": 6, "tol": 1e-9, "method": method, "save": "all", "max_iterations": 3, "on_failure": "return"}
    solutions = [solve(phi, u0, grid, **more) for phi in pair_of(library, name, grid)]
    assert np.array_equal(solutions[0].u, solutions[1].u)
    assert np.ptp(solutions[0].u) > 0.1


def test_without_a_form_for_the_dtype_the_function_is_stepped(library):
    calls = []

    def counted(t, u):
        calls.append(u.shape)
        return PYTHON["lorenz"](t, u)

    rhs = Rhs(counted, 3, parameters=PARAMETERS["lorenz"], cpu=slope(library, "lorenz"))
    phi = RungeKutta(rhs, GRIDS["uniform"])
    assert phi.fused
    assert not phi.batch_invariant  # nobody promised it of the function, which the next line calls
    u = states(np.random.default_rng(3), "lorenz", (5,), "float32")
    assert phi.step(u, slice(0, 5, 1)).dtype == np.float32
    assert calls == [(5, 3)] * 4
    phi.step(u.astype("float64"), slice(0, 5, 1))
    phi.step(u.astype("float64"), slice(0, 5, 1))
    assert calls[4:] == [(1, 3)]  # once, to compare
    assert not RungeKutta(Rhs(counted, 3), GRIDS["uniform"]).fused
    for_a_device = Rhs(counted, 3, parameters=PARAMETERS["lorenz"], cuda=TEXT["lorenz"])
    stepped = RungeKutta(for_a_device, GRIDS["uniform"]).step(u, slice(0, 5, 1))
    assert calls[5:] == [(5, 3)] * 4  # text for a device is no form for the host
    assert np.array_equal(stepped, RungeKutta(PYTHON["lorenz"], GRIDS["uniform"]).step(u, slice(0, 5, 1)))
    coarse = phi.rediscretise(2)
    assert coarse.fused
    assert coarse.grid.steps == 7


def test_gradients_take_the_function(library):
    torch = pytest.importorskip("torch")
    kernel, plain = pair_of(library, "lorenz", GRIDS["uniform"])
    u = torch.tensor([[[1.0, 2.0, 20.0]]], dtype=torch.float64, requires_grad=True)
    gradients = [torch.autograd.grad(phi.step(u, slice(0, 1, 1)).sum(), u)[0] for phi in (kernel, plain)]
    assert torch.equal(*gradients)
    assert gradients[0].abs().sum() > 0


@pytest.mark.parametrize("array", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_forms_that_disagree_are_refused(library, dtype, array):
    u = np.array([[[1.0, 2.0, 20.0]], [[3.0, 2.0, 1.0]]], dtype)
    u = pytest.importorskip("torch").from_numpy(u) if array == "torch" else u
    points, cpu = slice(0, 8, 4), slope(library, "lorenz", dtype)

    def step(rhs, parameters=PARAMETERS["lorenz"], form=cpu):
        return RungeKutta(Rhs(rhs, 3, parameters=parameters, cpu=form), GRIDS["uniform"]).step(u, points)

    step(PYTHON["lorenz"])
    with pytest.raises(ValueError, match=r"^cpu: at t = 0.3 component 1 of the slope is 7.0, but rhs says 6.0; "):
        step(PYTHON["lorenz"], parameters=(10.0, 29.0, 8 / 3))

    def reversed_(t, v):
        return -PYTHON["lorenz"](t, v)

    with pytest.raises(ValueError, match=r"component 0 of the slope is 10.0, but rhs says -10.0"):
        step(reversed_)
    # Rounding is no disagreement, a thousandth of the root of epsilon is none, and ten times it is one.
    root = float(np.sqrt(np.finfo(dtype).eps))
    step(lambda t, v: PYTHON["lorenz"](t, v) * (1 + 1e-3 * root))
    with pytest.raises(ValueError, match=r"component 0 of the slope is"):
        step(lambda t, v: PYTHON["lorenz"](t, v) * (1 + 10 * root))
    with pytest.raises(ValueError, match=r"^rhs: returned shape \(1, 1\), expected \(1, 1, 3\)$"):
        step(lambda t, v: v[..., 0])
    with pytest.raises(ValueError, match=r"component 0 of the slope is 10.0, but rhs says nan"):
        step(lambda t, v: PYTHON["lorenz"](t, v) * float("nan"))


def test_the_time_is_compared_too(library):
    late = lambda t, u: PYTHON["forced"](t + 1, u)  # noqa: E731
    rhs = Rhs(late, 2, parameters=PARAMETERS["forced"], cpu=slope(library, "forced"))
    with pytest.raises(ValueError, match=r"^cpu: at t = 0.3 component 0 of the slope is"):
        RungeKutta(rhs, GRIDS["graded"]).step(np.ones((2, 2)), slice(0, 2, 1))


def test_states_that_are_not_finite_compare_nothing(library):
    rhs = own(library, "lorenz")
    u = np.array([[np.inf, 1.0, 2.0], [1.0, 2.0, 3.0]])
    plain = RungeKutta(PYTHON["lorenz"], GRIDS["uniform"])
    with np.errstate(invalid="ignore"):
        steps = [phi.step(u, slice(0, 2, 1)) for phi in (RungeKutta(rhs, GRIDS["uniform"]), plain)]
    assert np.array_equal(*steps, equal_nan=True)


def test_no_states_compare_nothing(library):
    phi = RungeKutta(own(library, "lorenz", parameters=(0.0, 0.0, 0.0)), GRIDS["uniform"])
    assert phi.step(np.empty((0, 3)), slice(0, 0, 1)).shape == (0, 3)


def test_what_does_not_fit(library):
    function = slope(library, "lorenz")
    with pytest.raises(TypeError, match=r"^rhs: got str, expected a callable"):
        Rhs("lorenz", 3)
    with pytest.raises(ValueError, match=r"^components: got 0, expected 1 or more$"):
        Rhs(PYTHON["lorenz"], 0)
    with pytest.raises(ValueError, match=r"^cpu: got 3 components, expected 2$"):
        Rhs(PYTHON["lorenz"], 2, cpu=function)
    with pytest.raises(ValueError, match=r"^cpu: got two functions of float64, expected one of each dtype$"):
        Rhs(PYTHON["lorenz"], 3, cpu=[function, c_function(library, "lorenz")])
    with pytest.raises(TypeError, match=r"^cuda: got int, expected CUDA C\+\+ statements or a CudaSlope$"):
        Rhs(PYTHON["lorenz"], 3, cuda=1)
    with pytest.raises(ValueError, match=r"^cuda: got 2 components, expected 3$"):
        Rhs(PYTHON["lorenz"], 3, cuda=CudaSlope("du[0] = u[1];", 2))
    with pytest.raises(TypeError, match=r"^components: got bool, expected an int$"):
        Rhs(PYTHON["lorenz"], True)
    assert isinstance(Rhs(PYTHON["lorenz"], 3, cpu=c_function(library, "lorenz"))._cpu["float64"], SlopeFunction)
    with pytest.raises(ValueError, match=r"^u: got \(2,\) components, expected 3 for lorenz"):
        RungeKutta(own(library, "lorenz"), GRIDS["uniform"]).step(np.ones((4, 2)), slice(0, 4, 1))


def test_parameters_that_do_not_fit(library):
    python = PYTHON["lorenz"]
    for given, message in (
        (1.0, "^parameters: got float, expected a sequence of floats$"),
        (None, "^parameters: got NoneType, expected a sequence of floats$"),
        ("ab", "^parameters: got str, expected a sequence of floats$"),
        (("1",), "^parameters: got str, expected a float$"),
        ((None,), "^parameters: got NoneType, expected a float$"),
    ):
        with pytest.raises(TypeError, match=message):
            Rhs(python, 3, parameters=given)
        with pytest.raises(TypeError, match=message):
            CompiledRhs("dahlquist", given, python)
    three = SlopeFunction(c_function(library, "lorenz"), 3, parameters=3)
    message = r"^parameters: got 1 numbers, expected 3 for SlopeFunction\(3 components, 3 parameters, float64\)$"
    with pytest.raises(ValueError, match=message):
        Rhs(python, 3, parameters=(10.0,), cpu=three)
    with pytest.raises(ValueError, match=r"^parameters: got 0 numbers, expected 3 or more for CudaSlope\(3 comp"):
        Rhs(python, 3, cuda=TEXT["lorenz"])
    with pytest.raises(ValueError, match=r"^parameters: got 3 numbers, expected 4 for CudaSlope\(3 components, 4 par"):
        Rhs(python, 3, parameters=PARAMETERS["lorenz"], cuda=CudaSlope(TEXT["lorenz"], 3, 4))
    Rhs(python, 3, parameters=PARAMETERS["lorenz"], cpu=three, cuda=CudaSlope(TEXT["lorenz"], 3, 3))


@pytest.mark.no_sanitize
@pytest.mark.skipif(not DOCS.exists(), reason="without the documentation")
def test_the_documented_example_takes_arrays_of_numpy_and_of_torch():
    pytest.importorskip("numba")
    torch = pytest.importorskip("torch")
    block = DOCS.read_text().split(".. code-block:: python\n", 1)[1].split("\n\nOn the CPU", 1)[0]
    names = {}
    exec(textwrap.dedent(block).replace("2**16", "2**10"), names)
    assert names["solution"].status is Status.CONVERGED
    phi, points = RungeKutta(names["rhs"], names["grid"]), slice(3, 14, 5)
    plain = RungeKutta(names["pendulum"], names["grid"])
    u = np.random.default_rng(4).standard_normal((3, 4, 2))
    tensor = torch.from_numpy(u).requires_grad_()
    stepped = plain.step(tensor, points)
    # Only sine and cosine may differ, by units in the last place of numbers of order one.
    for got in (phi.step(u, points), phi.step(tensor.detach(), points), stepped.detach()):
        np.testing.assert_allclose(got, plain.step(u, points), rtol=0, atol=1e-14)
    (gradient,) = torch.autograd.grad(phi.step(tensor, points).sum(), tensor)
    assert torch.equal(gradient, *torch.autograd.grad(stepped.sum(), tensor))
    assert gradient.abs().min() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_on_a_device(library, dtype, grid):
    torch = pytest.importorskip("torch")
    pytest.importorskip("cupy")
    u = states(np.random.default_rng(1), "forced", (3, 2), dtype)
    phi = RungeKutta(own(library, "forced", cuda=TEXT["forced"]), grid)
    points = slice(1, 10, 4)
    assert np.array_equal(phi.step(torch.from_numpy(u).cuda(), points).cpu(), phi.step(u, points))
    wrong = RungeKutta(own(library, "forced", cuda=TEXT["forced"].replace("t * t", "t")), grid)
    with pytest.raises(ValueError, match=r"^cuda: at t = .* component 1 of the slope is"):
        wrong.step(torch.from_numpy(u).cuda(), points)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_on_uniform_grids_a_form_for_cuda_may_be_recorded_in_a_graph(library, grid):
    with_cuda = own(library, "lorenz", cuda=TEXT["lorenz"])
    assert RungeKutta(with_cuda, grid).capturable == grid.uniform
    assert not RungeKutta(own(library, "lorenz"), grid).capturable
