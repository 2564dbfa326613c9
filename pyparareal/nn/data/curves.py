# SPDX-License-Identifier: BSD-3-Clause
"""Connected curves: does one curve join two marked points? A task in which a line has to be followed, made in memory.

After the Pathfinder task of Linsley et al. (2018), section 3, on a small grid and with curves that nowhere touch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from .images import Images, Split, standardised

STRAIGHT = 0.5  # chance to go straight on where that is possible
CLASS_NAMES = ("apart", "joined")
BATCH = 4096  # scenes drawn at a time
MOVES = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]])

Grid = NDArray[np.bool_]
Points = NDArray[np.int64]


def connected_curves(
    canvas: int = 16, *, length: int | None = None, train: int = 19200, held_out: int = 4800, seed: int = 0
) -> Split:
    """Training, validation and test images of :func:`scenes`, each set with random numbers of its own.

    ``held_out`` is the size of the validation set and of the test set; ``length`` defaults to a ninth of the canvas.
    """
    if not 0 <= seed < 2**30:
        raise ValueError(f"seed: got {seed}, expected 0 to 2**30 - 1")
    length = max(12, canvas**2 // 9) if length is None else length
    counts = (train, held_out, held_out)
    sets = [scenes(count, 3 * seed + number, canvas, length) for number, count in enumerate(counts)]
    return standardised(sets[0], sets[1], sets[2], 2, CLASS_NAMES)


def scenes(count: int, seed: int, canvas: int, length: int) -> Images:
    """``count`` scenes ``[count, 2, canvas, canvas]`` uint8: channel 0 the curves, channel 1 two marked ends of them.

    In each scene lie two curves of ``length // 3`` to ``length`` pixels and a third of ``length // 3``, none of which
    touches another. Label 1: the marks are the two ends of the first curve; label 0: an end of each of the first two,
    those whose distance is nearest to the distance of the two ends of the first. A curve is a chain of pixels with
    common edges, and touches itself, by edge or corner, only where it turns. Even images are joined, odd ones are
    not. A function of the arguments alone.

    Parameters
    ----------
    count : int, at least 2
    seed : int, 0 to 2**32 - 1
    canvas : int, at least 10
    length : int, 12 to canvas**2 // 8
        In pixels; more would hardly find room.
    """
    if count < 2:
        raise ValueError(f"count: got {count}, expected at least 2")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: got {seed}, expected 0 to 2**32 - 1")
    if canvas < 10:
        raise ValueError(f"canvas: got {canvas}, expected at least 10")
    if not 12 <= length <= canvas**2 // 8:
        raise ValueError(f"length: got {length}, expected 12 to {canvas**2 // 8} on a canvas of {canvas}")
    rng = np.random.RandomState(seed)  # a frozen stream
    grids, ends, missing = [], [], count
    while missing > 0:
        drawn, drawn_ends = _attempts(BATCH, canvas, length, rng)
        grids.append(drawn[:missing])
        ends.append(drawn_ends[:missing])
        missing -= len(drawn)
    pixels = np.zeros((count, 2, canvas, canvas), dtype=np.uint8)
    pixels[:, 0] = 255 * np.concatenate(grids)
    where = np.concatenate(ends)  # [count, curve, end, row or column]
    y = 1 - np.arange(count) % 2
    marks = np.where(y[:, None, None] == 1, where[:, 0], _apart(where))
    for point in (marks[:, 0], marks[:, 1]):
        pixels[np.arange(count), 1, point[:, 0], point[:, 1]] = 255
    return Images(torch.from_numpy(pixels), torch.from_numpy(y))


def _apart(where: Points) -> Points:
    """An end of each curve, as nearly as the four choices allow so far apart as the ends of the first curve."""
    pairs = np.stack([np.stack([where[:, 0, i], where[:, 1, j]], axis=1) for i in (0, 1) for j in (0, 1)], axis=1)
    far = ((pairs[:, :, 0] - pairs[:, :, 1]) ** 2).sum(2) ** 0.5
    wanted = ((where[:, 0, 0] - where[:, 0, 1]) ** 2).sum(1) ** 0.5
    return pairs[np.arange(len(where)), np.abs(far - wanted[:, None]).argmin(1)]


def _attempts(count: int, canvas: int, length: int, rng: np.random.RandomState) -> tuple[Grid, Points]:
    """Those of ``count`` attempts in which all curves found room: grids, and ends ``[scenes, 2 curves, 2 ends, 2]``."""
    # One ring of cells around the canvas saves all questions about its border.
    taken = np.zeros((count, canvas + 2, canvas + 2), dtype=bool)
    whole, ends = np.ones(count, dtype=bool), []
    # Short curves are easy and found first; without them nothing was learnt from 10,000 scenes of 24 pixels a curve.
    lengths = rng.randint(length // 3, length + 1, size=(2, count))
    for cells in (*lengths, np.full(count, length // 3)):
        done, found = _curve(taken, cells, rng)
        whole &= done
        ends.append(found)
    return taken[whole, 1:-1, 1:-1], np.stack(ends[:2], axis=1)[whole] - 1


def _curve(taken: Grid, cells: Points, rng: np.random.RandomState) -> tuple[Grid, Points]:
    """Draw a curve of ``cells [scenes]`` pixels into each scene of ``taken``; where that worked, and its two ends."""
    count, side = len(taken), taken.shape[1]
    scene = np.arange(count)
    head = rng.randint(1, side - 1, size=(count, 2))
    going: Grid = _around(taken, head).sum(1) == 0
    taken[scene[going], head[going, 0], head[going, 1]] = True
    start, before = head.copy(), head.copy()
    heading = rng.randint(4, size=count)
    for drawn in range(1, int(cells.max())):
        longer = going & (drawn < cells)
        free = np.stack([_free(taken, head, before, head + move) for move in MOVES], axis=1)
        wish = rng.uniform(size=(count, 4))
        wish[scene, heading] += rng.uniform(size=count) < STRAIGHT
        heading = np.where(free, wish, -1.0).argmax(1)
        going &= ~longer | free.any(1)
        longer &= going
        before = np.where(longer[:, None], head, before)
        head = np.where(longer[:, None], head + MOVES[heading], head)
        taken[scene[longer], head[longer, 0], head[longer, 1]] = True
    return going, np.stack([start, head], axis=1)


def _free(taken: Grid, head: Points, before: Points, target: Points) -> Grid:
    """Whether a curve at ``head``, which came from ``before``, may go on to ``target`` without touching anything."""
    side = taken.shape[1]
    inside = ((target > 0) & (target < side - 1)).all(1)
    target = np.where(inside[:, None], target, head)
    own = 1 + ((np.abs(before - target).max(1) <= 1) & (before != head).any(1)).astype(np.int64)
    around = _around(taken, target)
    return inside & ~around[:, 4] & (around.sum(1) == own)  # 4 is the target itself


def _around(taken: Grid, centre: Points) -> Grid:
    """The 3 x 3 cells around ``centre`` of each scene, ``[scenes, 9]``."""
    down, right = np.divmod(np.arange(9), 3)
    row, column = centre[:, :1] + down - 1, centre[:, 1:] + right - 1
    return taken[np.arange(len(taken))[:, None], row, column]
