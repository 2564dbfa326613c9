# SPDX-License-Identifier: BSD-3-Clause
"""A gated recurrent unit made of an ordinary differential equation, stable for long steps: one for multigrid.

    r = s(W_ir x + b_r + W_hr h)        z = s(W_iz x + b_z + W_hz h)        s: the logistic function
    n = tanh(W_in x + b_n + r * (W_hn h + b_hn))
    h' = (h + d n) / (1 + d)            d = dt (1 - z)

is a step of length ``dt`` for ``dh/dt = (1 - z) (n - h)`` that takes the decay of ``h`` implicitly and the gates
explicitly. G. E. Moon, E. C. Cyr, "Parallel training of GRU networks with a multi-grid solver for long sequences", ICLR
2022, arXiv 2203.04738; the formulas are those of their program. On coarser levels ``dt`` is as many times as long.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .recurrence import Recurrence
from .settings import Settings


class ImplicitGRUCell(nn.Module):
    """One step of all layers, each with the new state of the one below as its input.

    Attributes
    ----------
    weight_ih_l{k} : ``[3 hidden, input]``, ``[3 hidden, hidden]`` above the first layer
        For r, z and n, in this order.
    weight_hh_l{k} : ``[3 hidden, hidden]``
    bias_ih_l{k} : ``[3 hidden]``
    bias_hn_l{k} : ``[hidden]``
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int, dt: float, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.weight_ih_l0: Tensor
        self.bias_ih_l0: Tensor
        self.input_size, self.hidden_size, self.num_layers, self.dt = input_size, hidden_size, num_layers, dt
        bound = 1 / math.sqrt(hidden_size)
        for k in range(num_layers):
            inputs = hidden_size if k else input_size
            for name, shape in (
                ("weight_ih", (3 * hidden_size, inputs)),
                ("weight_hh", (3 * hidden_size, hidden_size)),
                ("bias_ih", (3 * hidden_size,)),
                ("bias_hn", (hidden_size,)),
            ):
                weight = torch.empty(shape, device=device, dtype=dtype).uniform_(-bound, bound)
                self.register_parameter(f"{name}_l{k}", nn.Parameter(weight))

    def forward(self, gates: Tensor, h: Tensor) -> Tensor:
        """``h [rows, layers, hidden]`` after a step; ``gates [rows, 3 hidden]`` from :meth:`project`."""
        return self.advance(gates, h, self.dt)

    def project(self, x: Tensor) -> Tensor:
        """What the input does to the gates of the first layer, for all steps at once."""
        return nn.functional.linear(x, self.weight_ih_l0, self.bias_ih_l0)

    def rediscretise(self, m: int) -> Any:
        """The same equation in steps ``m`` times as long."""
        return Longer(self, m * self.dt)

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.zeros(batch, self.num_layers, self.hidden_size, dtype=dtype, device=device)

    def advance(self, gates: Tensor, h: Tensor, dt: float) -> Tensor:
        states: list[Tensor] = []
        for k, before in enumerate(h.unbind(1)):
            if k:
                gates = nn.functional.linear(
                    states[-1], getattr(self, f"weight_ih_l{k}"), getattr(self, f"bias_ih_l{k}")
                )
            of_state = nn.functional.linear(before, getattr(self, f"weight_hh_l{k}"))
            size = 2 * self.hidden_size
            r, z = torch.sigmoid(gates[:, :size] + of_state[:, :size]).chunk(2, 1)
            n = torch.tanh(gates[:, size:] + r * (of_state[:, size:] + getattr(self, f"bias_hn_l{k}")))
            d = dt * (1 - z)
            states.append((before + d * n) / (1 + d))
        return torch.stack(states, 1)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, dt={self.dt}"


class Longer:
    """The step of a cell with another ``dt``."""

    def __init__(self, cell: ImplicitGRUCell, dt: float) -> None:
        self.cell, self.dt = cell, dt

    def __call__(self, gates: Tensor, h: Tensor) -> Tensor:
        return self.cell.advance(gates, h, self.dt)


class ImplicitGRU(Recurrence):
    """:class:`ImplicitGRUCell` along a sequence, called like :class:`torch.nn.GRU`.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        All layers together are one step: the state that is solved for is that of all of them.
    dt : float
        Length of a step.
    batch_first, settings, runtime and further keyword arguments : see :class:`.Recurrence`
        The paper's training runs: ``method="mgrit", levels=3, chunk=4, tol=None, max_iterations=2`` and
        ``backward=Adjoint(max_iterations=1, on_failure="return")``. Two iterations are far from the solution: the
        states are then those of another network, which they train.

    Examples
    --------
    >>> output, last = ImplicitGRU(8, 16, num_layers=2)(torch.randn(1000, 4, 8))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        dt: float = 1.0,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
        settings: Settings | None = None,
        **options: Any,
    ) -> None:
        for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: got {value!r}, expected an integer")
            if value < 1:
                raise ValueError(f"{name}: got {value}, expected at least 1")
        if isinstance(dt, bool) or not isinstance(dt, int | float) or not 0 < dt < math.inf:
            raise ValueError(f"dt: got {dt!r}, expected a positive number")
        cell = ImplicitGRUCell(input_size, hidden_size, num_layers, float(dt), device, dtype)
        super().__init__(cell, batch_first=batch_first, settings=settings, **options)

    def forward(
        self, x: Tensor, h0: Tensor | None = None, *, lengths: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The states of the last layer ``[T, batch, hidden]``, and those of all after the last step.

        Parameters
        ----------
        x : tensor ``[T, batch, input]``
            ``[batch, T, input]`` with ``batch_first``.
        h0 : tensor ``[layers, batch, hidden]``, optional
            Default: zeros. The second result has this shape too.
        lengths, mask : see :meth:`.Recurrence.forward`
        """
        cell = self.cell
        if not isinstance(x, Tensor):
            raise TypeError(f"x: got {type(x).__name__}, expected a tensor")
        if x.ndim != 3 or x.shape[2] != cell.input_size:
            layout = "[batch, T, input]" if self.batch_first else "[T, batch, input]"
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected {layout} with input {cell.input_size}")
        expected = (cell.num_layers, x.shape[0 if self.batch_first else 1], cell.hidden_size)
        if h0 is not None and tuple(h0.shape) != expected:
            raise ValueError(f"h0: got shape {tuple(h0.shape)}, expected {expected}")
        states, last = super().forward(
            cell.project(x), None if h0 is None else h0.transpose(0, 1), lengths=lengths, mask=mask
        )
        return states.select(2, -1), last.transpose(0, 1)
