# SPDX-License-Identifier: BSD-3-Clause
"""The time axis: what belongs to a slice, and one error for each wrong argument."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyparareal.time_grid import TimeGrid, count_points, part_of_points

grids = st.tuples(st.integers(1, 60), st.integers(1, 60)).filter(lambda pair: pair[1] <= pair[0])


def indices(points, steps=10**6):
    return list(range(*points.indices(steps + 1)))


def test_points_and_steps_of_a_uniform_grid():
    grid = TimeGrid(-1, 1, 8)
    np.testing.assert_allclose(grid.times(), np.linspace(-1, 1, 9), rtol=1e-15, atol=1e-16)
    assert grid.dt(slice(0, 3, 1)) == 0.25
    assert grid.times(slice(2, 7, 2)).tolist() == [-0.5, 0.0, 0.5]
    assert TimeGrid(0.1, 0.7, 3).times()[-1] == 0.7  # t0 + (t1 - t0) would be 0.7 + 1e-16
    assert TimeGrid(0, 0.3, 7).times()[-1] == 0.3


def test_points_and_steps_of_a_non_uniform_grid():
    times = np.array([0.0, 1.0, 1.5, 4.0])
    grid = TimeGrid.from_times(times)
    times[1] = 9  # the grid has its own copy
    assert not grid.uniform
    assert grid.times().tolist() == [0.0, 1.0, 1.5, 4.0]
    assert grid.dt(slice(0, 3, 2)).tolist() == [1.0, 2.5]
    with pytest.raises(ValueError, match="read-only"):
        grid.times()[0] = 3


@given(grids)
def test_c_points_and_f_points_are_all_points(pair):
    steps, m = pair
    grid = TimeGrid(0, 1, steps)
    c = indices(grid.c_points(m), steps)
    assert c == [n * m for n in range(steps // m + 1)]
    f = [i for j in range(1, m) for i in indices(grid.f_points(m, j), steps)]
    assert sorted(c + f) == list(range(steps + 1))


@given(grids)
def test_starts_are_the_points_each_step_begins_from(pair):
    steps, m = pair
    grid, slices = TimeGrid(0, 1, steps), steps // m
    for j in range(m):
        for first in range(slices + 1):
            assert indices(grid.starts(m, first, j=j)) == [n * m + j for n in range(first, slices)]
    assert indices(grid.starts(m)) == [n * m for n in range(slices)]
    assert grid.slices(m) == slices


@given(grids)
def test_coarsening_remembers_trailing_points(pair):
    steps, m = pair
    assert TimeGrid(0, 1, steps).trailing == TimeGrid.from_times([0.0, 1.0]).trailing == 0
    for grid in (TimeGrid(0.3, 2.3, steps), TimeGrid.from_times(np.cumsum(np.arange(1, steps + 2)) / 7)):
        coarse = grid.coarsen(m)
        assert coarse.steps == steps // m
        assert coarse.trailing == steps - coarse.steps * m
        assert coarse.uniform == grid.uniform
        np.testing.assert_allclose(coarse.times(), grid.times(grid.c_points(m)), rtol=1e-15)
        assert coarse.times()[-1] == grid.times(grid.c_points(m))[-1]


def test_parts_of_points():
    points = slice(3, 20, 4)  # 3 7 11 15 19
    assert count_points(points) == 5
    assert indices(part_of_points(points, 1, 3)) == [7, 11]
    assert indices(part_of_points(points, 2, 2)) == []
    assert indices(part_of_points(points, 0, 5)) == indices(points)


def test_immutable_comparable_and_picklable():
    grid, other = TimeGrid(0, 1, 4), TimeGrid.from_times([0, 0.25, 0.5, 0.75, 1])
    with pytest.raises(AttributeError, match="immutable"):
        grid.steps = 5
    assert grid == TimeGrid(0.0, 1.0, 4)
    assert hash(grid) == hash(TimeGrid(0.0, 1.0, 4))
    assert grid != other
    assert grid != TimeGrid(0, 1, 5)
    assert other != TimeGrid.from_times([0, 0.2, 0.5, 0.75, 1])
    assert grid != 4
    for each in (grid, other, TimeGrid(0, 1, 7).coarsen(2)):
        again = pickle.loads(pickle.dumps(each))
        assert again == each
        assert again.trailing == each.trailing
        assert copy.deepcopy(each) == each
    assert repr(other) == "TimeGrid(t0=0.0, t1=1.0, steps=4, non-uniform)"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1, 1, 4), ValueError, "t1: got 1.0"),
        ((2, 1, 4), ValueError, "t1: got 1.0"),
        ((float("nan"), 1, 4), ValueError, "t0: got nan"),
        ((0, float("inf"), 4), ValueError, "t1: got inf"),
        (("a", 1, 4), TypeError, "t0: got 'a'"),
        ((0, 1, 0), ValueError, "steps: got 0"),
        ((0, 1, -3), ValueError, "steps: got -3"),
        ((0, 1, 2.5), TypeError, r"steps: got 2\.5"),
        ((0, 1, True), TypeError, "steps: got True"),
    ],
)
def test_wrong_uniform_grid(arguments, error, message):
    with pytest.raises(error, match=message):
        TimeGrid(*arguments)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1.0], "at least two"),
        ([[0.0, 1.0]], "one axis"),
        ([0.0, float("nan"), 1.0], "nan at index 1"),
        ([0.0, float("nan"), float("nan")], "nan at index 1"),
        ([0.0, 1.0, float("inf"), float("nan")], "inf at index 2"),
        ([0.0, 2.0, 1.0], "2.0 followed by 1.0 at index 1"),
        ([0.0, 0.5, 0.2, 0.1], "0.5 followed by 0.2 at index 1"),
        ([0.0, 0.0], "0.0 followed by 0.0 at index 0"),
    ],
)
def test_wrong_times(times, message):
    with pytest.raises(ValueError, match=message):
        TimeGrid.from_times(times)


def test_wrong_factor_and_range():
    grid = TimeGrid(0, 1, 6)
    for call in (grid.slices, grid.coarsen, grid.c_points, grid.starts):
        with pytest.raises(ValueError, match="m: got 0"):
            call(0)
        with pytest.raises(ValueError, match="m: got 7, expected at most the 6"):
            call(7)
        with pytest.raises(TypeError, match=r"m: got 1\.5"):
            call(1.5)
    with pytest.raises(ValueError, match="j: got 3, expected less than m = 3"):
        grid.f_points(3, 3)
    with pytest.raises(ValueError, match="expected 0 <= first <= last <= 2"):
        grid.starts(3, 2, 1)
