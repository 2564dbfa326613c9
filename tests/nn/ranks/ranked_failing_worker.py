# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the tests of failures of networks: ``python ranked_failing_worker.py RANK RANKS FOLDER [CASE]``.

Each case makes a runtime and a network of its own and lets something go wrong in its second step;
``FOLDER/<rank>.json`` has, by name, what this rank raised and, after it, what the next step says. In the last case
rank 1 kills itself.
"""

import faulthandler
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from processes import join
from ranked_cases import mlp
from torch.utils.checkpoint import checkpoint

from pyparareal import distributed
from pyparareal.nn import ShardedCheckpoint, over_ranks

LIMIT, SHORT = 60.0, 4.0  # seconds; the short one is for the ranks that are waited for
X = (8, 4)


def loss_of(net):
    return net(torch.ones(X)).square().mean()


def boom(*_):
    raise ArithmeticError("boom")


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def in_forward(at, act):
    """``act`` before the last fine net of rank ``at``."""

    def step(net, rank):
        if rank == at:
            net.fine[net.own[-1]].register_forward_pre_hook(act)
        loss_of(net).backward()

    return step


def in_backward(at, act):
    """``act`` when the gradient of a coarse net of rank ``at`` is there, and thus before that of its state is sent."""

    def step(net, rank):
        loss = loss_of(net)
        if rank == at:
            next(net.coarse[net.own[0] - 1].parameters()).register_hook(act)
        loss.backward()

    return step


def kind_changes(net, rank):
    """The output depends on more than the kind of the input."""
    if rank == 2:
        net.head.register_forward_hook(lambda module, arguments, y: y[:4])
    loss_of(net).backward()


def no_backward(net, rank):
    """Rank 1 goes on to the next step."""
    loss = loss_of(net)
    if rank != 1:
        loss.backward()
    loss_of(net)


def slow(seconds):
    def step(net, rank):
        loss = loss_of(net)
        if rank == 1:
            time.sleep(seconds)
        loss.backward()

    return step


def selected(net, rank):
    torch.autograd.grad(loss_of(net), list(net.parameters()))


def older_output(net, rank):
    """Rank 2 goes back through another pass than the others."""
    first, second = loss_of(net), loss_of(net)
    (first if rank == 2 else second).backward()


def around(net, rank):
    checkpoint(net, torch.ones(X, requires_grad=True), use_reentrant=False).sum().backward()


def twice(net, rank):
    weight = next(net.parameters())
    torch.autograd.grad(loss_of(net), weight, create_graph=True)


def other_network(net, rank):
    """Two networks at the same pass, in another order on rank 0."""
    other = over_ranks(mlp(), net.runtime)
    with torch.no_grad():
        loss_of(other)
    for one in (net, other) if rank else (other, net):
        loss_of(one)


def other_operation(net, rank):
    if rank == 2:
        net.full_state_dict()
    else:
        net.clip_grad_norm_(1.0)


def a_checkpoint(net, rank):
    """Rank 1 saves one while the others go on."""
    if rank == 1:
        ShardedCheckpoint("nowhere", net.runtime).save(1, {"net": net})
    loss_of(net)


CASES = {
    "raise in a part of 0": in_forward(0, boom),
    "raise in a part of 1": in_forward(1, boom),
    "raise in a part of 2": in_forward(2, boom),
    "kind changes": kind_changes,
    "raise in backward of 1": in_backward(1, boom),
    "raise in backward of 2": in_backward(2, boom),
    "no backward": no_backward,
    "late": slow(1.5 * SHORT),
    "slow": slow(1),
    "selected": selected,
    "older output": older_output,
    "checkpoint around": around,
    "second derivatives": twice,
    "other network": other_network,
    "other operation": other_operation,
    "checkpoint of one": a_checkpoint,
    "dead": in_forward(1, die),
}
ALONE = {"dead in backward": in_backward(1, die)}  # it ends with rank 1, too


def outcome(call, *arguments):
    try:
        call(*arguments)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["", ""]


def main(rank, ranks, folder, one=None):
    faulthandler.dump_traceback_later(170, exit=True)
    join(rank, ranks, folder)
    found = {}
    for name, step in (CASES if one is None else {one: ALONE[one]}).items():
        torch.distributed.barrier()  # until those that are late have raised, too
        runtime = distributed(timeout=SHORT if name == "late" else LIMIT)
        net = over_ranks(mlp(), runtime)
        loss_of(net).backward()
        began = time.monotonic()
        found[name] = outcome(step, net, rank)
        found[f"after {name}"] = outcome(loss_of, net)
        found[f"seconds of {name}"] = time.monotonic() - began
        (folder / f"{rank}.json").write_text(json.dumps(found))
    os._exit(0)  # without rank 1 there is no orderly end


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
