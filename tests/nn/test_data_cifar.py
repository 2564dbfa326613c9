# SPDX-License-Identifier: BSD-3-Clause
"""CIFAR-10 and CIFAR-100, binary version: exact pixels and labels from files and archive, and every error."""

import dataclasses
import gzip
import io
import tarfile

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
from data_formats import cifar_records, pixels, require_sets, tree  # noqa: E402

from pyparareal.nn import data  # noqa: E402
from pyparareal.nn.data import cifar  # noqa: E402

# The formats with fewer records in a file: 20 of CIFAR-10, 110 and 20 of CIFAR-100.
TEN = dataclasses.replace(cifar.CIFAR10, train=dict.fromkeys(cifar.CIFAR10.train, 20), test={"test_batch.bin": 20})
HUNDRED = dataclasses.replace(cifar.CIFAR100, train={"train.bin": 110}, test={"test.bin": 20})
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def ten():
    """Contents of each file; training images, labels, test images, labels."""
    x, y = pixels(100, 3, 32, 32), np.arange(100) * 3 % 10
    test, test_y = pixels(20, 3, 32, 32, seed=1), np.arange(20) % 10
    files = {f"data_batch_{i + 1}.bin": cifar_records(x[20 * i :][:20], y[20 * i :][:20]) for i in range(5)}
    files["test_batch.bin"] = cifar_records(test, test_y)
    files["batches.meta.txt"] = ("\n".join(NAMES) + "\n\n").encode()  # the original ends with an empty line
    return files, (x, y, test, test_y)


def hundred():
    x, fine = pixels(110, 3, 32, 32), np.minimum(np.arange(110), 99)
    test, test_fine = pixels(20, 3, 32, 32, seed=1), np.arange(20)
    files = {
        "train.bin": cifar_records(x, fine // 5, fine),
        "test.bin": cifar_records(test, test_fine // 5, test_fine),
        "coarse_label_names.txt": "".join(f"coarse {i}\n" for i in range(20)).encode(),
        "fine_label_names.txt": "".join(f"fine {i}\n" for i in range(100)).encode(),
    }
    return files, (x, fine, test, test_fine)


def write(folder, files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def archive(files, folder="cifar-10-batches-bin/"):
    """The bytes of a .tar.gz; a member is content, or a TarInfo and content."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as members:
        for name, content in files.items():
            info, content = content if isinstance(content, tuple) else (tarfile.TarInfo(f"{folder}{name}"), content)
            info.size = len(content) if info.isreg() else 0
            members.addfile(info, io.BytesIO(content))
    return packed.getvalue()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    files, source = ten()
    return write(tmp_path_factory.mktemp("ten"), files), files, source


@pytest.mark.parametrize("how", ["files", "folder", "archive", "archive in a folder", "dots", "bare"])
def test_ten_classes_are_read_exactly_wherever_they_lie(tmp_path, how):
    files, source = ten()
    place = tmp_path
    if how in ("files", "folder"):
        write(tmp_path / TEN.folder if how == "folder" else tmp_path, files)
    else:
        folder = {"dots": "./cifar-10-batches-bin/", "bare": ""}.get(how, "cifar-10-batches-bin/")
        (tmp_path / TEN.archive).write_bytes(archive(files, folder))
        place = tmp_path / TEN.archive if how == "archive" else tmp_path
    before = tree(tmp_path)
    found = cifar.read(place, TEN)
    require_sets(found, *source)
    assert tree(tmp_path) == before
    assert found.class_names == NAMES
    assert found.classes == 10
    assert found.image_shape == (3, 32, 32)
    assert found.test.pixels.dtype == torch.uint8
    # Record 0 begins with its label and the top left pixel in red; green follows after 32 x 32 bytes.
    first = files["test_batch.bin"]
    assert found.test.y[0] == first[0]
    assert found.test.pixels[0, :, 0, 1].tolist() == [first[2], first[2 + 1024], first[2 + 2048]]


@pytest.mark.parametrize("label", ["fine", "coarse"])
def test_a_hundred_classes_have_coarse_and_fine_labels(tmp_path, label):
    files, (x, fine, test, test_fine) = hundred()
    found = cifar.read(write(tmp_path, files), HUNDRED, label)
    divisor = 5 if label == "coarse" else 1
    require_sets(found, x, fine // divisor, test, test_fine // divisor)
    assert found.class_names[3] == f"{label} 3"
    assert found.classes == 100 // divisor


def test_the_split_is_the_same_from_files_and_from_the_archive(tmp_path, written):
    folder, files, _ = written
    (tmp_path / "any.tar.gz").write_bytes(archive(files))
    assert cifar.read(tmp_path / "any.tar.gz", TEN).fingerprint() == cifar.read(folder, TEN).fingerprint()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_published_sizes_are_demanded(tmp_path, name):
    version = cifar.CIFAR10 if name == "cifar10" else cifar.CIFAR100
    width = len(version.labels)
    for file, records in (version.train | version.test).items():
        table = np.zeros((records, width + 3072), np.uint8)
        table[:, width - 1] = np.arange(records) % version.labels["fine"]
        table[:, width] = np.arange(records) % 251
        (tmp_path / file).write_bytes(table.tobytes())
    for kind, file in version.names.items():
        (tmp_path / file).write_text("".join(f"{i}\n" for i in range(version.labels[kind])))
    found = data.load(name, tmp_path)
    assert [len(s) for s in (found.train, found.validation, found.test)] == [45_000, 5_000, 10_000]
    assert len(torch.unique(found.train.y)) == found.classes == version.labels["fine"]
    file = next(iter(version.train))
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[: -width - 3072])
    with pytest.raises(data.DataError, match=f"{file}: got .* bytes, expected .*; it is truncated"):
        data.load(name, tmp_path)


def changed(files, name, at, value):
    content = bytearray(files[name])
    content[at] = value
    return files | {name: bytes(content)}


def errors_of_ten():
    files, _ = ten()
    record = 1 + 3072
    batch = files["data_batch_3.bin"]
    return [
        (files | {"data_batch_3.bin": batch[:-1]}, "data_batch_3.bin: got 61,459 bytes, expected 61,460; it is trunc"),
        (files | {"data_batch_3.bin": batch[:-record]}, "data_batch_3.bin: got 58,387 bytes, expected 61,460"),
        (files | {"data_batch_3.bin": b""}, "data_batch_3.bin: got 0 bytes"),
        (files | {"data_batch_3.bin": batch + b"x"}, "data_batch_3.bin: got more than 61,460 bytes, expected 61,460"),
        (
            changed(files, "data_batch_2.bin", 3 * record, 10),
            "data_batch_2.bin: got label 10 in record 3, expected 0 t",
        ),
        (changed(files, "test_batch.bin", 0, 255), "test_batch.bin: got label 255 in record 0, expected 0 to 9"),
        (files | {"batches.meta.txt": b"cat\ndog\n"}, "batches.meta.txt: got 2 different class names, expected 10"),
        (files | {"batches.meta.txt": b"cat\n" * 10}, "batches.meta.txt: got 1 different class names, expected 10"),
        (files | {"batches.meta.txt": b"\xff\xfe"}, "batches.meta.txt: got bytes that are no text, expected 10 class"),
    ]


@pytest.mark.parametrize(
    ("files", "message"), errors_of_ten(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_wrong_files_are_one_clear_error(tmp_path, files, message):
    with pytest.raises(data.DataError) as caught:
        cifar.read(write(tmp_path, files), TEN)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("at", "value", "message"), [(0, 20, "label 20 in record 0, expected 0 to 19"), (1, 100, "label 100")]
)
def test_both_labels_are_checked_whichever_is_wanted(tmp_path, at, value, message):
    files = changed(hundred()[0], "test.bin", at, value)
    for label in ("fine", "coarse"):
        with pytest.raises(data.DataError, match=f"test.bin: got {message}"):
            cifar.read(write(tmp_path, files), HUNDRED, label)


def test_a_lacking_file_is_named(tmp_path, written):
    _, files, _ = written
    without = {name: content for name, content in files.items() if name not in ("data_batch_4.bin", "test_batch.bin")}
    with pytest.raises(FileNotFoundError, match=r"expected also data_batch_4.bin and test_batch.bin; .*published on"):
        cifar.read(write(tmp_path / "some", without), TEN)
    (tmp_path / TEN.archive).write_bytes(archive(without))
    with pytest.raises(
        data.DataError, match=r"binary\.tar\.gz: got no cifar-10-batches-bin/data_batch_4\.bin, expected "
    ):
        cifar.read(tmp_path, TEN)


def link(kind):
    info = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
    info.type, info.linkname = kind, "/etc/passwd"
    return info, b""


def wrong_archives():
    files, _ = ten()
    once = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
    no_test = {name: content for name, content in files.items() if name != "test_batch.bin"}
    away = {f"../{name}": content for name, content in files.items()}
    absolute = {name: (tarfile.TarInfo(f"/{TEN.folder}/{name}"), content) for name, content in files.items()}
    return [
        (
            archive(no_test | {"x": link(tarfile.SYMTYPE)}),
            "got a link or a special file as cifar-10-batches-bin/test_b",
        ),
        (
            archive(no_test | {"x": link(tarfile.LNKTYPE)}),
            "got a link or a special file as cifar-10-batches-bin/test_b",
        ),
        (archive(files | {"x": (once, files["test_batch.bin"])}), "got cifar-10-batches-bin/test_batch.bin twice"),
        (archive(files | {"test_batch.bin": b"x" * 9}), "test_batch.bin: got 9 bytes, expected 61,460"),
        (
            archive(files | {"batches.meta.txt": bytes(70_000)}),
            "batches.meta.txt: got 70,000 bytes, expected at most 65",
        ),
        (archive(away), "got no cifar-10-batches-bin/data_batch_1.bin"),
        (archive(absolute), "got no cifar-10-batches-bin/data_batch_1.bin"),
        (gzip.compress(gzip.decompress(archive(files)) + bytes(1 << 21)), "got more data after the last member"),
        (gzip.compress(b"no archive"), "got a damaged or truncated archive"),
        (b"no archive", "got a damaged or truncated archive"),
        (b"", "got a damaged or truncated archive"),
    ]


@pytest.mark.parametrize(("content", "message"), wrong_archives(), ids=lambda v: v if isinstance(v, str) else "")
def test_wrong_archives_are_one_clear_error_and_nothing_is_written(tmp_path, content, message):
    path = tmp_path / "inner" / TEN.archive
    path.parent.mkdir()
    path.write_bytes(content)
    before = tree(tmp_path)
    with pytest.raises(data.DataError) as caught:
        cifar.read(path.parent, TEN)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert tree(tmp_path) == before


def test_a_damaged_archive_is_an_error_or_changes_nothing(tmp_path, written):
    """Truncated anywhere, or a bit flipped anywhere: an error, or (as in the time stamp) the same images."""
    folder, files, _ = written
    whole, path = archive(files), tmp_path / TEN.archive
    good = cifar.read(folder, TEN).fingerprint()
    rng = np.random.RandomState(0)
    for length in rng.randint(0, len(whole), 12):
        path.write_bytes(whole[:length])
        with pytest.raises(data.DataError, match="damaged or truncated"):
            cifar.read(tmp_path, TEN)
    refused = 0
    for at in (*range(0, 10), *rng.randint(10, len(whole), 20), *range(len(whole) - 8, len(whole))):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randint(8)
        path.write_bytes(damaged)
        try:
            assert cifar.read(tmp_path, TEN).fingerprint() == good
        except data.DataError:
            refused += 1
    assert refused >= 28  # every one behind the header of ten bytes
