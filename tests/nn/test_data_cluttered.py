# SPDX-License-Identifier: BSD-3-Clause
"""Cluttered images: the resampling against formulas, what reaches a picture and what cannot, determinism."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'pyparareal[train]'")
from pyparareal.nn import data  # noqa: E402
from pyparareal.nn.data import cluttering  # noqa: E402


@pytest.fixture(scope="module")
def digits():
    return data.digits()


@pytest.fixture(scope="module")
def cluttered():
    return data.cluttered_digits(train=2)


def resampled(image, canvas, centre, turn, side):
    rows = [np.asarray(value, float)[None] for value in (image[None], centre, turn, side)]
    return cluttering.resampled(rows[0], canvas, *rows[1:])[0, 0]


def test_resampling_of_the_same_size_in_the_middle_is_the_identity():
    image = np.random.RandomState(0).uniform(size=(5, 5))
    assert np.array_equal(resampled(image, 5, (2.5, 2.5), 0.0, 5.0), image)
    # Moved by whole pixels, zeros follow.
    moved = resampled(image, 5, (3.5, 1.5), 0.0, 5.0)
    assert np.array_equal(moved[1:, :4], image[:4, 1:])
    assert not moved[0].any()
    assert not moved[:, 4].any()


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_quarter_turn_clockwise_is_a_permutation(quarters):
    image = np.random.RandomState(0).uniform(size=(6, 6))
    found = resampled(image, 6, (3.0, 3.0), quarters * np.pi / 2, 6.0)
    # cos of a quarter is 6e-17 and not 0: 1e-15 is its effect on weights of coordinates below 8.
    assert np.allclose(found, np.rot90(image, -quarters), rtol=0, atol=1e-14)


def test_bilinear_enlargement_reproduces_planes_inside():
    """Linear interpolation is exact on ``a + b row + c column``, away from the zeros around the image."""
    row, column = np.mgrid[:8, :8] + 0.5
    found = resampled(0.2 + 0.03 * row + 0.05 * column, 24, (12.0, 12.0), 0.0, 24.0)
    fine_row, fine_column = (np.mgrid[:24, :24] + 0.5) / 3
    inside = slice(2, 22)
    expected = 0.2 + 0.03 * fine_row + 0.05 * fine_column
    assert np.allclose(found[inside, inside], expected[inside, inside], rtol=0, atol=1e-14)


def test_an_image_lies_wholly_on_its_canvas(monkeypatch):
    placed = {}
    monkeypatch.setattr(cluttering, "resampled", lambda *arguments: placed.update(arguments=arguments))
    cluttering._placed(np.ones((2000, 1, 8, 8)), 28, np.random.RandomState(0))
    _, _, centre, turn, side = placed["arguments"]
    corners = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]]) / 2
    turned = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])  # [to, from, image], clockwise
    where = centre[:, None] + np.einsum("tfn,cf,n->nct", turned, corners, side)
    assert where.min() >= -1e-12
    assert where.max() <= 28 + 1e-12
    # Every limit is nearly reached: one of 2,000 is within a hundredth of it.
    assert where.min() < 0.28
    assert where.max() > 28 - 0.28
    for values, (low, high) in ((side / 28, cluttering.SIDE), (turn, (-cluttering.TURN, cluttering.TURN))):
        width = high - low
        assert low <= values.min() < low + 0.01 * width
        assert high - 0.01 * width < values.max() <= high


def test_sets_keep_their_images_and_labels(digits, cluttered):
    for plain, found, copies in (
        (digits.train, cluttered.train, 2),
        (digits.validation, cluttered.validation, 1),
        (digits.test, cluttered.test, 1),
    ):
        assert found.pixels.shape == (copies * len(plain), 1, 28, 28)
        assert found.pixels.dtype == torch.uint8
        assert found.y.tolist() == plain.y.repeat_interleave(copies).tolist()
    assert cluttered.image_shape == (1, 28, 28)
    assert cluttered.classes == 10
    assert abs(float(cluttered.train.x.mean())) < 1e-4
    assert len(torch.unique(cluttered.train.pixels.flatten(1), dim=0)) == 2 * len(digits.train)  # copies differ


def test_clutter_is_a_function_of_its_arguments(digits):
    train = digits.train.take(torch.arange(40))
    first = data.clutter(train, train, seed=5, canvas=20, copies=3)
    torch.rand(3)  # what the process drew meanwhile does not matter
    assert torch.equal(data.clutter(train, train, seed=5, canvas=20, copies=3).pixels, first.pixels)
    assert not torch.equal(data.clutter(train, train, seed=6, canvas=20, copies=3).pixels, first.pixels)
    assert first.pixels.shape == (120, 1, 20, 20)
    assert (
        data.cluttered_digits(canvas=20, train=1).fingerprint()
        != data.cluttered_digits(20, train=1, seed=1).fingerprint()
    )


def test_nothing_of_another_set_reaches_a_set(digits):
    """Of three plain sets, two are changed: the clutter of the third stays, bit for bit."""
    import dataclasses

    few = {name: getattr(digits, name).take(torch.arange(30)) for name in ("train", "validation", "test")}
    plain = dataclasses.replace(digits, **few)
    whole = cluttering.cluttered(plain, canvas=20, train=2)
    for kept in few:
        others = {name: data.Images(images.x.flip(2), images.y) for name, images in few.items() if name != kept}
        found = cluttering.cluttered(dataclasses.replace(plain, **others), canvas=20, train=2)
        for name in few:
            assert torch.equal(getattr(found, name).pixels, getattr(whole, name).pixels) == (name == kept)


def test_every_set_and_seed_has_random_numbers_of_its_own(digits):
    """Equal images in all three sets, two seeds: six different clutters."""
    few = digits.train.take(torch.arange(10))
    plain = data.Split(few, few, few, 10)
    found = [cluttering.cluttered(plain, canvas=20, train=1, seed=seed) for seed in (0, 1)]
    pictures = [s.pixels.numpy().tobytes() for f in found for s in (f.train, f.validation, f.test)]
    assert len(set(pictures)) == 6
    for seed in (-1, 2**30):
        with pytest.raises(ValueError, match=rf"seed: got {seed}, expected 0 to 2\*\*30 - 1"):
            cluttering.cluttered(plain, seed=seed)


def test_pieces_come_from_other_images_of_the_pool(monkeypatch):
    """Image n is bright in channel n alone, so that a piece shows where it was cut."""
    count = 6
    x = torch.zeros(count, count, 8, 8)
    x[torch.arange(count), torch.arange(count)] = 1.0
    images = data.Images(x, torch.arange(count))
    monkeypatch.setattr(cluttering, "NOISE", 0.0)
    found = data.clutter(images, images, seed=0, canvas=20, copies=50)
    bright = found.pixels.flatten(2).amax(2) > 0
    assert bright[torch.arange(len(found)), found.y].all()
    assert int(bright.sum(1).min()) >= 2  # itself, and something else
    assert int(bright.sum(1).max()) <= 1 + cluttering.PIECES
    monkeypatch.setattr(
        cluttering, "_placed", lambda source, canvas, rng: np.zeros((len(source), count, canvas, canvas))
    )
    pieces = data.clutter(images, images, seed=0, canvas=20, copies=50)
    assert not pieces.pixels[torch.arange(len(pieces)), pieces.y].any()


def test_noise_has_the_stated_deviation():
    x = torch.zeros(2, 1, 8, 8)
    x[1, 0, 0, 0] = 1.0
    found = data.clutter(data.Images(x, torch.arange(2)), data.Images(x, torch.arange(2)), seed=0, canvas=64, copies=4)
    values = found.pixels.flatten().double() / 255
    # Half of it is cut off at black: the median of the bright half of a normal distribution is 0.6745 deviations.
    bright = values[values > 0]
    assert float(bright.median()) == pytest.approx(0.6745 * cluttering.NOISE, rel=0.05)


WRONG = [
    ({"canvas": 7}, "canvas: got 7, expected at least 8, the side of an image"),
    ({"copies": 0}, "copies: got 0, expected at least 1"),
    ({"seed": -1}, r"seed: got -1, expected 0 to 2\*\*32 - 1"),
    ({"seed": 2**32}, r"seed: got 4294967296, expected 0 to 2\*\*32 - 1"),
]


@pytest.mark.parametrize(("changed", "message"), WRONG)
def test_wrong_arguments(digits, changed, message):
    options = {"seed": 0, "canvas": 20, "copies": 1} | changed
    with pytest.raises(ValueError, match=message):
        data.clutter(digits.test, digits.test, **options)


def test_wrong_pools(digits):
    options = {"seed": 0, "canvas": 20, "copies": 1}
    one = digits.test.take(torch.tensor([0]))
    with pytest.raises(ValueError, match="pool: got 1 images for 355, expected at least 2"):
        data.clutter(digits.test, one, **options)
    other = data.Images(torch.zeros(3, 3, 8, 8), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"pool: got images of shape \[3, 8, 8\], expected \[1, 8, 8\] as images"):
        data.clutter(digits.test, other, **options)
    dark = data.Images(torch.zeros(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="pool: got images of one grey level"):
        data.clutter(dark, dark, **options)


def test_by_name_the_size_is_that_of_the_canvas():
    assert data.load("cluttered_digits", image_size=24).image_shape == (1, 24, 24)


def test_a_linear_model_does_badly(cluttered):
    """Ridge regression on the pixels, the best of five penalties on the test images themselves, misses 7 of 10."""
    x, test = (
        torch.cat([s.x.flatten(1), torch.ones(len(s), 1)], 1).double() for s in (cluttered.train, cluttered.test)
    )
    targets = torch.nn.functional.one_hot(cluttered.train.y, 10).double()
    best = 0.0
    for penalty in (1e1, 1e2, 1e3, 1e4, 1e5):
        weights = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=torch.float64), x.T @ targets)
        best = max(best, float(((test @ weights).argmax(1) == cluttered.test.y).double().mean()))
    assert 0.1 < best < 0.3
