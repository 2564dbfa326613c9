# SPDX-License-Identifier: BSD-3-Clause
"""Recurrences refuse what they cannot solve, by name and before any work: inputs, cells, settings."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from torch import nn  # noqa: E402

from pyparareal import MGRIT, Adjoint  # noqa: E402
from pyparareal.nn import ImplicitGRU, Recurrence  # noqa: E402
from pyparareal.nn.recurrent import Settings  # noqa: E402

X, H = torch.randn(12, 3, 2), torch.zeros(3, 4)


def gru(**options):
    return Recurrence(nn.GRUCell(2, 4), **options)


@pytest.mark.parametrize(
    ("x", "h", "more", "kind", "message"),
    [
        (3.0, H, {}, TypeError, "x: got float, expected a tensor or a tuple of tensors"),
        ((X, 1), H, {}, TypeError, r"x: got \(float32 \[12, 3, 2\] on cpu, int\)"),
        (torch.randn(12), H, {}, ValueError, r"x: got shape \(12,\), expected \[T, batch, ...\]"),
        ((X, X[:5]), H, {}, ValueError, "expected the same first two axes"),
        (X[:0], H, {}, ValueError, "expected at least one step"),
        (X[:, :0], H[:0], {}, ValueError, "expected a batch of at least 1"),
        (X, H[:2], {}, ValueError, "h0: got batch 2, expected the 3 of x"),
        (X, [], {}, TypeError, r"h0: got \(\), expected a tensor, or tensors nested in tuples"),
        (X, "zero", {}, TypeError, "h0: got str"),
        (X, torch.tensor(1.0), {}, ValueError, "h0: got a tensor without an axis"),
        (X, torch.zeros(3, 4, dtype=torch.int64), {}, TypeError, "h0: got dtype torch.int64"),
        (X, (H, H.double()), {}, ValueError, "h0: got torch.float64 on cpu with batch 3 beside torch.float32"),
        (X, H, {"lengths": torch.tensor([13, 1, 2])}, ValueError, "lengths: got 13, expected at most the 12 steps"),
        (X, H, {"lengths": torch.tensor([-1, 1, 2])}, ValueError, "lengths: got -1, expected at least 0"),
        (X, H, {"lengths": torch.tensor([1, 2])}, ValueError, r"lengths: got shape \(2,\)"),
        (X, H, {"lengths": torch.ones(3)}, TypeError, "lengths: got dtype torch.float32"),
        (X, H, {"mask": torch.ones(12, 3)}, TypeError, "mask: got float32"),
        (X, H, {"mask": torch.ones(3, 12, dtype=torch.bool)}, ValueError, r"mask: got shape \(3, 12\)"),
        (
            X, H, {"mask": torch.arange(12)[:, None] != torch.tensor([20, 4, 11])},
            ValueError, "mask: sequence 1 has a gap",
        ),
        (
            X, H, {"mask": torch.ones(12, 3, dtype=torch.bool), "lengths": torch.tensor([1, 2, 3])},
            ValueError, "mask: got one and lengths too",
        ),
    ],
)  # fmt: skip
def test_inputs(x, h, more, kind, message):
    with pytest.raises(kind, match=message):
        gru()(x, h, **more)


def test_no_initial_state():
    with pytest.raises(ValueError, match="h0: not given, and Linear has no initial_state"):
        Recurrence(nn.Linear(2, 4))(X)


class Cell(nn.Module):
    """A cell with something wrong."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong, self.inner, self.drop = wrong, nn.Linear(2, 4), nn.Dropout(0.5)
        self.calls, self.norm = 0, nn.BatchNorm1d(4, affine=False)
        self.of_rows = nn.Parameter(torch.randn(3, 4))

    def forward(self, x, h):
        self.calls += 1
        h = torch.tanh(self.inner(x) + h)
        return getattr(self, self.wrong)(h)

    def shape(self, h):
        return h[:, :3]

    def dtype(self, h):
        return h.double()

    def device(self, h):
        return h.to("meta")

    def structure(self, h):
        return h, h

    def nothing(self, h):
        return None

    def hidden(self, h):
        return h + self.calls

    def chance(self, h):
        return h + torch.randn(4)

    def drawn(self, h):
        torch.rand(1)
        return h

    def dropout(self, h):
        return self.drop(h)

    def rows(self, h):
        return h + self.of_rows

    def company(self, h):
        return h - h.mean(0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("shape", r"cell: returned float32 \[3, 3\] on cpu, expected float32 \[3, 4\] on cpu"),
        ("dtype", r"cell: returned float64 \[3, 4\] on cpu, expected float32"),
        ("device", r"cell: returned float32 \[3, 4\] on meta, expected float32 \[3, 4\] on cpu"),
        ("structure", r"cell: returned \(float32 \[3, 4\] on cpu, float32"),
        ("nothing", "cell: returned NoneType"),
        ("hidden", "cell: returned another state when called again"),
        ("chance", "cell: draws random numbers"),
        ("drawn", "cell: draws random numbers"),
        ("rows", "cell: fails with 6 rows where it works with 3"),
        ("company", "cell: the state of a row depends on which other rows there are"),
    ],
)
@pytest.mark.parametrize("method", ["auto", "serial", "hybrid"])
def test_cells(wrong, message, method):
    cell = Cell(wrong)
    cell.norm, cell.drop = nn.Identity(), nn.Identity()
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        Recurrence(cell, method=method)(X, H)
    assert torch.equal(torch.get_rng_state(), before)  # nothing is lost


def test_dropout_and_batch_norm_in_training_mode():
    cell = Cell("dropout")
    cell.norm = nn.Identity()
    net = Recurrence(cell)
    with pytest.raises(ValueError, match=r"cell: its module 'drop' \(Dropout\) gives another value"):
        net(X, H)
    net.eval()
    net(X, H)
    net.train()
    with pytest.raises(ValueError, match="Dropout"):
        net(X, H)
    cell.drop, cell.norm = nn.Identity(), nn.BatchNorm1d(4)
    with pytest.raises(ValueError, match="BatchNorm1d"):
        net(X, H)


def test_a_cell_that_changes_the_shape_later():
    def cell(x, h):
        return h[:, :2] if bool((x > 50).any()) else torch.tanh(h + x)

    x = torch.zeros(12, 3, 1)
    x[7] = 100.0
    for method in ("serial", "hybrid"):
        with pytest.raises(ValueError, match=r"cell: returned float32 \[\d+, 2\]"):
            Recurrence(cell, method=method)(x, H)


def test_exceptions_of_the_cell_reach_the_caller():
    class Own(Exception):
        pass

    def cell(x, h):
        raise Own("of the user")

    with pytest.raises(Own, match="of the user"):
        Recurrence(cell)(X, H)


def test_a_cell_that_loses_its_graph():
    def cell(x, h):
        return torch.tanh(h.detach() + x)

    x = X.clone().requires_grad_()
    states, _ = Recurrence(cell, method="hybrid", jacobian="none")(x[..., :1], H)
    (gradient,) = torch.autograd.grad(states.sum(), x)  # a cell may ignore its state on purpose: x alone has a graph
    assert bool(gradient[..., 0].all())
    lost = Recurrence(lambda x, h: torch.tanh(h + x).detach(), method="hybrid", jacobian="none")
    with pytest.raises(ValueError, match="a differentiable step must not detach u"):
        lost(x.sum(2, keepdim=True).expand(-1, -1, 4), H)[0].sum().backward()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"method": "fast"}, ValueError, "method: got 'fast', expected one of auto, serial, mgrit, newton, hybrid"),
        ({"jacobian": "half"}, ValueError, "jacobian: got 'half'"),
        ({"on_failure": "shrug"}, ValueError, "on_failure: got 'shrug'"),
        ({"chunk": 0}, ValueError, "chunk: got 0, expected at least 1"),
        ({"chunk": 2.0}, TypeError, "chunk: got 2.0, expected an integer or None"),
        ({"method": "mgrit", "chunk": 1}, ValueError, "chunk: got 1 with method='mgrit', expected at least 2"),
        ({"tol": -1.0}, ValueError, "tol: got -1.0"),
        ({"tol": "small"}, ValueError, "tol: got 'small', expected a number, None or \"auto\""),
        ({"backward": "mgrid"}, ValueError, "backward: got 'mgrid', expected one of mgrit, newton, serial"),
        ({"backward": 3}, TypeError, "backward: got int, expected an Adjoint"),
        ({"tol": None}, ValueError, "max_iterations: got None with tol=None"),
        ({"max_iterations": 0}, ValueError, "max_iterations: got 0"),
        ({"levels": 1}, ValueError, "levels: got 1, expected at least 2"),
        ({"levels": None}, TypeError, "levels: got None, expected an integer"),
        ({"warm_up": -1}, ValueError, "warm_up: got -1"),
        ({"memory": 0}, ValueError, "memory: got 0"),
        ({"damping": 2}, ValueError, "damping: got 2"),
        ({"trust": 0.0}, ValueError, "trust: got 0.0, expected a finite number above 0, or None"),
        ({"trust": "far"}, TypeError, "trust: got 'far', expected a number or None"),
        ({"exponent": 1}, TypeError, "exponent: got 1, expected True or False"),
    ],
)
def test_settings(options, kind, message):
    with pytest.raises(kind, match=message):
        Settings(**options)
    with pytest.raises(kind, match=message):
        gru(**options)


def test_arguments_of_the_constructor():
    with pytest.raises(TypeError, match="cell: got int"):
        Recurrence(3)
    with pytest.raises(TypeError, match="coarse: got int"):
        Recurrence(nn.GRUCell(2, 4), 3)
    with pytest.raises(TypeError, match="chunks"):
        gru(chunks=3)


def test_a_backward_method_that_chunks_without_a_jacobian_do_not_have():
    x = X.clone().requires_grad_()
    for backward in ("mgrit", MGRIT(), Adjoint("newton")):
        with pytest.raises(ValueError, match='expected "serial" or none'):
            gru(method="hybrid", jacobian="none", backward=backward)(x, H)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((2.5, 4), TypeError, "input_size: got 2.5"),
        ((2, 0), ValueError, "hidden_size: got 0, expected at least 1"),
        ((2, 4, True), TypeError, "num_layers: got True"),
    ],
)
def test_sizes_of_an_implicit_gru(arguments, kind, message):
    with pytest.raises(kind, match=message):
        ImplicitGRU(*arguments)


def test_arguments_of_an_implicit_gru():
    with pytest.raises(ValueError, match="dt: got 0"):
        ImplicitGRU(2, 4, dt=0)
    net = ImplicitGRU(2, 4, 2)
    with pytest.raises(ValueError, match=r"x: got shape \(12, 3, 5\), expected \[T, batch, input\] with input 2"):
        net(torch.randn(12, 3, 5))
    with pytest.raises(TypeError, match="x: got int"):
        net(3)
    with pytest.raises(ValueError, match=r"h0: got shape \(3, 4\), expected \(2, 3, 4\)"):
        net(X, H)
    with pytest.raises(ValueError, match="lengths: got 13"):
        net(X, lengths=torch.tensor([13, 1, 1]))


def test_cells_that_write_to_their_arguments_are_refused_and_nothing_is_written():
    x, h = torch.randn(20, 2, 3), torch.randn(2, 3)
    kept = x.clone(), h.clone()
    for cell in (lambda x, h: h.mul_(0.5).add_(x), lambda x, h: x.mul_(0.5).add_(h)):
        with pytest.raises(ValueError, match="cell: writes to its arguments"):
            Recurrence(cell, method="hybrid", jacobian="none")(x, h)
        assert torch.equal(x, kept[0])
        assert torch.equal(h, kept[1])


def test_layers_and_packed_sequences_are_no_cells_and_inputs():
    with pytest.raises(TypeError, match="cell: got GRU, layers over a whole sequence, expected one step"):
        Recurrence(nn.GRU(3, 4))
    packed = nn.utils.rnn.pack_sequence([torch.randn(5, 3), torch.randn(4, 3)])
    with pytest.raises(TypeError, match="x: got a PackedSequence"):
        Recurrence(nn.GRUCell(3, 4))(packed)
    with pytest.raises(TypeError, match="lengths: got 'two'"):
        Recurrence(nn.GRUCell(3, 4))(torch.randn(5, 2, 3), lengths="two")


def test_settings_are_settings():
    from pyparareal.nn import GRU

    for make in (lambda s: Recurrence(nn.GRUCell(3, 4), settings=s), lambda s: GRU(3, 4, settings=s)):
        with pytest.raises(TypeError, match="settings: got dict, expected Settings"):
            make({"method": "serial"})


@pytest.mark.parametrize("method", ["hybrid", "mgrit", "newton"])
def test_the_chunk_of_the_first_nan_is_named(method):
    x = torch.randn(80, 2, 3)
    x[43, 1] = torch.nan
    net = Recurrence(nn.GRUCell(3, 4), method=method, jacobian="diagonal" if method == "newton" else "none", chunk=8)
    with pytest.warns(RuntimeWarning, match=r"the first of them in chunk 5 \(from step 40\)"):
        net(x)


@pytest.mark.parametrize("way", [{"method": "hybrid", "jacobian": "none", "warm_up": 0}, {"method": "mgrit"}])
def test_in_windows_the_steps_that_are_named_are_those_of_the_sequence(way):
    # Without gradients a step of this size takes 3 arrays of 2 x 4 numbers of 4 bytes; windows of 40 steps.
    x = torch.randn(160, 2, 3)
    x[123, 1] = torch.nan
    net = Recurrence(nn.GRUCell(3, 4), chunk=8, memory=40 * 3 * 2 * 4 * 4, **way)
    with (
        torch.no_grad(),
        pytest.warns(RuntimeWarning, match=r"first of them in chunk 0 \(from step 120\) of the window from step 120"),
    ):
        net(x)
    report = net.report
    assert report.windows == 4
    assert (report.worst_step, report.worst_chunk, report.begin) == (120, 0, 120)
    assert not report.ok
    assert "in chunk 0 (from step 120) of the window from step 120" in report.why_failed()
