# SPDX-License-Identifier: BSD-3-Clause
"""Layers of ours beside torch's with the same weights, and how far apart their values and gradients may be."""

import torch

from pyparareal.nn import recurrent as nn
from pyparareal.nn.recurrent.settings import tolerance_of

KINDS = {"GRU": (nn.GRU, torch.nn.GRU), "LSTM": (nn.LSTM, torch.nn.LSTM)}


def layers(kind, *shape, dtype=torch.float64, gain=1.0, seed=0, own=None, **options):
    """``ours, torchs`` with the same weights, torch's initial ones times ``gain``."""
    torch.manual_seed(seed)
    ours, theirs = KINDS[kind]
    ours = ours(*shape, dtype=dtype, **options, **(own or {}))
    theirs = theirs(*shape, dtype=dtype, **options)
    with torch.no_grad():
        for p in ours.parameters():
            p.mul_(gain)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def initial(kind, layers, batch, seed=2):
    """Initial states for ``layers``, leaves; of no batch if it is None."""
    torch.manual_seed(seed)
    count = layers.num_layers * (1 + layers.bidirectional)
    sizes = [layers.proj_size or layers.hidden_size, layers.hidden_size][: 1 + (kind == "LSTM")]
    dtype = layers.weight_ih_l0.dtype
    shape = (count,) if batch is None else (count, batch)
    made = tuple(torch.randn(*shape, size, dtype=dtype).requires_grad_() for size in sizes)
    return made if kind == "LSTM" else made[0]


def flat(tree):
    """The tensors in nested results."""
    if isinstance(tree, torch.nn.utils.rnn.PackedSequence):
        return [tree.data]
    if torch.is_tensor(tree):
        return [tree]
    return [tensor for part in tree for tensor in flat(part)]


def results(module, x, hx=None, seed=None, **more):
    """Everything a forward and a backward pass gives: values, and gradients of x, hx and all weights."""
    if seed is not None:
        torch.manual_seed(seed)
    module.zero_grad()
    values = flat(module(x, hx, **more) if hx is not None else module(x, **more))
    leaves = [t for t in [*flat(x), *(flat(hx) if hx is not None else [])] if t.requires_grad]
    for leaf in leaves:
        leaf.grad = None
    # A loss in which every number has a weight of its own
    weights = [torch.cos(torch.arange(v.numel(), dtype=torch.float64)).view_as(v).to(v.dtype) for v in values]
    loss = sum((v * w).sum() for v, w in zip(values, weights, strict=True))
    loss.backward()
    gradients = [leaf.grad.clone() for leaf in leaves]
    return [v.detach() for v in values], gradients + [p.grad.clone() for p in module.parameters()]


def agree(got, expected, tolerance):
    """Relative to the largest entry of each tensor."""
    for many, right in zip(got, expected, strict=True):
        assert len(many) == len(right)
        for one, other in zip(many, right, strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            worst, size = (t.detach().abs().max().item() if t.numel() else 0.0 for t in (one - other, other))
            assert worst <= tolerance * max(size, 1e-3)


def tolerance(dtype):
    """Where a method stops, passed on by later chunks and layers.

    It stops when chunks meet to ``tol`` of the largest state. At the weights used here differences shrink by more than
    half over a chunk, so states are off by less than ``2 tol``, which a second layer and the way back have too: 8. A
    gradient of a weight is a sum over all steps and sequences, some hundred numbers, of which not all may cancel: 10.
    """
    return 80 * tolerance_of(dtype)
