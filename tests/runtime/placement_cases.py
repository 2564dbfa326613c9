# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of several devices share: a problem solved on one and on several must have the same bits."""

import torch

from pyparareal import LocalRuntime, arrays, solve


def bits(u):
    return arrays.to_numpy(u.float() if u.dtype == torch.bfloat16 else u).tobytes() if u is not None else None


def require_same(problem, places, **more):
    """The same bits, history and cost on one device and on ``places``."""
    alone = solve(**problem() | more, runtime=LocalRuntime())
    placed = solve(**problem() | more, runtime=LocalRuntime(**places))
    assert bits(placed.u) == bits(alone.u)
    assert repr((placed.status, placed.residuals)) == repr((alone.status, alone.residuals))
    for name in ("fine_steps", "coarse_steps", "critical_fine_steps", "steps_per_level", "converged_slices"):
        assert getattr(placed.stats, name) == getattr(alone.stats, name)
    return alone
