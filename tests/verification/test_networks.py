# SPDX-License-Identifier: BSD-3-Clause
"""Networks in all their forms: what surrounds the chain, tokens, tuples of states; and where derivatives jump."""

import pytest

torch = pytest.importorskip("torch")

import pyparareal.nn as pnn  # noqa: E402
from pyparareal import verify  # noqa: E402
from pyparareal.verification import Fault  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def layers(count):
    return [torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(count)]


def test_tokens_opening_closing_and_buffer_layers():
    closing = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(40, 3))
    net = pnn.LayerParallel(layers(5), m=2, opening=torch.nn.Embedding(20, 8), closing=closing, buffer=(1, 0))
    result = verify(net, torch.randint(0, 20, (3, 5)))
    assert result.ok, result.text()
    names = [c.what for c in result.comparisons]
    assert "exact: value" in names
    assert any(name.startswith("exact: ") and "gradients" in name for name in names)
    assert result.facts["layers"] == 5


def test_states_that_are_tuples():
    x, state = torch.randn(2, 12, 3), (torch.randn(1, 2, 4), torch.randn(1, 2, 4))
    result = verify(pnn.LSTM(3, 4, batch_first=True, method="newton"), (x, state))
    assert result.ok, result.text()
    cell = pnn.Recurrence(torch.nn.LSTMCell(3, 4), batch_first=True, method="hybrid")
    assert verify(cell, (x, (state[0][0], state[1][0]))).ok


def test_a_derivative_that_jumps_is_no_wrong_one():
    """At 0 the derivative of ReLU is what torch says it is, and half of 1 by differences, however small."""
    x = torch.randn(4, 6)
    x[:, ::2] = 0
    assert verify([torch.nn.ReLU(), torch.nn.Linear(6, 6)], x).ok


def test_mode_that_is_wrong_is_said(monkeypatch):
    """Not the blocks but a way to run them: no probe can see that, the comparison does."""
    from pyparareal.nn.execution import parallel

    honest = parallel.Parallel.run

    def spoilt(self, preprocess, fine, x):
        inputs, outputs, name = honest(self, preprocess, fine, x)
        return inputs, [outputs[0] + 1e-3, *outputs[1:]], name

    monkeypatch.setattr(parallel.Parallel, "run", spoilt)
    blocks = [torch.nn.Linear(6, 6), torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh())]
    net = pnn.PararealNetwork(
        blocks, preprocess=[torch.nn.Identity(), torch.nn.Linear(6, 6)], coarse=[torch.nn.Linear(6, 6)]
    )
    result = verify(net, torch.randn(8, 6))
    (fault,) = result.faults
    assert fault.fault is Fault.UNEXPLAINED
    assert "mode parallel: " in fault.evidence
    assert "value" in fault.numbers["tensors"]
    assert net.execution == "serial"


def test_too_few_iterations_are_measured_against_what_the_report_claims():
    blocks = [torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh()) for _ in range(16)]
    result = verify(pnn.LayerParallel(blocks, h=0.3, m=2, forward=1, backward=1), torch.randn(4, 6))
    assert result.ok, result.text()
    rows = {c.what: c.rows[0] for c in result.comparisons}
    assert rows["exact: value"].largest < 1e-5 < rows["as set: value"].largest
