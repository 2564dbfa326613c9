# SPDX-License-Identifier: BSD-3-Clause
"""A parareal network is an ordinary nn.Module: here in a class of the shape that Lightning's Trainer takes.

Usage: python examples/train_loop.py [epochs]

The data come with scikit-learn. Where lightning is installed, ``Digits`` is a LightningModule and can be given to
``lightning.Trainer``; the loop below does the same without.
"""

import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

from pyparareal.nn import build_parareal, models
from pyparareal.nn.data import batches, digits

try:
    from lightning import LightningModule
except ImportError:
    LightningModule = nn.Module


class Digits(LightningModule):
    """A small residual network in three parts, with its loss and its optimiser."""

    def __init__(self, execution="serial", steps=1):
        super().__init__()
        serial = models.build("resnet14", channels=1, classes=10, width=8)
        self.network = build_parareal(serial, 3, example=torch.empty(2, 1, 8, 8), coarse_budget=0.3)
        self.network.execution = execution  # or "batched", "parallel", "auto": the same result, another way
        self.steps = steps

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        return (self(x).argmax(1) == y).float().sum()

    def configure_optimizers(self):
        optimiser = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, self.steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(module, training_batches, epochs):
    """What a trainer does."""
    chosen = module.configure_optimizers()
    optimiser, schedule = chosen["optimizer"], chosen["lr_scheduler"]["scheduler"]
    for epoch in range(epochs):
        module.train()
        for i, batch in enumerate(training_batches(epoch)):
            loss = module.training_step(batch, i)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


@torch.no_grad()
def accuracy(module, batch):
    module.eval()
    return float(module.validation_step(batch, 0)) / len(batch[1])


def main(epochs=8):
    torch.manual_seed(0)
    torch.set_num_threads(1)  # images this small do not fill two
    data = digits()
    start = time.perf_counter()
    module = Digits(steps=epochs * -(-len(data.train) // 64))

    def training_batches(epoch):
        return ((b.x, b.y) for b in batches(data.train, 64, seed=0, epoch=epoch, start=0, augment="shift"))

    fit(module, training_batches, epochs)
    seconds = time.perf_counter() - start
    right = accuracy(module, (data.test.x, data.test.y))
    print(f"{type(module).__mro__[1].__name__}, {module.network.parts} parts, executed {module.network.executed}")
    print(f"{epochs} epochs in {seconds:.1f} s: {right:.1%} of {len(data.test)} test images right")
    return right


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
