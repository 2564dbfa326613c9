# SPDX-License-Identifier: BSD-3-Clause
"""Images in memory: lazily scaled bytes, the fixed split, batches and their augmentation, data sets by name."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
from data_formats import origins, pixels  # noqa: E402

from pyparareal.nn import data  # noqa: E402
from pyparareal.nn.data import images as images_module  # noqa: E402
from pyparareal.nn.data import names  # noqa: E402


def labelled(count=60, channels=3, side=6, classes=3, seed=0):
    x = torch.from_numpy(pixels(count, channels, side, side, seed))
    return data.Images(x, torch.arange(count) % classes)


# Scaling


def test_bytes_are_scaled_when_asked_for_by_the_training_images():
    train, rest = labelled(), labelled(20, seed=1)
    found = data.standardised(train, rest, rest, 3)
    raw = train.pixels.double()
    mean, deviation = raw.mean((0, 2, 3)), raw.var((0, 2, 3), correction=0).sqrt()
    for images, source in ((found.train, train), (found.test, rest)):
        assert images.pixels.dtype == torch.uint8
        assert images.x.dtype == torch.float32
        expected = (source.pixels.double() - mean[:, None, None]) / deviation[:, None, None]
        # Mean, deviation, difference and quotient are each rounded once (2**-24); values stay below 255 / 70 = 4, and
        # the rounded mean, at most 2**-24 * 255, is divided by the deviation: 4 * 4 * 2**-24 bounds them all.
        assert (images.x - expected).abs().max() <= 16 * 2.0**-24
        part = images.take(torch.tensor([5, 2]))
        assert torch.equal(part.x, images.x[[5, 2]])
        assert part.y.tolist() == source.y[[5, 2]].tolist()


def test_a_constant_channel_is_scaled_to_zero():
    x = labelled().pixels
    x[:, 1] = 200
    images = data.Images(x, torch.arange(60) % 3)
    found = data.standardised(images, images, images, 3)
    assert torch.equal(found.train.x[:, 1], torch.zeros(60, 6, 6))
    assert found.train.deviation.flatten().tolist()[1] == 1.0


def test_without_scaling_x_is_the_pixels_themselves():
    x = torch.randn(4, 1, 2, 2)
    assert data.Images(x, torch.arange(4)).x is x


# Splits


def test_what_a_source_lacks_is_split_off_stratified_and_fixed():
    source = labelled(300)
    names = ("a", "b", "c")
    found = images_module.complete(source, None, None, names, 3, "here")
    sets = (found.train, found.validation, found.test)
    assert [len(s) for s in sets] == [210, 30, 60]
    where = [origins(s, source.pixels.numpy()) for s in sets]
    assert sorted([*where[0], *where[1], *where[2]]) == list(range(300))
    for images, numbers, share in zip(sets, where, (70, 10, 20), strict=True):
        assert np.bincount(images.y).tolist() == [share] * 3
        assert images.y.tolist() == source.y[numbers].tolist()
        assert images.mean is found.train.mean
    # Frozen: accuracies of different versions are comparable only on the same images.
    assert where[1][:8] == FIRST_VALIDATION
    assert found.class_names == names
    own = images_module.complete(source, None, source, names, 3, "here")
    assert [len(s) for s in (own.train, own.validation, own.test)] == [270, 30, 300]
    own = images_module.complete(source, source, None, names, 3, "here")
    assert [len(s) for s in (own.train, own.validation, own.test)] == [240, 300, 60]


FIRST_VALIDATION = [1, 14, 15, 17, 19, 23, 33, 39]


def test_classes_must_be_there_and_large_enough_to_split():
    source = labelled(27)
    assert images_module.complete(source, source, source, (), 3, "here").classes == 3
    with pytest.raises(data.DataError, match="here: got no training image of class 3, expected all 4 classes"):
        images_module.complete(source, source, source, (), 4, "here")
    with pytest.raises(data.DataError, match="no training image of class dog"):
        images_module.complete(source, source, source, ("ant", "bee", "cat", "dog"), 4, "here")
    with pytest.raises(data.DataError, match=r"at most 9 training images.* at least 10 to split off 10 %.*validation"):
        images_module.complete(source, None, source, (), 3, "here")
    with pytest.raises(data.DataError, match=r"at most 4 training images.* at least 5 to split off 20 %.*test"):
        images_module.complete(labelled(12), source, None, (), 3, "here")


def test_fingerprint_sees_every_pixel_label_and_scale():
    found = data.standardised(labelled(), labelled(20, seed=1), labelled(20, seed=2), 3)
    copy = data.standardised(labelled(), labelled(20, seed=1), labelled(20, seed=2), 3)
    assert found.fingerprint() == copy.fingerprint()
    changed = labelled(20, seed=2)
    changed.pixels[19, 2, 5, 5] ^= 1
    relabelled = dataclasses.replace(found.test, y=found.test.y.roll(1))
    scaled = dataclasses.replace(found.test, mean=found.test.mean + 1)
    others = [dataclasses.replace(found.test, pixels=changed.pixels), relabelled, scaled]
    prints = {dataclasses.replace(found, test=test).fingerprint() for test in others}
    prints.add(dataclasses.replace(found, class_names=("a", "b", "c")).fingerprint())
    assert len(prints | {found.fingerprint()}) == 5


# Batches


@pytest.mark.parametrize("augment", data.AUGMENTATIONS)
def test_batches_resume_in_the_middle_of_an_epoch(augment):
    images = data.standardised(labelled(), labelled(), labelled(), 3).train

    def drawn(start=0, seed=1, epoch=2):
        return list(data.batches(images, 16, seed=seed, epoch=epoch, start=start, augment=augment))

    whole, rest = drawn(), drawn(start=2)
    assert [len(b) for b in whole] == [16, 16, 16, 12]
    assert all(b.x.dtype == torch.float32 for b in whole)
    for a, b in zip(whole[2:], rest, strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
    for other in (drawn(seed=2), drawn(epoch=3)):
        assert not torch.equal(other[0].x, whole[0].x)
    if augment == "none":
        assert torch.equal(torch.cat([b.x for b in whole]).sort(0).values, images.x.sort(0).values)


def test_an_unknown_augmentation_is_refused_before_the_first_batch():
    with pytest.raises(ValueError, match="augment: got 'flip', expected one of none, shift, crop_flip"):
        data.batches(labelled(), 16, seed=0, epoch=0, start=0, augment="flip")


def test_crops_and_flips_are_windows_of_the_padded_image_in_every_place():
    x = torch.randn(2000, 2, 7, 5, generator=torch.Generator().manual_seed(0))
    found = data.cropped_and_flipped(x, torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    matched = torch.zeros(len(x), dtype=torch.int64)
    reached, flipped = set(), 0
    for top in range(9):
        for left in range(9):
            window = padded[:, :, top : top + 7, left : left + 5]
            for mirrored in (False, True):
                same = (found == (window.flip(3) if mirrored else window)).all(dim=3).all(dim=2).all(dim=1)
                matched += same
                if same.any():
                    reached.add((top, left, mirrored))
                    flipped += mirrored * int(same.sum())
    assert (matched == 1).all()
    # Of 162 kinds each is drawn 12 times in the mean; that one of them is missed has probability 162 * e**-12 = 0.001.
    assert len(reached) == 162
    assert abs(flipped / len(x) - 0.5) < 0.045  # four deviations of a fair coin, 0.5 / sqrt(2000) = 0.011 each


@pytest.mark.parametrize("augment", [data.shifted, data.cropped_and_flipped])
def test_augmentation_stays_on_the_device_of_the_images(augment):
    x = torch.zeros(6, 2, 7, 5, device="meta")  # refuses operands of other devices, as CUDA does
    found = augment(x, torch.Generator())
    assert found.device == x.device
    assert found.shape == x.shape


# By name


def test_every_name_has_a_reader_and_a_default():
    from pyparareal.nn.data import loading

    assert set(names.NAMES) == {*loading.READERS, *names.WITHOUT_FILES, "folder"}
    assert set(data.DEFAULT_AUGMENTATION.values()) <= set(data.AUGMENTATIONS)
    # A mirrored digit is another sign or none.
    for name in ("digits", "cluttered_digits", "mnist", "svhn"):
        assert data.DEFAULT_AUGMENTATION[name] == "shift"
    assert data.DEFAULT_AUGMENTATION["cifar10"] == data.DEFAULT_AUGMENTATION["cifar100"] == "crop_flip"


WRONG = [
    (("imagenet",), {}, r"data: got 'imagenet', expected one of digits, cluttered_digits, cifar10"),
    (("mnist",), {}, "directory: got none, expected where the original files of mnist are"),
    (("digits", "there"), {}, "directory: got 'there', expected none: digits need no files"),
    (("mnist", "there"), {"image_size": 28}, "image_size: got 28 for mnist, expected it for cluttered_digits, "),
    (("folder", "there"), {"image_size": 0}, "image_size: got 0, expected at least 1"),
]


@pytest.mark.parametrize(("words", "options", "message"), WRONG)
def test_wrong_arguments(words, options, message):
    with pytest.raises(ValueError, match=message):
        data.load(*words, **options)


@pytest.mark.parametrize("name", [n for n in data.NAMES if n not in names.WITHOUT_FILES])
def test_missing_files_say_what_was_expected_where(tmp_path, name):
    (tmp_path / "other").touch()
    with pytest.raises(FileNotFoundError) as caught:
        data.load(name, tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}: expected ")
    assert "got other" in said
    assert ("train/<class>" if name == "folder" else "Nothing is downloaded for you; published on ") in said
    with pytest.raises(FileNotFoundError, match="got nothing there"):
        data.load(name, tmp_path / "nowhere")


@pytest.mark.no_sanitize
def test_names_are_known_without_torch():
    script = "import sys; from pyparareal.nn.data import NAMES, AUGMENTATIONS, DEFAULT_AUGMENTATION\n"
    script += "sys.exit(str([m for m in ('torch', 'scipy', 'PIL', 'sklearn') if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


def test_everything_promised_is_there():
    for name in data.__all__:
        assert getattr(data, name) is not None
    assert set(data.__all__) <= set(dir(data))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = data.nothing
