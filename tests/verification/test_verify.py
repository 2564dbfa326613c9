# SPDX-License-Identifier: BSD-3-Clause
"""What ``verify`` takes and refuses, and what it hands back."""

import json
import subprocess
import sys

import numpy as np
import pytest

import pyparareal
from pyparareal import TimeGrid, problems, verify
from pyparareal.verification import Chain, Fault, VerificationError

GRID = TimeGrid(0, 12, 12)
U0 = np.ones((1, 2))


def halve(u):
    return 0.5 * u


def loud(u):
    return 0.5 * u + 1e-3 * u.sum(0)


def test_one_name_and_a_light_import():
    assert pyparareal.verify is pyparareal.verification.verify
    code = "import sys; from pyparareal import verify; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_same_chain_in_every_form():
    arguments = {"fine": halve, "u0": U0, "grid": GRID, "m": 3, "coarse": lambda u: u / 8, "tol": 1e-9}
    more = {name: value for name, value in arguments.items() if name not in ("fine", "u0")}
    forms = [verify(arguments), verify(halve, U0, **more), verify(Chain(**arguments)), verify(Chain(halve, U0, **more))]
    assert all(form.as_dict() == forms[0].as_dict() for form in forms)
    assert verify(problems.model_problem("decay")).ok
    assert verify(problems.model_problem("decay").arguments(), tol=1e-3).facts["tolerance"] == 1e-3


@pytest.mark.parametrize(
    ("args", "more", "error", "words"),
    [
        ((halve,), {}, TypeError, "without grid= and m="),
        ((halve, None), {"grid": GRID, "m": 3}, ValueError, "data: got None"),
        ((halve, U0), {"grid": GRID, "m": 13}, ValueError, "m: got 13"),
        ((halve, U0), {"grid": GRID, "m": "3"}, TypeError, "m: got '3'"),
        ((halve, U0), {"grid": 12, "m": 3}, TypeError, "grid"),
        ((3, U0), {"grid": GRID, "m": 3}, TypeError, "fine: got int"),
        ((halve, U0), {"grid": GRID, "m": 3}, TypeError, "coarse: not given"),
        ((halve, U0), {"grid": GRID, "m": 3, "coarse": halve, "tol": -1.0}, ValueError, "tol: got -1"),
        ((halve, U0), {"grid": GRID, "m": 3, "coarse": halve, "method": "magic"}, ValueError, "method: got 'magic'"),
        ((halve, U0 * np.nan), {"grid": GRID, "m": 3}, ValueError, "u0"),
        ((halve, U0), {"grid": GRID, "m": 3, "metod": "mgrit"}, TypeError, "metod"),
        ((halve, U0), {"grid": GRID, "m": 3, "gradients": True}, ValueError, "gradients"),
        ((halve, U0), {"grid": GRID, "m": 3, "quick": 1}, TypeError, "quick"),
        ((halve, U0), {"grid": GRID, "m": 3, "progress": 1}, TypeError, "progress"),
        ((halve, U0), {"grid": GRID, "m": 3, "deterministic": 1}, TypeError, "deterministic"),
        ((halve, U0), {"grid": GRID, "m": 3, "serial": 1}, TypeError, "serial"),
        (({"fine": halve},), {}, ValueError, "u0"),
    ],
)
def test_mistakes(args, more, error, words):
    with pytest.raises(error, match="^" if words is None else words.replace("(", r"\(")):
        verify(*args, **more)


def test_mistakes_with_networks():
    torch = pytest.importorskip("torch")
    blocks = [torch.nn.Linear(3, 3)]
    with pytest.raises(ValueError, match="data"):
        verify(blocks)
    with pytest.raises(TypeError, match="tol: got it for a list"):
        verify(blocks, torch.zeros(2, 3), tol=1e-3)
    with pytest.raises(TypeError, match="serial: got int"):
        verify(blocks, torch.zeros(2, 3), serial=3)


def test_what_is_handed_back():
    result = verify(loud, U0, grid=GRID, m=3, coarse=lambda u: u / 8)
    assert not result.ok
    (fault,) = result.faults
    assert fault.fault is Fault.BATCH_NEIGHBOURS
    text = result.text()
    for words in ("NOT right", "BATCH_NEIGHBOURS", fault.evidence.split(",")[0][:40], "slice", "allowed"):
        assert words in " ".join(text.split())
    assert json.loads(json.dumps(result.as_dict(), allow_nan=False))["findings"][0]["fault"] == "batch_neighbours"
    with pytest.raises(VerificationError, match="BATCH_NEIGHBOURS") as raised:
        result.raise_if_bad()
    assert raised.value.verification is result
    good = verify(halve, U0, grid=GRID, m=3, coarse=lambda u: u / 8)
    assert good.raise_if_bad() is good
    assert len(good.slices) == 4
    assert good.largest_error == max(row.largest for row in good.slices)


def test_states_without_a_batch():
    assert verify(halve, 1.0, grid=GRID, m=3, coarse=lambda u: u / 8).ok
    assert not verify(lambda u: halve(u) + 1e-3 * u.mean(), 1.0, grid=GRID, m=3, coarse=lambda u: u / 8).ok


def test_progress_is_told():
    told = []
    verify(halve, U0, grid=GRID, m=3, coarse=lambda u: u / 8, progress=lambda what, part: told.append((what, part)))
    assert told[0][0] == "serial chain"
    assert [part for _, part in told] == sorted(part for _, part in told)


def test_gradients_of_a_solve():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()).double()
    result = verify(block, torch.rand(2, 4).double(), grid=GRID, m=3, coarse=lambda u: 0.5 * u)
    assert result.ok
    names = [c.what for c in result.comparisons]
    assert names == ["values", "gradient of u0", *(f"gradient of {n}" for n in ("0.weight", "0.bias"))]
    assert all(c.largest < 1e-8 for c in result.comparisons)
    without = verify(block, torch.rand(2, 4).double(), grid=GRID, m=3, coarse=lambda u: 0.5 * u, gradients=False)
    assert [c.what for c in without.comparisons] == ["values"]
