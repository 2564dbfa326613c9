# SPDX-License-Identifier: BSD-3-Clause
"""The whole job: train the serial network, its parareal version, measure both, write the report."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..atomic_files import remove_leftovers, write_files
from ..chain import chain_of
from ..data import Split, load, steps_per_epoch
from ..parareal_network import PararealNetwork
from . import checkpoint, device, report
from .build import build, describe
from .loop import Progress, State, evaluate, make_optimiser, train
from .settings import Settings
from .step_time import StepTimes, measure


class Interrupted(Exception):
    """The job was asked to stop; everything done so far is saved in ``file``."""

    def __init__(self, file: Path, state: State) -> None:
        super().__init__(f"saved {file} at epoch {state.epoch + 1}, step {state.step + 1}")
        self.file = file


@dataclass
class Run:
    """One network of the job."""

    name: str  # "serial" or "parareal"
    net: nn.Module
    file: Path
    identity: dict[str, Any]
    state: State


ProgressBar = Callable[[Run, int], Any]  # (run, steps in all) -> context manager giving a Progress


def run_job(
    settings: Settings,
    out: Path,
    *,
    compare_serial: bool = True,
    resume: bool = False,
    restart: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
    progress: ProgressBar | None = None,
) -> dict[str, Any]:
    """Train, evaluate, measure; write ``report.json``, ``report.html``, ``metrics.json`` and weights.

    Parameters
    ----------
    out : directory; made if missing
    compare_serial : also train the serial network, first, in the same way
    resume : continue the checkpoints in ``out``, bit for bit
    restart : allow an unfinished run in ``out`` to be overwritten
    interrupted : asked before every step; True saves and raises :class:`Interrupted`

    Returns
    -------
    dict
        What ``report.json`` holds: settings, per network parameters, accuracies, measured and predicted
        seconds per step.

    Raises
    ------
    checkpoint.CheckpointError, ValueError, ImportError, OSError, loop.TrainingDiverged
    """
    started = time.perf_counter()
    names = ["serial", "parareal"] if compare_serial else ["parareal"]
    files = {name: out / f"{name}.checkpoint" for name in names}
    _require_resumable(out, list(files.values()), resume, restart)
    recorded = [file for file in files.values() if resume and file.exists()]
    settings = _resolved(settings, recorded)
    data = load_images(settings)
    with device.reproducible(settings):
        cut = _recorded_partition(settings, recorded)
        runs: list[Run] = []
        for name in names:  # before training: what cannot be built is refused before the first step
            runs.append(Run(name, *_build(name, settings, data, files[name], cut), State()))
            cut = runs[0].identity["partition"]  # measured once
        remove_leftovers(out)
        if not resume:
            # As a whole: one network of an older run left behind would be continued by a later --resume.
            for file in out.glob("*.checkpoint"):
                file.unlink()
        for run in runs:
            _train_run(run, settings, data, resume, interrupted, progress)
        times = _measure(runs, settings, data)
        result = _result(runs, settings, data, times)
    result["seconds"] = time.perf_counter() - started
    _write(out, result, runs)
    return result


def recheck(out: Path) -> dict[str, float]:
    """Test accuracy of the weights found in ``out``, loaded into newly built networks."""
    found = {}
    for file in sorted(out.glob("*.safetensors")):
        tensors, rest = checkpoint.read_tensors(file)
        identity = rest["identity"]
        settings = checkpoint.settings_of(file, identity)
        data = load_images(settings)
        with device.reproducible(settings):
            net, _, _ = _build(identity["network"], settings, data, file, identity["partition"])
            net.load_state_dict(tensors)
            found[identity["network"]] = evaluate(net, data.test, precision=settings.precision).accuracy
    return found


def load_images(settings: Settings) -> Split:
    directory = None if settings.data_dir is None else Path(settings.data_dir)
    return device.moved(load(settings.data, directory, image_size=settings.image_size), settings.device)


def _build(
    name: str, settings: Settings, data: Split, file: Path, recorded: dict[str, Any] | None = None
) -> tuple[nn.Module, Path, dict[str, Any]]:
    """Network, checkpoint file and identity."""
    try:
        net, identity = build(name, settings, data, recorded)
    except ValueError as error:
        if recorded is None:
            raise
        raise checkpoint.CheckpointError(f"{file}: {error}") from error
    return net, file, identity


def _recorded_partition(settings: Settings, files: list[Path]) -> dict[str, Any] | None:
    """The partition of the run that is continued, which may have been decided by times measured then."""
    for file in files:
        identity = checkpoint.read_identity(file)
        checkpoint.require_same_settings(file, settings.as_dict(), identity["settings"])
        if settings.balance == "time":
            partition: dict[str, Any] = identity["partition"]
            return partition
    return None


def _train_run(
    run: Run,
    settings: Settings,
    data: Split,
    resume: bool,
    interrupted: Callable[[], bool],
    progress: ProgressBar | None,
) -> None:
    torch.manual_seed(settings.seed)
    optimiser = make_optimiser(run.net, settings)
    if resume and run.file.exists():
        run.state.update(checkpoint.load(run.file, run.net, optimiser, run.identity))

    def save() -> None:
        checkpoint.save(run.file, run.net, optimiser, run.identity, run.state.as_dict())

    total = settings.epochs * steps_per_epoch(len(data.train), settings.batch_size)
    with (progress or _no_progress)(run, total) as bar:
        done = train(run.net, optimiser, data, settings, run.state, save=save, interrupted=interrupted, progress=bar)
    if not done:
        raise Interrupted(run.file, run.state)


def _measure(runs: list[Run], settings: Settings, data: Split) -> dict[str, StepTimes]:
    nets: dict[str, PararealNetwork] = {}
    for run in runs:
        net = run.net
        if not isinstance(net, PararealNetwork):
            # The same code measures both: one part is the serial network.
            chain = chain_of(net)
            net = PararealNetwork(chain.blocks, 1, preprocess=[chain.stem], coarse=[], head=chain.head)
        nets[run.name] = net
    batch = data.train.take(torch.arange(min(settings.batch_size, len(data.train))))
    return measure(nets, batch.x, batch.y, precision=settings.precision)


def _result(runs: list[Run], settings: Settings, data: Split, times: dict[str, StepTimes]) -> dict[str, Any]:
    networks = {}
    for run in runs:
        loss, accuracy, predicted = evaluate(run.net, data.test, precision=settings.precision)
        step = times[run.name]
        networks[run.name] = {
            "parameters": sum(p.numel() for p in run.net.parameters()),
            "test_accuracy": accuracy,
            "test_loss": loss,
            "validation_accuracy": run.state.history[-1]["validation_accuracy"],
            "seconds_per_step": step.step,
            # A chain of layers does not become faster by more devices.
            "predicted_seconds_per_step": {
                str(p): step.predicted_step(p if run.name == "parareal" else 1) for p in device_counts(settings.parts)
            },
            "pieces": dataclasses.asdict(step),
            "confusion": confusion(data.test.y.cpu(), predicted, data.classes),
            "training_seconds": sum(run.state.step_seconds),
            "steps": len(run.state.step_seconds),
            "history": run.state.history,
            "execution": run.state.executed,
            "measured_modes": getattr(run.net, "measured", {}),
            "part_sizes": run.identity["partition"]["sizes"] if run.name == "parareal" else [],
        }
    images = {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
    versions = {"torch": str(torch.__version__), "python": platform.python_version()}
    parareal = runs[-1]
    assert isinstance(parareal.net, PararealNetwork)
    return {
        "settings": settings.as_dict(),
        "images": images,
        "class_names": list(data.class_names) or [str(label) for label in range(data.classes)],
        "networks": networks,
        "body": describe(parareal.identity, parareal.net),
        "versions": versions,
    }


def device_counts(parts: int) -> list[int]:
    """Numbers of devices for which times are predicted: all up to six, else powers of two and the number of parts."""
    if parts <= 6:
        return list(range(1, parts + 1))
    return [*(2**k for k in range(parts.bit_length()) if 2**k < parts), parts]


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> list[list[int]]:
    """``[true class][predicted class]``: how many images."""
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    return counts.index_put_((labels, predicted), torch.ones_like(labels), accumulate=True).tolist()


def _write(out: Path, result: dict[str, Any], runs: list[Run]) -> None:
    """``metrics.json`` and the weights hold no times: equal settings give equal bytes."""
    metrics = {
        name: {key: row[key] for key in ("parameters", "test_accuracy", "test_loss", "history")}
        for name, row in result["networks"].items()
    }
    for run in runs:
        rest = {"identity": run.identity, "format": checkpoint.FORMATS["weights"]}
        checkpoint.write_tensors(out / f"{run.name}.safetensors", run.net.state_dict(), rest)
    documents = {"metrics.json": metrics, "report.json": result}
    write_files(out, {name: json.dumps(content, indent=1).encode() for name, content in documents.items()})
    report.write(out, result)


def _require_resumable(out: Path, files: list[Path], resume: bool, restart: bool) -> None:
    found = [file for file in files if file.exists()]
    if resume and not found:
        raise checkpoint.CheckpointError(
            f"{out}: got no checkpoint to resume, expected {' or '.join(f.name for f in files)}"
        )
    if resume or restart:
        return
    for file in found:
        epochs = checkpoint.read_settings(file).epochs
        if checkpoint.read_progress(file)["epoch"] < epochs:
            raise checkpoint.CheckpointError(
                f"{file}: an unfinished run; add --resume to continue it or --restart to overwrite it"
            )


def _resolved(settings: Settings, recorded: list[Path]) -> Settings:
    """``threads=0`` and ``device="auto"`` become what the resumed run used, or what there is here.

    The number of threads decides the bits.
    """
    before = checkpoint.read_settings(recorded[0]) if recorded else None
    threads, name = settings.threads, settings.device
    if not threads:
        threads = before.threads if before is not None else torch.get_num_threads()
    if name == "auto" and before is not None:
        name = before.device
    return dataclasses.replace(settings, threads=threads, device=device.resolve(name, settings.precision))


class _Silent:
    def step(self, loss: float, accuracy: float, images: int, seconds: float) -> None:
        pass


@contextmanager
def _no_progress(run: Run, total: int) -> Iterator[Progress]:
    yield _Silent()
