# SPDX-License-Identifier: BSD-3-Clause
"""Connected curves: every scene is what it says, by an independent reading of its pixels."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
from pyparareal.nn import data  # noqa: E402
from pyparareal.nn.data import curves  # noqa: E402

CANVAS, LENGTH = 16, 28


@pytest.fixture(scope="module")
def images():
    return curves.scenes(600, seed=5, canvas=CANVAS, length=LENGTH)


def neighbours(cell, cells, corners):
    row, column = cell
    steps = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r or c) and (corners or not (r and c))]
    return [(row + r, column + c) for r, c in steps if (row + r, column + c) in cells]


def components(picture, corners):
    """Sets of lit pixels that hang together by edges, or by edges and corners: a flood fill."""
    left = {tuple(cell) for cell in np.argwhere(picture).tolist()}
    found = []
    while left:
        front, reached = [left.pop()], set()
        while front:
            cell = front.pop()
            reached.add(cell)
            new = neighbours(cell, left, corners)
            left -= set(new)
            front += new
        found.append(reached)
    return found


def ends(component):
    return {cell for cell in component if len(neighbours(cell, component, corners=False)) == 1}


def test_labels_are_what_a_flood_fill_says(images):
    for picture, label in zip(images.pixels.numpy(), images.y.tolist(), strict=True):
        marks = {tuple(cell) for cell in np.argwhere(picture[1]).tolist()}
        assert len(marks) == 2
        holding = [component for component in components(picture[0], corners=False) if component & marks]
        assert len(holding) == (1 if label else 2)
        assert set().union(*(component & ends(component) for component in holding)) >= marks


def test_three_chains_that_touch_nowhere(images):
    lengths = []
    for picture in images.pixels.numpy():
        found = components(picture[0], corners=True)
        assert len(found) == 3
        for component in found:
            assert len(components(picture[0], corners=False)) == 3  # nor do corners alone hold one together
            inner = [len(neighbours(cell, component, corners=False)) for cell in component]
            # A chain: two ends, every other pixel with two neighbours; so it has no fork and is no ring.
            assert sorted(inner) == [1, 1] + [2] * (len(component) - 2)
        lengths += sorted(map(len, found))
        assert min(lengths[-3:]) == LENGTH // 3  # the third curve; no other is shorter
    assert max(lengths) == LENGTH


def test_a_chain_meets_itself_at_its_corners_only(images):
    """Pixels of one curve that touch at a corner are two steps apart along it: they share a neighbour by an edge."""
    for picture in images.pixels.numpy()[:100]:
        for component in components(picture[0], corners=False):
            for cell in component:
                beside = set(neighbours(cell, component, corners=False))
                for other in set(neighbours(cell, component, corners=True)) - beside:
                    assert beside & set(neighbours(other, component, corners=False))


def test_classes_are_equally_many_and_values_two(images):
    assert images.y.tolist() == [1, 0] * 300
    assert images.pixels.dtype == torch.uint8
    assert set(images.pixels.unique().tolist()) == {0, 255}
    assert bool((images.pixels[:, 0] >= images.pixels[:, 1]).all())  # marks lie on curves


def test_marks_alone_tell_little():
    """The best rule on the distance of the marks, found on the scenes it is tried on, is right for under 2 of 3."""
    found = curves.scenes(4000, seed=6, canvas=CANVAS, length=LENGTH)
    where = torch.from_numpy(np.argwhere(found.pixels[:, 1].numpy())[:, 1:]).reshape(-1, 2, 2)
    distance = ((where[:, 0] - where[:, 1]) ** 2).sum(1)
    joined, apart = (torch.bincount(distance[found.y == label], minlength=450) for label in (1, 0))
    # Any function of the distance: the more frequent label at each value.
    assert int(torch.maximum(joined, apart).sum()) < 2 / 3 * len(found)


def test_scenes_are_a_function_of_the_arguments():
    first = curves.scenes(50, seed=1, canvas=12, length=14)
    torch.rand(3)  # what the process drew meanwhile does not matter
    assert torch.equal(curves.scenes(50, seed=1, canvas=12, length=14).pixels, first.pixels)
    assert not torch.equal(curves.scenes(50, seed=2, canvas=12, length=14).pixels, first.pixels)
    # Fewer scenes are the first ones, over a batch of attempts, too.
    many = curves.scenes(3000, seed=1, canvas=12, length=14).pixels
    assert torch.equal(many[:50], first.pixels)
    assert len(many.flatten(1).unique(dim=0)) == 3000


def test_sets_differ_and_are_scaled_by_training_images():
    found = data.connected_curves(12, train=60, held_out=40, seed=2)
    assert [len(s) for s in (found.train, found.validation, found.test)] == [60, 40, 40]
    assert not torch.equal(found.validation.pixels, found.test.pixels)
    assert not torch.equal(found.train.pixels[:40], found.test.pixels)
    assert found.image_shape == (2, 12, 12)
    assert found.classes == 2
    assert found.class_names == ("apart", "joined")
    # float32 sum of 8,640 values of about 1 per channel.
    assert float(found.train.x.mean((0, 2, 3)).abs().max()) < 1e-4
    seeds = [data.connected_curves(12, train=10, held_out=4, seed=seed).fingerprint() for seed in (0, 1, 0)]
    assert seeds[0] == seeds[2] != seeds[1]


def test_by_name_the_size_is_that_of_the_canvas(monkeypatch):
    from pyparareal.nn.data import loading

    few = {"connected_curves": lambda **options: data.connected_curves(train=20, held_out=10, **options)}
    monkeypatch.setattr(loading, "MADE", few)
    assert data.load("connected_curves").image_shape == (2, 16, 16)
    assert data.load("connected_curves", image_size=10).image_shape == (2, 10, 10)
    with pytest.raises(ValueError, match="directory: got 'there', expected none: connected_curves need no files"):
        data.load("connected_curves", "there")


WRONG = [
    ({"count": 1}, "count: got 1, expected at least 2"),
    ({"canvas": 9}, "canvas: got 9, expected at least 10"),
    ({"length": 11}, "length: got 11, expected 12 to 32 on a canvas of 16"),
    ({"length": 33}, "length: got 33, expected 12 to 32 on a canvas of 16"),
    ({"seed": -1}, r"seed: got -1, expected 0 to 2\*\*32 - 1"),
    ({"seed": 2**32}, r"seed: got 4294967296, expected 0 to 2\*\*32 - 1"),
]


@pytest.mark.parametrize(("changed", "message"), WRONG)
def test_wrong_arguments(changed, message):
    options = {"count": 10, "seed": 0, "canvas": 16, "length": 28} | changed
    with pytest.raises(ValueError, match=message):
        curves.scenes(**options)


def test_wrong_seeds_of_a_split():
    for seed in (-1, 2**30):
        with pytest.raises(ValueError, match=rf"seed: got {seed}, expected 0 to 2\*\*30 - 1"):
            data.connected_curves(seed=seed)
