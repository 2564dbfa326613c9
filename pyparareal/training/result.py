# SPDX-License-Identifier: BSD-3-Clause
"""What a parallel training run ends in: weights, how every window ended, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from ..solution import Status
from .windows import Window


@dataclass(frozen=True)
class RunsResult:
    """The end of :meth:`pyparareal.training.TrainingRuns.run`.

    Attributes
    ----------
    weights : dict of tensors
        The trained parameters by name after all steps, or after ``steps_done``.
    moments : dict of dicts of tensors
        The optimiser's, by its ``torch.optim`` name and parameter.
    status : Status
        CONVERGED if every window did, or had one level and took its steps serially; SERIAL if all windows had one
        level; SERIAL_FALLBACK if one failed and was trained serially; else the failure.
    windows : tuple of Window
    steps, steps_done : int
        Training steps asked for, and those that ``weights`` have behind them.
    path : str
        Which step ran: "fused" (one kernel for the steps of all slices) or "torch" (batched gradients).
    why_not_fused : str
        Empty if fused.
    steps_per_call : int, optional
        Gradients taken at a time, where memory bounds them.
    """

    weights: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    status: Status
    windows: tuple[Window, ...]
    steps: int
    steps_done: int
    path: str
    why_not_fused: str = ""
    steps_per_call: int | None = None
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        # A window without a coarse level is trained serially: what never iterated is not called converged.
        serial = sum(window.status is Status.SERIAL for window in self.windows)
        if self.status is not Status.CONVERGED or not serial:
            return
        note = f"{serial} of {len(self.windows)} windows have no coarse level: their steps were taken serially"
        if serial == len(self.windows):
            object.__setattr__(self, "status", Status.SERIAL)
            note = "no window has a coarse level"
        object.__setattr__(self, "notes", (*self.notes, note))

    @property
    def iterations(self) -> tuple[int, ...]:
        """MGRIT cycles of every window."""
        return tuple(window.iterations for window in self.windows)

    @property
    def residuals(self) -> tuple[tuple[float, ...], ...]:
        """Residual of every cycle of every window."""
        return tuple(tuple(window.residuals) for window in self.windows)

    @property
    def steps_taken(self) -> tuple[int, ...]:
        """Steps taken on each level, all windows together."""
        levels = max((len(window.steps_per_level) for window in self.windows), default=0)
        return tuple(
            sum(window.steps_per_level[level] for window in self.windows if level < len(window.steps_per_level))
            for level in range(levels)
        )

    @property
    def seconds(self) -> float:
        """Of all windows."""
        return sum(window.seconds for window in self.windows)

    @property
    def message(self) -> str:
        """How it ended, and why what failed did."""
        reasons = [f"steps from {window.first}: {window.reason}" for window in self.windows if window.reason]
        return "; ".join([self.status.value, *reasons, *self.notes])

    def state_dict(self) -> dict[str, Tensor]:
        """``weights``: load with ``module.load_state_dict(..., strict=False)``, or :meth:`load`."""
        return dict(self.weights)

    def load(self, module: nn.Module) -> None:
        """Give ``module`` the weights.

        Raises
        ------
        TypeError, ValueError
            No module, or one without these parameters in their shapes and dtype; then it stays as it is.
        """
        if not isinstance(module, nn.Module):
            raise TypeError(f"module: got {type(module).__name__}, expected a torch module")
        own = module.state_dict()
        missing = [name for name in self.weights if name not in own]
        if missing:
            raise ValueError(f"module: got {type(module).__name__} without {missing[0]!r}, expected the trained one")
        for name, weight in self.weights.items():
            got, expected = (f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (own[name], weight))
            if got != expected:
                raise ValueError(f"module: got {name} {got}, expected {expected}")
        module.load_state_dict(self.weights, strict=False)
