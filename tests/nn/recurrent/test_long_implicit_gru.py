# SPDX-License-Identifier: BSD-3-Clause
"""The implicit GRU of 100,003 steps: values and gradients of every method; windows; and the memory that steps take."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from long_sequences import METHODS, check  # noqa: E402

from pyparareal.solution import Status  # noqa: E402

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", [name for name in METHODS if name != "serial"])
def test_values_and_gradients(method, dtype):
    report = check("ImplicitGRU", DTYPES[dtype], METHODS[method])
    assert report.failure is None
    if method not in ("serial", "auto"):
        assert report.status is Status.CONVERGED
        assert report.iterations < 100  # far from as many as chunks, which are 316 or more
        assert report.backward[0].status is Status.CONVERGED


@pytest.mark.parametrize("method", ["chunks", "newton"])
def test_windows(method):
    report = check("Leaky", torch.float64, METHODS[method] | {"memory": 3_000_000})
    assert report.windows > 3
    assert report.failure is None


PEAKS = r"""
import re, torch
torch.set_num_threads(1)
from pyparareal.nn import Recurrence

def train(net, steps):
    x = torch.randn(steps, 1, 2)
    net(x)[0].sum().backward()
    return int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])

torch.manual_seed(0)
net = Recurrence(torch.nn.GRUCell(2, 64), memory=1 << 40, exponent=False, **{options!r})
print(train(net, 2000), train(net, 50_001), train(net, 100_003))
"""


@pytest.mark.no_sanitize
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_linear_in_the_length():
    # The most that the process had, after a training step of few steps, of 50,001 and of 100,003: twice as long takes
    # twice as much. Ten states of 64 numbers of 4 bytes a step were measured; the loop under autograd took 93.
    code = PEAKS.format(options={"method": "hybrid", "jacobian": "none"})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    start, half, whole = (1024 * int(word) for word in done.stdout.split())
    assert whole - start < 2.2 * (half - start)
    assert whole - start < 20 * 100_003 * 64 * 4
