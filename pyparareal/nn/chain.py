# SPDX-License-Identifier: BSD-3-Clause
"""A network as a chain: first layers, a row of blocks, last layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .following import follow

CONTAINERS = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True)
class Chain:
    """``h . b_B . ... . b_1 . C``; the modules are the user's own and share their parameters."""

    stem: nn.Module
    blocks: tuple[nn.Module, ...]
    head: nn.Module
    names: tuple[str, ...]  # of the blocks, as in the user's module

    def pieces(self) -> Iterator[tuple[str, nn.Module, int]]:
        """``(name, module, index of a block)``: the stem belongs with the first block, the head with the last."""
        yield "stem", self.stem, 0
        for index, (name, block) in enumerate(zip(self.names, self.blocks, strict=True)):
            yield f"block {name}", block, index
        yield "head", self.head, len(self.blocks) - 1


def chain_of(module: nn.Module | Iterable[nn.Module], body: str | Sequence[str] | None = None) -> Chain:
    """Find the chain in ``module``.

    Parameters
    ----------
    module : one of

        * ``nn.Sequential``, ``nn.ModuleList`` or any iterable of modules: every child is a block;
        * a module with a method ``split() -> (stem, list of blocks, head)``;
        * any module, with ``body``.
    body : dotted name of an ``nn.Sequential`` or ``nn.ModuleList`` inside ``module``, or several in their order
        Its children are the blocks. What is computed before and after them becomes stem and head
        (:func:`.following.follow`).

    Raises
    ------
    TypeError, ValueError
        No blocks, no such body, or a network that is no chain around it.
    """
    if body is not None:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"body: got a name for a {type(module).__name__} of blocks, expected None, or a module to look into"
            )
        return _around(module, [body] if isinstance(body, str) else list(body))
    if isinstance(module, nn.Module) and not _is_row(module):
        return _split(module)
    if not isinstance(module, Iterable):
        raise TypeError(f"module: got {type(module).__name__}, expected a torch.nn.Module or a list of them")
    blocks = list(module)
    # Not named_children(), which leaves out the second mention of a module.
    names = list(module._modules) if isinstance(module, nn.Module) else [str(i) for i in range(len(blocks))]
    return _chain(nn.Identity(), blocks, nn.Identity(), names)


def _is_row(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) or (
        isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    )


def _chain(stem: nn.Module, blocks: list[nn.Module], head: nn.Module, names: list[str]) -> Chain:
    if not blocks:
        raise ValueError("module: got no blocks, expected at least one")
    for name, block in zip(names, blocks, strict=True):
        if not isinstance(block, nn.Module):
            raise TypeError(f"module: got block {name} of type {type(block).__name__}, expected a torch.nn.Module")
    return Chain(stem, tuple(blocks), head, tuple(names))


def _split(module: nn.Module) -> Chain:
    split: Any = getattr(module, "split", None)
    if not callable(split):
        raise TypeError(
            f"module: got {type(module).__name__}, expected a Sequential, a list of blocks, a module with a method "
            f"split(), or body=<name of its blocks>; {_what_exists(module)}"
        )
    stem, body, head = split()
    blocks = list(body)
    names = {id(part): name for name, part in module.named_modules()}
    return _chain(stem, blocks, head, [_name_of(block, names) or str(i) for i, block in enumerate(blocks)])


def _name_of(block: nn.Module, names: dict[int, str]) -> str:
    """Its name in the user's module; of a group made by ``split()`` the names of its first and last module."""
    known = [names[id(part)] for part in block.modules() if id(part) in names]
    return known[0] if id(block) in names or len(known) == 1 else "..".join(known[:: len(known) - 1] if known else [])


def _around(module: nn.Module, body: list[str]) -> Chain:
    names: list[str] = []
    blocks: list[nn.Module] = []
    for path in body:
        try:
            found = module.get_submodule(path)
        except AttributeError:
            raise ValueError(
                f"body: got {path!r}, which {type(module).__name__} has not; {_what_exists(module)}"
            ) from None
        if not isinstance(found, CONTAINERS) or not len(found):
            raise ValueError(
                f"body: got {path!r}, a {type(found).__name__} of {len(list(found.children()))} modules, "
                f"expected a Sequential or ModuleList of blocks; {_what_exists(module)}"
            )
        names += [f"{path}.{name}" if path else name for name in found._modules]
        blocks += list(found)
    stem, head = follow(module, names, ", ".join(map(repr, body)))
    return _chain(stem, blocks, head, names)


def _what_exists(module: nn.Module) -> str:
    found = [
        f"{name!r} ({type(m).__name__} of {len(m)})"
        for name, m in module.named_modules()
        if isinstance(m, CONTAINERS) and len(m) and name
    ]
    return f"there is {', '.join(found)}" if found else "it holds no Sequential and no ModuleList"
