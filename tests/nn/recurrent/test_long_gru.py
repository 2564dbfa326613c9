# SPDX-License-Identifier: BSD-3-Clause
"""GRUs, and a cell of one's own, of 100,003 steps: values and gradients of every method are those of plain loops."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from long_sequences import METHODS, check  # noqa: E402

from pyparareal.solution import Status  # noqa: E402

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["GRU", "Leaky"])
def test_values_and_gradients(kind, method, dtype):
    if (kind, method) == ("Leaky", "serial"):
        pytest.skip("half a minute of Python: the plain loop is that")
    report = check(kind, DTYPES[dtype], METHODS[method])
    assert report.failure is None
    if method not in ("serial", "auto"):
        assert report.status is Status.CONVERGED
        assert report.iterations < 100  # far from as many as chunks, which are 316 or more
        assert report.backward[0].status is Status.CONVERGED
