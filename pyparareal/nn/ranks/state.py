# SPDX-License-Identifier: BSD-3-Clause
"""The tensors of the whole network, from and to the ranks that have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..execution.communication import Traffic, traffic
from ..shapes import meta_output
from .link import Sent

if TYPE_CHECKING:
    from .network import RankedNetwork

EXTRA = "_extra_state"  # what execution="auto" measured on one rank
COMPILED = "_orig_mod."


def gather(net: RankedNetwork, to: int | None) -> dict[str, Tensor]:
    """All tensors by name, in the order of the whole network, as copies in host memory; empty on ranks without."""
    own = _own(net)
    error: Exception | None = None
    ranks = net.runtime.size
    if to is not None and (isinstance(to, bool) or not isinstance(to, int) or not 0 <= to < ranks):
        error = ValueError(f"to: got {to!r}, expected None or one of the {ranks} ranks")
    kinds = {}
    for name, value in own.items():
        if not isinstance(value, Tensor):
            error = TypeError(f"network: got {type(value).__name__} as {name!r}, expected tensors only")
        else:
            kinds[name] = Sent.of(value).tell()
    net.meeting.come("full_state_dict")
    told = net.meeting.compare("full_state_dict", {"to": to}, error, kinds=kinds)
    where = {name: (rank, kind) for rank, theirs in enumerate(told) for name, kind in theirs["kinds"].items()}
    order = [name for name in net.names if name in where]
    order += [name for name in where if name not in net.names]
    return _moved(net, to, own, {name: where[name] for name in order})


def _moved(
    net: RankedNetwork, to: int | None, own: dict[str, Tensor], where: dict[str, tuple[int, dict[str, Any]]]
) -> dict[str, Tensor]:
    found, host, rank = {}, torch.device("cpu"), net.runtime.rank
    with net.runtime.failing() as ranks:
        for name, (source, kind) in where.items():
            what, wanted = f"full_state_dict, {name}", to in (None, rank)
            if source == rank:
                value = own[name].detach().cpu().clone()
            elif wanted:
                value = Sent.told(kind).room(host)
            else:
                continue
            if to is None:
                ranks.broadcast(value, source, what)
            elif source == rank and to != rank:
                ranks.send(value, what, to)
            elif source != rank:
                ranks.receive(value, what, source)
            if wanted:
                found[name] = value
        ranks.flush("full_state_dict")
    return found


def scatter(net: RankedNetwork, state: Mapping[str, Tensor]) -> None:
    """Every rank takes its own from the ``state`` of the whole network; nothing is changed if one refuses."""
    error: Exception | None = None
    try:
        _require_whole(net, state)
    except (TypeError, ValueError) as refused:
        error = refused
    net.meeting.same("load_full_state_dict", {}, error)
    own = {name.replace(COMPILED, ""): name for name in net.state_dict()}
    net.load_state_dict({own[name]: value for name, value in state.items() if name in own and name != EXTRA})


def _require_whole(net: RankedNetwork, state: Mapping[str, Tensor]) -> None:
    if not isinstance(state, Mapping):
        raise TypeError(f"state: got {type(state).__name__}, expected the names and tensors of the whole network")
    missing = [name for name in net.names if name not in state]
    unknown = [name for name in state if name not in net.names and name != EXTRA]
    wrong = [
        f"{name!r} has shape {tuple(state[name].shape)}, expected {shape}"
        for name, shape in net.names.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    found = [f"{name!r} is missing" for name in missing] + [f"{name!r} is unknown" for name in unknown] + wrong
    if found:
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise ValueError(f"state: of another network, nothing was changed: {'; '.join(found[:3])}{more}")


def traffic_of_all(net: RankedNetwork, example: Tensor) -> list[Traffic]:
    """As if all interfaces were between ranks, from the shapes of the outputs of all parts."""
    error: Exception | None = None
    outputs: list[Tensor] = []
    try:
        if not isinstance(example, Tensor):
            raise TypeError(f"example: got {type(example).__name__}, expected a tensor [batch, features...]")
        outputs = [meta_output(g, meta_output(c, example)) for c, g in zip(*net.own_parts(), strict=True)]
    except Exception as failed:
        error = failed
    net.meeting.come("communication")
    told = net.meeting.compare("communication", {}, error, sent=[Sent.of(y).tell() for y in outputs])
    return traffic([Sent.told(kind).room(torch.device("meta")) for theirs in told for kind in theirs["sent"]])


def _own(net: RankedNetwork) -> dict[str, Any]:
    """This rank's share under the names of the whole network; what FSDP has spread over replicas, whole."""
    found = {}
    for name, value in net.state_dict().items():
        if name != EXTRA:
            found[name.replace(COMPILED, "")] = value.full_tensor() if hasattr(value, "full_tensor") else value
    return found
