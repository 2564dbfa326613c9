# SPDX-License-Identifier: BSD-3-Clause
"""Any cell along a sequence, all chunks at once: the states and gradients of the loop ``h = cell(x[i], h)``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...mgrit import MGRIT
from ...runtime.group import Group
from .checks import check_cell, check_inputs, mask_of
from .choosing import Key, resolved
from .report import SequenceReport
from .settings import Settings, settings_of
from .solving import solve_sequence
from .states import Packing, State, map_state
from .step import CellStep


class Recurrence(nn.Module):
    """``h[i+1] = cell(x[i], h[i])`` for every step of a sequence, solved in parallel over the steps.

    The states and gradients are those of the loop over the cell, to the tolerance of ``settings``; what was done and
    how it went is in :attr:`report`. Parameters and ``state_dict`` are those of the cell, under ``cell.``.

    Parameters
    ----------
    cell : module or callable
        ``cell(x, h) -> h``, as :class:`torch.nn.GRUCell`, :class:`torch.nn.LSTMCell` and :class:`torch.nn.RNNCell`.
        ``h`` is a tensor ``[rows, ...]`` or a tuple of such, nested as you like; rows are independent of each other,
        and there are more of them than the batch has: one per chunk and sequence. Whatever else a step depends on
        belongs to ``x``. A cell must keep nothing between calls and draw no random numbers; dropout in training mode
        does.
    coarse : callable, optional
        For ``settings.method="mgrit"``: ``coarse(x, h, m) -> h``, cheap, about what ``m`` steps of the cell from ``h``
        give, with ``x`` at the first of them. Default: ``cell.rediscretise(m)``, where it has one, a cell like it for
        steps ``m`` times as long; otherwise nothing is carried from chunk to chunk but where they end.
    batch_first : bool
        Inputs and states are ``[batch, T, ...]``.
    settings : Settings
        How to solve; :class:`.Settings` for all of it, or its fields as further keyword arguments.
    runtime : DistributedRuntime, optional
        What :func:`pyparareal.distributed` returns: chunks are spread over its ranks, which all call this with the same
        arguments and get the same states, to ``tol`` those of one process. "auto" is what rank 0 measured; what is
        serial every rank does for itself.

    Attributes
    ----------
    report : SequenceReport or None
        Of the last forward pass.
    choices : dict
        What ``method="auto"`` has measured and chosen, by shape; ``choices.clear()`` measures anew.

    Examples
    --------
    >>> cell = torch.nn.GRUCell(8, 16)
    >>> states, last = Recurrence(cell)(torch.randn(1000, 4, 8))
    """

    def __init__(
        self,
        cell: Any,
        coarse: Any = None,
        batch_first: bool = False,
        *,
        settings: Settings | None = None,
        runtime: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not callable(cell):
            raise TypeError(f"cell: got {type(cell).__name__}, expected a module or callable cell(x, h)")
        if isinstance(cell, nn.RNNBase):
            raise TypeError(
                f"cell: got {type(cell).__name__}, layers over a whole sequence, expected one step cell(x, h): "
                f"torch.nn.{cell.mode.split('_')[0]}Cell, or use pyparareal.nn.GRU or LSTM"
            )
        if coarse is not None and not callable(coarse):
            raise TypeError(f"coarse: got {type(coarse).__name__}, expected a callable coarse(x, h, m) or None")
        self.cell, self.coarse, self.batch_first = cell, coarse, bool(batch_first)
        self.settings, self.runtime = settings_of(settings, options), Group(runtime).runtime
        self.report: SequenceReport | None = None
        self.choices: dict[Key, tuple[Settings, str]] = {}
        self._checked: set[Any] = set()

    def forward(
        self, x: Any, h0: State = None, *, lengths: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[State, State]:
        """The states after every step, ``[T, batch, ...]``, and the last one, ``[batch, ...]``.

        Parameters
        ----------
        x : tensor ``[T, batch, ...]``, or a tuple of such
            What the cell gets as its first argument, step by step.
        h0 : State, optional
            Default: what ``cell.initial_state(batch, dtype, device)`` returns, or zeros for torch's cells.
        lengths : int64 tensor ``[batch]``, optional
            Steps of each sequence; beyond its own a sequence has zeros as states, and the last state is that of its
            last step, ``h0`` if it has none.
        mask : bool tensor ``[T, batch]``, optional
            The same: True for the first steps of each sequence, False for the rest.

        Raises
        ------
        TypeError, ValueError
            For inputs that do not fit, and for a cell that does not give the same twice or changes the shape, dtype
            or device of the state.
        ConvergenceError
            See ``settings.on_failure``.
        """
        forward = torch.compiler.disable(self._forward) if torch.compiler.is_compiling() else self._forward
        with Group(self.runtime).together():
            return forward(x, h0, lengths, mask)

    def _forward(self, x: Any, h0: State, lengths: Any, mask: Any) -> tuple[State, State]:
        tensors, nested = check_inputs(x, self.batch_first)
        steps, batch = tensors[0].shape[:2]
        if h0 is None:
            h0 = self._initial(tensors[0], batch)
        packing = Packing(h0)
        if packing.batch != batch:
            raise ValueError(f"h0: got batch {packing.batch}, expected the {batch} of x")
        ends = mask_of(lengths, mask, steps, batch, self.batch_first, tensors[0].device)
        valid = None
        if ends is not None:
            valid = torch.arange(steps, device=ends.device)[:, None] < ends
            tensors = [torch.where(valid.reshape(steps, batch, *[1] * (t.ndim - 2)), t, 0) for t in tensors]
        check_cell(self.cell, nested, tensors, h0, packing, self._checked)
        step = CellStep(self.cell, tensors, nested, packing, valid)
        u, self.report = solve_sequence(
            step,
            packing.pack(h0),
            steps,
            self.settings,
            coarse=self._coarse(step, steps),
            choices=self.choices,
            runtime=self.runtime,
        )
        last = u[-1] if ends is None else u[ends, torch.arange(batch, device=u.device)]
        states = packing.unpack(u[1:])
        return map_state(lambda s: s.transpose(0, 1), states) if self.batch_first else states, packing.unpack(last)

    def _coarse(self, step: CellStep, steps: int) -> list[CellStep] | None:
        """Coarse propagators for "mgrit", level by level; None where nothing says what they are."""
        make = getattr(self.cell, "rediscretise", None) if self.coarse is None else partial(partial, self.coarse)
        own = self.settings.method
        if make is None or not (own == "mgrit" or isinstance(own, MGRIT)):
            return None
        m = resolved(self.settings, steps, step.packing.features).chunk or steps
        most = own.levels if isinstance(own, MGRIT) else self.settings.levels
        strides = [m**depth for depth in range(1, most or 64) if m**depth <= steps]
        return [step.coarsened(stride, make(m=stride)) for stride in strides] or None

    def _initial(self, x: Tensor, batch: int) -> State:
        cell = getattr(self.cell, "_orig_mod", self.cell)  # what torch.compile wraps
        if hasattr(cell, "initial_state"):
            return cell.initial_state(batch, x.dtype, x.device)
        if isinstance(cell, nn.RNNCellBase):
            zeros = torch.zeros(batch, cell.hidden_size, dtype=cell.weight_hh.dtype, device=x.device)
            return (zeros, zeros) if isinstance(cell, nn.LSTMCell) else zeros
        raise ValueError(
            f"h0: not given, and {type(cell).__name__} has no initial_state(batch, dtype, device) to make one"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "report": None, "_checked": set()}  # a report holds what backward passes will write

    def extra_repr(self) -> str:
        return f"batch_first={self.batch_first}, method={self.settings.method!r}"
