# SPDX-License-Identifier: BSD-3-Clause
"""Padded and packed batches: to one tensor and back, backwards, their ends, and dropout on their rows alone."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence  # noqa: E402

from pyparareal.nn.recurrent.packing import Padded, checked_lengths, packed_like, unpacked  # noqa: E402

CPU = torch.device("cpu")


@pytest.mark.parametrize("lengths", [[5, 3, 3, 1], [7], [1, 1], [4, 4, 4]])
@pytest.mark.parametrize("shuffled", [False, True])
def test_unpacking_is_torchs_in_sorted_order_and_comes_back(lengths, shuffled):
    torch.manual_seed(0)
    if shuffled:
        lengths = lengths[::-1]
    packed = pack_sequence([torch.randn(n, 2) for n in lengths], enforce_sorted=not shuffled)
    x, layout = unpacked(packed)
    torchs, _ = pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes))
    assert torch.equal(x, torchs)
    assert layout.lengths.tolist() == sorted(lengths, reverse=True)
    again = packed_like(packed, x, layout)
    assert all(a is b or torch.equal(a, b) for a, b in zip(again, packed, strict=True))


def test_ends_and_reversed_sequences():
    lengths = [3, 0, 4, 1]
    layout = Padded(4, torch.tensor(lengths))
    x = torch.arange(4.0)[:, None, None] + 10 * torch.arange(4.0)[:, None]
    backwards = layout.reversed(x)
    assert backwards[:, 0, 0].tolist() == [2, 1, 0, 3]
    assert backwards[:, 1, 0].tolist() == [10, 11, 12, 13]
    assert backwards[:, 2, 0].tolist() == [23, 22, 21, 20]
    assert torch.equal(layout.reversed(backwards), x)
    assert layout.ends(-torch.ones(4, 1), x).flatten().tolist() == [2, -1, 23, 30]
    assert torch.equal(Padded(4).reversed(x), x.flip(0))
    assert torch.equal(Padded(4).ends(-torch.ones(4, 1), x), x[-1])


def test_what_is_padded_is_zero_whatever_it_was():
    x = torch.full((4, 3, 2), torch.nan)
    x[:2, 0], x[:1, 2] = 1.0, 2.0
    x.requires_grad_()
    layout = Padded(4, torch.tensor([2, 0, 1]))
    clean = layout.without_padding(x)
    assert clean.sum() == 2 * 2 * 1.0 + 2 * 2.0
    clean.square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert layout.without_padding(torch.ones(4, 3, 2)).sum() == 6
    assert Padded(4).without_padding(x) is x


def test_dropout_draws_for_the_rows_of_a_packed_batch_as_torch_does():
    torch.manual_seed(0)
    lengths = torch.tensor([6, 4, 1])
    packed = pack_padded_sequence(torch.randn(6, 3, 8), lengths)
    x, layout = unpacked(packed)
    torch.manual_seed(1)
    dropped = layout.dropout(x, 0.5)
    torch.manual_seed(1)
    assert torch.equal(packed_like(packed, dropped, layout).data, torch.nn.functional.dropout(packed.data, 0.5))
    assert (dropped[4:, 1] == 0).all()


@pytest.mark.parametrize(
    ("lengths", "kind", "message"),
    [
        ([1, 2], ValueError, r"lengths: got shape \(2,\), expected \(3,\)"),
        ([1, 2, 8], ValueError, "lengths: got 8, expected from 0 to 7"),
        ([1, -2, 7], ValueError, "lengths: got -2, expected from 0 to 7"),
        ([1, 2.0, 7], TypeError, "lengths: got .* expected a tensor or a list of integers"),
        ([True, 2, 7], TypeError, "lengths: got .* expected a tensor or a list of integers"),
        (7, TypeError, "lengths: got 7, expected a tensor or a list of integers"),
        (torch.tensor([1.0, 2, 3]), TypeError, "lengths: got dtype torch.float32, expected integers"),
        (torch.tensor([True, True, True]), TypeError, "lengths: got dtype torch.bool, expected integers"),
        (torch.tensor([[1], [2], [3]]), ValueError, r"lengths: got shape \(3, 1\)"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(lengths, kind, message):
    with pytest.raises(kind, match=message):
        checked_lengths(lengths, 7, 3, CPU)


@pytest.mark.parametrize("lengths", [[0, 7, 3], (0, 7, 3), torch.tensor([0, 7, 3], dtype=torch.int32)])
def test_lengths_from_zero_to_all_steps_become_int64(lengths):
    found = checked_lengths(lengths, 7, 3, CPU)
    assert found.dtype == torch.int64
    assert found.tolist() == [0, 7, 3]
