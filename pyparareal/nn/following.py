# SPDX-License-Identifier: BSD-3-Clause
"""What a module computes before and after a row of its blocks, by following its forward method with ``torch.fx``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

_ROOT = "root."


def follow(module: nn.Module, blocks: Sequence[str], body: str) -> tuple[nn.Module, nn.Module]:
    """``(stem, head)`` with ``module(x) = head(b_B(... b_1(stem(x))))``; both share ``module``'s parameters.

    Only modules that hold a block are looked into; all others, however they work, are called as they are.

    Parameters
    ----------
    blocks : dotted names of the blocks in ``module``, in order
    body : what errors call the row of blocks

    Raises
    ------
    ValueError
        The forward method cannot be followed, does not call the blocks one after the other, leads something
        past them, or does something else in training than in evaluation outside its submodules.
    """
    opened = {_ROOT + ".".join(name.split(".")[:i]) for name in blocks for i in range(name.count(".") + 1)}
    opened = {name.removesuffix(".") for name in opened}
    graph = _graph(module, opened, body)
    nodes = list(graph.nodes)
    entry, leave = _ends(nodes, blocks, body)
    start, result = nodes[0], nodes[-1].args[0]
    if not isinstance(result, fx.Node):
        raise ValueError(f"body: got {body} in a module that returns {type(result).__name__}, expected one tensor")
    before, after = _needed(entry, start), _needed(result, leave)
    early = {start, *before}
    past = [n for n in nodes if n in early and n.op != "get_attr" and any(u in after - early for u in n.users)]
    if past:
        raise ValueError(
            f"body: got {body}, but {past[0].name.removeprefix('root_')!r} goes past it to the output, expected a chain"
        )
    return _module(module, nodes, before, start, entry), _module(module, nodes, after, leave, result)


class _Only(nn.Module):
    """The module with its first argument alone, so that the others have their defaults."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.root = root

    def forward(self, x: Tensor) -> Any:
        return self.root(x)


class _Tracer(fx.Tracer):
    def __init__(self, opened: set[str]) -> None:
        super().__init__()
        self.opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.opened


def _graph(module: nn.Module, opened: set[str], body: str) -> fx.Graph:
    root = _Only(module)
    flags = {m: m.training for m in [root.get_submodule(name) for name in opened]}
    try:
        graphs = []
        for training in (True, False):
            for m in flags:
                m.training = training
            graphs.append(_Tracer(opened).trace(root))
    except Exception as error:  # whatever an unknown forward method does with a stand-in for a tensor
        raise ValueError(
            f"body: got {body}, but the forward method of {type(module).__name__} cannot be followed around it "
            f"({type(error).__name__}: {error}); give it a method split(), or pass a list of blocks"
        ) from error
    finally:
        for m, flag in flags.items():
            m.training = flag
    if str(graphs[0]) != str(graphs[1]):
        raise ValueError(
            f"body: got {body}, but {type(module).__name__} does something else in training than in evaluation "
            "outside its submodules, expected modules such as nn.Dropout there"
        )
    return graphs[0]


def _ends(nodes: list[fx.Node], blocks: Sequence[str], body: str) -> tuple[fx.Node, fx.Node]:
    """The nodes whose values enter the first block and leave the last one."""
    wanted = [_ROOT + name for name in blocks]
    calls = [node for node in nodes if node.op == "call_module" and node.target in wanted]
    if [node.target for node in calls] != wanted:
        raise ValueError(f"body: got {body}, whose blocks are not called once each in their order")
    for node, after in zip(calls, [*calls[1:], None], strict=True):
        single = len(node.args) == 1 and isinstance(node.args[0], fx.Node) and not node.kwargs
        if not single or (after is not None and (set(node.users) != {after} or after.args[0] is not node)):
            raise ValueError(
                f"body: got {body}, but block {str(node.target).removeprefix(_ROOT)!r} has other inputs than the one "
                "output of the block before, or that output is used elsewhere, too; expected a chain"
            )
    entry = calls[0].args[0]
    assert isinstance(entry, fx.Node)
    return entry, calls[-1]


def _needed(result: fx.Node, given: fx.Node) -> set[fx.Node]:
    """Nodes between ``given`` (left out) and ``result``."""
    found: set[fx.Node] = set()
    waiting = [result]
    while waiting:
        node = waiting.pop()
        if node is not given and node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _module(root: nn.Module, nodes: list[fx.Node], chosen: set[fx.Node], given: fx.Node, result: fx.Node) -> nn.Module:
    """The chosen nodes as a module: an ordinary ``nn.Sequential`` where they are a chain of modules."""
    mine = [node for node in nodes if node in chosen]
    values = [given, *mine]
    if all(n.op == "call_module" and n.args == (v,) and not n.kwargs for n, v in zip(mine, values, strict=False)):
        names = [str(node.target).removeprefix(_ROOT) for node in mine]
        if len(set(names)) == len(names):
            row = OrderedDict((name.replace(".", "_"), root.get_submodule(name)) for name in names)
            return nn.Sequential(row) if row else nn.Identity()
    graph = fx.Graph()
    copies = {given: graph.placeholder("x")}
    for node in mine:
        copies[node] = graph.node_copy(node, lambda n: copies[n])
        if node.op in ("call_module", "get_attr"):
            copies[node].target = str(node.target).removeprefix(_ROOT)
    graph.output(copies[result])
    return fx.GraphModule(root, graph)
