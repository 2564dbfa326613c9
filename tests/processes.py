# SPDX-License-Identifier: BSD-3-Clause
"""Tests with several processes: one worker script, as many ranks as asked for, and no one left behind."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

HERE = Path(__file__).resolve().parent


def launch(worker, ranks, folder, *arguments, timeout=180):
    """Run ``python worker RANK RANKS FOLDER *arguments`` for every rank; the exit code and the output of each.

    The worker's folder and this one are on its path. All end within ``timeout`` seconds, or all are ended.
    """
    worker = Path(worker).resolve()
    paths = [str(worker.parent), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    workers = [
        subprocess.Popen(
            [sys.executable, str(worker), str(rank), str(ranks), str(folder), *map(str, arguments)],
            cwd=worker.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        output = [one.communicate(timeout=timeout)[0] for one in workers]
    finally:
        for one in workers:
            one.kill()
            one.wait()
            one.stdout.close()
    return [one.returncode for one in workers], output


def run_example(path, *arguments, ranks=2, timeout=180):
    """What ``torchrun --nproc-per-node RANKS PATH *arguments`` prints; it must end well."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*launcher, "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", str(path), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def join(rank, ranks, folder):
    """In a worker: the process group of all ranks, on this machine alone."""
    import torch

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=timedelta(seconds=150)
    )
