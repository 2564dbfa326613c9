# SPDX-License-Identifier: BSD-3-Clause
"""``nn.GRU`` on one long sequence: every way to solve it, what it takes, and when it does not help.

Usage: python examples/sequence_gru.py [steps] [recurrent gain]

Each row is a forward and a backward pass: iterations ``K`` of both, the exponent (below 0 the recurrence forgets what
it came from), seconds, and how far output and gradient of the input are from those of ``torch.nn.GRU``. On a CPU the
fused serial kernel, which "auto" takes, wins: chunks side by side need idle processors. With recurrent weights 12 times
as large (512 steps will do) the recurrence is chaotic: methods give up, name the chunk and fall back, outputs of
programs that round differently part, and gradients overflow, torch's first.
"""

import sys
import time
import warnings

import torch

from pyparareal.nn import GRU

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
gain = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0

torch.manual_seed(0)
theirs = torch.nn.GRU(input_size=8, hidden_size=32)
with torch.no_grad():
    theirs.weight_hh_l0.mul_(gain)
x, target = torch.randn(steps, 2, 8), torch.randn(steps, 2, 32)

ways = {
    "torch.nn.GRU": theirs,
    "auto": GRU.from_torch(theirs),
    "hybrid": GRU.from_torch(theirs, method="hybrid", max_iterations=16),
    "mgrit": GRU.from_torch(theirs, method="mgrit", max_iterations=16),
    "newton": GRU.from_torch(theirs, method="newton", jacobian="diagonal", max_iterations=16),
}


def train_step(module):
    """Output, gradient of the input, and seconds; the second of two passes, the first warms up."""
    for _ in range(2):
        inputs = x.clone().requires_grad_()
        begin = time.perf_counter()
        output, _ = module(inputs)
        (output - target).square().mean().backward()
        seconds = time.perf_counter() - begin
    return output.detach(), inputs.grad, seconds


print(f"{steps} steps, batch 2, hidden 32, recurrent weights times {gain:g}")
print(f"{'':14}{'K':>4}{'K back':>8}{'exponent':>10}{'seconds':>9}{'error':>9}{'gradient':>10}  status")
for name, module in ways.items():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        output, gradient, seconds = train_step(module)
    if name == "torch.nn.GRU":
        expected, right = output, gradient
        print(f"{name:14}{'':22}{seconds:9.3f}")
        continue
    report = module.report[0]
    back = report.backward[-1].iterations if report.backward else 0
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in ((output, expected), (gradient, right))]
    row = (
        f"{name:14}{report.iterations:4}{back:8}{report.exponent:10.3f}{seconds:9.3f}{errors[0]:9.1e}{errors[1]:10.1e}"
    )
    print(f"{row}  {report.status.name.lower()}")
    for warning in said[:1]:
        print(f"{'':14}{warning.message}")
