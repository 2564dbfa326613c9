# SPDX-License-Identifier: BSD-3-Clause
"""``nn.GRU`` and ``nn.LSTM`` give torch's values and gradients, whatever the method, the options and the lengths."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from gru_cases import agree, initial, layers, results, tolerance  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402

METHODS = ["serial", "auto", "mgrit", "newton", "hybrid"]
PARALLEL = METHODS[2:]
BOTH = ["GRU", "LSTM"]
INPUTS, HIDDEN, BATCH = 3, 5, 4

# Any two options meet in some row: layers, bias, batch_first, dropout, bidirectional, hx, packed.
ROWS = [
    (1, True, False, 0.0, False, False, None),
    (2, False, True, 0.5, True, True, None),
    (2, True, False, 0.5, False, True, "sorted"),
    (1, False, False, 0.0, True, False, "unsorted"),
    (2, True, True, 0.0, True, False, "sorted"),
    (1, True, True, 0.0, False, True, "unsorted"),
    (2, False, False, 0.5, False, False, "unsorted"),
    (1, False, True, 0.0, False, True, "sorted"),
    (2, True, False, 0.0, True, True, "unsorted"),
]


def padded(steps, batch=BATCH, batch_first=False, dtype=torch.float64, seed=1):
    torch.manual_seed(seed)
    x = torch.randn(steps, batch, INPUTS, dtype=dtype)
    return (x.transpose(0, 1).contiguous() if batch_first else x).requires_grad_()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("row", range(len(ROWS)))
def test_values_and_gradients_are_torchs(row, kind, method):
    count, bias, first, dropout, both, given, packed = ROWS[row]
    options = {"bias": bias, "batch_first": first, "dropout": dropout, "bidirectional": both}
    ours, theirs = layers(kind, INPUTS, HIDDEN, count, **options, own={"method": method})
    x, hx = padded(23, batch_first=first), initial(kind, ours, BATCH) if given else None
    if packed is not None:
        lengths = [23, 17, 17, 2] if packed == "sorted" else [9, 23, 1, 16]
        x = pack_padded_sequence(x.detach(), lengths, batch_first=first, enforce_sorted=packed == "sorted")
        x.data.requires_grad_()
    expected = results(theirs, x, hx, seed=3)
    agree(results(ours, x, hx, seed=3), expected, tolerance(torch.float64))
    assert [one.method for one in ours.report] == ["serial" if method == "auto" else method] * count * (1 + both)
    assert all(one.ok for one in ours.report)


@pytest.mark.parametrize(("steps", "dtype"), [*((n, torch.float64) for n in (1, 2, 3, 5, 31)), (101, torch.float32)])
@pytest.mark.parametrize("method", PARALLEL)
@pytest.mark.parametrize("kind", BOTH)
def test_any_number_of_steps(kind, method, steps, dtype):
    ours, theirs = layers(kind, INPUTS, HIDDEN, dtype=dtype, own={"method": method})
    x, hx = padded(steps, batch=1, dtype=dtype), initial(kind, ours, 1)
    agree(results(ours, x, hx), results(theirs, x, hx), tolerance(dtype))


@pytest.mark.parametrize("chunk", [2, 7, 50, 100])
@pytest.mark.parametrize("kind", BOTH)
def test_any_chunk(kind, chunk):
    ours, theirs = layers(kind, INPUTS, HIDDEN, own={"method": "mgrit", "chunk": chunk})
    x = padded(50)
    agree(results(ours, x), results(theirs, x), tolerance(torch.float64))
    assert ours.report[0].chunk == min(chunk, 50)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", BOTH)
def test_without_a_batch(kind, given, method):
    ours, theirs = layers(kind, INPUTS, HIDDEN, 2, bidirectional=True, batch_first=True, own={"method": method})
    x = padded(9)[:, 0].detach().requires_grad_()
    hx = initial(kind, ours, None) if given else None
    agree(results(ours, x, hx), results(theirs, x, hx), tolerance(torch.float64))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", BOTH)
def test_a_batch_of_none(kind, method):
    ours, theirs = layers(kind, INPUTS, HIDDEN, own={"method": method})
    x = padded(9, batch=0)
    agree(results(ours, x), results(theirs, x), 0.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", BOTH)
def test_lengths_are_packing_without_the_packing(kind, given, method):
    """Also of no steps at all: such a sequence ends where it starts; what is beyond the end may be NaN."""
    options = {"bidirectional": True, "batch_first": given}
    ours, theirs = layers(kind, INPUTS, HIDDEN, 2, **options, own={"method": method})
    lengths, x = [9, 0, 23, 16], padded(23, batch_first=given)
    hx = initial(kind, ours, BATCH) if given else None
    dirty = x.detach().clone()
    for b, n in enumerate(lengths):
        (dirty[b, n:] if given else dirty[n:, b]).fill_(torch.nan)
    dirty.requires_grad_()
    got = results(ours, dirty, hx, lengths=torch.tensor(lengths))

    alive, batch_dim = [0, 2, 3], 0 if given else 1

    class WithoutEmpty(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = theirs

        def forward(self, x, hx=None):
            some = torch.tensor(alive)
            kept = torch.tensor(lengths)[some]
            packed = pack_padded_sequence(x.index_select(batch_dim, some), kept, given, enforce_sorted=False)
            start = hx if hx is not None else initial(kind, theirs, BATCH)
            parts = start if kind == "LSTM" else (start,)
            if hx is None:
                parts = tuple(torch.zeros_like(u) for u in parts)
            here = tuple(u.index_select(1, some) for u in parts)
            y, ends = self.inner(packed, here if kind == "LSTM" else here[0])
            y, _ = pad_packed_sequence(y, given)
            whole = torch.zeros(*x.shape[:2], y.shape[-1], dtype=y.dtype).index_copy(batch_dim, some, y)
            ends = ends if kind == "LSTM" else (ends,)
            return whole, tuple(u.index_copy(1, some, e) for u, e in zip(parts, ends, strict=True))

    agree(got, results(WithoutEmpty(), x, hx), tolerance(torch.float64))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", BOTH)
def test_lengths_that_are_all_zero(kind, method):
    ours, _ = layers(kind, INPUTS, HIDDEN, own={"method": method})
    hx = initial(kind, ours, BATCH)
    output, final = ours(padded(9), hx, lengths=[0] * BATCH)
    assert torch.equal(output, torch.zeros(9, BATCH, HIDDEN, dtype=torch.float64))
    for got, start in zip(final if kind == "LSTM" else [final], hx if kind == "LSTM" else [hx], strict=True):
        assert torch.equal(got, start)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("projection", [1, 4])
def test_lstm_with_a_projection(projection, method):
    ours, theirs = layers("LSTM", INPUTS, HIDDEN, 2, proj_size=projection, bidirectional=True, own={"method": method})
    x, hx = padded(23), initial("LSTM", ours, BATCH)
    agree(results(ours, x, hx), results(theirs, x, hx), tolerance(torch.float64))


@pytest.mark.parametrize("kind", BOTH)
def test_dropout_is_off_in_eval_mode_and_drawn_anew_in_every_training_step(kind):
    ours, theirs = layers(kind, INPUTS, HIDDEN, 2, dropout=0.5, own={"method": "mgrit"})
    x = padded(23)
    first, second = (ours(x)[0] for _ in range(2))
    assert not torch.allclose(first, second)
    ours.eval()
    assert torch.allclose(ours(x)[0], theirs.eval()(x)[0], rtol=0, atol=tolerance(torch.float64))


@pytest.mark.parametrize("kind", BOTH)
def test_more_of_a_jacobian_takes_fewer_iterations(kind):
    ours, theirs = layers(kind, INPUTS, HIDDEN, gain=1.5)
    x, taken = padded(200), {}
    expected = results(theirs, x)
    for jacobian in ("diagonal", "block", "full")[:: 1 if kind == "LSTM" else 2]:
        ours.settings = type(ours)(1, 1, method="newton", jacobian=jacobian).settings
        agree(results(ours, x), expected, tolerance(torch.float64))
        taken[jacobian] = ours.report[0].iterations
        assert ours.report[0].status.name == "CONVERGED"
    assert list(taken.values()) == sorted(set(taken.values()), reverse=True), taken
    assert taken["full"] <= 7  # quadratic: 12 digits from 1 in about four, and one or two to come near
