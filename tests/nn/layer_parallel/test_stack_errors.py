# SPDX-License-Identifier: BSD-3-Clause
"""What a stack refuses: each error names the argument or the layer."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from stack_blocks import Dense, dense, inputs, row  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal.nn.layer_parallel import Stack  # noqa: E402


@pytest.mark.parametrize(
    ("blocks", "h", "error", "message"),
    [
        (nn.Linear(2, 2), None, TypeError, "blocks: got Linear, expected a list"),
        ("blocks", None, TypeError, "blocks: got str"),
        (3, None, TypeError, "blocks: got int"),
        ([], None, ValueError, "blocks: got none"),
        ([nn.Tanh(), torch.tanh], None, TypeError, "for block 1, expected a torch.nn.Module"),
        ([nn.LazyLinear(3)], None, ValueError, r"blocks.0 \(LazyLinear\), whose 'weight' has no shape yet"),
        ([nn.Tanh()], True, TypeError, "h: got bool"),
        ([nn.Tanh()], "0.1", TypeError, "h: got str"),
        ([nn.Tanh()], 0.0, ValueError, "h: got 0.0, expected a finite number other than 0"),
        ([nn.Tanh()], float("nan"), ValueError, "h: got nan"),
    ],
)
def test_wrong_blocks(blocks, h, error, message):
    with pytest.raises(error, match=message):
        Stack(blocks, h)


class Wrong(nn.Module):
    """Does what is asked of it, wrongly."""

    def __init__(self, how):
        super().__init__()
        self.linear, self.how, self.count = nn.Linear(8, 8), how, 0

    def forward(self, u):
        if self.how == "counts":
            self.count += 1
        if self.how == "raises":
            raise KeyError("mine")
        if self.how == "in place":
            u.mul_(2)
        y = self.linear(u)
        return {
            "shape": y[:, :4], "dtype": y.float(), "tuple": (y, y), "NumPy draws": y * next(self.numbers, 1.0)
        }.get(self.how, y)  # fmt: skip

    numbers = iter(range(1, 10**6))


@pytest.mark.parametrize(
    ("how", "h", "error", "message"),
    [
        ("shape", None, ValueError, r"blocks.1 \(Wrong\): returned shape \(3, 4\), expected \(3, 8\)"),
        (
            "dtype",
            None,
            ValueError,
            r"blocks.1 \(Wrong\): makes a state of dtype torch.float32, expected torch.float64",
        ),
        ("tuple", None, TypeError, r"blocks.1 \(Wrong\): returned tuple, expected a tensor"),
        ("counts", None, ValueError, r"blocks.1 \(Wrong\): its forward changes its attribute 'count' at every call"),
        ("NumPy draws", None, ValueError, r"blocks.1 \(Wrong\): gives another value when it is called again"),
        ("in place", 0.5, ValueError, r"blocks.1 \(Wrong\): changes its argument in place"),
        ("raises", None, KeyError, "mine"),
    ],
)
def test_wrong_layers_are_named(how, h, error, message):
    blocks = [*row(dense, 1), Wrong(how).double(), *row(dense, 1)]
    with pytest.raises(error, match=message):
        Stack(blocks, h).frozen(inputs((3, 8), 1)[0])


@pytest.mark.parametrize(
    ("u", "error", "message"),
    [
        (3.0, TypeError, "u: got float, expected a tensor"),
        (torch.zeros(0, 8), ValueError, r"u: got shape \(0, 8\)"),
        (torch.zeros(3, 8, dtype=torch.long), TypeError, "u: got dtype torch.int64"),
    ],
)
def test_wrong_states(u, error, message):
    with pytest.raises(error, match=message):
        Stack(row(dense, 2)).frozen(u)


def test_wrong_calls():
    stack = Stack(row(Dense, 4), 0.5)
    frozen = stack.frozen(inputs((3, 8), 1)[0])
    with pytest.raises(TypeError, match="frozen: got Stack"):
        stack.propagator(stack)
    with pytest.raises(ValueError, match=r"states: got \(3, 3, 8\), expected the input of every layer"):
        frozen.commit(inputs((3, 8), 3))
    with pytest.raises(TypeError, match="index: got '0'"):
        stack.layer("0")
    with pytest.raises(ValueError, match="index: got 4, expected 0 to 3"):
        stack.layer(4)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):  # torch's own error, unchanged
        stack.frozen(inputs((3, 5), 1)[0])


class Closed(nn.Module):
    """Finds its parameters by a function that was made with it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.function = lambda u: torch.tanh(self.linear(u))

    def forward(self, u):
        return self.function(u)


def test_functions_that_no_copy_takes_along_are_refused():
    with pytest.raises(ValueError, match=r"blocks.0 \(Closed\), whose 'function' is a function made with the module"):
        Stack([Closed(), Closed()])


def test_tensors_that_are_no_parameters_are_refused():
    block = dense()
    block[1].scale = torch.ones(8, requires_grad=True)
    with pytest.raises(ValueError, match=r"blocks.1 \(Sequential\), whose '1.scale' requires grad but is no nn.Param"):
        Stack([dense(), block])


def test_compiled_blocks_are_refused():
    with pytest.raises(TypeError, match=r"blocks: got blocks.1 \(OptimizedModule\) from torch.compile"):
        Stack([dense(), torch.compile(dense(), backend="eager")])
