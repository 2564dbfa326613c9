# SPDX-License-Identifier: BSD-3-Clause
"""The caller's current CUDA stream, for arrays whose library does not tell it through DLPack.

Everywhere in this package ``stream=None`` is that stream, an object with ``__cuda_stream__`` is the
stream it names, and a non-negative int is a ``cudaStream_t``. A call runs on exactly one stream and
never waits: ordering it after other streams' work is the caller's, by events. Where the caller names
a stream, the arrays of the call are kept alive until that stream is done with them.
"""

from __future__ import annotations

import sys

from pyparareal.arrays import Array, is_torch


def current(u: Array, device_id: int) -> int:
    """The current stream of the library of ``u`` on a CUDA device, as an int; 0 (the default stream) if it has none."""
    if is_torch(u):
        return int(sys.modules["torch"].cuda.current_stream(device_id).cuda_stream)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(u, cupy.ndarray):
        return int(cupy.cuda.get_current_stream(device_id).ptr)
    return 0
