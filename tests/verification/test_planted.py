# SPDX-License-Identifier: BSD-3-Clause
"""What was planted is found, by name and place; where nothing is wrong nothing is said."""

import numpy as np
import pytest

pytest.importorskip("torch")

from bench.verify import CLEAN, PLANTED, chains, unseen_clean, unseen_rules, unseen_steps
from bench.verify.trial import alarm, found
from pyparareal import verify
from pyparareal.propagators import Map
from pyparareal.verification import Fault

QUICK = [name for name in CLEAN if "," not in name] + ["decay, parareal, float32", "heat-1d, mgrit, float64"]


@pytest.mark.parametrize("one", PLANTED, ids=lambda one: one.name)
def test_found_by_name_and_place(one):
    right, said = found(one)
    assert right, f"expected {' or '.join(one.faults)} {one.place}, got {said}"


@pytest.mark.parametrize("name", QUICK)
def test_nothing_wrong(name):
    assert alarm(name, CLEAN[name]) == ""


def test_every_fault_is_planted_somewhere():
    planted = {fault for one in PLANTED for fault in one.faults}
    assert {fault.name for fault in Fault} - planted == {"ROUNDING", "UNEXPLAINED"}
    assert len(PLANTED) >= 30
    assert len(CLEAN) >= 30
    assert all(module.__doc__ for module in (unseen_clean, unseen_rules, unseen_steps))


# How small a fault may be and still be told from rounding


def coupled(size, dtype):
    a = np.random.default_rng(3).standard_normal((24, 24)).astype(dtype) / 5
    step, u0, more = chains.solve_of(
        lambda u: 0.5 * u + 0.3 * np.tanh(u @ a) + dtype(size) * u.mean(0, keepdims=True),
        shape=(2, 24),
        coarse=lambda u: (u / 16).astype(dtype),
    )
    return verify(step, u0.astype(dtype), **more)


@pytest.mark.parametrize(("dtype", "size"), [(np.float64, 1e-11), (np.float64, 1e-3), (np.float32, 1e-3)])
def test_neighbours_are_told_from_rounding(dtype, size):
    # The matrix product rounds otherwise for other numbers of rows: some units of rounding, 1e-16 or 1e-7 of the state.
    assert [f.fault for f in coupled(size, dtype).faults] == [Fault.BATCH_NEIGHBOURS]
    assert coupled(0, dtype).ok


@pytest.mark.parametrize("bits", [24, 40])
def test_noise_of_a_narrower_mantissa(bits):
    """Rounded to so many bits in the middle: found as long as it is well above rounding."""

    def rounded(u):
        mantissa, exponent = np.frexp(np.sin(u))
        return 0.9 * np.ldexp(np.round(mantissa * 2.0**bits), exponent - bits) + 0.05

    found = verify(*chains.solve_of(rounded)[:2], **chains.solve_of(rounded)[2])
    assert (Fault.NARROWED_DTYPE in [f.fault for f in found.faults]) == (bits == 24)


@pytest.mark.parametrize("point", [5, 14, 23])
def test_the_place_follows_the_fault(point):
    wrong = chains.At(lambda u: chains.smooth(u).astype(np.float32).astype(np.float64), point)
    step, u0, more = chains.solve_of(wrong)
    (fault,) = verify(step, u0, **more).faults
    assert (fault.slice, fault.step) == divmod(point, 4)
    assert f"point {point}" in fault.words


def test_the_point_that_was_used_is_said():
    step, u0, more = chains.solve_of(chains.Forcing(lambda p: p.start))
    (fault,) = verify(step, u0, **more).faults
    assert fault.numbers["point_used"] == 0
    assert "asked for was point 4" in fault.evidence


def test_an_unexplained_difference_is_never_passed_over(monkeypatch):
    """A method that is wrong itself: no probe can say why, but the comparison does not let it pass."""
    from pyparareal.verification import solves

    honest = solves.solve

    def spoilt(*args, **more):
        solution = honest(*args, **more)
        solution.u[9] += 1e-3
        return solution

    monkeypatch.setattr(solves, "solve", spoilt)
    step, u0, more = chains.solve_of(Map(chains.smooth, batch_invariant=True))
    result = verify(step, u0, **more)
    (fault,) = result.faults
    assert fault.fault is Fault.UNEXPLAINED
    assert (fault.slice, fault.step) == (2, 0)
    assert result.comparisons[0].first_bad.largest == pytest.approx(1e-3)
