# SPDX-License-Identifier: BSD-3-Clause
"""``execution="batched"``: parts of equal structure run as one network with stacked parameters.

*Parallel in depth means batched* on one device: ``G`` convolutions of ``C`` channels are one of ``G`` groups, ``G``
products one batched product, ``G`` batch norms one over ``G C`` channels (:mod:`.fused`); what is not known there goes
through ``torch.func.vmap`` (:mod:`.stacked`). Parameters are stacked inside the autograd graph, so gradients reach the
originals, and ``state_dict`` is what it was. Dropout draws other masks than ``serial``, of the same distribution.
Parts compiled by ``torch.compile`` run uncompiled if they have a congruent neighbour. Under autocast what is not known
runs one after the other (:func:`.stacked.run_stacked`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import Modules, States
from .congruence import congruent_groups, first_difference
from .fused import run_fused
from .serial import require_meeting, run_part
from .spans import launch

Groups = list[list[int]]


class Batched:
    """Groups of congruent parts, each run as one; parts without a congruent one run by themselves."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Groups] = {}

    def __reduce__(self) -> tuple[type[Batched], tuple[()]]:
        return Batched, ()  # groups are found again: a copy has other modules

    def require(self, preprocess: Modules, fine: Modules) -> None:
        """Refuse parts of which no two are congruent, naming the first difference."""
        if len(fine) > 1 and not any(
            first_difference(fine[i], fine[j]) is None for j in range(len(fine)) for i in range(j)
        ):
            raise ValueError(_no_pair(fine))

    def run(self, preprocess: Modules, fine: Modules, x: Tensor) -> States:
        if len(fine) == 1:
            x_1 = preprocess[0](x)
            return [x_1], [run_part(0, fine[0], x_1)], "serial"
        groups = self._groups(preprocess, [x] * len(preprocess))
        inputs = self._run_groups("preprocess", preprocess, [x] * len(preprocess), groups)
        groups = self._groups(fine, inputs)
        if len(groups) == len(fine):
            raise ValueError(_no_pair(fine, inputs))
        outputs = self._run_groups("fine", fine, inputs, groups)
        for j in range(1, len(fine)):
            require_meeting(j, inputs[j], outputs[j - 1])
        return inputs, outputs, "batched"

    def _groups(self, modules: Modules, inputs: list[Tensor]) -> Groups:
        # Comparing structures costs more than a small step, so it is repeated only when something could have changed.
        marks = tuple(
            (
                id(m),
                m.training,
                len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks),
                *(p.dtype for p in m._parameters.values() if p is not None),
            )
            for module in modules
            for m in module.modules()
        )
        key = marks, tuple((u.shape, u.dtype) for u in inputs)
        if key not in self._known:
            if len(self._known) >= 64:  # e.g. sequences of many lengths
                self._known.clear()
            self._known[key] = congruent_groups(modules, inputs)
        return self._known[key]

    def _run_groups(self, name: str, modules: Modules, inputs: list[Tensor], groups: Groups) -> list[Tensor]:
        outputs: dict[int, Tensor] = {}
        for group in groups:
            if len(group) == 1:
                j = group[0]
                outputs[j] = run_part(j, modules[j], inputs[j], name)
            else:
                members = [modules[j] for j in group]
                with launch(f"{name}[{', '.join(map(str, group))}]", members[0], inputs[group[0]]):
                    outputs |= zip(group, run_fused(members, [inputs[j] for j in group]), strict=True)
        return [outputs[j] for j in range(len(modules))]


def _no_pair(fine: Modules, inputs: list[Tensor] | None = None) -> str:
    found = first_difference(fine[0], fine[1])
    if found is None and inputs is not None:
        found = f"inputs of shape {tuple(inputs[0].shape)} against {tuple(inputs[1].shape)}"
    return (
        f"execution: got 'batched' for {len(fine)} parts of which no two have equal structure, expected at least "
        f"one pair; fine[0] and fine[1] differ first in {found}. Use 'serial' or 'parallel'"
    )
