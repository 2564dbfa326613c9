# SPDX-License-Identifier: BSD-3-Clause
"""The tensors of a serial network under its names, and the same tensors under those of its parareal version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

_EXTRA = "_extra_state"  # torch's name of what a module saves beside tensors
_COMPILED = "_orig_mod."  # and of what torch.compile wraps


def serial_names(module: nn.Module | Sequence[nn.Module], network: nn.Module) -> dict[str, str | None]:
    """For each name in ``module.state_dict()`` the name of the same tensor in ``network``, None where it has none.

    A sequence of blocks has the names of an ``nn.Sequential`` of them.
    """
    serial = module if isinstance(module, nn.Module) else nn.ModuleList(module)
    tensors: dict[int, str] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        tensors.setdefault(id(tensor), name)
    modules = {id(m): name for name, m in network.named_modules()}
    found: dict[str, str | None] = {}
    for name, tensor in serial.state_dict(keep_vars=True).items():
        found[name] = tensors.get(id(tensor))
        if name.endswith(_EXTRA):  # made anew by every call: known by its module
            owner = modules.get(id(serial.get_submodule(name.removesuffix(_EXTRA).rstrip("."))))
            found[name] = f"{owner}.{_EXTRA}" if owner else None
    return found


def to_serial(network: nn.Module, names: dict[str, str | None] | None, strict: bool) -> dict[str, Tensor]:
    """``network``'s tensors under the serial names."""
    own = _own_names(network)
    state = network.state_dict()
    known = _required(names)
    absent = [name for name, here in known.items() if here not in own]
    if absent and strict:
        raise ValueError(
            f"network: got none of the tensors {_few(absent)} of the serial network, expected all; with strict=False "
            "the others are returned"
        )
    return {name: state[own[here]] for name, here in known.items() if here in own}


def from_serial(
    network: nn.Module, names: dict[str, str | None] | None, state: Mapping[str, Tensor], strict: bool
) -> None:
    """Copy ``state``, given under the serial names, into ``network``; all or nothing."""
    own = _own_names(network)
    before = network.state_dict()
    known = _required(names)
    missing = [name for name, here in known.items() if here in own and name not in state]
    unknown = [name for name in state if name not in known]
    if strict and (missing or unknown):
        parts = [f"{_few(missing)} missing"] * bool(missing) + [f"{_few(unknown)} unknown"] * bool(unknown)
        raise ValueError(f"state: of another network, nothing was changed: {'; '.join(parts)}")
    new = {own[here]: state[name] for name, here in known.items() if here in own and name in state}
    for name, here in known.items():
        if here in own and name in state and _shape(state[name]) != _shape(before[own[here]]):
            got, expected = _shape(state[name]), _shape(before[own[here]])
            raise ValueError(f"state: got shape {got} of {name!r}, expected {expected}; nothing was changed")
    network.load_state_dict(new, strict=False)


def _own_names(network: nn.Module) -> dict[str | None, str]:
    """Names as they were before parts were wrapped by torch.compile -> names now."""
    return {name.replace(_COMPILED, ""): name for name in network.state_dict()}


def _required(names: dict[str, str | None] | None) -> dict[str, str | None]:
    if names is None:
        raise ValueError(
            "network: got one put together by hand, which knows no other names than its own, expected one from "
            "build_parareal; network.serial().state_dict() numbers its stages"
        )
    return names


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
