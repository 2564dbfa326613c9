# SPDX-License-Identifier: BSD-3-Clause
"""Folders of PNG and JPEG images: read back exactly; sizes, modes and every error."""

import builtins
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'pyparareal[train]'")
from data_formats import pixels, require_sets, tree  # noqa: E402

from pyparareal.nn import data  # noqa: E402

CLASSES = ("ant", "bee", "cat")


def picture(image):
    """``[channels, height, width]`` as Pillow has it."""
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


def write(folder, images, labels, suffix=".png"):
    for number, (image, y) in enumerate(zip(images, labels, strict=True)):
        place = folder / CLASSES[y]
        place.mkdir(parents=True, exist_ok=True)
        picture(image).save(place / f"{number:04}{suffix}")


def source(count=60, channels=3, height=9, width=7, seed=0):
    """Sorted by class, as the folders are."""
    return pixels(count, channels, height, width, seed), np.sort(np.arange(count) % 3)


@pytest.fixture
def good(tmp_path):
    write(tmp_path / "train", *source())
    write(tmp_path / "test", *source(9, seed=1))
    return tmp_path


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_read_exactly(tmp_path, channels):
    train, test = source(channels=channels), source(12, channels, seed=1)
    write(tmp_path / "train", *train)
    write(tmp_path / "test", *test)
    (tmp_path / "train" / ".hidden").touch()
    (tmp_path / "README").touch()
    before = tree(tmp_path)
    found = data.load("folder", tmp_path)
    require_sets(found, *train, *test)
    assert found.class_names == CLASSES
    assert found.image_shape == (channels, 9, 7)
    assert tree(tmp_path) == before


def test_sets_that_are_there_are_used_and_others_split_off(tmp_path):
    write(tmp_path / "train", *source())
    found = data.load("folder", tmp_path)
    assert [len(s) for s in (found.train, found.validation, found.test)] == [42, 6, 12]
    validation = source(15, seed=2)
    write(tmp_path / "val", *validation)
    found = data.load("folder", tmp_path)
    assert [len(s) for s in (found.train, found.validation, found.test)] == [48, 15, 12]
    assert np.array_equal(found.validation.pixels.numpy(), validation[0])


def test_jpeg_is_read_as_pillow_decodes_it(good):
    image = Image.new("RGB", (7, 9), (200, 30, 90))
    image.save(good / "test" / "ant" / "0000.JPG")
    (good / "test" / "ant" / "0000.png").unlink()
    found = data.load("folder", good)
    # A uniform colour survives the cosine transform but for rounding, quantisation and the change of colour space.
    decoded = found.test.pixels[0].flatten(1).int()
    assert (decoded - torch.tensor([[200], [30], [90]])).abs().max() <= 4


def test_grey_palette_and_transparent_images_join_coloured_ones(good):
    grey = np.arange(63, dtype=np.uint8).reshape(9, 7)
    Image.fromarray(grey).save(good / "test" / "ant" / "0000.png")
    Image.new("RGBA", (7, 9), (1, 2, 3, 4)).save(good / "test" / "ant" / "0001.png")
    Image.new("RGB", (7, 9), (9, 8, 7)).convert("P", palette=Image.Palette.ADAPTIVE).save(good / "test/ant/0002.png")
    found = data.load("folder", good).test.pixels
    assert all(np.array_equal(channel, grey) for channel in found[0].numpy())
    assert found[1].flatten(1).unique(dim=1).flatten().tolist() == [1, 2, 3]
    assert found[2].flatten(1).unique(dim=1).flatten().tolist() == [9, 8, 7]


def test_different_sizes_need_a_size(good):
    other = good / "test" / "bee" / "0003.png"
    # White in the middle third, black above and below: the centre cut keeps white alone.
    tall = np.zeros((30, 10), np.uint8)
    tall[10:20] = 255
    Image.fromarray(tall).save(other)
    with pytest.raises(data.DataError, match=r"0003.png: got 10x30 pixels, expected 7x9 as .*0000.png; give an image"):
        data.load("folder", good)
    found = data.load("folder", good, image_size=10)
    assert found.image_shape == (3, 10, 10)
    assert (found.test.pixels[3] == 255).all()
    for size in (4, 16):
        found = data.load("folder", good, image_size=size)
        assert found.train.pixels.shape == (54, 3, size, size)
        # The filter reaches one pixel of the coarser of the two grids: black can reach the outer rows alone.
        assert (found.test.pixels[3, :, 1:-1] == 255).all()


def test_a_size_that_is_there_already_changes_nothing(tmp_path):
    train = source(height=8, width=8)
    write(tmp_path / "train", *train)
    plain, sized = data.load("folder", tmp_path), data.load("folder", tmp_path, image_size=8)
    assert plain.fingerprint() == sized.fingerprint()


def replaced(path, content):
    path.write_bytes(content)


WRONG = [
    (
        lambda f: shutil.rmtree(f / "test" / "cat"),
        "test: got 2 classes, no 'cat' that train has, expected the 3 of train",
    ),
    (lambda f: (f / "test" / "cat").rename(f / "test" / "dog"), "test: got 3 classes, 'dog' that train has not"),
    (lambda f: (f / "train" / "dog").mkdir(), "train/dog: got an empty folder, expected images of this class"),
    (lambda f: (f / "val").mkdir(), "val: got an empty folder, expected a folder for each class"),
    (lambda f: (f / "val").touch(), "val: got a file, expected a folder of classes"),
    (lambda f: (f / "validation").mkdir(), "got a folder 'validation', expected no other than train, val, test"),
    (lambda f: (f / "train" / "notes.txt").touch(), "train/notes.txt: got a file, expected a folder for each class"),
    (lambda f: (f / "train/ant/notes.txt").touch(), "notes.txt: expected only .png, .jpg, .jpeg files"),
    (lambda f: (f / "train/ant/more.png").mkdir(), "more.png: expected only .png, .jpg, .jpeg files"),
    (lambda f: replaced(f / "train/bee/0030.png", b""), "train/bee/0030.png: got no readable image ("),
    (
        lambda f: replaced(f / "train/bee/0030.png", b"GIF89a" + bytes(50)),
        "train/bee/0030.png: got no readable image (",
    ),
    (lambda f: [shutil.rmtree(f / "train" / c) for c in CLASSES], "train: got an empty folder, expected a folder for"),
    (
        lambda f: [shutil.rmtree(f / s / c) for s in ("train", "test") for c in CLASSES[1:]],
        "got one class, 'ant', expec",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG, ids=[row[1] for row in WRONG])
def test_wrong_folders_are_one_clear_error(good, spoil, message):
    spoil(good)
    with pytest.raises(data.DataError) as caught:
        data.load("folder", good)
    assert message in str(caught.value)
    assert str(good) in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_truncated_images(good, suffix):
    path = good / "test" / "cat" / f"9999{suffix}"
    picture(pixels(1, 3, 9, 7)[0]).save(path)
    whole = path.read_bytes()
    for length in (1, len(whole) // 4, len(whole) // 2, 3 * len(whole) // 4):
        path.write_bytes(whole[:length])
        with pytest.raises(data.DataError, match=f"9999{suffix}: got no readable image"):
            data.load("folder", good)


def test_deep_pixels_are_refused_not_clipped(good):
    Image.fromarray(np.full((9, 7), 40_000, np.uint16)).save(good / "test" / "ant" / "0000.png")
    with pytest.raises(data.DataError, match=r"0000\.png: got pixels of type I.*, expected 8 bits per channel"):
        data.load("folder", good)


def test_a_picture_of_monstrous_size_is_refused_unread(good, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    with pytest.raises(data.DataError, match=r"got no readable image \(Image size \(63 pixels\) exceeds limit"):
        data.load("folder", good)


def test_without_pillow_it_says_what_to_install(good, monkeypatch):
    real = builtins.__import__

    def without_pillow(name, *rest):
        if name.partition(".")[0] == "PIL":
            raise ImportError("No module named 'PIL'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    with pytest.raises(ImportError, match=r'data "folder" needs Pillow: pip install "pyparareal\[train\]"'):
        data.load("folder", good)
