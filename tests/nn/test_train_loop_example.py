# SPDX-License-Identifier: BSD-3-Clause
"""The example of a plain training loop runs, learns, and takes Lightning's class where there is one."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'pyparareal[train]'")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "train_loop.py"
pytestmark = pytest.mark.skipif(not EXAMPLE.exists(), reason="the examples are not here: run from the sources")


def imported():
    spec = importlib.util.spec_from_file_location("train_loop", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_lightning(monkeypatch, module):
    """``module`` as what ``import lightning`` gives; None: it is not installed."""
    monkeypatch.setitem(sys.modules, "lightning", module)


def test_it_learns_without_lightning(monkeypatch, capsys):
    with_lightning(monkeypatch, None)
    right = imported().main(epochs=2)
    assert right > 0.7  # a tenth would be chance
    first, second = capsys.readouterr().out.splitlines()
    assert first == "Module, 3 parts, executed serial"
    assert f"{right:.1%} of 355 test images right" in second


def test_it_has_the_shape_that_lightning_takes(monkeypatch):
    class LightningModule(torch.nn.Module):
        pass

    fake = types.ModuleType("lightning")
    fake.LightningModule = LightningModule
    with_lightning(monkeypatch, fake)
    example = imported()
    modules = [example.Digits(execution=mode, steps=3) for mode in ("serial", "parallel")]
    assert isinstance(modules[0], LightningModule)
    modules[1].load_state_dict(modules[0].state_dict())
    batch = torch.randn(8, 1, 8, 8), torch.randint(10, (8,))
    losses = []
    for module in modules:
        chosen = module.configure_optimizers()
        assert chosen["lr_scheduler"]["interval"] == "step"
        loss = module.training_step(batch, 0)
        loss.backward()
        chosen["optimizer"].step()
        losses.append(float(module.training_step(batch, 1).detach()))
        assert 0 <= float(module.validation_step(batch, 0)) <= 8
    assert losses[0] != pytest.approx(float(loss.detach()), rel=1e-3)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
