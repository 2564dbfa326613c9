# SPDX-License-Identifier: BSD-3-Clause
"""Training steps solved in parallel by several processes: the weights, to the bit, of one process.

Usage: torchrun --nproc-per-node 2 examples/ranks_training_runs.py
"""

import time

import torch
import torch.distributed as dist

import pyparareal
from pyparareal.training import TrainingRuns, problems

STEPS = 256


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    runtime = pyparareal.distributed()
    results, seconds = [], []
    for where in (None, runtime):
        problem = problems.adder()
        runs = TrainingRuns(
            problem.module, problem.loss, problem.data, steps=STEPS, lr=0.0025, alpha_max=problem.alpha_max,
            m=4, guess="constant", stagnation=None, runtime=where,
        )  # fmt: skip
        dist.barrier()
        begin = time.perf_counter()
        results.append(runs.run())
        seconds.append(time.perf_counter() - begin)
    alone, ours = results
    begin = time.perf_counter()
    runs.serial()
    serial = time.perf_counter() - begin
    same = all(torch.equal(alone.weights[name], ours.weights[name]) for name in alone.weights)
    same = same and alone.residuals == ours.residuals
    if runtime.rank == 0:
        print(f"{STEPS} updates, {runtime.size} ranks: {ours.iterations[0]} cycles, {ours.status.name.lower()}")
        print("  residuals " + " ".join(f"{residual:.1e}" for residual in ours.residuals[0]))
        print(f"  the same bits as one process: {'yes' if same else 'NO'}")
        print(
            f"  {seconds[0]:.1f} s with each process for itself, {seconds[1]:.1f} s together; serially {serial:.2f} s"
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
