# SPDX-License-Identifier: BSD-3-Clause
"""torch.compile of the network and of its parts: one graph, the values of the eager network, what ran is said."""

import copy
import pickle
import shutil
import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

import torch._dynamo.testing  # noqa: E402, F811
from execution_nets import build, dropout_net, require_close, require_equal, step  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal.nn import PararealNetwork  # noqa: E402

# A compiled graph is one program, in which threads and clocks have no place: it says that it ran the parts in turn.
EXECUTED = {"serial": "serial", "batched": "batched", "parallel": "serial", "auto": "serial"}
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the inductor backend needs a C++ compiler")


@pytest.fixture(autouse=True)
def _quiet_float64_compiler():
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, about itself
        yield
    torch._dynamo.reset()
    torch.set_default_dtype(default)


def named(found):
    return {n.replace("_orig_mod.", ""): t for n, t in found.items()}


# In a graph parallel and auto are serial, so the difference is compiled in the two modes with a graph of their own.
@pytest.mark.parametrize(
    ("correction", "mode"),
    [*(("residual", mode) for mode in EXECUTED), ("difference", "serial"), ("difference", "batched")],
)
def test_the_network_is_one_graph_with_the_values_and_gradients_of_the_eager_one(correction, mode):
    eager, x = build("mixed", correction=correction)
    net, _ = build("mixed", correction=correction, execution=mode)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)  # fullgraph: a graph break is an error
    for training in (True, False):
        eager.train(training), net.train(training)
        for _ in range(2):  # compiled, then found
            net.executed = None
            require_close(named(step(compiled, x)), step(eager, x))
            assert net.executed == EXECUTED[mode]
    net.eval()
    net(x)
    assert net.executed == mode or mode == "auto"  # the same network, not compiled


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["serial", "batched"])
def test_generated_code(mode):
    """The default backend, which writes C++ for this machine."""
    torch.manual_seed(0)

    def small():
        parts = [nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Tanh()) for _ in range(2)]
        guesses, coarse = [nn.Linear(5, 5) for _ in range(2)], [nn.Linear(5, 5, bias=False)]
        return PararealNetwork(parts, preprocess=guesses, coarse=coarse)

    eager, net = small(), small()
    net.load_state_dict(eager.state_dict())
    net.execution = mode
    x = torch.randn(6, 5)
    compiled = torch.compile(net, fullgraph=True)
    for _ in range(2):
        require_close(named(step(compiled, x)), step(eager, x))
        assert net.executed == mode


@needs_compiler
@pytest.mark.slow
def test_generated_code_in_the_threads_of_the_parts():
    eager, x = build("mixed")
    net, _ = build("mixed", execution="parallel")
    for part in net.fine:
        part.compile(fullgraph=True)
    torch.set_num_threads(4)
    for _ in range(3):
        require_close(step(net, x), step(eager, x))
        assert net.executed == "parallel"


@pytest.mark.parametrize("mode", ["serial", "parallel", "batched"])
def test_a_compiled_part_is_one_graph_under_its_own_names(mode):
    eager, x = build("mixed")
    net, _ = build("mixed", execution=mode)
    names = list(net.state_dict())
    count = torch._dynamo.testing.CompileCounter()
    for part in net.fine:
        part.compile(backend=count, fullgraph=True)
    torch.set_num_threads(4)
    for _ in range(3):
        require_close(step(net, x), step(eager, x))
    assert net.executed == mode
    # Four parts of two structures; parts of equal structure share a graph. In threads they share its guards as well,
    # and one that is disturbed there by another compiles once more for nothing. batched runs the parts uncompiled.
    least, most = {"serial": (2, 2), "parallel": (2, 4), "batched": (0, 0)}[mode]
    assert least <= count.frame_count <= most
    assert list(net.state_dict()) == names
    net.eval()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):  # these run uncompiled
        require_close({"y": other(x)}, {"y": net(x)})


def test_recompilation_in_several_threads_at_once():
    """Other shapes and modes after the first pass: every part's thread finds that its graph does not fit."""
    eager, _ = build("mixed")
    net, _ = build("mixed", execution="parallel")
    for part in net.fine:
        part.compile(backend="aot_eager")
    torch.set_num_threads(4)
    for size in (6, 3, 9):
        x = torch.randn(size, 5)
        require_close(step(net, x), step(eager, x))
        with torch.no_grad():
            require_close({"y": net(x)}, {"y": eager(x)})
    assert net.executed == "parallel"


def test_a_part_that_overwrites_its_input_gets_a_copy_in_the_graph():
    """Eager, it is refused; a graph has no version counters to see it by, and must be right all the same."""

    def made(inplace):
        torch.manual_seed(0)
        parts = [nn.Linear(5, 5), nn.Sequential(nn.ReLU(inplace=inplace), nn.Linear(5, 5))]
        guesses = [nn.Linear(5, 5) for _ in range(2)]
        return PararealNetwork(parts, preprocess=guesses, coarse=[nn.Linear(5, 5)])

    x = torch.randn(4, 5)
    compiled = torch.compile(made(True), backend="aot_eager", fullgraph=True)
    require_equal(named(step(compiled, x)), step(made(False), x))
    with pytest.raises(ValueError, match=r"fine\[1\]: got a part that changes its input in place"):
        made(True)(x)


def test_dropout_under_the_difference_breaks_the_graph_outside_the_parts():
    """The two masks are made equal by setting the random stream back, which no graph can hold."""
    net = dropout_net(correction="difference")
    net.coarse[0] = nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5))
    x = torch.randn(3, 5)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="rng_state"):
        torch.compile(net, backend="eager", fullgraph=True)(x)
    torch._dynamo.reset()
    require_close(named(step(torch.compile(net, backend="eager"), x)), step(net, x))
