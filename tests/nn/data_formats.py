# SPDX-License-Identifier: BSD-3-Clause
"""Writers of the published file formats, from their descriptions alone; helpers of the tests that read them back."""

import struct
import zlib

import numpy as np


def pixels(count, channels, height, width, seed=0):
    """No two images are equal."""
    return np.random.RandomState(seed).randint(0, 256, (count, channels, height, width)).astype(np.uint8)


def idx(array):
    """IDX: two zero bytes, type 8, number of dimensions, dimensions as big-endian 32-bit integers, values."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def cifar_records(images, *labels):
    """Each record: the labels, then the red, the green and the blue plane, each row by row."""
    return b"".join(
        bytes(int(y[i]) for y in labels) + b"".join(plane.tobytes() for plane in image)
        for i, image in enumerate(images)
    )


def mat(compressed=False, **arrays):
    """A MATLAB 5 file of uint8 (or float64) arrays: 128 bytes of header, then one element per variable."""
    head = b"MATLAB 5.0 MAT-file".ljust(116) + bytes(8) + struct.pack("<H", 0x0100) + b"IM"
    elements = [_mat_array(name, array) for name, array in arrays.items()]
    if compressed:
        packed = [zlib.compress(element) for element in elements]
        elements = [struct.pack("<II", 15, len(data)) + data for data in packed]
    return head + b"".join(elements)


def _mat_array(name, array):
    mat_class, kind = (9, 2) if array.dtype == np.uint8 else (6, 9)  # mxUINT8 of miUINT8, or mxDOUBLE of miDOUBLE
    body = _mat_element(6, struct.pack("<II", mat_class, 0))
    body += _mat_element(5, struct.pack(f"<{array.ndim}i", *array.shape))
    body += _mat_element(1, name.encode())
    body += _mat_element(kind, array.tobytes(order="F"))
    return _mat_element(14, body)


def _mat_element(kind, data):
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def origins(images, source):
    """Which image of ``source`` each of ``images`` is, exactly."""
    numbers = {image.tobytes(): number for number, image in enumerate(source)}
    assert len(numbers) == len(source)
    return [numbers[image.numpy().tobytes()] for image in images.pixels]


def require_sets(found, train, train_y, test, test_y):
    """The sets hold the source's images, each once, with its label; a tenth of every class is for validation."""
    train_y, test_y = np.asarray(train_y), np.asarray(test_y)
    learnt, looked_at = origins(found.train, train), origins(found.validation, train)
    assert sorted(learnt + looked_at) == list(range(len(train)))
    assert learnt == sorted(learnt)
    for images, where in ((found.train, learnt), (found.validation, looked_at)):
        assert images.y.tolist() == train_y[where].tolist()
        assert str(images.y.dtype) == "torch.int64"
    counts = np.bincount(train_y, minlength=found.classes)
    assert np.array_equal(np.bincount(train_y[looked_at], minlength=found.classes), counts // 10)
    assert np.array_equal(found.test.pixels.numpy(), test)
    assert found.test.y.tolist() == test_y.tolist()


def tree(folder):
    """Every file below ``folder`` and its size: equal before and after, nothing was written."""
    return sorted((str(path), path.stat().st_size) for path in folder.rglob("*"))
