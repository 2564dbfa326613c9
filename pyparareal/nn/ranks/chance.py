# SPDX-License-Identifier: BSD-3-Clause
"""Random draws that do not depend on the number of ranks: every stage of a pass has a generator state of its own.

One seed per forward pass, rank 0's, taken from torch's generator; stage ``i`` (a guess, a fine net, a coarse net, the
head) starts from ``hash(seed, i)``. Where no stage draws, torch's generator is as if nothing had been; where one does,
it moves on by one draw, on every rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

SEEDS = 2**52  # float64 holds them


def peek() -> int:
    """The seed that :func:`consume` will use up."""
    before = torch.get_rng_state()
    try:
        return consume()
    finally:
        torch.set_rng_state(before)


def consume() -> int:
    """A seed from torch's generator, which moves on."""
    return int(torch.randint(SEEDS, (), device="cpu"))


class Chance:
    """The draws of one pass; ``with chance: ... with chance.stage(i): ...``.

    Attributes
    ----------
    drew : bool
        Whether any stage has drawn; known at the end.
    """

    def __init__(self, seed: int, device: torch.device, staged: bool) -> None:
        self._seed, self._device, self._staged = seed, device, staged
        self.drew = False

    def __enter__(self) -> Chance:
        self._before = self._state()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._staged:
            self.drew = self._changed(self._before)
            return
        torch.set_rng_state(self._before[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(self._before[1], self._device)

    @contextmanager
    def stage(self, i: int) -> Iterator[None]:
        if not self._staged:
            yield
            return
        seed = int.from_bytes(hashlib.sha256(f"{self._seed} {i}".encode()).digest()[:8], "big") >> 1
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                torch.cuda.manual_seed(seed)
        began = self._state()
        yield
        self.drew = self.drew or self._changed(began)

    def _state(self) -> list[Tensor]:
        on_device = [torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else []
        return [torch.get_rng_state(), *on_device]

    def _changed(self, before: list[Tensor]) -> bool:
        return any(not torch.equal(a, b) for a, b in zip(before, self._state(), strict=True))
