# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the tests of recurrences over ranks: ``python recurrent_ranks_worker.py RANK RANKS FOLDER``.

Writes ``FOLDER/<rank>.json``: for the first 1, 2, ... ranks how far each case is from one process, and what errors say.
"""

import ast
import copy
import faulthandler
import json
import pickle
import sys
import warnings
from pathlib import Path

import torch
from processes import join
from torch.nn.utils.rnn import pack_padded_sequence

import pyparareal
from pyparareal import Adjoint, nn
from pyparareal.runtime.group import checksum

CHUNKS = {"method": "hybrid", "jacobian": "none", "chunk": 7}

WAIT = 240  # seconds: the last rank waits for all cases of fewer ranks


def gru(forget=0.5, layers=1, **options):
    """Its states forget: recurrent weights are made smaller by ``forget``, or larger."""
    torch.manual_seed(0)
    module = nn.GRU(3, 5, layers, dtype=torch.float64, **options)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "weight_hh" in name:
                weight *= forget
    return module


def cell(**options):
    torch.manual_seed(0)
    return nn.Recurrence(torch.nn.GRUCell(3, 5, dtype=torch.float64), **options)


def lstm(**options):
    torch.manual_seed(0)
    return nn.LSTM(3, 4, dtype=torch.float64, **options)


def implicit(**options):
    torch.manual_seed(0)
    return nn.ImplicitGRU(3, 4, 2, dt=0.5, dtype=torch.float64, **options)


# By the kernel, which does not know its company: the same bits.
BITS = {
    "chunks": lambda r: gru(**CHUNKS, runtime=r),
    "layers both ways": lambda r: gru(layers=2, bidirectional=True, **CHUNKS, runtime=r),
    "from the initial state": lambda r: gru(**CHUNKS, warm_up=0, runtime=r),
    "fixed": lambda r: gru(**CHUNKS, tol=None, max_iterations=2, runtime=r),
    "remembers": lambda r: gru(3.0, **CHUNKS, warm_up=0, max_iterations=17, runtime=r),
    "fails": lambda r: gru(6.0, **CHUNKS, max_iterations=2, runtime=r),
    "fails, returned": lambda r: gru(6.0, **CHUNKS, max_iterations=2, on_failure="return", runtime=r),
    "fewer chunks than ranks": lambda r: gru(**CHUNKS | {"chunk": 50}, runtime=r),
    "windows": lambda r: gru(**CHUNKS, memory=40_000, runtime=r),
    "serial": lambda r: gru(method="serial", runtime=r),
    "backward one by one": lambda r: gru(**CHUNKS, backward=Adjoint("serial"), runtime=r),
    "backward fails": lambda r: gru(3.0, **CHUNKS, max_iterations=17, backward=Adjoint(max_iterations=1), runtime=r),
}
# Batched matrix products of torch, or steps whose bits depend on their company: to the tolerance.
NEAR = {
    "mgrit": lambda r: gru(method="mgrit", chunk=6, runtime=r),
    "mgrit, three levels": lambda r: gru(method="mgrit", chunk=4, levels=3, nu=1, runtime=r),
    "newton": lambda r: gru(method="newton", runtime=r),
    "newton, whole Jacobians": lambda r: gru(method="newton", jacobian="full", chunk=2, runtime=r),
    "chunks and newton": lambda r: gru(method="hybrid", jacobian="full", chunk=6, runtime=r),
    "a cell": lambda r: cell(**CHUNKS, runtime=r),
    "a cell, mgrit": lambda r: cell(method="mgrit", chunk=8, runtime=r),
    "a cell, auto": lambda r: cell(runtime=r),
    "lstm": lambda r: lstm(**CHUNKS, runtime=r),
    "implicit": lambda r: implicit(method="mgrit", chunk=4, runtime=r),
}
SHORT = ("fewer chunks than ranks",)


def inputs(steps=123, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, 2, 3, generator=generator, dtype=torch.float64).requires_grad_()


def reports_of(module):
    reports = module.report if isinstance(module.report, list) else [module.report]
    told = [(r.method, r.status.name, r.iterations, r.chunk, r.windows, r.cost, r.residuals) for r in reports]
    return repr(told), repr([[(p.status.name, p.iterations) for p in r.backward] for r in reports])


def found(make, runtime, x=None):
    """Outputs, gradients of the input and of weights, and how it went."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what fails says so
        module, x = make(runtime), inputs() if x is None else x
        output, last = module(x)
        weights = list(module.parameters())
        last = last if isinstance(last, torch.Tensor) else last[0]
        loss = (output * torch.linspace(-1, 1, len(output), dtype=output.dtype)[:, None, None]).sum() + last.sum()
        own, *of_weights = torch.autograd.grad(loss, [x, *weights])
    return [output.detach(), last.detach(), own], of_weights, reports_of(module)


def apart(a, b):
    """Largest difference, over the largest entry."""
    return max(float((u - v).abs().max() / v.abs().max()) for u, v in zip(a, b, strict=True))


def module_status(went):
    return sorted({status for _, status, *_ in ast.literal_eval(went[0].replace("nan", "0"))})


def compared(runtime):
    told = {}
    for name, make in (BITS | NEAR).items():
        x = inputs(61) if name in SHORT else None
        ours, of_ours, went = found(make, runtime, x)
        alone, of_alone, expected = found(make, None, x)
        told[name] = {
            "bits": all(torch.equal(u, v) for u, v in zip(ours, alone, strict=True)),
            "went": went[0] == expected[0] and went[1] == expected[1],
            "status": module_status(went),
            "apart": apart(ours, alone),
            "weights": apart(of_ours, of_alone),
            "sum": checksum([*ours, *of_ours]),
        }
    return told


def packed(runtime):
    """Sequences of several lengths, packed."""
    lengths = [100, 40, 0]
    x = torch.randn(100, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    outputs = [gru(**CHUNKS, runtime=r)(x, lengths=lengths)[0] for r in (runtime, None)]
    of_packed = [gru(**CHUNKS, runtime=r)(pack_padded_sequence(x[:, :2], [100, 40]))[0].data for r in (runtime, None)]
    return torch.equal(*outputs) and torch.equal(*of_packed)


def states_sent(runtime):
    """By the iteration for one sequence: warm-up, one pass, and its states gathered."""
    before = runtime.volume
    with torch.no_grad():
        gru(**CHUNKS, tol=None, max_iterations=5, exponent=False, runtime=runtime)(inputs())
    return (runtime.volume - before)["states"]


def error_of(work):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def wrong(runtime, rank):
    """What every rank says to arguments that are wrong on rank 1; the runtime works on."""
    odd = rank == 1

    def call(x=None, h=None, **options):
        return lambda: gru(**CHUNKS | options, runtime=runtime)(inputs() if x is None else x, h)

    def backward():
        module = gru(**CHUNKS, runtime=runtime)
        (module(inputs())[0].sum() * (2 if odd else 1)).backward()

    def trained():
        """On rank 1 one of two weights of the same shape, on the others the other."""
        module = nn.Recurrence(Twice(), **CHUNKS, runtime=runtime)
        module.cell.weights[int(odd)].requires_grad_(False)
        module(inputs())[0].sum().backward()

    cases = {
        "trained": trained,
        "inputs": call(inputs(seed=5 if odd else 1)),
        "steps": call(inputs(122 if odd else 123)),
        "settings": call(tol=1e-3 if odd else "auto"),
        "h": call(h=torch.full((1, 2, 5), float(odd), dtype=torch.float64)),
        "weights": lambda: gru(0.4 if odd else 0.5, **CHUNKS, runtime=runtime)(inputs()),
        "backward": backward,
        "length": lambda: call(inputs(1).detach()[: 0 if odd else 1])(),
        "diverges": lambda: gru(6.0, **CHUNKS, max_iterations=2, on_failure="raise", runtime=runtime)(inputs()),
        "runtime": lambda: gru(runtime="x"),
        "runtime of a cell": lambda: cell(runtime=3),
    }
    told = {name: error_of(case) for name, case in cases.items()}
    told["bits"] = torch.equal(*(gru(**CHUNKS, runtime=r)(inputs())[0] for r in (runtime, None)))
    return told


def copies(runtime):
    """A copy has the runtime, a pickle and the state_dict have not."""
    module = gru(**CHUNKS, runtime=runtime)
    twin, thawed = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    same = [torch.equal(one(inputs())[0], module(inputs())[0]) for one in (twin, thawed)]
    return [twin.runtime is runtime, thawed.runtime is None, *same, sorted(module.state_dict())]


class Twice(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = torch.nn.ParameterList(torch.full((3,), 0.3, dtype=torch.float64) for _ in range(2))

    def forward(self, x, h):
        return x + self.weights[0] * h.sin() + self.weights[1] * h.cos()

    def initial_state(self, batch, dtype, device):
        return torch.zeros(batch, 3, dtype=dtype, device=device)


class Failing(torch.nn.GRUCell):
    calls = 0

    def forward(self, x, h):
        self.calls += 1
        if self.calls == 20 and torch.distributed.get_rank() == 1:
            raise OverflowError("too much")
        return super().forward(x, h)


def failing():
    runtime = pyparareal.distributed(timeout=60)
    module = nn.Recurrence(Failing(3, 5, dtype=torch.float64), **CHUNKS, exponent=False, runtime=runtime)
    return [error_of(lambda: module(inputs())), error_of(lambda: module(inputs()))]


def main(rank, ranks, folder):
    faulthandler.dump_traceback_later(270, exit=True)  # before the test gives up, and says less
    join(rank, ranks, folder)
    groups = {count: torch.distributed.new_group(range(count)) for count in range(1, ranks + 1)}
    told = {}
    for count, group in groups.items():
        if rank < count:
            runtime = pyparareal.distributed(group, timeout=WAIT)
            told[count] = compared(runtime)
            told[f"{count}, packed"] = packed(runtime)
    told["sent"], told["wrong"] = states_sent(runtime), wrong(runtime, rank)
    told["copies"], told["failing"] = copies(runtime), failing()
    (folder / f"{rank}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
