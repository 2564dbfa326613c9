# SPDX-License-Identifier: BSD-3-Clause
"""The training job: data, learning, resuming bit for bit, times, reports, and its command line."""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
for library in ("sklearn", "safetensors"):
    pytest.importorskip(library, reason=f"{library} is not installed: pip install 'pyparareal[train]'")

import pyparareal.nn  # noqa: E402
from pyparareal.nn import data, models, train_command  # noqa: E402
from pyparareal.nn.training_job import job, loop, step_time  # noqa: E402
from pyparareal.nn.training_job.settings import Settings  # noqa: E402

SMALL = {"model": "resnet8", "width": 2, "parts": 2, "threads": 1}
RESULTS = ("serial.safetensors", "parareal.safetensors", "metrics.json")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


# Data


def test_split_is_disjoint_stratified_and_fixed(digits):
    sets = (digits.train, digits.validation, digits.test)
    assert [len(s) for s in sets] == [1266, 176, 355]
    pixels = torch.cat([s.x.flatten(1) for s in sets])
    assert len(pixels) == len(torch.unique(pixels, dim=0)) == 1797  # no two images are equal, so none is in two sets
    for s, share in zip(sets, (0.7, 0.1, 0.2), strict=True):
        counts = torch.bincount(s.y, minlength=10)
        assert ((counts - share * 179.7).abs() < 6).all()
    assert digits.image_shape == (1, 8, 8)
    # Frozen: accuracies of different versions are comparable only on the same images.
    assert digits.test.y[:12].tolist() == FIRST_TEST_LABELS


FIRST_TEST_LABELS = [4, 6, 0, 6, 9, 5, 6, 9, 3, 1, 0, 6]


def test_pixels_are_scaled_by_the_training_images(digits):
    assert abs(float(digits.train.x.mean())) < 1e-5
    assert abs(float(digits.train.x.std()) - 1) < 1e-5


def all_batches(images, start=0, **changed):
    options = {"seed": 1, "epoch": 2, "augment": "shift"} | changed
    return list(data.batches(images, 100, start=start, **options))


def test_batches_resume_in_the_middle_of_an_epoch(digits):
    whole = all_batches(digits.train)
    rest = all_batches(digits.train, start=5)
    assert len(whole) == data.steps_per_epoch(1266, 100) == 13
    assert sum(len(b) for b in whole) == 1266
    for a, b in zip(whole[5:], rest, strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
    for other in ({"seed": 2}, {"epoch": 3}):
        assert not torch.equal(all_batches(digits.train, **other)[0].x, whole[0].x)


def test_shift_moves_by_at_most_one_pixel_and_takes_every_direction():
    x = torch.zeros(400, 2, 5, 6)
    x[:, 0, 2, 3] = 1.0
    moved = data.shifted(x, torch.Generator().manual_seed(0))
    assert moved[:, 1].abs().sum() == 0
    where = moved[:, 0].nonzero()
    assert len(where) == 400
    assert {(int(r) - 2, int(c) - 3) for _, r, c in where} == {(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)}


# Learning


def rates(total=100, **options):
    return [loop.learning_rate(step, total, Settings(lr=0.5, **options)) for step in range(total)]


def test_learning_rate_rises_to_its_peak_and_falls_to_zero():
    found = rates()
    assert found[0] == pytest.approx(0.05)
    assert max(found) == found[10] == 0.5
    assert all(a < b for a, b in pairwise(found[:10]))
    assert all(a > b for a, b in pairwise(found[10:]))
    assert found[-1] < 1e-3


def test_schedules_and_warm_up():
    assert rates(warm_up=0.0, schedule="constant") == [0.5] * 100
    assert rates(warm_up=0.2, schedule="constant")[:20] == pytest.approx([0.025 * (k + 1) for k in range(20)])
    step = rates(warm_up=0.0, schedule="step")
    # A tenth at 50 and at 75 % of the steps, as in He et al. 2015, section 4.2.
    assert step == pytest.approx([0.5] * 50 + [0.05] * 25 + [0.005] * 25)
    assert rates(8, warm_up=0.0, schedule="step", milestones=(0.25,)) == pytest.approx([0.5] * 2 + [0.05] * 6)
    assert rates(warm_up=0.0)[0] == 0.5
    assert rates(5, warm_up=0.1, schedule="constant") == [0.5] * 5  # a rise of less than a step is one step


class Recorder:
    """A progress bar that notes the learning rate of every step."""

    def __init__(self, optimiser):
        self.optimiser, self.rates = optimiser, []

    def step(self, loss, accuracy, images, seconds):
        assert images in (64, 1266 % 64)
        self.rates.append(self.optimiser.param_groups[0]["lr"])


@pytest.mark.parametrize("correction", ["residual", "difference"])
def test_training_learns_and_moves_every_parameter(digits, correction):
    torch.manual_seed(0)
    serial = models.build("resnet8", channels=1, classes=10, width=4)
    net = models.build_parareal(serial, digits.image_shape, 3, correction=correction)
    before = [p.detach().clone() for p in net.parameters()]
    settings = Settings(epochs=3, batch_size=64)
    state, saved = loop.State(), []
    optimiser = loop.make_optimiser(net, settings)
    bar = Recorder(optimiser)
    done = loop.train(
        net,
        optimiser,
        digits,
        settings,
        state,
        save=lambda: saved.append(state.epoch),
        interrupted=lambda: False,
        progress=bar,
    )
    assert done
    assert bar.rates == [loop.learning_rate(step, 60, settings) for step in range(60)]
    assert saved == [1, 2, 3]
    assert state.history[-1]["train_loss"] < 0.5 * state.history[0]["train_loss"]
    assert state.history[-1]["validation_accuracy"] > 0.7
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_diverging_run_says_so(tmp_path):
    with pytest.raises(loop.TrainingDiverged, match=r"the loss became (nan|inf) in epoch 1, step \d+; try a smaller"):
        job.run_job(Settings(lr=1e30, epochs=1, **SMALL), tmp_path, compare_serial=False)


# Resuming


def small_job(out, stop_after=None, **options):
    """The two-epoch job of 40 steps for each network; asks for a stop after so many steps."""
    asked = iter(range(10**6))
    stop = (lambda: next(asked) >= stop_after) if stop_after is not None else (lambda: False)
    return job.run_job(Settings(epochs=2, **SMALL), out, interrupted=stop, **options)


def contents(out):
    return {name: (out / name).read_bytes() for name in RESULTS}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    return out, small_job(out)


def test_interrupted_and_resumed_run_is_the_undisturbed_one_bit_for_bit(tmp_path, undisturbed):
    # Before the first step, inside an epoch twice, at its end, and inside the second network.
    with pytest.raises(job.Interrupted, match="epoch 1, step 1"):
        small_job(tmp_path, 0)
    for steps in (7, 1, 12, 25):
        torch.rand(3)  # what the process drew meanwhile does not matter
        with pytest.raises(job.Interrupted):
            small_job(tmp_path, steps, resume=True)
    result = small_job(tmp_path, resume=True)
    assert contents(tmp_path) == contents(undisturbed[0])
    assert [row["steps"] for row in result["networks"].values()] == [40, 40]


def test_resuming_a_finished_run_reports_it_again(tmp_path, undisturbed):
    _, result = undisturbed
    out = shutil.copytree(undisturbed[0], tmp_path / "copy")
    before = contents(out)
    again = small_job(out, resume=True)
    assert contents(out) == before
    assert [n["test_accuracy"] for n in again["networks"].values()] == [
        n["test_accuracy"] for n in result["networks"].values()
    ]


def test_weights_on_disk_are_those_reported(undisturbed):
    out, result = undisturbed
    assert job.recheck(out) == {name: row["test_accuracy"] for name, row in result["networks"].items()}


def test_another_seed_gives_other_weights(tmp_path, undisturbed):
    job.run_job(Settings(epochs=2, seed=1, **SMALL), tmp_path)
    assert all(contents(tmp_path)[name] != contents(undisturbed[0])[name] for name in RESULTS)


def command(*words):
    return [sys.executable, "-m", "pyparareal.nn.train_command", *words]


def environment():
    home = str(Path(pyparareal.nn.__file__).parents[2])
    return os.environ | {"PYTHONPATH": home, "PYTHONWARNINGS": ""}


def test_ctrl_c_saves_and_the_printed_command_continues_bit_for_bit(tmp_path):
    settings = Settings(epochs=4, **SMALL)
    out = tmp_path / "with space"
    words = [*settings.arguments(), "--compare-serial", "--out", str(out)]
    process = subprocess.Popen(command(*words), stderr=subprocess.PIPE, text=True, env=environment())
    while not (out / "serial.checkpoint").exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "interrupted: saved" in said
    again = shlex.split(said.partition("Continue with: ")[2])
    assert again[:2] == ["pyparareal", "train"]
    assert again[-1] == "--resume"

    done = subprocess.run(command(*again[2:]), capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert "serial / parareal" in done.stdout
    assert done.stderr == ""  # no bar where nobody looks
    job.run_job(settings, tmp_path / "undisturbed")
    assert contents(out) == contents(tmp_path / "undisturbed")


# Times


def times(parts, step, coarse):
    """A third of each part's time is preprocessing."""
    preprocess = tuple((f / 3, b / 3) for f, b in parts)
    fine = tuple((2 * f / 3, 2 * b / 3) for f, b in parts)
    return step_time.StepTimes(
        step=step, preprocess=preprocess, fine=fine, coarse=coarse, head=(0.25, 0.25), update=0.5
    )


FOUR = ((3.0, 6.0), (2.0, 4.0), (2.0, 4.0), (1.0, 8.0))
LINKS = ((0.25, 0.5), (0.25, 0.5), (0.5, 1.0))


def test_predicted_step_is_the_critical_path():
    rest = 1.0 + 2.0 + 0.5 + 0.5
    step = times(FOUR, 2 * (8 + 22 + rest), LINKS)  # twice the pieces
    assert step.predicted_step(1) == step.step
    assert step.predicted_step(2) == pytest.approx(2 * (5 + 12 + rest), rel=1e-14)  # first two, last two
    assert step.predicted_step(4) == pytest.approx(2 * (3 + 8 + rest), rel=1e-14)
    assert times(((3.0, 6.0),), step=7.0, coarse=()).predicted_step(1) == 7.0
    with pytest.raises(ValueError, match="devices: got 5, expected 1 to 4"):
        step.predicted_step(5)


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_the_schedule_is_one_that_devices_could_follow(devices):
    step = times(FOUR, 1.0, LINKS)
    bars = step.schedule(devices)
    for device in range(devices):
        mine = sorted((bar for bar in bars if bar.device == device), key=lambda bar: bar.start)
        assert all(a.end <= b.start + 1e-12 for a, b in pairwise(mine))  # a device does one thing at a time
    done = {(bar.piece, bar.number, bar.backward): bar for bar in bars if bar.piece != "update"}
    assert len(done) == 2 * (4 + 4 + 3 + 1)  # every piece, forward and backward, once
    for j in range(1, 5):
        c, g = (done[piece, j, False] for piece in ("preprocess", "fine"))
        assert c.end <= g.start + 1e-12
        assert done["fine", j, True].end <= done["preprocess", j, True].start + 1e-12
    for j in range(1, 4):
        assert max(done["fine", j, False].end, done["fine", j + 1, False].end) <= done["coarse", j, False].start + 1e-12
        assert done["coarse", j, True].end <= done["fine", j, True].start + 1e-12
    for j in (1, 2):
        assert done["coarse", j, False].end <= done["coarse", j + 1, False].start + 1e-12
        assert done["coarse", j + 1, True].end <= done["coarse", j, True].start + 1e-12
    critical = sorted((bar for bar in bars if bar.critical and bar.seconds), key=lambda bar: (bar.start, bar.device))
    covered = 0.0
    for bar in critical:  # without a gap from the beginning to the end
        assert bar.start <= covered + 1e-12
        covered = max(covered, bar.end)
    assert covered == pytest.approx(max(bar.end for bar in bars))


def test_many_parts_are_grouped_in_no_time():
    many = times(((1.0, 2.0),) * 64, 1.0, ((0.0, 0.0),) * 63)
    assert many.predicted_step(32) == pytest.approx((32 * 0 + 6 + 1.0) / (64 * 3 + 1.0))
    assert job.device_counts(64) == [1, 2, 4, 8, 16, 32, 64]
    assert job.device_counts(9) == [1, 2, 4, 8, 9]
    assert job.device_counts(6) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("correction", ["residual", "difference"])
def test_measuring_finds_every_piece_and_changes_nothing(correction):
    net = models.build_parareal(
        models.build("resnet8", channels=1, classes=10, width=2), (1, 8, 8), 3, correction=correction
    )
    before = {name: t.clone() for name, t in net.state_dict().items()}
    x, y = torch.randn(4, 1, 8, 8), torch.arange(4)
    random = torch.get_rng_state()
    step = step_time.measure({"parareal": net}, x, y, repeats=1)["parareal"]
    assert [len(pieces) for pieces in (step.preprocess, step.fine, step.coarse)] == [3, 3, 2]
    assert min(min(pair) for pair in (*step.preprocess, *step.fine, *step.coarse, step.head)) > 0
    assert step.update > 0
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(random, torch.get_rng_state())


# Command line


def run_command(*words):
    parser = argparse.ArgumentParser()
    train_command.configure(parser)
    return train_command.main(parser.parse_args(words))


def test_an_unfinished_run_is_neither_lost_nor_mixed(tmp_path, capsys):
    with pytest.raises(job.Interrupted):
        small_job(tmp_path, 25)
    kept = (tmp_path / "serial.checkpoint").read_bytes()
    words = [*Settings(epochs=2, **SMALL).arguments(), "--compare-serial", "--out", str(tmp_path)]
    assert run_command(*words) == 2
    assert "an unfinished run; add --resume to continue it or --restart" in capsys.readouterr().err
    assert run_command(*words, "--resume", "--lr", "0.2") == 2
    assert "lr: 0.1 there, 0.2 here" in capsys.readouterr().err
    assert (tmp_path / "serial.checkpoint").read_bytes() == kept
    assert run_command(*words, "--restart") == 0
