# SPDX-License-Identifier: BSD-3-Clause
"""Cluttered images: each turned, enlarged and put somewhere on a canvas, among pieces of other images and noise.

After the cluttered MNIST task of Mnih et al. (2014), section 4, from data at hand.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from .images import Images, Split, standardised

Floats = NDArray[np.float64]

TURN = np.pi / 12  # 15 degrees: a 6 stays a 6, and a 7 no 1
SIDE = (0.5, 0.65)  # of an image on the canvas, as a share of it
PIECES = 4  # of other images around each one
PIECE = 0.4  # side of a piece, as a share of the image it is cut from
NOISE = 0.1  # standard deviation, as a share of the range of grey levels


def cluttered(plain: Split, *, canvas: int = 28, train: int = 4, held_out: int = 1, seed: int = 0) -> Split:
    """The same three sets in clutter, each with pieces of its own images only; scaled by the new training images.

    ``train`` and ``held_out`` are the copies of each training image and of each validation and test image.
    """
    if not 0 <= seed < 2**30:
        raise ValueError(f"seed: got {seed}, expected 0 to 2**30 - 1")
    sets = [
        clutter(images, images, seed=3 * seed + number, canvas=canvas, copies=copies)
        for number, (images, copies) in enumerate(
            ((plain.train, train), (plain.validation, held_out), (plain.test, held_out))
        )
    ]
    return standardised(sets[0], sets[1], sets[2], plain.classes, plain.class_names)


def clutter(images: Images, pool: Images, seed: int, canvas: int, copies: int) -> Images:
    """``copies`` versions of every image, ``[count * copies, channels, canvas, canvas]`` uint8, labels kept.

    An image spans 0.5 to 0.65 of the canvas, turned by up to 15 degrees, wholly inside. Four pieces of ``pool``
    lie around and over it (the brighter value wins) and normal noise is added. Position, turn, size, pieces and
    noise are functions of the arguments alone, and versions of one image are neighbours in the result.

    Parameters
    ----------
    images : what is to be recognised
        The darkest value of ``pool`` is the background.
    pool : where pieces come from; may be ``images``, no image gets pieces of itself
        For images to train on: training images only, so that nothing is seen of the others.
    seed : int, 0 to 2**32 - 1
    canvas : int, at least the side of an image
    copies : int, at least 1
    """
    _require(images, pool, seed, canvas, copies)
    rng = np.random.RandomState(seed)  # a frozen stream
    low, high = float(pool.x.min()), float(pool.x.max())
    source, others = (((s.x.double().numpy() - low) / (high - low)).clip(0, 1) for s in (images, pool))
    source = np.repeat(source, copies, axis=0)
    scene = _placed(source, canvas, rng)
    for _ in range(PIECES):
        scene = np.maximum(scene, _pieces(source, others, canvas, rng))
    scene += rng.normal(0.0, NOISE, scene.shape)
    pixels = np.rint(scene.clip(0, 1) * 255).astype(np.uint8)
    return Images(torch.from_numpy(pixels), images.y.repeat_interleave(copies))


def _require(images: Images, pool: Images, seed: int, canvas: int, copies: int) -> None:
    shape, other = tuple(images.pixels.shape[1:]), tuple(pool.pixels.shape[1:])
    if shape != other:
        raise ValueError(f"pool: got images of shape {list(other)}, expected {list(shape)} as images")
    if canvas < max(shape[1:]):
        raise ValueError(f"canvas: got {canvas}, expected at least {max(shape[1:])}, the side of an image")
    if copies < 1:
        raise ValueError(f"copies: got {copies}, expected at least 1")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: got {seed}, expected 0 to 2**32 - 1")
    if not len(images) or len(pool) < 2:
        raise ValueError(f"pool: got {len(pool)} images for {len(images)}, expected at least 2 for at least 1")
    if not float(pool.x.max()) > float(pool.x.min()):
        raise ValueError("pool: got images of one grey level, expected bright ones on a dark ground")


def _placed(source: Floats, canvas: int, rng: np.random.RandomState) -> Floats:
    """Every image somewhere on a canvas of its own, wholly inside."""
    count = len(source)
    side = canvas * rng.uniform(*SIDE, count)
    turn = rng.uniform(-TURN, TURN, count)
    # A turned square of this side reaches so far from its centre.
    reach = side / 2 * (np.cos(turn) + np.abs(np.sin(turn)))
    centre = reach[:, None] + rng.uniform(size=(count, 2)) * np.maximum(canvas - 2 * reach, 0)[:, None]
    return resampled(source, canvas, centre, turn, side)


def _pieces(source: Floats, others: Floats, canvas: int, rng: np.random.RandomState) -> Floats:
    """For every image a square cut out of another one, turned in any direction, anywhere on the canvas."""
    count, (height, width) = len(source), others.shape[2:]
    which = rng.randint(len(others), size=count)
    same = (others[which] == source).all(axis=(1, 2, 3))
    which[same] = (which[same] + 1) % len(others)
    cut = max(1, round(PIECE * height)), max(1, round(PIECE * width))
    top, left = (
        rng.randint(0, whole - part + 1, size=(count, 1)) for whole, part in zip((height, width), cut, strict=True)
    )
    rows, columns = top + np.arange(cut[0]), left + np.arange(cut[1])
    piece = others[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].transpose(0, 3, 1, 2)
    side = canvas * rng.uniform(*SIDE, count) * PIECE
    turn, centre = rng.uniform(-np.pi, np.pi, count), canvas * rng.uniform(size=(count, 2))
    return resampled(piece, canvas, centre, turn, side)


def resampled(source: Floats, canvas: int, centre: Floats, turn: Floats, side: Floats) -> Floats:
    """Image ``n`` enlarged to ``side[n]`` pixels, turned clockwise by ``turn[n]``, its middle at ``centre[n]``.

    ``source [count, channels, height, width]`` to ``[count, channels, canvas, canvas]``, bilinear, zero outside. Pixel
    ``i`` covers ``i`` to ``i + 1``; ``centre`` is (row, column). ``side`` is that of the longer edge.
    """
    count, channels, height, width = source.shape
    middle = np.arange(canvas) + 0.5
    row = (middle[None, :, None] - centre[:, 0, None, None]) + np.zeros((1, 1, canvas))
    column = (middle[None, None, :] - centre[:, 1, None, None]) + np.zeros((1, canvas, 1))
    scale = (max(height, width) / side)[:, None, None]
    cos, sin = np.cos(turn)[:, None, None] * scale, np.sin(turn)[:, None, None] * scale
    # Back from the canvas to the source, in pixels of the source; the ring of zeros shifts it by one.
    r = cos * row - sin * column + height / 2 + 0.5
    c = sin * row + cos * column + width / 2 + 0.5
    ringed = np.pad(source, ((0, 0), (0, 0), (1, 1), (1, 1)))
    outside = (r <= 0) | (r >= height + 1) | (c <= 0) | (c >= width + 1)
    r, c = np.where(outside, 0.0, r), np.where(outside, 0.0, c)
    top, left = r.astype(np.int64), c.astype(np.int64)
    down, right = (r - top)[:, None], (c - left)[:, None]
    flat = ringed.reshape(count, channels, -1)

    def tap(dy: int, dx: int) -> Floats:
        index = ((top + dy) * (width + 2) + left + dx).reshape(count, 1, -1)
        return np.take_along_axis(flat, index, axis=2).reshape(count, channels, canvas, canvas)

    upper = tap(0, 0) * (1 - right) + tap(0, 1) * right
    lower = tap(1, 0) * (1 - right) + tap(1, 1) * right
    return upper * (1 - down) + lower * down
