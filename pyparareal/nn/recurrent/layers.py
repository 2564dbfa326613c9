# SPDX-License-Identifier: BSD-3-Clause
"""What ``nn.GRU`` and ``nn.LSTM`` share: torch's arguments and results, around recurrences solved layer by layer."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ... import _trace
from ...runtime.group import Group
from ...solution import Status
from ...traced_ops import launch
from ..execution import spans
from .cells import HeldGates
from .packing import Padded, checked_lengths, packed_like, unpacked
from .report import SequenceReport
from .settings import Settings, settings_of
from .solving import solve_sequence

OPTIONS = tuple(field.name for field in dataclasses.fields(Settings))

States = tuple[Tensor, ...]


class SolvedLayers(nn.RNNBase):
    """Layers of recurrences behind the interface of a recurrent module of torch, the base next in line.

    Attributes
    ----------
    settings : Settings
        How they are solved; may be replaced at any time.
    runtime : DistributedRuntime, optional
        What :func:`pyparareal.distributed` returns, as the keyword ``runtime``: all ranks call the module with the same
        arguments and get the same results; chunks are spread over them by every method but "auto" and "serial".
    report : list of SequenceReport
        Of the last forward pass: one for every layer and direction, in the order of ``h_n``.
    """

    settings: Settings
    report: list[SequenceReport]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given, options = kwargs.pop("settings", None), {n: kwargs.pop(n) for n in OPTIONS if n in kwargs}
        settings, runtime = settings_of(given, options), Group(kwargs.pop("runtime", None)).runtime
        super().__init__(*args, **kwargs)
        self.settings, self.runtime, self.report = settings, runtime, []

    @classmethod
    def from_torch(cls, module: Any, **settings: Any) -> Any:
        """The same layers as ``module``, one of torch's, with the very same parameters; its hooks stay behind."""
        base: Any = cls.__mro__[cls.__mro__.index(SolvedLayers) + 1]
        if not isinstance(module, base):
            raise TypeError(f"module: got {type(module).__name__}, expected a torch.nn.{base.__name__}")
        names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
        shape = {name: getattr(module, name) for name in names}
        if module.proj_size:
            shape["proj_size"] = module.proj_size
        layers = cls(**shape, **settings, device="meta")
        for name in module._flat_weights_names:
            setattr(layers, name, getattr(module, name))
        layers._init_flat_weights()
        return layers.train(module.training)

    def extra_repr(self) -> str:
        default, settings = Settings(), self.settings
        shown = {name: getattr(settings, name) for name in OPTIONS}
        kept = [f"{n}={v!r}" for n, v in shown.items() if n == "method" or v != getattr(default, n)]
        return ", ".join([super().extra_repr(), *kept])

    def __getstate__(self) -> Any:
        return super().__getstate__() | {"report": []}  # type: ignore[no-untyped-call]

    # What the kinds of layers do differently.

    def _step(self, weights: list[Tensor], x: Tensor, dtype: torch.dtype) -> HeldGates:
        """The propagator of one layer and direction over all steps of ``x [steps, batch, inputs]``."""
        raise NotImplementedError

    def _by_torch(self, batch: int, device: torch.device) -> bool:
        """Whether torch's own kernels are to take the steps one after the other, and not ``states`` of the step."""
        raise NotImplementedError

    def _sizes(self) -> tuple[int, ...]:
        """Numbers of each tensor of a state, the output first."""
        raise NotImplementedError

    def forward(self, input: Any, hx: Any = None, *, lengths: Any = None) -> Any:
        """``output, h_n`` of torch's module, for the same arguments.

        Parameters
        ----------
        input : tensor or PackedSequence
            ``[steps, batch, inputs]``, with ``batch_first`` ``[batch, steps, inputs]``, without a batch ``[steps,
            inputs]``.
        hx : tensor ``[layers * directions, batch, hidden]``, of an LSTM a pair of them, optional
        lengths : int tensor or list ``[batch]``, optional
            Instead of packing: sequence ``b`` is ``lengths[b]`` steps long, which may be 0; what comes after it in
            ``input`` is not looked at. The output is zero there, and ``h_n`` the state at the end of each sequence.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            For arguments that torch refuses too, or ``lengths`` that do not fit.
        """
        forward = self._forward
        if "torch._dynamo" in sys.modules:  # methods look at values; torch's own module breaks a graph too
            forward = torch.compiler.disable(forward)
        if self.settings.method in ("auto", "serial"):
            return forward(input, hx, lengths)
        with Group(self.runtime).together():
            return forward(input, hx, lengths)

    def _forward(self, input: Any, hx: Any, lengths: Any) -> Any:
        self._update_flat_weights()
        packed = isinstance(input, PackedSequence)
        batch, device = self._check_input(input, lengths)
        start = self._start(hx, batch, device, batched=packed or input.dim() == 3)
        serial = self.settings.method in ("auto", "serial")
        torchs_own = batch == 0 or (serial and self._by_torch(batch, device))
        if torchs_own and lengths is None:
            output, final = self._torchs_own(input, hx)
            steps = len(input.batch_sizes) if packed else input.shape[0 if input.dim() == 2 else self.batch_first]
            self._report_torchs_own(steps)
            return output, final
        if packed:
            x, layout = unpacked(input)
            if input.sorted_indices is not None:
                start = tuple(u.index_select(1, input.sorted_indices) for u in start)
            output, final = self._solved(x, start, layout)
            if input.unsorted_indices is not None:
                final = tuple(u.index_select(1, input.unsorted_indices) for u in final)
            return packed_like(input, output, layout), self._outward(final)
        x = input.unsqueeze(1) if input.dim() == 2 else input.transpose(0, 1) if self.batch_first else input
        layout = Padded(len(x), None if lengths is None else checked_lengths(lengths, len(x), batch, device))
        how = self._torch_on_lengths if torchs_own else self._solved
        output, final = how(layout.without_padding(x), start, layout)
        if input.dim() == 2:
            return output.squeeze(1), self._outward(tuple(u.squeeze(1) for u in final))
        return output.transpose(0, 1) if self.batch_first else output, self._outward(final)

    def _outward(self, final: States) -> Any:
        return final if len(final) > 1 else final[0]

    # The arguments

    def _check_input(self, input: Any, lengths: Any) -> tuple[int, torch.device]:
        """The size of the batch, and where it is."""
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("lengths: given with a PackedSequence, which has its own; expected one of them")
            self.check_input(input.data, input.batch_sizes)
            return int(input.batch_sizes[0]), input.data.device
        if not isinstance(input, Tensor):
            raise TypeError(f"input: got {type(input).__name__}, expected a tensor or a PackedSequence")
        if input.dim() not in (2, 3):
            raise ValueError(f"{self.mode}: Expected input to be 2D or 3D, got {input.dim()}D instead")
        if input.dim() == 2 and lengths is not None:
            raise ValueError("lengths: given with an input without a batch, expected one of three dimensions")
        x = input.unsqueeze(1) if input.dim() == 2 else input.transpose(0, 1) if self.batch_first else input
        self.check_input(x, None)
        if len(x) == 0:
            raise ValueError("input: got 0 steps, expected at least 1")
        return x.shape[1], input.device

    def _start(self, hx: Any, batch: int, device: torch.device, *, batched: bool) -> States:
        """The initial states ``[layers * directions, batch, ...]``, zero if they are not given."""
        sizes, layers = self._sizes(), self.num_layers * (1 + self.bidirectional)
        dtype, weight = self._dtype_of_states(), self._weight()
        if hx is None:
            return tuple(torch.zeros(layers, batch, size, dtype=dtype, device=device) for size in sizes)
        given = (hx,) if len(sizes) == 1 else hx
        if not isinstance(given, tuple | list) or [type(u) for u in given] != [Tensor] * len(sizes):
            expected = "a tensor" if len(sizes) == 1 else "a pair of tensors (h_0, c_0)"
            raise TypeError(f"hx: got {type(hx).__name__}, expected {expected}")
        for u in given:
            if u.dim() != 2 + batched:
                kind = "batched 3-D" if batched else "unbatched 2-D"
                raise RuntimeError(f"For {kind} input, hx should also be {2 + batched}-D but got {u.dim()}-D tensor")
            if u.dtype != weight.dtype and not _autocast(device):
                raise TypeError(f"hx: got dtype {u.dtype}, expected {weight.dtype}, that of the weights")
            if u.device != device:
                raise ValueError(f"hx: got a tensor on {u.device}, expected {device}, where the input is")
        found = tuple(u if batched else u.unsqueeze(1) for u in given)
        for k, (u, size) in enumerate(zip(found, sizes, strict=True)):
            name = f"hidden[{k}]" if len(sizes) > 1 else "hidden"
            self.check_hidden_size(u, (layers, batch, size), f"Expected {name} size {{}}, got {{}}")
        return tuple(u.to(dtype) for u in found)

    def _weight(self) -> Tensor:
        return self._flat_weights[0]  # type: ignore[return-value]

    def _dtype_of_states(self) -> torch.dtype:
        """Of the recurrence: at least float32, rounded at its end."""
        return torch.promote_types(self._weight().dtype, torch.float32)

    def _dtype_of_results(self, x: Tensor) -> torch.dtype:
        """That of torch's results; its GRU on the CPU keeps that of the input even under autocast."""
        if _autocast(x.device) and (x.is_cuda or self.mode == "LSTM"):
            return torch.get_autocast_dtype(x.device.type)
        return x.dtype

    # Two ways to the result

    def _solved(self, x: Tensor, start: States, layout: Padded) -> tuple[Tensor, States]:
        """Layer by layer: the output ``[steps, batch, ...]`` and the final states ``[layers * directions, ...]``."""
        dtype, directions = self._dtype_of_results(x), 1 + self.bidirectional
        ends: list[list[Tensor]] = []
        reports: list[SequenceReport] = []
        for layer in range(self.num_layers):
            outputs = []
            for backwards in range(directions):
                k = layer * directions + backwards
                weights = [getattr(self, name) for name in self._all_weights[k]]
                step = self._step(weights, layout.reversed(x) if backwards else x, self._dtype_of_states())
                states, report = self._states(step, step.packed(*(u[k] for u in start)))
                parts = [part.to(dtype) for part in step.unpacked(states)]
                outputs.append(layout.reversed(parts[0]) if backwards else parts[0])
                ends.append([layout.ends(u[k].to(dtype), part) for u, part in zip(start, parts, strict=True)])
                reports.append(report)
            x = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
            if self.dropout and self.training and layer + 1 < self.num_layers:
                x = layout.dropout(x, self.dropout)
        self.report = reports
        return layout.without_padding(x), tuple(torch.stack(parts) for parts in zip(*ends, strict=True))

    def _states(self, step: HeldGates, u0: Tensor) -> tuple[Tensor, SequenceReport]:
        """The states after every step, ``[steps, batch, size]``, and how they were found."""
        known = [p for p in step.parameters if p.requires_grad]
        with torch.autocast(u0.device.type, enabled=False):
            if self.settings.method not in ("auto", "serial"):
                states, report = solve_sequence(
                    step, u0, step.steps, self.settings, parameters=known, runtime=self.runtime
                )
                return states[1:], report
            with _trace.mark("recurrence.serial"), launch(step, u0[None], step.steps):
                states = step.states(u0)
        status = Status.SERIAL if bool(torch.isfinite(states.detach()[-1]).all()) else Status.NON_FINITE
        return states, SequenceReport("serial", step.steps, step.steps, status, settings=self.settings)

    def _torchs_own(self, input: Any, hx: Any) -> Any:
        """All steps of all layers by torch's own kernels."""
        x = input.data if isinstance(input, PackedSequence) else input
        with _trace.mark("recurrence.serial"), spans.launch(type(self).__name__, self, x):
            return super().forward(input, hx)

    def _torch_on_lengths(self, x: Tensor, start: States, layout: Padded) -> tuple[Tensor, States]:
        """The same by torch's own kernels, which refuse empty sequences."""
        lengths, weight = layout.lengths, self._weight()
        assert lengths is not None
        self._report_torchs_own(layout.steps)
        members = torch.nonzero(lengths).flatten()
        width = (1 + self.bidirectional) * self._sizes()[0]
        final = tuple(u.to(weight.dtype) for u in start)
        if len(members) == 0:
            return x.new_zeros(layout.steps, x.shape[1], width), final
        packed = pack_padded_sequence(x[:, members], lengths[members].cpu(), enforce_sorted=False)
        hx: Any = tuple(u[:, members] for u in final)
        found, ends = self._torchs_own(packed, hx if len(hx) > 1 else hx[0])
        output, _ = pad_packed_sequence(found, total_length=layout.steps)
        if len(members) == x.shape[1]:
            return output, ends if len(final) > 1 else (ends,)
        ends = ends if len(final) > 1 else (ends,)
        final = tuple(u.to(e.dtype).index_copy(1, members, e) for u, e in zip(final, ends, strict=True))
        return output.new_zeros(layout.steps, x.shape[1], width).index_copy(1, members, output), final

    def _report_torchs_own(self, steps: int) -> None:
        one = SequenceReport("serial", steps, steps, Status.SERIAL, reason="torch's own", settings=self.settings)
        self.report = [dataclasses.replace(one, backward=[]) for _ in self._all_weights]


def _autocast(device: torch.device) -> bool:
    return torch.is_autocast_enabled(device.type)
