# SPDX-License-Identifier: BSD-3-Clause
"""SVHN: MATLAB 5 files, compressed or not, read back exactly; every error."""

import builtins

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
pytest.importorskip("scipy", reason="SciPy is not installed: pip install 'pyparareal[train]'")
from data_formats import mat, pixels, require_sets, tree  # noqa: E402

from pyparareal.nn import data  # noqa: E402

TRAIN, TEST = "train_32x32.mat", "test_32x32.mat"
X, Y = pixels(110, 3, 32, 32), (np.arange(110) * 3 % 10 + 1).astype(np.uint8)  # 1 to 10
TEST_X, TEST_Y = pixels(12, 3, 32, 32, seed=1), np.array([10, *range(1, 11), 10], np.uint8)


def content(x=X, y=Y, compressed=False):
    return mat(compressed, X=np.transpose(x, (2, 3, 1, 0)), y=y[:, None])  # [height, width, channel, count]


GOOD, GOOD_TEST = content(), content(TEST_X, TEST_Y)


def write(folder, train=GOOD, test=GOOD_TEST):
    (folder / TRAIN).write_bytes(train)
    (folder / TEST).write_bytes(test)
    return folder


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_images_are_read_exactly_and_ten_is_a_zero(tmp_path, compressed, kind):
    files = (content(x, y.astype(kind), compressed) for x, y in ((X, Y), (TEST_X, TEST_Y)))
    before = tree(write(tmp_path, *files))
    found = data.load("svhn", tmp_path)
    require_sets(found, X, Y % 10, TEST_X, TEST_Y % 10)
    assert found.test.y.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0]
    assert found.image_shape == (3, 32, 32)
    assert tree(tmp_path) == before


def wrong_labels(value, at=5, kind=np.uint8):
    y = Y.astype(kind)
    y[at] = value
    return content(y=y)


X_MAT = np.transpose(X, (2, 3, 1, 0))
WRONG = [
    (mat(X=X_MAT), "got no variable y, expected X and y"),
    (mat(y=Y[:, None]), "got no variable X, expected X and y"),
    (
        mat(X=X_MAT.astype(np.float64), y=Y[:, None]),
        "got X float64 [32, 32, 3, 110], expected uint8 [32, 32, 3, count]",
    ),
    (
        mat(X=X_MAT.transpose(3, 2, 0, 1), y=Y[:, None]),
        "got X uint8 [110, 3, 32, 32], expected uint8 [32, 32, 3, count]",
    ),
    (mat(X=X_MAT[..., 0], y=Y[:, None]), "got X uint8 [32, 32, 3], expected"),
    (mat(X=X_MAT, y=Y[:-1, None]), "got y uint8 [109, 1], expected 110 labels as X has images"),
    (wrong_labels(11), "got label 11 in record 5, expected 1 to 10"),
    (wrong_labels(0), "got label 0 in record 5, expected 1 to 10"),
    (wrong_labels(1.5, kind=np.float64), "got labels that are no integers, expected 1 to 10"),
    (wrong_labels(np.nan, kind=np.float64), "got labels that are no integers, expected 1 to 10"),
    (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512), "got a MATLAB 7.3 file, expected MATLAB 5"),
    (b"", "got a damaged or truncated file"),
    (bytes(1000), "got a damaged or truncated file"),
    (b"<html>not here</html>" * 20, "got a damaged or truncated file"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[row[1] for row in WRONG])
@pytest.mark.parametrize("name", [TRAIN, TEST])
def test_wrong_files_are_one_clear_error(tmp_path, name, wrong, message):
    write(tmp_path, **{name.partition("_")[0]: wrong})
    with pytest.raises(data.DataError) as caught:
        data.load("svhn", tmp_path)
    assert f"{tmp_path / name}: {message}" in str(caught.value)


@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_anywhere(tmp_path, compressed):
    whole = content(compressed=compressed)
    # Less than its last 8 bytes, which may be padding.
    for length in (1, 100, 128, 140, *np.random.RandomState(0).randint(128, len(whole), 20), len(whole) - 8):
        write(tmp_path, whole[:length])
        with pytest.raises(data.DataError, match=TRAIN):
            data.load("svhn", tmp_path)


def test_missing_files_are_named(tmp_path):
    write(tmp_path)
    (tmp_path / TEST).unlink()
    with pytest.raises(FileNotFoundError, match=r"expected test_32x32\.mat; .*Stanford University, as format 2"):
        data.load("svhn", tmp_path)


def test_without_scipy_it_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_scipy(name, *rest):
        if name.partition(".")[0] == "scipy":
            raise ImportError("No module named 'scipy'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_scipy)
    with pytest.raises(ImportError, match=r'data "svhn" needs SciPy: pip install "pyparareal\[train\]"'):
        data.load("svhn", write(tmp_path))
