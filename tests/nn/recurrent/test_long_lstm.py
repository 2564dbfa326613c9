# SPDX-License-Identifier: BSD-3-Clause
"""LSTMs of 100,003 steps by every method: values and gradients are those of plain loops in float64."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from long_sequences import METHODS, check  # noqa: E402

from pyparareal.solution import Status  # noqa: E402

DTYPES = {"float32": torch.float32, "float64": torch.float64}


# A diagonal takes 240 iterations: it lacks what c carries to h, which the blocks have. In float64 torch's own takes a
# minute.
WAYS = METHODS | {"block": {"method": "newton", "jacobian": "block"}}
CASES = [(m, d) for m in ("chunks", "hybrid", "newton", "block", "mgrit") for d in DTYPES] + [("serial", "float32")]


@pytest.mark.parametrize(("method", "dtype"), CASES)
def test_values_and_gradients(method, dtype):
    report = check("LSTM", DTYPES[dtype], WAYS[method])
    assert report.failure is None
    if method not in ("serial", "auto"):
        assert report.status is Status.CONVERGED
        assert report.iterations < 100  # far from as many as chunks, which are 316 or more
        assert report.backward[0].status is Status.CONVERGED
