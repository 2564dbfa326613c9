# SPDX-License-Identifier: BSD-3-Clause
"""Where a run computes and with which precision."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..data import Images, Split
from .settings import Settings

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve(name: str, precision: str) -> str:
    """``"cpu"`` or ``"cuda:<i>"`` for ``"cpu"``, ``"cuda"``, ``"cuda:<i>"`` or ``"auto"``: a GPU if there is one.

    Raises
    ------
    ValueError
        No such device here, or one that cannot compute in ``precision``.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    chosen = ("cuda" if count else "cpu") if name == "auto" else name
    kind, _, number = chosen.partition(":")
    if kind not in ("cpu", "cuda") or (kind == "cpu" and number) or not (number or "0").isdigit() or chosen[-1] == ":":
        raise ValueError(f"device: got {name!r}, expected cpu, cuda, cuda:<number> or auto")
    if kind == "cuda" and int(number or 0) >= count:
        raise ValueError(f"device: got {name!r}, expected one that is here: cpu{_present(count)}")
    if kind == "cpu" and precision == "float16":
        # Its gradients underflow without loss scaling, and few processors compute in it.
        raise ValueError("precision: got 'float16' on the CPU, expected float32 or bfloat16, or a CUDA device")
    return kind if kind == "cpu" else f"cuda:{int(number or 0)}"


def _present(count: int) -> str:
    if not count:
        return " (torch finds no CUDA device)"
    return " or cuda:0" + (f" to cuda:{count - 1}" if count > 1 else "")


def moved(data: Split, device: str) -> Split:
    """The images on ``device``, where they stay."""

    def there(images: Images) -> Images:
        values = {field.name: getattr(images, field.name) for field in dataclasses.fields(images)}
        return Images(**{name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in values.items()})

    return dataclasses.replace(data, train=there(data.train), validation=there(data.validation), test=there(data.test))


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Context in which matrix products and convolutions use ``precision``; nothing changes for ``float32``."""
    return torch.autocast(device.type, dtype=DTYPES.get(precision), enabled=precision in DTYPES)


@contextmanager
def reproducible(settings: Settings) -> Iterator[None]:
    """Fixed thread count and deterministic algorithms inside, the caller's choices afterwards.

    On the CPU every operation has one. On CUDA torch warns of those that have none, such as the gradient of
    adaptive average pooling to more than one pixel; all others repeat their bits.
    """
    threads = torch.get_num_threads()
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    on_cuda = settings.device != "cpu"
    if on_cuda:
        # cuBLAS is deterministic only with a workspace of its own, and reads this at its first call.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True, warn_only=on_cuda)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
