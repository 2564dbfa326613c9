# SPDX-License-Identifier: BSD-3-Clause
"""One step of a GRU and of an LSTM as propagators, with their Jacobians by formula and their coarse steps.

The sides of the gates that come from the input are given for all steps; a step does the products with the state::

    GRU     r, z = s(a_r + W_r h), s(a_z + W_z h)        n = tanh(a_n + r (W_n h + b_n))        h' = n + z (h - n)
    LSTM    i, f, o = s(a_i + W_i h), ...                g = tanh(a_g + W_g h)
            c' = f c + i g                               h' = o tanh(c')                        (or W_p of that)

A coarse step holds the gates of its first fine step for ``m`` steps. The linear recurrence in ``h`` or ``c`` that is
left has a closed form: ``z`` becomes ``z^m``, ``f`` becomes ``f^m`` and ``i`` becomes ``i (1 - f^m) / (1 - f)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import arrays, ops
from ...propagators import relax_by_steps
from ...time_grid import shift_points
from ...torch_gru import gru_chunks, gru_states

Self = TypeVar("Self", bound="HeldGates")


class HeldGates:
    """What the two have in common: ``gates [steps, batch, gates * hidden]``, held for ``hold`` steps each.

    Attributes
    ----------
    jacobians : tuple of str
        The kinds of them that ``linearise(u, points, kind)`` knows (:mod:`pyparareal.linearise`).
    """

    batch_invariant = False
    fused = False
    jacobians: tuple[str, ...] = ("full", "diagonal")
    per_step = ("gates",)

    def __init__(self, gates: Tensor, hold: int) -> None:
        self.gates, self.hold, self.steps = gates, hold, len(gates)

    @property
    def parameters(self) -> list[Tensor]:
        """The tensors a step depends on, besides the state."""
        raise NotImplementedError

    def step(self, u: Tensor, points: slice) -> Tensor:
        raise NotImplementedError

    def unroll(self, u: Tensor, points: slice, m: int) -> Sequence[Tensor]:
        """The next ``m`` states of every slice, each ``[slices, batch, size]``; autograd follows."""
        states = []
        for j in range(m):
            u = self.step(u, shift_points(points, j))
            states.append(u)
        return states

    def states(self, u0: Tensor) -> Tensor:
        """``[steps, batch, size]``, one step after the other from ``u0 [batch, size]``; autograd follows."""
        return torch.cat(list(self.unroll(u0[None], slice(0, 1, 1), self.steps)))

    def serial(self, u0: Tensor, length: int) -> Tensor:
        """The first ``length`` of them behind ``u0``."""
        part = self if length == self.steps else self.with_gates(self.gates[:length], self.hold)
        return torch.cat([u0[None], part.states(u0)])

    def packed(self, *parts: Tensor) -> Tensor:
        """A state of its parts, the output first."""
        (h,) = parts
        return h

    def unpacked(self, u: Tensor) -> tuple[Tensor, ...]:
        """The parts of states."""
        return (u,)

    def with_gates(self: Self, gates: Tensor, hold: int) -> Self:
        """The same cell with other gates, held for so long."""
        raise NotImplementedError

    def rediscretise(self: Self, m: int) -> Self:
        """The same cell with its gates held ``m`` times as long."""
        return self.with_gates(self.gates[: self.steps // m * m : m], self.hold * m)

    def windows(self: Self, lengths: Sequence[int]) -> list[Self]:
        """The cell on one part of the sequence after the other."""
        return [self.with_gates(part, self.hold) for part in self.gates.split(list(lengths))]


class GRUStep(HeldGates):
    """``h' = n + z^hold (h - n)`` for states ``[slices, batch, hidden]``; fine steps by the kernels of ``relax_gru``.

    Parameters
    ----------
    gates : tensor ``[steps, batch, 3 hidden]``
        ``a_r, a_z, a_n``: the input's side with its bias, and the state's bias for ``r`` and ``z``.
    weight : tensor ``[3 hidden, hidden]``
    bias : tensor ``[hidden]``, optional
        ``b_n``.

    Attributes
    ----------
    fused, compares, batch_invariant : see :class:`pyparareal.propagators.FusedPropagator`
    newton_kinds : tuple of str
        The Jacobians of ``newton_step``, where there are kernels.
    kernel_devices : tuple of str
        Where the kernels are used: on the CPU; on GPUs they are unmeasured.
    """

    kernel_devices: tuple[str, ...] = ("cpu",)

    def __init__(self, gates: Tensor, weight: Tensor, bias: Tensor | None, hold: int = 1) -> None:
        super().__init__(gates, hold)
        self.weight, self.bias = weight, bias
        here = gates.device.type in self.kernel_devices
        self.has_kernel = hold == 1 and here and gates.dtype in (torch.float32, torch.float64)
        self.fused = self.compares = self.batch_invariant = self.has_kernel
        self.newton_kinds = ("diagonal",) if self.has_kernel and weight.dtype == gates.dtype else ()

    @property
    def parameters(self) -> list[Tensor]:
        return [self.gates, self.weight, *([] if self.bias is None else [self.bias])]

    def with_gates(self, gates: Tensor, hold: int) -> GRUStep:
        return GRUStep(gates, self.weight, self.bias, hold)

    def step(self, u: Tensor, points: slice) -> Tensor:
        if self.has_kernel and not self._recorded(u):
            return self._relax(u, points, 1)
        _, _, n, _, keep = self._gates(u, points)
        return n + keep * (u - n)

    def relax(self, u: Tensor, points: slice, m: int, out: Tensor | None, **more: Any) -> None:
        """``m`` steps of every slice in one kernel."""
        if self.has_kernel and not self._recorded(u):
            self._relax(u, points, m, out=out, **more)
        else:
            relax_by_steps(self, u, points, m, out, **more)

    def _relax(self, u: Tensor, points: slice, m: int, **more: Any) -> Tensor:
        gates, weight, bias = (None if t is None else t.detach() for t in (self.gates, self.weight, self.bias))
        return ops.relax_gru(u.detach(), arrays.windows(gates, points, m), weight, bias, m, **more)

    def _recorded(self, u: Tensor) -> bool:
        """Whether autograd follows a step, or a transformation of torch."""
        known = [u, *self.parameters]
        return not arrays.kernel_takes(u) or (torch.is_grad_enabled() and any(t.requires_grad for t in known))

    def newton_step(
        self,
        u: Tensor,
        points: slice,
        factor: float,
        *,
        out: Tensor,
        jacobians: Tensor,
        scratch: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor] | None:
        """An iteration of Newton's method by ``ops.newton_gru``, see :mod:`pyparareal.newton_fused`."""
        if self._recorded(u):
            return None
        weight, gates = self.weight.detach(), self.gates.detach()[points]
        rows = u.detach()[:-1].reshape(-1, u.shape[-1])
        if "products" not in scratch:  # as many as there will ever be: later iterations have fewer slices
            scratch["products"] = u.new_empty(len(rows), len(weight))
            scratch["diagonal"] = torch.stack([w.diagonal() for w in weight.chunk(3)])
        products = torch.mm(rows, weight.T, out=scratch["products"][: len(rows)])
        residuals, updates = (torch.empty(len(out), dtype=torch.float64, device=u.device) for _ in range(2))
        ops.newton_gru(
            u.detach(),
            products.view(gates.shape),
            gates,
            scratch["diagonal"],
            None if self.bias is None else self.bias.detach(),
            factor=factor,
            jacobians=jacobians,
            residuals=residuals,
            updates=updates,
            out=out,
        )
        return residuals, updates

    def states(self, u0: Tensor) -> Tensor:
        return gru_states(self.gates, self.weight, self.bias, u0) if self.has_kernel else super().states(u0)

    def unroll(self, u: Tensor, points: slice, m: int) -> Sequence[Tensor]:
        if not self.has_kernel:
            return super().unroll(u, points, m)
        return gru_chunks(arrays.windows(self.gates, points, m), self.weight, self.bias, u).unbind(1)

    def _gates(self, u: Tensor, points: slice) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """``r, z, n``, the state's side of ``n``, and ``z^hold``, each ``[slices, batch, hidden]``."""
        a_r, a_z, a_n = self.gates[points].chunk(3, -1)
        w_r, w_z, inner = F.linear(u, self.weight).chunk(3, -1)
        if self.bias is not None:
            inner = inner + self.bias
        r, z = torch.sigmoid(a_r + w_r), torch.sigmoid(a_z + w_z)
        n = torch.tanh(a_n + r * inner)
        return r, z, n, inner, z if self.hold == 1 else z**self.hold

    def linearise(self, u: Tensor, points: slice, kind: str) -> tuple[Tensor, Tensor]:
        """The step, and its Jacobian ``[slices, batch, hidden, hidden]`` ("full") or the diagonal of it.

        ``J = diag(z^m) + diag((h - n) m z^m (1 - z)) W_z + diag((1 - z^m)(1 - n^2)) (diag(r) W_n + diag(q r (1 - r))
        W_r)`` with ``m = hold`` and ``q = W_n h + b_n``.
        """
        _require_kind(kind, self.jacobians)
        r, z, n, inner, keep = self._gates(u, points)
        into_n = (1 - keep) * (1 - n * n)
        scales = (into_n * inner * r * (1 - r), (u - n) * (self.hold * keep * (1 - z)), into_n * r)
        blocks = self.weight.chunk(3)
        u_next = self.step(u, points) if self.has_kernel else n + keep * (u - n)
        if kind == "diagonal":
            return u_next, keep + _weighted(scales, [w.diagonal() for w in blocks])
        return u_next, torch.diag_embed(keep) + _weighted([s[..., None] for s in scales], blocks)


class LSTMStep(HeldGates):
    """``c' = f^hold c + i g (1 - f^hold) / (1 - f)``, ``h' = o tanh(c')`` for states of :meth:`packed` ``h`` and ``c``.

    Parameters
    ----------
    gates : tensor ``[steps, batch, 4 hidden]``
        ``a_i, a_f, a_g, a_o``: the input's side with both biases.
    weight : tensor ``[4 hidden, outputs]``
    projection : tensor ``[outputs, hidden]``, optional
        ``h' = W_p (o tanh(c'))``; without it ``outputs`` is ``hidden``.

    Attributes
    ----------
    block : int
        Without a projection a state is ``h_0, c_0, h_1, c_1, ...``: the Jacobian's blocks of 2 hold what ``c`` carries
        to ``h``, which its diagonal does not. With one it is ``h`` and then ``c``, without blocks.
    """

    def __init__(self, gates: Tensor, weight: Tensor, projection: Tensor | None = None, hold: int = 1) -> None:
        self.outputs, self.hidden = weight.shape[1], weight.shape[0] // 4
        super().__init__(gates, hold)
        self.weight, self.projection = weight, projection
        self.block = 2 if projection is None else 0
        self.jacobians = ("full", "block", "diagonal") if self.block else ("full", "diagonal")

    @property
    def parameters(self) -> list[Tensor]:
        return [self.gates, self.weight, *([] if self.projection is None else [self.projection])]

    def with_gates(self, gates: Tensor, hold: int) -> LSTMStep:
        return LSTMStep(gates, self.weight, self.projection, hold)

    def packed(self, *parts: Tensor) -> Tensor:
        """``h [..., outputs]`` and ``c [..., hidden]`` as a state."""
        return torch.stack(parts, -1).flatten(-2) if self.block else torch.cat(parts, -1)

    def unpacked(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """``h`` and ``c`` of states."""
        return (u[..., 0::2], u[..., 1::2]) if self.block else (u[..., : self.outputs], u[..., self.outputs :])

    def step(self, u: Tensor, points: slice) -> Tensor:
        i, f, g, o, c = self._gates(u, points)
        keep, gain = self._held(f)
        c = keep * c + i * g * gain
        return self._state(o * torch.tanh(c), c)

    def _gates(self, u: Tensor, points: slice) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """``i``, what makes ``f``, ``g``, ``o`` and ``c``, each ``[slices, batch, hidden]``."""
        h, c = self.unpacked(u)
        i, f, g, o = (self.gates[points] + F.linear(h, self.weight)).chunk(4, -1)
        return torch.sigmoid(i), f, torch.tanh(g), torch.sigmoid(o), c

    def _held(self, a: Tensor) -> tuple[Tensor, Tensor | float]:
        """``f^m`` and ``1 + f + ... + f^(m - 1)`` of ``f = s(a)``."""
        m, f = self.hold, torch.sigmoid(a)
        if m == 1:
            return f, 1.0
        # Beyond this the sum is m to rounding; before it neither 1 - f^m nor 1 - f loses digits in this form.
        most = math.log(m / torch.finfo(a.dtype).eps)
        near = a.clamp(max=most)
        total = -torch.expm1(m * F.logsigmoid(near)) / torch.sigmoid(-near)
        return f**m, torch.where(a > most, torch.full_like(total, m), total)

    def _state(self, h: Tensor, c: Tensor) -> Tensor:
        return self.packed(h if self.projection is None else F.linear(h, self.projection), c)

    def linearise(self, u: Tensor, points: slice, kind: str) -> tuple[Tensor, Tensor]:
        """The step, and its Jacobian, or the diagonal or the blocks of 2 on the diagonal of it.

        With ``m = hold`` and ``S = 1 + f + ... + f^(m - 1)``: ``dc'/dc = f^m``, ``dc'/dh = diag(c m f^m (1 - f) + i g
        (f S - m f^m)) W_f + diag(i (1 - i) g S) W_i + diag(i (1 - g^2) S) W_g``, and then ``dh' = diag(tanh(c') o (1 -
        o)) W_o dh + diag(o (1 - tanh(c')^2)) dc'``.
        """
        _require_kind(kind, self.jacobians)
        m = self.hold
        i, a, g, o, c = self._gates(u, points)
        f, (keep, gain) = torch.sigmoid(a), self._held(a)
        c_next = keep * c + i * g * gain
        t = torch.tanh(c_next)
        into_h = o * (1 - t * t)
        of_f = c * (m * keep * (1 - f))
        if m > 1:
            of_f = of_f + i * g * (f * gain - m * keep)
        to_c = (i * (1 - i) * g * gain, of_f, i * (1 - g * g) * gain)  # dc' through i, f and g
        to_h = (*(into_h * s for s in to_c), t * o * (1 - o))
        u_next = self._state(o * t, c_next)
        if kind == "diagonal":
            return u_next, self.packed(self._diagonal(to_h), keep)
        if kind == "block":
            above = torch.stack([self._diagonal(to_h), into_h * keep], -1)
            return u_next, torch.stack([above, torch.stack([self._diagonal(to_c), keep], -1)], -2)
        return u_next, self._full(to_h, to_c, into_h * keep, keep)

    def _diagonal(self, scales: Sequence[Tensor]) -> Tensor:
        """Of ``sum diag(scale) W``, or of ``W_p`` times that, over the gates in their order."""
        blocks = self.weight.chunk(4)[: len(scales)]
        if self.projection is None:
            return _weighted(scales, [w.diagonal() for w in blocks])
        # (W_p diag(s) W)[j, j] = sum_k W_p[j, k] W[k, j] s[k]
        terms = [F.linear(s, self.projection * w.T) for s, w in zip(scales, blocks, strict=True)]
        return torch.stack(terms).sum(0)

    def _full(self, to_h: Sequence[Tensor], to_c: Sequence[Tensor], c_to_h: Tensor, keep: Tensor) -> Tensor:
        blocks = self.weight.chunk(4)
        hh = _weighted([s[..., None] for s in to_h], blocks)
        hc, cc = torch.diag_embed(c_to_h), torch.diag_embed(keep)
        ch = _weighted([s[..., None] for s in to_c], blocks[:3])
        if self.projection is not None:
            above = torch.cat([self.projection @ hh, self.projection @ hc], -1)
            return torch.cat([above, torch.cat([ch, cc], -1)], -2)
        rows = torch.stack([torch.stack([hh, hc], -1), torch.stack([ch, cc], -1)], -3)  # [..., i, which, j, which]
        return rows.flatten(-2).flatten(-3, -2)


def _weighted(scales: Sequence[Tensor], blocks: Sequence[Tensor]) -> Tensor:
    total = scales[0] * blocks[0]
    for scale, block in zip(scales[1:], blocks[1:], strict=True):
        total = torch.addcmul(total, scale, block)
    return total


def _require_kind(kind: str, kinds: tuple[str, ...]) -> None:
    if kind not in kinds:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(kinds)}")
