# SPDX-License-Identifier: BSD-3-Clause
"""The contiguous groups of a row of costs whose largest sum is smallest."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def balanced_sizes(costs: Sequence[int], parts: int) -> tuple[int, ...]:
    """Sizes of ``parts`` contiguous non-empty groups of ``costs`` with the smallest possible largest sum.

    Among these the smallest sum of squares, so that one dominating cost does not leave the others unbalanced;
    among these the longest first group, then the longest second one, and so on. Exact: costs are
    non-negative integers, ``1 <= parts <= len(costs)``. Equal costs give group sizes that differ by at most one.
    """
    limit = _smallest_maximum(costs, parts)
    total = [0, *accumulate(costs)]
    blocks = len(costs)
    # best[i]: smallest sum of squares of costs[i:] in k groups; sizes[k][i]: size of the first of them
    best: list[float] = [float("inf")] * blocks + [0]
    sizes: list[list[int]] = [[0] * (blocks + 1)]
    for k in range(1, parts + 1):
        better: list[float] = [float("inf")] * (blocks + 1)
        sizes.append([0] * (blocks + 1))
        for i in range(blocks - k + 1):
            for j in range(i + 1, blocks - k + 2):
                cost = total[j] - total[i]
                if cost > limit:
                    break
                value = cost * cost + best[j]
                if value < float("inf") and value <= better[i]:
                    better[i], sizes[k][i] = value, j - i
        best = better
    chosen: list[int] = []
    for k in range(parts, 0, -1):
        chosen.append(sizes[k][sum(chosen)])
    return tuple(chosen)


def _smallest_maximum(costs: Sequence[int], parts: int) -> int:
    """By bisection: groups filled greedily up to a limit are as few as that limit allows."""
    low, high = max(costs), sum(costs)
    while low < high:
        limit = (low + high) // 2
        groups, filled = 1, 0
        for cost in costs:
            if filled + cost > limit:
                groups, filled = groups + 1, 0
            filled += cost
        if groups <= parts:  # a group of several blocks can be cut further, which makes no sum larger
            high = limit
        else:
            low = limit + 1
    return low
