# SPDX-License-Identifier: BSD-3-Clause
"""The GPU cases of MGRIT, run small on the processor: what they check, what they count, what they say of graphs."""

from __future__ import annotations

import dataclasses
import sys
from types import MappingProxyType

import bench_tree
import numpy as np
import pytest

torch = pytest.importorskip("torch")

bench_tree.load()

import pyparareal.runtime  # noqa: E402
from bench import cases, gpu_solves  # noqa: E402
from bench.cases import Result, mgrit_ensemble_cases, mgrit_gpu_cases, relax_cases  # noqa: E402
from pyparareal import LocalRuntime, _timing, ops, reference  # noqa: E402
from pyparareal.profiling import roofs  # noqa: E402
from pyparareal.tableaux import RK4  # noqa: E402

ROOF = (1 << 8, 1 << 16)
HEAT = mgrit_gpu_cases.HeatSizes(steps=256, points=15, ways=((16, 2), (4, 3)), relaxed=4, roof=ROOF)
ENSEMBLES = mgrit_ensemble_cases.Sizes(
    steps=1 << 12, ensembles=(1, 3), ways=((16,), (8, 2)), relaxed=(2, 3, 4), roof=ROOF
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    interleave = _timing.interleave
    monkeypatch.setattr(_timing, "cache_bytes", lambda: 1 << 12)
    monkeypatch.setattr(_timing, "interleave", lambda ways, **o: interleave(ways, **(o | {"repeats": 1})))


def heat():
    return mgrit_gpu_cases.heat_on("cpu", HEAT)


def ensembles():
    return mgrit_ensemble_cases.ensembles_on("cpu", ENSEMBLES)


def test_both_are_cases_of_the_gpu_suite():
    cases.discover()
    for name in ("mgrit.gpu_heat", "mgrit.gpu_ensembles"):
        assert (cases.CASES[name].suite, cases.CASES[name].device) == ("gpu", "cuda")


@pytest.mark.parametrize("run", [heat, ensembles])
def test_what_is_right_is_checked_and_all_metrics_are_numbers(run):
    result = run()
    assert result.checked
    assert all(np.isfinite(value) for value in result.metrics.values())
    assert all(seconds for seconds in result.samples.values())


def test_heat_tells_every_comparison():
    metrics = heat().metrics
    ways = ("serial_end", "serial_c_points", "serial_dense", "m16", "m4")
    assert {f"{way}_ms" for way in ways} <= set(metrics)
    assert {f"speedup_over_{way}" for way in (*ways[:3], "cpu_serial")} <= set(metrics)
    assert {f"{what}_m16" for what in ("cycles", "residual", "final_residual", "error", "error_bound")} <= set(metrics)
    assert {"speedup", "first_m16_ms", "relax_roof_fraction", "relax_pair_roof_fraction", "roof_gflops"} <= set(metrics)
    assert metrics["relax_pair_bound_by_flops"] in (0, 1)


def test_ensembles_tell_every_comparison():
    metrics = ensembles().metrics
    for at in ("lorenz_1", "lorenz_3", "brusselator_1", "brusselator_3"):
        assert {f"{at}_{what}" for what in ("serial_end_ms", "2_levels_ms", "3_levels_ms", "speedup")} <= set(metrics)
        assert metrics[f"{at}_cycles_2_levels"] >= 2
    assert {"lorenz_relax_roof_fraction", "brusselator_relax_roof_fraction"} <= set(metrics)


def test_a_hierarchy_that_needs_too_much_memory_is_left_out():
    sizes = dataclasses.replace(ENSEMBLES, ensembles=(1, 3), most_bytes=2 * 8 * (1 << 12) // 8)
    metrics = mgrit_ensemble_cases.ensembles_on("cpu", sizes).metrics
    assert "brusselator_1_3_levels_ms" in metrics, "its C-points are just as many bytes"
    assert "brusselator_3_3_levels_ms" not in metrics
    assert "brusselator_3_2_levels_ms" in metrics, "one hierarchy there is always"


def off(op, when):
    """The op with its first output for torch wrong in the last place, where ``when`` says so."""

    def wrong(u, *arguments, out=None, every=None, **options):
        result = op(u, *arguments, out=out, every=every, **options)
        if isinstance(result, torch.Tensor) and when(out, arguments[-1], u):
            first = (0,) * result.ndim
            result[first] = torch.nextafter(result[first], result[first] + 1)
        return result

    return wrong


# One wrong last place in the outputs of torch tensors, the "device" here; the CPU's own kernel is called with NumPy's.
@pytest.mark.parametrize(
    "when",
    [
        lambda out, m, u: out is not None and u.shape[0] == 1,  # a serial launch
        lambda out, m, u: out is None and u.shape[0] == 1,  # with all states kept
        lambda out, m, u: out is not None and u.shape[0] == HEAT.relaxed,  # the relaxation under the roof
        lambda out, m, u: out is None and u.shape[0] == HEAT.relaxed,
    ],
)
def test_heat_notices_one_wrong_bit(monkeypatch, when):
    monkeypatch.setattr(ops, "relax_tridiagonal", off(ops.relax_tridiagonal, when))
    assert not heat().checked


@pytest.mark.parametrize(
    "when",
    [
        lambda out, m, u: u.shape[:2] == (1, 1),  # serial
        lambda out, m, u: u.shape[:2] == ENSEMBLES.relaxed[:2],  # under the roof
        lambda out, m, u: m == 16 and u.shape[0] == ENSEMBLES.steps // 16,  # relaxation of a solve
    ],
)
def test_ensembles_notice_one_wrong_bit(monkeypatch, when):
    monkeypatch.setattr(ops, "relax_rk", off(ops.relax_rk, when))
    assert not ensembles().checked


def test_heat_notices_a_solution_that_is_none(monkeypatch):
    """Converged, it says, but one C-point is off by a hundred tolerances."""
    solver = gpu_solves._solver

    def lying(solutions, name, given, runtime, **options):
        run = solver(solutions, name, given, runtime, **options)

        def wrong():
            run()
            solutions[name].u[3, 3] += 100 * HEAT.tol

        return wrong

    monkeypatch.setattr(gpu_solves, "_solver", lying)
    assert not heat().checked


def test_without_graphs_the_notes_say_so(monkeypatch):
    monkeypatch.delattr(pyparareal.runtime, "GraphRuntime", raising=False)
    result = heat()
    assert result.checked
    assert "GraphRuntime: absent" in result.notes
    assert not any("graph" in name for name in result.metrics)


class Stub(LocalRuntime):
    """In the place of graphs."""


class Refusing(LocalRuntime):
    def map(self, *arguments, **options):
        raise RuntimeError("no such capture")


class Imprecise(LocalRuntime):
    def map(self, *arguments, out, **options):
        super().map(*arguments, out=out, **options)
        out.view(-1)[0] += 1e-14


def test_with_graphs_both_ways_are_measured(monkeypatch):
    monkeypatch.setattr(pyparareal.runtime, "GraphRuntime", Stub, raising=False)
    result = heat()
    assert result.checked
    assert {"m16_graph_ms", "m4_graph_ms", "first_m16_graph_ms"} <= set(result.metrics)


def test_graphs_that_fail_are_told_and_the_rest_is_measured(monkeypatch):
    monkeypatch.setattr(pyparareal.runtime, "GraphRuntime", Refusing, raising=False)
    result = heat()
    assert result.checked
    assert "m16_graph: RuntimeError: no such capture" in result.notes
    assert "m16_ms" in result.metrics
    assert "m16_graph_ms" not in result.metrics


def test_graphs_that_give_other_bits_are_noticed(monkeypatch):
    monkeypatch.setattr(pyparareal.runtime, "GraphRuntime", Imprecise, raising=False)
    assert not heat().checked


class Counted:
    """A number that counts the operations it takes part in."""

    operations = 0

    def _operate(self, other):
        Counted.operations += 1
        return Counted()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _operate


@pytest.mark.parametrize(
    ("name", "parameters", "components", "flops"),
    [
        ("lorenz", (10.0, 28.0, 8 / 3), 3, relax_cases.LORENZ_RK4_FLOPS),
        ("brusselator", (1.0, 3.0), 2, mgrit_ensemble_cases.BRUSSELATOR_RK4_FLOPS),
    ],
)
def test_flops_are_those_of_the_reference(name, parameters, components, flops):
    u = np.array([[Counted() for _ in range(components)]], dtype=object)
    Counted.operations = 0
    reference.relax_rk(u, name, parameters, RK4, 0.1, 1)
    assert Counted.operations == flops


def test_a_roof_is_the_slower_of_the_two():
    roof = roofs.Roof(flops=100.0, bytes=10.0, how="")
    assert roof.bound(200, 10) == "flops"
    assert roof.fraction(200, 10, seconds=4.0) == 0.5
    assert roof.bound(100, 20) == "bytes"
    assert roof.fraction(100, 20, seconds=4.0) == 0.5


def test_a_roof_is_measured_with_what_it_computes_checked(monkeypatch):
    roof, right = roofs.measure("cpu", elements=ROOF[0], copied=ROOF[1])
    assert right
    assert roof.flops > 0
    assert roof.bytes > 0
    monkeypatch.setattr(ops, "relax_diagonal", lambda u, a, m, out: out.fill_(0.25))
    assert roofs.measure("cpu", elements=ROOF[0], copied=ROOF[1])[1], "the product is 2^-2 but for rounding"
    monkeypatch.setattr(ops, "relax_diagonal", lambda u, a, m, out: out.fill_(0.25 + 1e-9))
    assert not roofs.measure("cpu", elements=ROOF[0], copied=ROOF[1])[1]


@pytest.mark.parametrize(("speedups", "start"), [({1: 5.0, 16: 1.1, 256: 0.9, 4096: 0.5}, 256), ({1: 2.0, 16: 1.0}, 0)])
def test_no_longer_pays_from_the_first_ensemble_that_loses(monkeypatch, speedups, start):
    case = mgrit_ensemble_cases
    monkeypatch.setattr(case, "_ensemble", lambda total, notes, name, count, sizes, device: speedups[count])
    monkeypatch.setattr(case, "_relaxation", lambda *arguments: None)
    result = case.ensembles_on("cpu", dataclasses.replace(ENSEMBLES, ensembles=tuple(speedups)))
    assert isinstance(result, Result)
    assert result.metrics["lorenz_no_longer_pays_from"] == start


class FakeCupy:
    """As much of CuPy as the roof asks for; the kernel writes its answer over as many elements as it has threads."""

    class cuda:
        class Device:
            attributes = MappingProxyType({"MultiProcessorCount": 3})

    empty = staticmethod(lambda size, dtype: np.full(size, np.nan, dtype))

    class RawKernel:
        def __init__(self, source, name):
            assert f"void {name}(" in source

        def __call__(self, grid, block, arguments):
            out, a, b = arguments
            out[: grid[0] * block[0]] = roofs.CHAINS * b / (1 - a)  # x a + b ends in b / (1 - a)


def test_the_kernel_of_the_roof_has_a_thread_for_every_number(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy)
    run, out = roofs._multiply_and_add()
    run()
    assert (out == 2.0 * roofs.CHAINS).all()
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert roofs._multiply_and_add() is None


def test_first_solves_on_a_device_are_timed_to_their_end(monkeypatch):
    waited = []
    monkeypatch.setattr(gpu_solves, "synchronize", lambda: waited.append(True))
    monkeypatch.setattr(pyparareal.runtime, "GraphRuntime", Stub, raising=False)
    solves = gpu_solves.Solves("cuda")
    solves.add("m16", {**heat_problem(), "m": 16}, tol=1e-6)
    assert len(waited) == len(solves.first) == len(solves.ways) == 2
    assert solves.graphs_agree()


def heat_problem():
    from bench.yardstick import problems

    given = problems.heat(64, 7)
    return {**given, "u0": torch.from_numpy(given["u0"])}


def test_a_dense_chain_is_the_serial_one_but_for_rounding():
    matrix = torch.eye(3, dtype=torch.float64) / 2
    c = torch.full((5, 3), torch.nan, dtype=torch.float64)
    c[0] = 1
    mgrit_gpu_cases._dense(matrix, c, 2)()
    assert c[:, 0].tolist() == [1, 1 / 4, 1 / 16, 1 / 64, 1 / 256]
