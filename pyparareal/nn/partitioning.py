# SPDX-License-Identifier: BSD-3-Clause
"""Cut the blocks of a network into contiguous parts of about equal cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor, nn

from . import costs
from .balance import balanced_sizes
from .chain import Chain, chain_of

BALANCES = ("flops", "time", "params")
FORMAT = "pyparareal-partition-1"


@dataclass(frozen=True)
class Partition:
    """The blocks of a network in ``N`` contiguous parts, with what each costs. ``print`` it to see a table.

    Block ``b`` maps a state of shape ``shapes[b]`` to one of ``shapes[b + 1]``, ``[batch, features...]``. FLOPs are
    those of a forward pass of the example's batch, two for a multiply-add, in matrix products, convolutions and
    attention; seconds are those of forward and backward.
    """

    sizes: tuple[int, ...]  # blocks in each part
    balance: str  # "flops", "time", "params", "sizes" or "split_spec": what decided the sizes
    names: tuple[str, ...]  # of the blocks
    parameters: tuple[int, ...]  # of the blocks
    flops: tuple[int, ...]
    seconds: tuple[float, ...] | None
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]  # of the states
    input_shape: tuple[int, ...]
    input_dtype: str
    stem_flops: int
    body: tuple[str, ...] | None
    chain: Chain = field(repr=False, compare=False)
    module: nn.Module | tuple[nn.Module, ...] = field(repr=False, compare=False)  # the network, or the list of blocks

    @property
    def parts(self) -> int:
        """``N``."""
        return len(self.sizes)

    @property
    def groups(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The user's modules, part by part."""
        return tuple(self.chain.blocks[a:b] for a, b in self.ranges())

    @property
    def interfaces(self) -> tuple[tuple[int, ...], ...]:
        """Shapes ``X_0, X_1, ..., X_N`` with batch axis: before the first part, after it, ..., after the last."""
        return tuple(self.shapes[i] for i in [0, *accumulate(self.sizes)])

    @property
    def part_parameters(self) -> tuple[int, ...]:
        return tuple(sum(self.parameters[a:b]) for a, b in self.ranges())

    @property
    def part_flops(self) -> tuple[int, ...]:
        return tuple(sum(self.flops[a:b]) for a, b in self.ranges())

    @property
    def part_seconds(self) -> tuple[float, ...] | None:
        return None if self.seconds is None else tuple(sum(self.seconds[a:b]) for a, b in self.ranges())

    def ranges(self) -> list[tuple[int, int]]:
        """First block of each part and the one after its last."""
        return list(pairwise([0, *accumulate(self.sizes)]))

    def to_config(self) -> dict[str, Any]:
        """JSON values from which :meth:`from_config` makes the same partition, without measuring anything."""
        # Not asdict(self), which would copy the network.
        return {"format": FORMAT} | {name: _plain(getattr(self, name)) for name in _FIELDS}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], module: nn.Module | Iterable[nn.Module]) -> Partition:
        """The partition recorded in ``config``, of ``module``.

        Raises
        ------
        ValueError
            ``config`` is no partition, or one of a network with other blocks or parameters.
        """
        if config.get("format") != FORMAT:
            raise ValueError(f"config: got format {config.get('format')!r}, expected {FORMAT!r}")
        missing = [name for name in _FIELDS if name not in config]
        if missing:
            raise ValueError(f"config: got no entry {missing[0]!r}")
        values = {name: _frozen(config[name]) for name in _FIELDS}
        chain = chain_of(module, values["body"])
        own = {"names": chain.names, "parameters": costs.parameters(chain)}
        for name, mine in own.items():
            if values[name] != mine:
                theirs = values[name]
                at = next(
                    (i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b),
                    min(len(mine), len(theirs)),
                )
                raise ValueError(
                    f"config: of another network, {name} of block {at}: "
                    f"{theirs[at : at + 1] or 'nothing'} there, {mine[at : at + 1] or 'nothing'} here"
                )
        _require_sizes("config", values["sizes"], len(chain.blocks))
        return cls(**values, chain=chain, module=_whole(module, chain))

    def __str__(self) -> str:
        return "\n".join(_table(self))


_FIELDS = [name for name in Partition.__dataclass_fields__ if name not in ("chain", "module")]


def partition(
    module: nn.Module | Iterable[nn.Module],
    parts: int | None = None,
    balance: str | Sequence[int] = "flops",
    *,
    example: Tensor,
    body: str | Sequence[str] | None = None,
    split_spec: Mapping[str, Any] | None = None,
    measure: bool = False,
) -> Partition:
    """The cut of ``module``'s blocks into ``parts`` contiguous parts whose largest part is as cheap as possible.

    Nothing of ``module`` is copied or changed.

    Parameters
    ----------
    module, body : where the blocks are: :func:`.chain.chain_of`
    parts : int
        ``N``; may be left out where ``balance`` or ``split_spec`` says it.
    balance : ``"flops"``, ``"time"``, ``"params"`` or a sequence of int
        What is balanced over the blocks (stem and head are not counted), or the number of blocks in each part.
        ``"time"`` measures forward and backward of each block now, on copies.
    example : tensor ``[batch, features...]``
        An input. On the ``meta`` device it suffices for all but times.
    split_spec : mapping of dotted module names to ``SplitPoint.BEGINNING`` or ``SplitPoint.END``, optional
        Where to cut, as in ``torch.distributed.pipelining.pipeline``; instead of ``balance``.
    measure : bool
        Also measure the blocks' seconds where they do not decide.

    Notes
    -----
    There is no cut between blocks that share a parameter or buffer, nor before a block that would overwrite the
    interface's state in place (the residual ``y_j - x_{j+1}`` would be taken from the overwritten guess).

    Raises
    ------
    ValueError, TypeError
        Naming the argument, what it got and what was expected. Among them: more parts than blocks, or than the
        blocks that cannot be separated allow, naming them; blocks that return no tensor or change the batch
        size; a name in ``split_spec`` at which no block begins or ends.
    """
    if not isinstance(example, Tensor):
        raise TypeError(f"example: got {type(example).__name__}, expected a tensor [batch, features...]")
    if isinstance(balance, str) and balance not in BALANCES:
        raise ValueError(f"balance: got {balance!r}, expected one of {', '.join(map(repr, BALANCES))} or group sizes")
    names = None if body is None else (body,) if isinstance(body, str) else tuple(body)
    chain = chain_of(module, names)
    _require_parts(parts, len(chain.blocks))
    _require_initialised(chain)
    sizes = _given_sizes(chain, parts, balance, split_spec)
    traced = costs.trace(chain, example)
    joints = _joints(chain, traced)
    count = len(sizes) if sizes is not None else parts
    if traced.stem_overwrites and count != 1:
        raise ValueError("stem: overwrites the raw input in place, which the other parts' preprocessing maps read, too")
    seconds = costs.measure_seconds(chain, example) if measure or (balance == "time" and sizes is None) else None
    parameters = costs.parameters(chain)
    if sizes is None:
        price = {"flops": traced.flops, "params": parameters, "time": [round(1e9 * s) for s in seconds or ()]}
        sizes = _balanced(price[str(balance)], count, joints, str(balance))  # type: ignore[arg-type]
    _require_separable(sizes, joints)
    decided = "split_spec" if split_spec is not None else balance if isinstance(balance, str) else "sizes"
    return Partition(
        sizes=sizes,
        balance=decided,
        names=chain.names,
        parameters=parameters,
        flops=traced.flops,
        seconds=seconds,
        shapes=tuple(tuple(u.shape) for u in traced.states),
        dtypes=tuple(str(u.dtype).removeprefix("torch.") for u in traced.states),
        input_shape=tuple(traced.x.shape),
        input_dtype=str(traced.x.dtype).removeprefix("torch."),
        stem_flops=traced.stem_flops,
        body=names,
        chain=chain,
        module=_whole(module, chain),
    )


def _whole(module: nn.Module | Iterable[nn.Module], chain: Chain) -> nn.Module | tuple[nn.Module, ...]:
    return module if isinstance(module, nn.Module) else chain.blocks  # an iterable may have been used up


def _joints(chain: Chain, traced: costs.Trace) -> dict[int, str]:
    """Why there is no cut before block ``b``, for every such ``b``."""
    reasons: dict[int, str] = {}
    for first, last, pair in costs.ties(chain):
        for b in range(first + 1, last + 1):
            reasons.setdefault(b, f"{pair} are one tensor, and tied blocks stay in one part")
    for b in range(1, len(chain.blocks)):
        if traced.overwrites[b]:
            reasons.setdefault(
                b,
                f"a part that begins with block {chain.names[b]} ({type(chain.blocks[b]).__name__}) overwrites its "
                "input in place, the guess that the interface still needs; use inplace=False",
            )
    return reasons


def _balanced(prices: Sequence[int], parts: int, joints: dict[int, str], balance: str) -> tuple[int, ...]:
    """Balanced sizes of the groups of blocks that can be separated."""
    starts = [b for b in range(len(prices)) if b not in joints]
    if parts > len(starts):
        why = list(dict.fromkeys(joints.values()))
        more = f"; and {len(why) - 2} more" if len(why) > 2 else ""
        raise ValueError(
            f"parts: got {parts}, expected at most {len(starts)} for {len(prices)} blocks of which some cannot be "
            f"separated: {'; '.join(why[:2])}{more}"
        )
    if not any(prices):
        raise ValueError(f"balance: got {balance!r}, which is zero for every block, expected another or group sizes")
    bounds = [*starts, len(prices)]
    atoms = balanced_sizes([sum(prices[a:b]) for a, b in pairwise(bounds)], parts)
    return tuple(bounds[b] - bounds[a] for a, b in pairwise([0, *accumulate(atoms)]))


def _require_separable(sizes: Sequence[int], joints: dict[int, str]) -> None:
    for part, b in enumerate(list(accumulate(sizes))[:-1], start=2):
        if b in joints:
            raise ValueError(f"part {part}: got block number {b} as its first, expected another: {joints[b]}")


def _given_sizes(
    chain: Chain, parts: int | None, balance: str | Sequence[int], split_spec: Mapping[str, Any] | None
) -> tuple[int, ...] | None:
    if split_spec is not None:
        if balance != "flops":
            raise ValueError(f"split_spec: got one together with balance={balance!r}, expected one of the two")
        name, sizes = "split_spec", _sizes_of(split_spec, chain.names)
    elif isinstance(balance, str):
        if parts is None:
            raise ValueError("parts: got None, expected the number of parts, group sizes as balance, or a split_spec")
        return None
    elif isinstance(balance, Sequence):
        given: Sequence[Any] = balance
        name, sizes = "balance", _require_sizes("balance", tuple(given), len(chain.blocks))
    else:
        raise TypeError(f"balance: got {type(balance).__name__}, expected a str or a sequence of group sizes")
    if parts not in (None, len(sizes)):
        raise ValueError(f"parts: got {parts}, but {name} makes {len(sizes)} parts")
    return sizes


def _sizes_of(split_spec: Mapping[str, Any], names: Sequence[str]) -> tuple[int, ...]:
    """Only names and members' names are used, so that ``torch.distributed`` need not be there."""
    cuts = set()
    for fqn, point in split_spec.items():
        kind = getattr(point, "name", point)
        if kind not in ("BEGINNING", "END"):
            raise ValueError(f"split_spec[{fqn!r}]: got {point!r}, expected SplitPoint.BEGINNING or SplitPoint.END")
        at = [i for i, name in enumerate(names) if fqn in name.split("..") or name.startswith(f"{fqn}.")]
        if not at:
            raise ValueError(f"split_spec: got {fqn!r}, at which no block begins or ends; the blocks are {_few(names)}")
        cut = at[0] if kind == "BEGINNING" else at[-1] + 1
        if not 0 < cut < len(names):
            raise ValueError(
                f"split_spec[{fqn!r}]: got {kind}, which leaves an empty part; the blocks are {_few(names)}"
            )
        cuts.add(cut)
    return tuple(b - a for a, b in pairwise([0, *sorted(cuts), len(names)]))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:6])}, ..., {', '.join(names[-3:])}"


def _require_parts(parts: int | None, blocks: int) -> None:
    if parts is None:
        return
    if isinstance(parts, bool) or not isinstance(parts, int):
        raise TypeError(f"parts: got {type(parts).__name__}, expected an int; group sizes are given as balance")
    if not 1 <= parts <= blocks:
        raise ValueError(f"parts: got {parts} for {blocks} blocks, expected 1 <= parts <= blocks")


def _require_sizes(name: str, sizes: Sequence[int], blocks: int) -> tuple[int, ...]:
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes) or sum(sizes) != blocks:
        raise ValueError(
            f"{name}: got group sizes {list(sizes)}, expected positive ints with sum {blocks} (the blocks)"
        )
    return tuple(sizes)


def _require_initialised(chain: Chain) -> None:
    for piece, module, _ in chain.pieces():
        for name, parameter in module.named_parameters():
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise ValueError(f"{piece}: got lazy parameter {name!r} without a shape, expected one call beforehand")


def _table(cut: Partition) -> list[str]:
    largest = max(cut.part_flops) or 1
    header = ["part", "blocks", "first .. last", "parameters", "MFLOP", "of largest", "ms", "output"]
    rows = []
    for j, (a, b) in enumerate(cut.ranges()):
        span = cut.names[a] if b - a == 1 else f"{cut.names[a]} .. {cut.names[b - 1]}"
        flops = cut.part_flops[j]
        milliseconds = "-" if cut.part_seconds is None else f"{1e3 * cut.part_seconds[j]:.3f}"
        cost = [f"{cut.part_parameters[j]:,}", f"{flops / 1e6:,.3f}", f"{flops / largest:.0%}", milliseconds]
        rows.append([str(j + 1), str(b - a), span, *cost, "x".join(map(str, cut.shapes[b][1:]))])
    note = f"balanced by {cut.balance}; forward FLOPs of a batch of {cut.input_shape[0]}"
    return [*aligned([header, *rows]), note]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; columns that hold a number are set to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [column[-1][:1].isdigit() and "x" not in column[-1] for column in zip(*rows, strict=True)]
    return [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in rows
    ]


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value
