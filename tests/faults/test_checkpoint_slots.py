# SPDX-License-Identifier: BSD-3-Clause
"""What optimisers keep comes back as it was; a forked process has no part in a run."""

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'pyparareal[train]'")
pytest.importorskip("torch.distributed.checkpoint.hf_storage", reason="torch is older than 2.9")

from pyparareal.nn import ShardedCheckpoint  # noqa: E402


class Averages(torch.optim.Optimizer):
    """Of what a half remembers it keeps more digits."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p, dtype=torch.float64))
                mean.mul_(0.9).add_(p.grad)


def test_slots_keep_their_dtype(tmp_path):
    """Where torch's own way back would give them that of the parameter."""
    nets = [torch.nn.Linear(3, 2).bfloat16() for _ in range(2)]
    made, other = (Averages(net.parameters()) for net in nets)
    nets[0](torch.randn(4, 3).bfloat16()).sum().backward()
    made.step()
    made.step()
    ShardedCheckpoint(tmp_path).save(1, {"net": nets[0], "optimiser": made})
    ShardedCheckpoint(tmp_path).load({"net": nets[1], "optimiser": other})
    means, found = (
        [one.state[p]["mean"] for p in net.parameters()] for one, net in zip((made, other), nets, strict=True)
    )
    assert [mean.dtype for mean in found] == [torch.float64] * 2
    assert all(map(torch.equal, means, found))
    assert not torch.equal(means[0], means[0].bfloat16())


FORKED = """
import os, sys, torch
from pyparareal.nn.checkpoints.folder import StepFolders
folder = StepFolders(sys.argv[1])
folder.begin(9)
child = os.fork()
if not child:
    try:
        folder.begin(10)
    except ValueError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
os.rename(folder.partial(9), folder.path(9))
"""


@pytest.mark.slow
@pytest.mark.no_sanitize
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_is_another_run(tmp_path):
    """Of the lock it has none, whatever it remembers."""
    done = subprocess.run([sys.executable, "-c", FORKED, str(tmp_path)], capture_output=True, text=True)
    assert f"folder: got {tmp_path}, into which another run is writing" in done.stdout, done.stderr
    assert ShardedCheckpoint(tmp_path).steps() == [9]
