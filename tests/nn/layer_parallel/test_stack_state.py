# SPDX-License-Identifier: BSD-3-Clause
"""The names of the serial network in both directions, copies, and what optimisers and savers see."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from stack_blocks import KINDS, ConvBlock, dense, inputs, row  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal.nn.layer_parallel import Stack  # noqa: E402


class Serial(nn.Module):
    """How the network is written without this package."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


def mixed(seed=0):
    """Two kinds, one of them with buffers, and a block of its own."""
    return [*row(dense, 3, seed=seed), *row(lambda: ConvBlock(lambda: nn.BatchNorm2d(4)), 2, seed=seed), nn.PReLU()]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_saved_as_the_serial_network_and_loaded_from_it():
    serial = Serial(mixed())
    stack = Stack(copy.deepcopy(serial.blocks))
    assert list(stack.state_dict()) == list(serial.state_dict())
    assert equal(stack.state_dict(), serial.state_dict())
    other = Serial(mixed(seed=7))
    assert not equal(stack.state_dict(), other.state_dict())
    assert repr(stack.load_state_dict(other.state_dict())) == "<All keys matched successfully>"
    assert equal(stack.state_dict(), other.state_dict())
    assert repr(serial.load_state_dict(stack.state_dict())) == "<All keys matched successfully>"
    assert equal(serial.state_dict(), other.state_dict())


def test_inside_another_module():
    class Net(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.stem, self.body = nn.Linear(2, 2), body

    torch.manual_seed(0)
    serial = Net(Serial(mixed()))
    net = Net(Stack(mixed(seed=3)))
    net.load_state_dict(serial.state_dict())
    assert equal(net.state_dict(), serial.state_dict())
    assert list(net.state_dict())[2] == "body.blocks.0.0.weight"
    metadata = net.state_dict()._metadata
    assert metadata.keys() == serial.state_dict()._metadata.keys()
    assert metadata["body.blocks.3.norm"] == {"version": 2}


def test_what_is_missing_unknown_or_of_another_shape_has_serial_names():
    stack = Stack(row(dense, 3))
    before = copy.deepcopy(stack.state_dict())
    state = dict(before)
    state["blocks.1.0.bias"] = before["blocks.1.0.bias"] + 1
    del state["blocks.2.0.weight"]
    state["blocks.3.0.weight"] = state["blocks.0.0.weight"]
    state["blocks.0.5.weight"] = state["blocks.0.0.weight"]
    state["stacked.0.0.bias"] = torch.zeros(3, 8)
    with pytest.raises(RuntimeError) as caught:
        stack.load_state_dict(state)
    unexpected, missing = reversed(str(caught.value).splitlines()[1:])
    assert 'Unexpected key(s) in state_dict: "stacked.0.0.bias", "blocks.3.0.weight", "blocks.0.5.weight"' in unexpected
    assert 'Missing key(s) in state_dict: "blocks.2.0.weight".' in missing
    result = stack.load_state_dict(state, strict=False)
    assert result.missing_keys == ["blocks.2.0.weight"]
    assert len(result.unexpected_keys) == 3
    after = stack.state_dict()
    assert torch.equal(after["blocks.1.0.bias"], state["blocks.1.0.bias"])
    assert torch.equal(after["blocks.2.0.weight"], before["blocks.2.0.weight"])

    with pytest.raises(RuntimeError, match=r"size mismatch for blocks.1.0.bias: .*\[5\].*\[8\]"):
        stack.load_state_dict(dict(before, **{"blocks.1.0.bias": torch.zeros(5)}))
    with pytest.raises(RuntimeError, match=r"blocks\.1\.0\.bias: got int, expected a tensor"):
        stack.load_state_dict(dict(before, **{"blocks.1.0.bias": 3}))
    assert torch.equal(stack.state_dict()["blocks.1.0.bias"], state["blocks.1.0.bias"])  # kept where it does not fit


def test_loading_keeps_dtype_and_device_unless_assigned():
    stack = Stack(row(dense, 3))
    half = {name: t.half() for name, t in stack.state_dict().items()}
    (parameter, *_) = stack.parameters()
    stack.load_state_dict(half)
    assert next(stack.parameters()) is parameter
    assert parameter.dtype == torch.float64
    stack.load_state_dict(half, assign=True)
    assert {p.dtype for p in stack.parameters()} == {torch.float16}
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in stack.parameters())


def test_from_the_meta_device():
    full = Stack(row(dense, 3))
    with torch.device("meta"):
        empty = Stack([dense() for _ in range(3)])
    empty.load_state_dict(full.state_dict(), assign=True)
    assert equal(empty.state_dict(), full.state_dict())


def test_saved_tensors_have_memory_of_their_own(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    stack = Stack(row(dense, 5))
    state = stack.state_dict()
    assert len({t.untyped_storage().data_ptr() for t in state.values()}) == len(state)
    safetensors.save_file(state, tmp_path / "all.safetensors")
    assert equal(safetensors.load_file(tmp_path / "all.safetensors"), dict(state))
    torch.save({"one": state["blocks.2.0.bias"]}, tmp_path / "one.pt")
    assert (tmp_path / "one.pt").stat().st_size < 5 * 8 * 64  # the other layers' weights alone would be as much
    state["blocks.2.0.bias"].zero_()
    assert stack.state_dict()["blocks.2.0.bias"].abs().sum() > 0


def test_keep_vars_has_a_graph():
    stack = Stack(row(dense, 3))
    stack.state_dict(keep_vars=True)["blocks.1.0.weight"].sum().backward()
    (gradient,) = [p.grad for n, p in stack.named_parameters() if n.endswith("weight")]
    assert gradient[1].eq(1).all()
    assert not gradient[::2].any()


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_are_of_their_own(how):
    stack = Stack(mixed())
    other = how(stack)
    assert equal(stack.state_dict(), other.state_dict())
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    assert not equal(stack.state_dict(), other.state_dict())
    other.load_state_dict(stack.state_dict())
    assert equal(stack.state_dict(), other.state_dict())
    body = Stack(row(dense, 4), 0.5)
    u = inputs((3, 8), 4)
    phi = body.propagator(body.frozen(u[0]))
    again = how(body)
    points = slice(0, 4, 1)
    assert torch.equal(again.propagator(again.frozen(u[0])).step(u, points), phi.step(u, points))


def test_moved_and_switched_like_any_module():
    stack = Stack(row(lambda: ConvBlock(lambda: nn.BatchNorm2d(4)), 3))
    stack.float()
    assert {t.dtype for t in stack.state_dict().values()} == {torch.float32, torch.int64}
    assert not stack.eval().stacked[0].norm.training
    assert stack.train().stacked[0].norm.training
    stack.requires_grad_(False)
    assert not list(stack.frozen(inputs((2, 4, 5, 5), 1, torch.float32)[0]).parameters)
    stack.requires_grad_(True)
    assert len(stack.frozen(inputs((2, 4, 5, 5), 1, torch.float32)[0]).parameters) == 6


def test_layers_that_are_not_trained_stay_so():
    blocks = row(dense, 5)
    for block in blocks[:2]:
        block.requires_grad_(False)
    stack = Stack(blocks, 0.5)
    assert [(len(p), p.requires_grad) for p in stack.parameters()] == [(2, False)] * 2 + [(3, True)] * 2
    assert stack.why_not_stacked is None
    assert equal(stack.state_dict(), Serial(blocks).state_dict())
    u = inputs((3, 8), 5)
    phi = stack.propagator(stack.frozen(u[0]))
    phi.step(u, slice(0, 5, 1)).sum().backward()
    torch.stack([v + 0.5 * b(v) for b, v in zip(blocks, u, strict=True)]).sum().backward()
    gradients = [p.grad for p in stack.parameters()]
    assert gradients[:2] == [None, None]
    torch.testing.assert_close(gradients[2][1], blocks[3][0].weight.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["dense", "transformer", "batch norm"])
def test_layers_come_back_as_blocks(kind):
    make, h, _ = KINDS[kind]
    blocks = row(make, 4)
    stack = Stack(blocks, h)
    assert equal(stack.layer(2).state_dict(), blocks[2].state_dict())
    assert type(stack.layer(2)) is type(blocks[2])
    own = {t.untyped_storage().data_ptr() for t in stack.parameters()}
    assert not own & {p.untyped_storage().data_ptr() for p in stack.serial().parameters()}
    assert [n for n, _ in stack.serial().named_parameters()] == [
        n for n, _ in nn.Sequential(*blocks).named_parameters()
    ]


def test_state_dict_takes_what_torchs_takes():
    stack = Stack(row(dense, 2))
    into = {}
    assert stack.state_dict(destination=into, prefix="a.") is into
    assert next(iter(into)) == "a.blocks.0.0.weight"
    with pytest.warns(FutureWarning, match="Positional args"):
        assert next(iter(stack.state_dict(None, "b."))) == "b.blocks.0.0.weight"


def test_apply_meets_single_layers():
    """An initialisation that depends on the shape of a weight, in place or assigned."""

    def init(module):
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (8, 8)
            assert isinstance(module.weight, nn.Parameter)
            nn.init.xavier_uniform_(module.weight)
            module.bias = nn.Parameter(torch.full_like(module.bias, 0.5))
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(2.0)
        seen.append(type(module))

    blocks = mixed()
    seen, stack = [], Stack(copy.deepcopy(blocks))
    torch.manual_seed(5)
    assert nn.Sequential(stack).apply(init)[0] is stack
    of_stack, seen = seen, []
    torch.manual_seed(5)
    nn.ModuleList(blocks).apply(init)
    assert of_stack[:-2] == seen[:-1]
    assert equal(stack.state_dict(), Serial(blocks).state_dict())
    assert float(stack.state_dict()["blocks.2.0.bias"].detach()[0]) == 0.5
