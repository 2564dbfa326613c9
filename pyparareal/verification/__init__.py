# SPDX-License-Identifier: BSD-3-Clause
"""Is it right? Parallel against serial, slice by slice, and if they differ, what is wrong and where.

Independent *probes* try small theorems about a step: repeatable, pure, row by row, as exact as its dtype, rightly
differentiated. A comparison of the whole says how large the error is and may be, and a diagnosis joins both.
Importing this package loads no torch.
"""

from __future__ import annotations

from .chain import Chain as Chain
from .entry import verify as verify
from .faults import Fault as Fault
from .faults import Finding as Finding
from .faults import Place as Place
from .result import Comparison as Comparison
from .result import SliceErrors as SliceErrors
from .result import Verification as Verification
from .result import VerificationError as VerificationError

__all__ = [
    "Chain", "Comparison", "Fault", "Finding", "Place", "SliceErrors", "Verification", "VerificationError", "verify",
]  # fmt: skip
