# SPDX-License-Identifier: BSD-3-Clause
"""Tensors to files and back: DCP with its safetensors storage, one file for each rank that has any."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError, RankError


def is_global(tensor: Tensor) -> bool:
    """A DTensor, of which every rank has a part, or its copy."""
    return hasattr(tensor, "device_mesh")


@functools.cache
def writable(dtype: torch.dtype) -> bool:
    """Whether the format of the files has it: not complex128, for one."""
    from safetensors.torch import save

    try:
        save({"": torch.empty(0, dtype=dtype)})
    except (KeyError, ValueError, RuntimeError):
        return False
    return True


def digest(tensor: Tensor) -> str:
    """Of the bits."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)  # as bytes: NumPy does not know all dtypes
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], runtime: Any) -> None:
    """The tensors of all ranks into ``folder``; whole ones that several have are written by the first of them.

    Raises
    ------
    OSError
        A rank could not write; raised on all.
    RankError
        A rank died.
    """
    dcp, storage = torch_checkpoint()
    seen: set[int] = set()
    separate = {name: _separate(tensor, seen) for name, tensor in tensors.items()}
    alone = runtime.group is None
    try:
        with _quietly():
            dcp.save(
                separate,
                storage_writer=storage.HuggingFaceStorageWriter(str(folder), save_distributed=True),
                process_group=runtime.group,
                no_dist=alone,
            )
    except dcp.CheckpointException as error:  # a BaseException
        rank, (why, _) = next(iter(error.failures.items()))
        raise OSError(f"rank {rank}: {type(why).__name__}: {why}") from error
    except RuntimeError as error:  # of the group's connections: DCP collects what goes wrong on a rank
        raise RankError(f"rank {runtime.rank}: writing the files: a rank was lost ({error})") from error


def read_tensors(folder: Path, targets: Mapping[str, Tensor]) -> None:
    """Fill ``targets``, of which the files in ``folder`` have parts or the whole, each rank by itself.

    Raises
    ------
    CheckpointError
        The files have not what was expected.
    """
    if not targets:
        return
    dcp, storage = torch_checkpoint()
    try:
        with _quietly():
            dcp.load(dict(targets), storage_reader=storage.HuggingFaceStorageReader(str(folder)), no_dist=True)
    except dcp.CheckpointException as error:
        why, _ = next(iter(error.failures.values()))
        raise CheckpointError(f"{folder}: {type(why).__name__}: {why}") from error


def _separate(tensor: Tensor, seen: set[int]) -> Tensor:
    """Contiguous, and of memory of its own: safetensors refuses what two names share."""
    if is_global(tensor):
        return tensor
    one = tensor.contiguous()
    if one.untyped_storage().data_ptr() in seen:
        one = one.clone()
    seen.add(one.untyped_storage().data_ptr())
    return one


def torch_checkpoint() -> tuple[Any, Any]:
    """DCP and its safetensors storage.

    Raises
    ------
    ImportError
        Without them.
    """
    try:
        import safetensors  # noqa: F401
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint import hf_storage
    except ImportError as error:
        raise ImportError(
            "sharded checkpoints need torch >= 2.9 and safetensors: pip install 'pyparareal[train]'"
        ) from error
    if not hasattr(hf_storage, "HuggingFaceStorageWriter"):
        raise ImportError(f"sharded checkpoints need torch >= 2.9, got {torch.__version__}")
    return dcp, hf_storage


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without DCP's remark that one process loads: it is meant to. What goes wrong is raised."""
    logger = logging.getLogger("torch.distributed.checkpoint.state_dict_loader")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            yield
    finally:
        logger.disabled = disabled
