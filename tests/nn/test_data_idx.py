# SPDX-License-Identifier: BSD-3-Clause
"""MNIST and Fashion-MNIST: IDX files, plain or .gz, read back exactly; every error."""

import gzip
import struct

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
from data_formats import idx, pixels, require_sets, tree  # noqa: E402

from pyparareal.nn import data  # noqa: E402

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
X, Y = pixels(120, 1, 28, 28), (np.arange(120) * 7 % 10).astype(np.uint8)
TEST_X, TEST_Y = pixels(30, 1, 28, 28, seed=1), (np.arange(30) % 10).astype(np.uint8)
FILES = {IMAGES: idx(X[:, 0]), LABELS: idx(Y), TEST_IMAGES: idx(TEST_X[:, 0]), TEST_LABELS: idx(TEST_Y)}


def write(folder, files, packed=()):
    for name, content in files.items():
        path = folder / (f"{name}.gz" if name in packed else name)
        path.write_bytes(gzip.compress(content) if name in packed else content)
    return folder


def test_the_writer_follows_the_published_example():
    # "The MNIST database": magic 2051 and 2049, number of items, rows, columns, then unsigned bytes.
    assert struct.unpack(">4I", FILES[IMAGES][:16]) == (2051, 120, 28, 28)
    assert struct.unpack(">2I", FILES[LABELS][:8]) == (2049, 120)


@pytest.mark.parametrize("packed", [(), tuple(FILES), (IMAGES, TEST_LABELS)], ids=["plain", "gz", "some"])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_images_and_labels_are_read_exactly(tmp_path, name, packed):
    before = tree(write(tmp_path, FILES, packed))
    found = data.load(name, tmp_path)
    require_sets(found, X, Y, TEST_X, TEST_Y)
    assert tree(tmp_path) == before
    assert found.image_shape == (1, 28, 28)
    assert found.test.pixels[1, 0, 0, 2] == FILES[TEST_IMAGES][16 + 784 + 2]
    assert found.class_names[9:] == (("Ankle boot",) if name == "fashion_mnist" else ())
    assert abs(float(found.train.x.mean())) < 1e-5


def with_header(content, *numbers):
    return struct.pack(f">{len(numbers)}I", *numbers) + content[4 * len(numbers) :]


WRONG = [
    (IMAGES, FILES[LABELS], "got 00000801 as magic number, expected 00000803"),
    (LABELS, FILES[IMAGES], "got 00000803 as magic number, expected 00000801"),
    (IMAGES, with_header(FILES[IMAGES], 0x0D03), "got 00000d03 as magic number, expected 00000803"),  # floats
    (IMAGES, FILES[IMAGES][3::-1] + FILES[IMAGES][4:], "got 03080000 as magic number"),
    (IMAGES, gzip.compress(FILES[IMAGES]), "got 1f8b08"),  # packed, but not called so
    (IMAGES, b"", "got nothing as magic number"),
    (IMAGES, FILES[IMAGES][:10], "got 10 bytes, expected 16 of dimensions alone"),
    (IMAGES, FILES[IMAGES][:-1], "got 94,079 bytes, expected 94,080; it is truncated"),
    (IMAGES, FILES[IMAGES][:-784], "got 93,296 bytes, expected 94,080"),
    (IMAGES, FILES[IMAGES] + b"x", "got more than 94,080 bytes, expected 94,080"),
    (IMAGES, with_header(FILES[IMAGES], 2051, 119), "got more than 93,296 bytes"),
    # Dimensions that ask for 2**96 bytes are refused without asking for memory.
    (IMAGES, with_header(FILES[IMAGES], 2051, *3 * [2**32 - 1]), "got 94,080 bytes, expected 79,228,162,458,924,105"),
    (IMAGES, with_header(FILES[IMAGES], 2051, 0), "got dimensions [0, 28, 28], expected all at least 1"),
    (LABELS, idx(Y[:-1]), "got 119 labels, expected 120 as images in train-images-idx3-ubyte"),
    (LABELS, idx(np.where(np.arange(120) == 77, 10, Y).astype(np.uint8)), "got label 10 in record 77, expected 0 to 9"),
    (TEST_IMAGES, idx(TEST_X[:, 0, :, :27]), "got images of 28x27 pixels, expected 28x28 as in train-images"),
]


@pytest.mark.parametrize(("name", "content", "message"), WRONG, ids=[row[2] for row in WRONG])
def test_wrong_files_are_one_clear_error(tmp_path, name, content, message):
    with pytest.raises(data.DataError) as caught:
        data.load("mnist", write(tmp_path, FILES | {name: content}))
    assert message in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_a_class_without_training_images(tmp_path):
    files = FILES | {LABELS: idx(np.where(Y == 4, 3, Y).astype(np.uint8))}
    with pytest.raises(data.DataError, match="got no training image of class 4, expected all 10 classes"):
        data.load("mnist", write(tmp_path, files))


def test_damaged_gz_is_an_error_or_changes_nothing(tmp_path):
    path = write(tmp_path, FILES, (IMAGES,)) / f"{IMAGES}.gz"
    whole, good = path.read_bytes(), data.load("mnist", tmp_path).fingerprint()
    rng, refused = np.random.RandomState(0), 0
    for length in (1, 5, 12, *rng.randint(12, len(whole), 20), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(data.DataError, match="truncated"):
            data.load("mnist", tmp_path)
    for at in (*range(10), *rng.randint(10, len(whole), 30), *range(len(whole) - 8, len(whole))):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randint(8)
        path.write_bytes(damaged)
        try:
            assert data.load("mnist", tmp_path).fingerprint() == good
        except data.DataError:
            refused += 1
    assert refused >= 38  # every one behind the header of ten bytes


def test_missing_files_are_named(tmp_path):
    write(tmp_path, {name: FILES[name] for name in (IMAGES, TEST_IMAGES)})
    with pytest.raises(FileNotFoundError, match=f"expected {LABELS} and {TEST_LABELS}, plain or .gz; .*Yann LeCun"):
        data.load("mnist", tmp_path)
    with pytest.raises(FileNotFoundError, match="Zalando Research"):
        data.load("fashion_mnist", tmp_path)
