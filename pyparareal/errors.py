# SPDX-License-Identifier: BSD-3-Clause
"""The exceptions with names of their own; a caller's mistake is a ``ValueError`` or a ``TypeError``."""

from __future__ import annotations

from typing import Any


class PararealError(RuntimeError):
    """Base of every run-time failure raised by this package."""


class CudaError(PararealError):
    """A CUDA call failed; the message has the call and the runtime's text."""


class RankError(PararealError):
    """One of several processes failed, died or did not answer in time; the message says which, where, and why."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or belongs to another run; the message names what differs."""


class ConvergenceError(PararealError):
    """A solve ended without reaching its tolerance; ``solution`` is what it had reached."""

    def __init__(self, message: str, solution: Any = None) -> None:
        super().__init__(message)
        self.solution = solution
