# SPDX-License-Identifier: BSD-3-Clause
"""nn.Recurrence as a module of torch: files, autocast, compilers, inference, replicas, tokens, 16 bits."""

import copy
import pickle
import subprocess
import sys
import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from recurrence_cells import METHODS, cells, flat, largest_error, loop, results  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal.nn import Recurrence  # noqa: E402
from pyparareal.nn.recurrent.settings import tolerance_of  # noqa: E402


def test_state_dict_copies_and_files():
    cell, inputs, h = cells(torch.float64)["lstm"]
    net = Recurrence(cell, method="hybrid", jacobian="none", chunk=5)
    assert set(net.state_dict()) == {f"cell.{name}" for name in cell.state_dict()}
    x = inputs(30)
    expected = net(x, h)[0]
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.report is None
        for a, b in zip(flat(other(x, h)[0]), flat(expected), strict=True):
            assert torch.equal(a, b)
    assert "hybrid" in repr(net)


def test_autocast():
    # The state keeps float32; each step rounds it to 8 bits on its way through the cell, as the loop does. Rows of a
    # batch may round otherwise in other company: by an ulp of bfloat16, 1 / 256.
    torch.manual_seed(0)

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.x, self.h = nn.Linear(3, 5), nn.Linear(5, 5)

        def forward(self, x, h):
            return torch.tanh(self.x(x) + self.h(h))

    cell, x, h = Cell(), torch.randn(40, 2, 3), torch.zeros(2, 5)
    net = Recurrence(cell, method="hybrid", jacobian="none")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = results(net, x, h, cell)
        expected = results(lambda x, h: loop(lambda x, h: cell(x, h).float(), x, h), x, h, cell)
    assert got[0][0].dtype == torch.float32
    assert largest_error(got[0], expected[0]) < 4 * tolerance_of(torch.bfloat16)
    assert largest_error(got[1], expected[1]) < 8 * tolerance_of(torch.bfloat16)
    with torch.no_grad():
        exact = net(x, h)[0]
    assert float((exact - got[0][0]).abs().max()) > 1e-4  # so that autocast did something


def test_compiled_modules_break_the_graph_and_stay_right():
    torch._dynamo.reset()
    cell, inputs, h = cells(torch.float64)["gru"]
    net, x = Recurrence(cell, method="hybrid", jacobian="none"), inputs(40)
    compiled = torch.compile(lambda x, h: 2 * net(x, h)[0], backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, about itself
        found = compiled(x, h)
        assert torch.equal(found, 2 * net(x, h)[0])
        (gradient,) = torch.autograd.grad(found.sum(), x)
    (expected,) = torch.autograd.grad(2 * net(x, h)[0].sum(), x)
    assert torch.equal(gradient, expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("method", ["chunks", "mgrit", "newton"])
def test_second_derivatives_are_refused(method):
    cell, inputs, h = cells(torch.float64)["gru"]
    x = inputs(20)
    states, _ = Recurrence(cell, **METHODS[method])(x, h)
    (gradient,) = torch.autograd.grad(states.square().sum(), x, create_graph=True)
    with pytest.raises((RuntimeError, NotImplementedError), match=r"twice|not differentiable again"):
        gradient.square().sum().backward()


def test_inputs_changed_before_the_backward_pass_are_noticed():
    cell, inputs, h = cells(torch.float64)["gru"]
    x = inputs(20)
    states, _ = Recurrence(cell, method="hybrid", jacobian="none")(x, h)
    with torch.no_grad():
        cell.weight_hh.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        states.sum().backward()


def test_tokens_are_inputs_too():
    torch.manual_seed(0)

    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.cell = nn.Embedding(7, 3), nn.GRUCell(3, 5)

        def forward(self, x, h):
            return self.cell(self.embed(x), h)

    cell, x, h = Language().double(), torch.randint(7, (80, 3)), torch.zeros(3, 5, dtype=torch.float64)
    net = Recurrence(cell, method="hybrid", jacobian="none")
    got, expected = (results(solve, x, h, cell) for solve in (net, lambda x, h: loop(cell, x, h)))
    assert largest_error([*got[0], *got[1]], [*expected[0], *expected[1]]) < 1e-9
    short, _ = net(x, h, lengths=torch.tensor([80, 2, 0]))
    assert largest_error([short[:, 0]], [got[0][0][:, 0]]) < 1e-10


def test_a_compiled_cell():
    torch._dynamo.reset()
    cell, inputs, _ = cells(torch.float64)["gru"]
    x = inputs(40).detach()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        got = Recurrence(torch.compile(cell, backend="eager"), method="hybrid", jacobian="none")(x)[0]
        assert torch.equal(got, Recurrence(cell, method="hybrid", jacobian="none")(x)[0])
    torch._dynamo.reset()


def test_inference_mode():
    cell, inputs, h = cells(torch.float64)["lstm"]
    x = inputs(60)
    for method in METHODS.values():
        net = Recurrence(cell, **method)
        expected = net(x, h)[0][0]
        with torch.inference_mode():
            found = net(x, h)[0][0]
        assert largest_error([found], [expected]) < 1e-9


@pytest.mark.no_sanitize
def test_replicas_of_a_data_parallel_run(tmp_path):
    # DDP needs a process group, which this process must not have: a process of its own, with one member.
    program = """
import sys, torch
import torch.distributed as dist
from pyparareal.nn import Recurrence
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
torch.manual_seed(0)
net = Recurrence(torch.nn.GRUCell(3, 5), method="hybrid", jacobian="none")
x = torch.randn(50, 2, 3)
net(x)[0].sum().backward()
expected = [p.grad.clone() for p in net.parameters()]
net.zero_grad()
ddp = torch.nn.parallel.DistributedDataParallel(net)
ddp(x)[0].sum().backward()
assert all(torch.equal(p.grad, e) for p, e in zip(net.parameters(), expected))
dist.destroy_process_group()
print("equal")
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "group")], capture_output=True, text=True)
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype):
    # Their own rounding, a few units of 1 / 256 or 1 / 2048, is all that chunks are compared to.
    torch.manual_seed(0)
    cell, x = nn.GRUCell(3, 5).to(dtype), torch.randn(50, 2, 3).to(dtype)
    net = Recurrence(cell, method="hybrid", jacobian="none")
    with torch.no_grad():
        states, _ = net(x)
        expected, _ = loop(cell, x, torch.zeros(2, 5, dtype=dtype))
    assert states.dtype == dtype
    assert float((states - expected[0]).abs().max()) < 4 * tolerance_of(dtype)
