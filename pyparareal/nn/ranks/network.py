# SPDX-License-Identifier: BSD-3-Clause
"""A parareal network over the ranks of a group: each has the parameters of its own parts and of no others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ... import __version__
from ...runtime import DistributedRuntime, distributed
from ..execution.choice import ExecutionChoice
from ..execution.communication import Traffic
from ..parareal_network import PararealNetwork
from . import clipping, forward, state
from .deal import Deal, deal, described, modules_of, require_apart
from .meeting import Meeting


def over_ranks(
    network: PararealNetwork,
    runtime: DistributedRuntime | None = None,
    *,
    parts_per_rank: Sequence[int] | None = None,
    broadcast_weights: bool = False,
) -> RankedNetwork:
    """``network`` with each part on one rank only, and on every rank the outputs, losses and gradients of one process.

    A script differs from that of one process by this line, ``torch.distributed.init_process_group`` and ``torchrun``:
    every rank builds the whole network from the same seed, calls this, makes an optimiser for what is left of it, and
    runs the same steps. Outputs, losses, gradients, running statistics and weights have the bits of
    ``execution="serial"`` in one process with as many threads as a rank has, for any number of ranks.

    ===================  ==========================================================================================
    rank of part ``j``   has ``C^j``, ``g^j``, the coarse net ``F^{j-1}`` that enters it and, if it is the last,
                         ``h``: parameters, buffers, gradients and optimiser state of other ranks take no memory here
    ``network(x)``       rank 0's ``x`` goes to all (those of the others give shape, dtype and strides only); fine
                         nets run at once; the coarse chain passes one state ``U_j`` to the next rank; the output goes
                         to all
    ``loss.backward()``  on all ranks, each from its own copy of the loss, of which the last rank's gradient counts;
                         one gradient returns for every state, before the fine nets' backward passes
    ``communication``    the bytes of both per interface; what else is sent is the input, the output, the gradient of
                         an ``x`` that requires grad, and an exchange of six numbers per pass
    ===================  ==========================================================================================

    Parameters
    ----------
    network : PararealNetwork
        The same on every rank. Its own modules are used; those of other ranks' parts are freed as soon as nothing else
        refers to them (write ``network = over_ranks(network, runtime)``, and drop the serial model it was cut from).
    runtime : DistributedRuntime, optional
        What ``pyparareal.distributed(mesh, dim="pint")`` returned; default: over all ranks.
    parts_per_rank : sequence of int, optional
        How many parts each rank has, from the first part on; default: as equal as possible, the longer groups first.
    broadcast_weights : bool
        Take rank 0's weights and buffers instead of comparing them.

    Raises
    ------
    TypeError, ValueError
        On all ranks and before anything is changed: more ranks than parts; a tensor that parts on different ranks
        share; the first tensor, option or version that is not the same on all ranks, by name.
    RankError
        A rank failed, died or did not come in time.

    Notes
    -----
    *State.* ``state_dict()`` is this rank's share under the names of the whole network (``fine.3.0.weight``);
    ``full_state_dict()`` is the whole, and ``load_full_state_dict()`` takes a share of it. A network on the meta device
    is possible: ``to_empty``, then ``load_full_state_dict``.

    *Clipping.* ``torch.nn.utils.clip_grad_norm_`` sees the gradients of one rank and would scale each rank's by another
    factor. Use ``network.clip_grad_norm_``. For the same reason ``torch.amp.GradScaler`` must not be used: each rank
    would skip steps by its own gradients alone; bfloat16 needs no scaling.

    *Randomness.* Dropout masks are those of any number of ranks, one included, and not those of a network in one
    process: every module of a pass starts from a seed of its own, derived from one of rank 0's generator, which moves
    on by one draw on every rank if any part draws, else not at all.

    *Statistics.* Batch norm sees the whole batch on its rank, as in one process.

    *Modes.* ``execution="parallel"``, ``"batched"`` or ``"auto"`` is for the parts within a rank, as long as none draws
    random numbers; results are then those of the mode. What ``"auto"`` has
    measured on a rank is not in its state. Parts may be compiled by themselves (``part.compile()``);
    ``torch.compile(network)`` leaves the network as it is. ``torch.utils.checkpoint`` belongs around blocks within
    parts, around the network it is refused, as are second derivatives and ``torch.autograd.grad`` for parameters (for
    the input it works). A coarse net that ignores its input has gradients of zero, not None, before it.

    *Data parallelism.* Replicas of parts are the other dimension of a mesh: with ``("dp", "pint")``, wrap the result in
    ``DistributedDataParallel(network, process_group=mesh.get_group("dp"))``, or shard it with FSDP2:
    ``fully_shard(network.fine[j], mesh=mesh["dp"])`` for ``j in network.own``, then
    ``fully_shard(network, mesh=mesh["dp"])``; ``load_full_state_dict`` comes before that. Every replica reads a batch
    of its own, that of its rank 0 in ``pint``.

    *Failures.* Before a pass begins the ranks compare shape, dtype, strides and modes: a difference is a ValueError on
    all, and nothing is lost. An error in the first pass of a kind of input loses nothing either; later, an error in a
    part, a rank that dies, or one that is at another operation is a RankError on all others that names rank, part and
    operation, and ends the runtime. Nothing waits longer than the runtime's limit.

    Not verified: tensors on GPUs (they go through pinned host memory), and processes on several machines.
    """
    if runtime is None:
        runtime = distributed()
    if not isinstance(runtime, DistributedRuntime):
        raise TypeError(f"runtime: got {type(runtime).__name__}, expected that of pyparareal.distributed()")
    with runtime.together():
        if not isinstance(network, PararealNetwork):
            raise TypeError(f"network: got {type(network).__name__}, expected a PararealNetwork")
        dealt = deal(network.parts, runtime.size, parts_per_rank)
        require_apart(network, dealt)
        ranked = RankedNetwork(network, runtime, dealt)
        asked: dict[str, Any] = {
            "pyparareal": __version__,
            "torch": str(torch.__version__),
            "parts_per_rank": list(dealt.sizes),
        }
        asked |= {"part_sizes": list(network.part_sizes), "correction": network.correction}
        asked["broadcast_weights"] = broadcast_weights
        runtime.ask(asked | modules_of(network) | described(network, values=not broadcast_weights))
        runtime.agree()
    ranked.meeting.count()
    if broadcast_weights:
        with runtime.failing() as ranks:
            for name, tensor in network.state_dict().items():
                if isinstance(tensor, Tensor) and name != state.EXTRA:
                    ranks.broadcast(tensor, 0, f"broadcasting {name}")
    return ranked


class RankedNetwork(ExecutionChoice):
    """Made by :func:`over_ranks`.

    Attributes
    ----------
    own : range
        The parts of this rank, counted from 0.
    part_sizes, correction, execution, executed
        As those of :class:`.PararealNetwork`; the modes run the parts of this rank.
    """

    def __init__(self, network: PararealNetwork, runtime: DistributedRuntime, dealt: Deal) -> None:
        super().__init__()
        self.part_sizes, self.correction = network.part_sizes, network.correction
        self.dealt = dealt
        self.own = dealt.of_rank[runtime.rank]
        self.meeting, self.counts = Meeting(runtime), Counter[str]()
        self.kinds: dict[Any, forward.Kind] = {}
        tensors = {n: t for n, t in network.state_dict().items() if isinstance(t, Tensor) and n != state.EXTRA}
        self.names = {name: tuple(t.shape) for name, t in tensors.items()}
        self.parameter_names = [name for name, _ in network.named_parameters()]
        self.preprocess = self._share("preprocess", network.preprocess)
        self.fine = self._share("fine", network.fine)
        self.coarse = self._share("coarse", network.coarse)
        self.head = self._mine("head", network.head)
        self.execution = network.execution
        self.training = network.training

    @property
    def parts(self) -> int:
        """``N``, the number of parts of the whole network."""
        return len(self.part_sizes)

    @property
    def runtime(self) -> DistributedRuntime:
        """Whose ranks these are; a copy of the network has the same."""
        return self.meeting.runtime

    @property
    def sent(self) -> Counter[str]:
        """Bytes that this rank has sent so far, a copy.

        ``forward`` and ``backward`` over the interfaces, which are those of :meth:`communication`; ``input``,
        ``output`` and ``input gradient`` besides, one that goes to all counted once.
        """
        return Counter(self.counts)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor) -> Tensor:
        """``x [batch, features...] -> h(U_N) [batch, out]``, for rank 0's ``x``, the same on every rank."""
        return forward.run(self, x)

    def full_state_dict(self, to: int | None = None) -> dict[str, Tensor]:
        """All tensors of the whole network by name, as copies in host memory; all ranks call this.

        For :func:`pyparareal.nn.save` they go into a whole network: ``whole.load_state_dict(...)``.

        Parameters
        ----------
        to : int, optional
            The one rank that gets them, the others an empty dict; default: every rank.

        Raises
        ------
        TypeError, ValueError
            State that is no tensor; no such rank.
        """
        return state.gather(self, to)

    def load_full_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take this rank's share of the ``state_dict`` of the whole network; all ranks call this with the same.

        Raises
        ------
        TypeError, ValueError
            On all ranks, naming what is missing, unknown or of another shape; nothing is changed then.
        """
        state.scatter(self, state_dict)

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False) -> Tensor:
        """Scale all gradients of all ranks so that their norm is at most ``max_norm``; returns the norm before.

        The norm and the factor of ``torch.nn.utils.clip_grad_norm_`` on the whole network in one process, bit for bit,
        on every rank. All ranks call this.

        Raises
        ------
        ValueError
            The ranks have other arguments.
        RuntimeError
            With ``error_if_nonfinite``, on all ranks; nothing is scaled then.
        """
        return clipping.clip(self, max_norm, norm_type, error_if_nonfinite)

    def communication(self, example: Tensor) -> list[Traffic]:
        """Bytes over each interface of the whole network in one step on an input like ``example``; all ranks call this.

        Those over the interfaces between ranks are sent; see :meth:`.PararealNetwork.communication`.
        """
        return state.traffic_of_all(self, example)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> RankedNetwork:
        self.kinds.clear()  # states may have another dtype or layout from now on
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(f"{prefix}{state.EXTRA}", None)  # measured on this rank, for the parts it has now

    def own_parts(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """``C^j`` and ``g^j`` of the parts of this rank."""
        return [self.preprocess[j] for j in self.own], [self.fine[j] for j in self.own]

    def extra_repr(self) -> str:
        return f"part_sizes={self.part_sizes}, correction={self.correction!r}, execution={self.execution!r}"

    def _share(self, kind: str, modules: nn.ModuleList) -> nn.ModuleList:
        return nn.ModuleList(self._mine(f"{kind}.{i}", module) for i, module in enumerate(modules))

    def _mine(self, name: str, module: nn.Module) -> nn.Module:
        owner = self.dealt.owner(name)
        return module if owner == self.runtime.rank else Elsewhere(name, owner)


class Elsewhere(nn.Module):
    """The place of a module that another rank has."""

    def __init__(self, name: str, rank: int) -> None:
        super().__init__()
        self.name, self.rank = name, rank

    def forward(self, *arguments: Any) -> Any:
        raise RuntimeError(f"{self.name}: this module is on rank {self.rank}; call the network, on all ranks")

    def extra_repr(self) -> str:
        return f"{self.name} on rank {self.rank}"
