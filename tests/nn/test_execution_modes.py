# SPDX-License-Identifier: BSD-3-Clause
"""One result, however the parts are run: values, all gradients, running statistics, training, copies and state."""

import copy
import pickle
import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from execution_nets import NETS, TOLERANCE, build, require_close, require_equal, step  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal.nn import PararealNetwork  # noqa: E402

OTHERS = ("batched", "parallel")


@pytest.fixture(autouse=True)
def _double_precision_two_threads():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("correction", ["residual", "difference"])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("mode", OTHERS)
def test_values_gradients_and_statistics_are_those_of_serial(mode, name, correction):
    serial, x = build(name, correction=correction)
    other, _ = build(name, correction=correction, execution=mode)
    for _ in range(3):  # the first pass of a mode may prepare something
        expected, got = step(serial, x), step(other, x)
        assert (serial.executed, other.executed) == ("serial", mode)
        require_close(got, expected)
    assert all(float(g.norm()) > 1e-6 for n, g in expected.items() if n.endswith(("conv1.weight", "0.weight")))
    serial.eval(), other.eval()
    require_close(step(other, x), step(serial, x))


@pytest.mark.parametrize("mode", OTHERS)
def test_a_wrong_mode_would_be_seen(mode):
    serial, x = build("residual")
    other, _ = build("residual", execution=mode)
    with torch.no_grad():
        other.fine[1][0].bn2.bias[0] += 1e-6
    with pytest.raises(AssertionError, match="difference"):
        require_close(step(other, x), step(serial, x))


@pytest.mark.parametrize("mode", [*OTHERS, "auto"])
def test_training_gives_the_same_losses(mode):
    def losses(execution):
        net, _ = build("residual", execution=execution)
        optimiser = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
        found = []
        for number in range(20):
            torch.manual_seed(number)
            x, y = torch.randn(6, 1, 6, 6), torch.randint(3, (6,))
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimiser.step()
            found.append(loss.item())
        return torch.tensor(found)

    expected = losses("serial")
    assert expected.std() > 0.01
    # 20 steps, each of which may amplify what the steps before differ in: twice, for smooth losses and small rates.
    torch.testing.assert_close(losses(mode), expected, rtol=2**20 * 1e-15, atol=0)


@pytest.mark.parametrize("mode", OTHERS)
@pytest.mark.parametrize("how", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [True, False])
def test_without_gradients(mode, how, training):
    serial, x = build("residual")
    other, _ = build("residual", execution=mode)
    for net in (serial, other):
        net.train(training)
    for _ in range(2):
        with how():
            expected, got = serial(x), other(x)
        assert other.executed == mode
        assert not got.requires_grad
        assert got.is_inference() == expected.is_inference()
        require_close({"y": got, **dict(other.named_buffers())}, {"y": expected, **dict(serial.named_buffers())})


@pytest.mark.parametrize("mode", OTHERS)
@pytest.mark.parametrize("name", NETS)
def test_bfloat16_autocast(mode, name):
    nets = [build(name, execution=e)[0].float() for e in ("serial", mode)]
    x = build(name)[1].float()
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            torch.set_num_threads(1)
            expected = step(nets[0], x)
            torch.set_num_threads(len(nets[1].fine))
            got = step(nets[1], x)
        assert got["y"].dtype == expected["y"].dtype
        # bfloat16 keeps 8 bits: 12 layers one after the other, of gain up to about 4.
        require_close(got, expected, tolerance=12 * 4 * 2.0**-8)
        if mode == "parallel":
            # One thread per part in both: the same sums in the same order. Only the parts' gradients of x are added
            # up in float32, while autograd adds them in bfloat16 where autocast shares one cast of x.
            own = [n for n in got if "fine" in n or "preprocess" in n or n == "y"]
            require_equal({n: got[n] for n in own}, {n: expected[n] for n in own})
        wide = build(name)[0].float()
    assert float((step(wide, x)["y"] - expected["y"]).norm()) > 1e-5  # autocast did something


@pytest.mark.parametrize("mode", OTHERS)
def test_gradients_accumulate_and_graphs_are_retained_on_request(mode):
    net, x = build("mixed", execution=mode)
    net.eval()
    once = {n: g.clone() for n, g in step(net, x).items() if n.startswith("gradient")}
    loss = net(x).square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    require_close({f"gradient of {n}": p.grad / 3 for n, p in net.named_parameters()}, once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("mode", OTHERS)
def test_frozen_parameters_and_inputs_without_gradient(mode):
    nets = [build("residual", execution=e)[0] for e in ("serial", mode)]
    x = build("residual")[1]
    for net in nets:
        net.fine[1].requires_grad_(False)
        net.preprocess.requires_grad_(False)
        net(x).square().sum().backward()
    expected, got = ({n: p.grad for n, p in net.named_parameters()} for net in nets)
    assert sum(g is None for g in expected.values()) == 2 * 6 + 3 * 3
    require_close(got, expected)


@pytest.mark.parametrize("mode", OTHERS)
def test_tied_parameters(mode):
    def tied(execution):
        torch.manual_seed(0)
        parts = [nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(3)]
        parts[2][0].weight = parts[0][0].weight
        guesses = [nn.Linear(5, 5) for _ in range(3)]
        return PararealNetwork(parts, preprocess=guesses, coarse=parts[1:], execution=execution)

    x = torch.randn(6, 5)
    require_close(step(tied(mode), x), step(tied("serial"), x))


@pytest.mark.parametrize("mode", [*OTHERS, "auto"])
def test_copies_and_pickles(mode):
    net, x = build("residual", execution=mode)
    step(net, x)
    pickled = pickle.loads(pickle.dumps(net))
    copied = copy.deepcopy(net)
    expected = step(net, x)
    for other in (pickled, copied):
        assert other.execution == mode
        assert other.measured == net.measured
        require_close(step(other, x), expected)
        assert other.executed == net.executed
        assert not {id(p) for p in other.parameters()} & {id(p) for p in net.parameters()}


@pytest.mark.parametrize("mode", [*OTHERS, "auto"])
def test_the_dtype_may_be_changed_after_a_pass(mode):
    serial, x = build("residual")
    net, _ = build("residual", execution=mode)
    # float32: 1,700 units of rounding, far below what reading the wrong parameters would do.
    for dtype, tolerance in ((torch.float64, TOLERANCE), (torch.float32, 1e-4), (torch.float64, TOLERANCE)):
        for each in (serial, net):
            each.to(dtype)
        got, expected = step(net, x.to(dtype)), step(serial, x.to(dtype))
        assert got["y"].dtype == dtype
        require_close(got, expected, tolerance)


@pytest.mark.parametrize("mode", ["serial", *OTHERS])
def test_one_part_of_another_dtype_is_refused_after_a_pass_without(mode):
    """What was found out about the parts, such as which are of equal structure, holds no longer."""
    net, x = build("residual", execution=mode)
    net(x)
    net.preprocess[1].float()
    with pytest.raises((RuntimeError, TypeError), match=r"dtype|Double"):
        net(x)


def test_state_is_the_same_in_every_mode_and_may_be_exchanged():
    nets = {mode: build("residual", seed=i, execution=mode)[0] for i, mode in enumerate(("serial", *OTHERS))}
    x = build("residual")[1]
    for net in nets.values():
        step(net, x)
    states = {mode: net.state_dict() for mode, net in nets.items()}
    assert len({tuple(state) for state in states.values()}) == 1
    assert "fine.0.0.conv1.weight" in states["batched"]
    for mode in OTHERS:
        nets[mode].load_state_dict(states["serial"])
        require_close(step(nets[mode], x), step(nets["serial"], x))
        nets["serial"].load_state_dict(states["serial"])


def test_the_mode_may_be_changed_later():
    net, x = build("residual")
    net.eval()
    expected = step(net, x)
    for mode in ("parallel", "batched", "serial", "auto"):
        net.execution = mode
        assert net.execution == mode
        require_close(step(net, x), expected)
        assert net.executed == mode or mode == "auto"
    with pytest.raises(ValueError, match="execution: got 'threads', expected one of"):
        net.execution = "threads"
    assert net.execution == "auto"


@pytest.mark.parametrize("mode", OTHERS)
def test_one_part_is_the_serial_network_and_says_so(mode):
    net = PararealNetwork([nn.Linear(3, 3)], preprocess=[nn.Linear(3, 3)], coarse=[], execution=mode)
    net(torch.randn(2, 3))
    assert net.executed == "serial"


@pytest.mark.parametrize("mode", ["serial", *OTHERS])
def test_guesses_that_do_not_meet_are_refused(mode):
    guesses = [nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)]
    parts = [nn.Linear(5, 5), nn.Linear(5, 4), nn.Linear(5, 5)]
    net = PararealNetwork(parts, preprocess=guesses, coarse=[nn.Linear(5, 4), nn.Linear(4, 5)], execution=mode)
    with pytest.raises(ValueError, match=r"interface 2: preprocess\[2\] .* got shape \(2, 5\), expected \(2, 4\)"):
        net(torch.randn(2, 5))


@pytest.mark.parametrize("mode", ["serial", "parallel"])
def test_parts_that_overwrite_their_input_are_refused(mode):
    parts = [nn.Sequential(nn.Linear(5, 5)), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 5))]
    net = PararealNetwork(
        parts, preprocess=[nn.Linear(5, 5), nn.Linear(5, 5)], coarse=[nn.Linear(5, 5)], execution=mode
    )
    with pytest.raises(ValueError, match=r"fine\[1\]: got a part that changes its input in place"):
        net(torch.randn(2, 5))


@pytest.mark.parametrize("mode", ["serial", *OTHERS])
def test_compiled_parts(mode):
    expected_net, x = build("mixed")
    net, _ = build("mixed")
    net.execution = mode
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, about itself
        for j in (0, 2):
            net.fine[j] = torch.compile(net.fine[j], backend="eager")
        for _ in range(2):
            got = step(net, x)
            expected = step(expected_net, x)
            require_close({n.replace("._orig_mod", ""): g for n, g in got.items()}, expected)
    assert net.executed == mode


def test_bytes_over_the_interfaces_are_those_of_the_formula():
    net, x = build("mixed")
    found = net.communication(torch.empty(6, 5, device="meta"))
    assert [(t.interface, t.shape) for t in found] == [(1, (6, 7)), (2, (6, 5)), (3, (6, 7))]
    sizes = [6 * 7 * 8, 6 * 5 * 8, 6 * 7 * 8]  # batch * |X_j| * itemsize
    assert [t.forward_bytes for t in found] == [t.backward_bytes for t in found] == sizes

    # One device per part, in words: everything that crosses goes through send.
    net.eval()
    sent = {"forward": [], "backward": []}

    def send(v):
        sent["forward"].append(v.numel() * v.element_size())
        v.register_hook(lambda g: sent["backward"].append(g.numel() * g.element_size()))
        return v

    v = None
    for j in range(net.parts):
        x_j = net.preprocess[j](x)
        y_j = net.fine[j](x_j)
        v = y_j if v is None else y_j + net.coarse[j - 1](v - x_j)
        v = send(v) if j + 1 < net.parts else v
    y = net.head(v)
    y.sum().backward()
    assert sent["forward"] == sent["backward"][::-1] == sizes
    require_close({"y": y.detach()}, {"y": net(x).detach()}, TOLERANCE)
    with pytest.raises(TypeError, match="example: got list, expected a tensor"):
        net.communication([1.0])
