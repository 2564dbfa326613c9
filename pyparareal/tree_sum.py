# SPDX-License-Identifier: BSD-3-Clause
"""Sums over slices by the fixed binary tree over their numbers: whoever adds up which part, the bits are the same."""

from __future__ import annotations

from typing import Any, NamedTuple

Terms = list[Any]  # of tensors, or None where there is nothing to add


class Node(NamedTuple):
    """The sum over the slices ``first .. first + size - 1``; ``size`` is a power of 2 that divides ``first``."""

    first: int
    size: int
    terms: Terms


class TreeSum:
    """Sums of slices one after the other, as few as they can be put together to without the slices left of them.

    What begins at slice 0 and what comes after it, node by node, gives the same as all slices one by one.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def add(self, first: int, size: int, terms: Terms) -> None:
        """The next node on the right."""
        self.nodes.append(Node(first, size, terms))
        while len(self.nodes) > 1:
            left, right = self.nodes[-2:]
            if left.size != right.size or left.first % (2 * left.size):
                return
            self.nodes[-2:] = [Node(left.first, 2 * left.size, plus(left.terms, right.terms))]

    def total(self) -> Terms:
        """Of all slices, from slice 0 on: the nodes from the right."""
        *nodes, last = self.nodes
        terms = last.terms
        for node in reversed(nodes):
            terms = plus(node.terms, terms)
        return terms


def plus(one: Terms, other: Terms) -> Terms:
    """The sums, term by term."""
    return [b if a is None else a if b is None else a + b for a, b in zip(one, other, strict=True)]


def nodes_before(slices: int) -> list[tuple[int, int]]:
    """``first`` and ``size`` of the nodes that the slices ``0 .. slices - 1`` give."""
    found, first = [], 0
    for power in reversed(range(slices.bit_length())):
        if slices >> power & 1:
            found.append((first, 1 << power))
            first += 1 << power
    return found
