# SPDX-License-Identifier: BSD-3-Clause
"""``nn.GRU`` and ``nn.LSTM`` as modules: copies, dtypes, autocast, torch.compile, parametrizations, wrong calls."""

import copy
import io
import pickle
import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from gru_cases import KINDS, agree, flat, initial, layers, results, tolerance  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import parametrize  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence  # noqa: E402

from pyparareal import MGRIT, ConvergenceError, Status  # noqa: E402

BOTH = ["GRU", "LSTM"]
METHODS = ["serial", "mgrit"]


def inputs(steps=23, batch=4, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(steps, batch, 3, dtype=dtype)


@pytest.mark.parametrize("kind", BOTH)
def test_state_dict_parameters_and_text_are_torchs(kind):
    ours, theirs = layers(kind, 3, 5, 2, bidirectional=True, dropout=0.25)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert isinstance(ours, KINDS[kind][1])
    assert repr(ours) == repr(theirs)[:-1] + ", method='auto')"
    other = KINDS[kind][0](3, 5, method="mgrit", chunk=16, on_failure="raise")
    assert repr(other) == f"{kind}(3, 5, method='mgrit', chunk=16, on_failure='raise')"
    assert ours.report == []
    ours.flatten_parameters()


@pytest.mark.parametrize("kind", BOTH)
def test_of_torchs_module_with_its_very_parameters(kind):
    _, theirs = layers(kind, 3, 5, 2, bidirectional=True, batch_first=True, bias=False)
    ours = KINDS[kind][0].from_torch(theirs.eval(), method="mgrit", chunk=4)
    assert all(p is q for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert (ours.training, ours.settings.chunk) == (False, 4)
    x = inputs()
    agree([flat(ours(x))], [flat(theirs(x))], tolerance(torch.float64))
    other = KINDS["LSTM" if kind == "GRU" else "GRU"][1](3, 5)
    with pytest.raises(TypeError, match=f"expected a torch.nn.{kind}"):
        KINDS[kind][0].from_torch(other)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", BOTH)
def test_copies_and_files_compute_the_same(kind, method):
    ours, _ = layers(kind, 3, 5, 2, bidirectional=True, own={"method": method})
    x = inputs()
    expected = flat(ours(x))
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for one in (
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(file, weights_only=False),
    ):
        assert one.report == []
        assert one.settings == ours.settings
        agree([flat(one(x))], [expected], 0.0)


# Of the significand; states of size 1 are rounded once by us, in every step by torch, which forgets half of it
BITS = {torch.float16: 11, torch.bfloat16: 8}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("kind", BOTH)
def test_modules_of_16_bits(kind, dtype, method):
    ours, theirs = layers(kind, 3, 5, dtype=torch.float32, own={"method": method})
    ours, theirs, x = ours.to(dtype), theirs.to(dtype), inputs(dtype=dtype).requires_grad_()
    got = results(ours, x)
    # Five roundings in a step of torch's; a gradient is a sum over 92 of them
    agree([got[0]], [results(theirs, x)[0]], 20 * 2.0 ** -BITS[dtype])
    wide = results(theirs.double(), x.detach().double().requires_grad_())
    for one, other in zip(got[1], wide[1], strict=True):
        assert one.dtype == dtype
        assert float((one - other).abs().max()) <= 40 * 2.0 ** -BITS[dtype] * float(other.abs().max())


def test_a_module_made_double_solves_to_the_tolerance_of_double():
    ours, theirs = layers("GRU", 3, 5, dtype=torch.float32, own={"method": "mgrit"})
    x = inputs()
    agree([flat(ours.double()(x))], [flat(theirs.double()(x))], tolerance(torch.float64))
    assert ours.report[0].tol < 1e-11


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "dtype"), [("GRU", torch.bfloat16), ("GRU", torch.float16), ("LSTM", torch.bfloat16)])
def test_autocast(kind, dtype, method):
    """torch's dtypes, and its values to the precision of autocast (whose LSTM has no float16 on this device)."""
    ours, theirs = layers(kind, 3, 5, 2, bidirectional=True, dtype=torch.float32, own={"method": method})
    x, hx = inputs(dtype=torch.float32), initial(kind, ours, 4)
    with torch.autocast("cpu", dtype):
        for given in ((x,), (x.to(dtype),), (x, hx)):
            agree([flat(ours(*given))], [flat(theirs(*given))], 20 * 2.0 ** -BITS[dtype])
        loss = ours(x)[0].float().square().sum()
    loss.backward()
    assert {p.grad.dtype for p in ours.parameters()} == {torch.float32}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", BOTH)
def test_compiled_networks_have_the_same_values_and_gradients(kind, method):
    class Net(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.last = inner, nn.Linear(5, 2, dtype=torch.float64)

        def forward(self, x):
            return self.last(self.inner(2 * x)[0]).tanh()

    net = Net(layers(kind, 3, 5, own={"method": method})[0])
    x = inputs().requires_grad_()
    expected = results(net, x)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, about itself
        compiled = torch.compile(net, backend="aot_eager")
        got = results(compiled, x)
    agree(got, expected, 1e-13)  # the order of operations around the recurrence
    assert net.inner.report[0].method == method


class Half(nn.Module):
    def forward(self, weight):
        return 0.5 * weight


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", BOTH)
def test_weights_may_be_functions_of_others(kind, method):
    ours, theirs = layers(kind, 3, 5, own={"method": method})
    x = inputs().requires_grad_()
    halved = {name: 0.5 * p.detach() for name, p in ours.named_parameters()}
    got, expected = (flat(torch.func.functional_call(m, halved, (x,))) for m in (ours, theirs))
    agree([got], [expected], tolerance(torch.float64))
    for module in (ours, theirs):
        parametrize.register_parametrization(module, "weight_hh_l0", Half())
    agree(results(ours, x), results(theirs, x), tolerance(torch.float64))


@pytest.mark.parametrize("kind", BOTH)
def test_frozen_weights_and_inputs(kind):
    ours, theirs = layers(kind, 3, 5, own={"method": "mgrit"})
    x = inputs()
    for module in (ours, theirs):
        module.requires_grad_(False)
        module.bias_ih_l0.requires_grad_(True)
        module(x)[0].square().sum().backward()
    agree([[ours.bias_ih_l0.grad]], [[theirs.bias_ih_l0.grad]], tolerance(torch.float64))
    ours.requires_grad_(False)
    assert not ours(x)[0].requires_grad
    with torch.no_grad():
        assert not ours.requires_grad_(True)(x)[0].requires_grad


def test_settings_may_be_an_mgrit_or_replaced_later():
    ours, theirs = layers("GRU", 3, 5, own={"method": MGRIT(levels=3, nu=1), "chunk": 4, "tol": 1e-12})
    x = inputs(67)
    agree([flat(ours(x))], [flat(theirs(x))], tolerance(torch.float64))
    assert ours.report[0].method == "mgrit"
    assert ours.report[0].chunk == 4
    ours.settings = KINDS["GRU"][0](3, 5, method="serial").settings
    agree([flat(ours(x))], [flat(theirs(x))], tolerance(torch.float64))
    assert ours.report[0].method == "serial"


@pytest.mark.parametrize("method", ["mgrit", "hybrid", "newton"])
def test_a_chaotic_gru_is_solved_serially_with_a_warning_that_names_the_chunk(method):
    """Recurrent weights 12 times as large: nearby states part by a factor per step, and no chunk forgets its start."""
    ours, theirs = layers("GRU", 3, 32, own={"method": method, "chunk": 16, "max_iterations": 4})
    for module in (ours, theirs):
        with torch.no_grad():
            module.weight_hh_l0.mul_(12)
    x = inputs(320)
    h = torch.zeros(1, 4, 32, dtype=torch.float64)
    with torch.no_grad():
        apart = theirs(x, h)[0] - theirs(x, h + 1e-9)[0]
    assert float(apart[100:].abs().max()) > 1e-3  # it is chaotic
    with pytest.warns(RuntimeWarning, match=r"recurrence: .*chunk \d+.*solved serially instead"):
        output, _ = ours(x)
    agree([[output[:30]]], [[theirs(x)[0][:30]]], 1e-9)  # later on rounding is amplified too
    report = ours.report[0]
    assert report.status is Status.SERIAL_FALLBACK
    assert report.failure is not None
    assert report.exponent > 0
    assert report.worst_chunk is not None
    ours.settings = KINDS["GRU"][0](3, 5, method=method, chunk=16, max_iterations=4, on_failure="raise").settings
    with pytest.raises(ConvergenceError, match="recurrence"):
        ours(x)


def test_iterations_and_exponent_at_weights_like_trained_ones():
    """With gates that keep a tenth to nine tenths of a state a chunk of 64 steps forgets; the exponent says so."""
    ours, theirs = layers("GRU", 3, 16, gain=2.0, own={"method": "hybrid", "chunk": 64})
    x = inputs(1024)
    agree([flat(ours(x))], [flat(theirs(x))], tolerance(torch.float64))
    report = ours.report[0]
    assert report.ok
    assert report.exponent < 0
    assert report.iterations <= 4 < 16  # where 16 make every chunk exact


WRONG = [
    (lambda m, x, h: m(x.float()), ValueError, "RNN input dtype"),
    (lambda m, x, h: m(x.long()), ValueError, "RNN input dtype"),
    (lambda m, x, h: m(x[..., :2]), RuntimeError, "input.size\\(-1\\) must be equal to input_size. Expected 3, got 2"),
    (lambda m, x, h: m(x[None]), ValueError, "Expected input to be 2D or 3D, got 4D"),
    (lambda m, x, h: m(x[:0]), ValueError, "input: got 0 steps"),
    (lambda m, x, h: m(None), TypeError, "input: got NoneType, expected a tensor or a PackedSequence"),
    (lambda m, x, h: m([[1.0]]), TypeError, "input: got list"),
    (lambda m, x, h: m(PackedSequence(x, torch.tensor([4] * 23))), RuntimeError, "must have 2 dimensions, got 3"),
    (lambda m, x, h: m(x[:, 0], h), RuntimeError, "For unbatched 2-D input, hx should also be 2-D but got 3-D"),
    (lambda m, x, h: m(x, each(h, lambda u: u[:, 0])), RuntimeError, "For batched 3-D input, hx should also be 3-D"),
    (lambda m, x, h: m(x, each(h, lambda u: u[:, :3])), RuntimeError, r"Expected hidden.*\(1, 4, 5\), got \[1, 3"),
    (lambda m, x, h: m(x, each(h, lambda u: u[..., :4])), RuntimeError, r"Expected hidden.* size \(1, 4, 5\)"),
    (lambda m, x, h: m(x, each(h, lambda u: u.float())), TypeError, "hx: got dtype torch.float32, expected"),
    (lambda m, x, h: m(x, each(h, lambda u: u.to("meta"))), ValueError, "hx: got a tensor on meta, expected cpu"),
    (lambda m, x, h: m(x, 0.0), TypeError, "hx: got float, expected a"),
    (lambda m, x, h: m(x, [h, h, h]), TypeError, "hx: got list, expected a"),
    (lambda m, x, h: m(x, lengths=[1, 2]), ValueError, r"lengths: got shape \(2,\), expected \(4,\)"),
    (lambda m, x, h: m(x, lengths=[1, 2, 3, 24]), ValueError, "lengths: got 24, expected from 0 to 23"),
    (lambda m, x, h: m(x[:, 0], lengths=[3]), ValueError, "lengths: given with an input without a batch"),
    (lambda m, x, h: m(pack_padded_sequence(x, [4, 3, 2, 1]), lengths=[1] * 4), ValueError, "lengths: given with a"),
]  # fmt: skip


def each(hx, change):
    return tuple(map(change, hx)) if isinstance(hx, tuple) else change(hx)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("row", range(len(WRONG)))
@pytest.mark.parametrize("kind", BOTH)
def test_wrong_arguments_are_refused(kind, row, method):
    call, error, message = WRONG[row]
    ours, _ = layers(kind, 3, 5, own={"method": method})
    with pytest.raises(error, match=message):
        call(ours, inputs(), each(initial(kind, ours, 4), torch.Tensor.detach))


@pytest.mark.parametrize("kind", BOTH)
def test_wrong_options_are_refused_before_anything_is_made(kind):
    make = KINDS[kind][0]
    with pytest.raises(ValueError, match="method: got 'fast', expected one of auto, serial, mgrit, newton, hybrid"):
        make(3, 5, method="fast")
    with pytest.raises(ValueError, match="chunk: got 0, expected at least 1"):
        make(3, 5, chunk=0)
    with pytest.raises(TypeError, match="metod"):
        make(3, 5, metod="mgrit")
    with pytest.raises(ValueError, match="hidden_size must be greater than zero"):
        make(3, 0)
    with pytest.raises(ValueError, match="dropout should be a number"):
        make(3, 5, dropout=2.0)
    if kind == "GRU":
        with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
            make(3, 5, proj_size=2)


def test_unsorted_packing_is_refused_by_torch_already():
    with pytest.raises(RuntimeError, match="must be sorted in decreasing order"):
        pack_padded_sequence(inputs(), [3, 4, 2, 1])
