# SPDX-License-Identifier: BSD-3-Clause
"""The training job: data, learning, resuming bit for bit, times, reports, and its command line."""

import argparse
import json
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
for library in ("sklearn", "safetensors", "matplotlib"):
    pytest.importorskip(library, reason=f"{library} is not installed: pip install 'pyparareal[train]'")

import pyparareal.nn  # noqa: E402
from pyparareal.nn import data, models, train_command  # noqa: E402
from pyparareal.nn.training_job import job, loop, report, step_time  # noqa: E402
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


def test_learning_rate_rises_to_its_peak_and_falls_to_zero():
    rates = [loop.learning_rate(step, 100, 0.5) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == rates[10] == 0.5
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] < 1e-3


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
    assert bar.rates == [loop.learning_rate(step, 60, settings.lr) for step in range(60)]
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
    settings = Settings(epochs=10, **SMALL)
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


def times(parts, step, chain=(1.0, 2.0)):
    return step_time.StepTimes(step=step, parts=parts, chain=chain, head=(0.25, 0.25), update=0.5)


def test_predicted_step_is_the_critical_path():
    rest = 1.0 + 2.0 + 0.5 + 0.5
    step = times(((3.0, 6.0), (2.0, 4.0), (2.0, 4.0), (1.0, 8.0)), step=2 * (8 + 22 + rest))  # twice the pieces
    assert step.predicted_step(1) == step.step
    assert step.predicted_step(2) == pytest.approx(2 * (5 + 12 + rest), rel=1e-14)  # first two, last two
    assert step.predicted_step(4) == pytest.approx(2 * (3 + 8 + rest), rel=1e-14)
    assert times(((3.0, 6.0),), step=7.0, chain=(0.0, 0.0)).predicted_step(1) == 7.0
    with pytest.raises(ValueError, match="devices: got 5, expected 1 to 4"):
        step.predicted_step(5)


@pytest.mark.parametrize("correction", ["residual", "difference"])
def test_measuring_finds_every_piece_and_changes_nothing(correction):
    net = models.build_parareal(
        models.build("resnet8", channels=1, classes=10, width=2), (1, 8, 8), 3, correction=correction
    )
    before = {name: t.clone() for name, t in net.state_dict().items()}
    x, y = torch.randn(4, 1, 8, 8), torch.arange(4)
    random = torch.get_rng_state()
    step = step_time.measure({"parareal": net}, x, y, repeats=1)["parareal"]
    assert len(step.parts) == 3
    assert min(min(pair) for pair in (*step.parts, step.chain, step.head)) > 0
    assert step.update > 0
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(random, torch.get_rng_state())


# Reports


def test_report_is_complete_and_fetches_nothing(undisturbed):
    out, result = undisturbed
    page = (out / "report.html").read_text()
    assert "http" not in page
    assert "<script" not in page
    for words in ("predicted, 2 devices", "When it will not help", "data:image/png;base64,", "weight_decay"):
        assert words in page
    assert (out / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(result))
    table = report.text_table(result).splitlines()
    assert [line.split()[0] for line in table[3:]] == ["serial", "parareal", "serial"]


@pytest.mark.parametrize(("seconds", "words"), [(1.0, "Predicted on 2 devices: 2.00 times"), (3.0, "Nor is it")])
def test_honest_words_follow_the_figures(undisturbed, seconds, words):
    result = json.loads(json.dumps(undisturbed[1]))
    serial, parareal = result["networks"].values()
    serial |= {"seconds_per_step": 2.0, "predicted_seconds_per_step": {"1": 2.0, "2": 2.0}}
    parareal |= {"seconds_per_step": 5.0, "predicted_seconds_per_step": {"1": 5.0, "2": seconds}}
    said = report.when_it_will_not_help(result)
    assert words in said
    assert "takes 2.50 times a serial step (measured)" in said
    del result["networks"]["serial"]
    assert "--compare-serial" in report.when_it_will_not_help(result)
    assert "serial" not in report.text_table(result)


# Command line


def run_command(*words):
    parser = argparse.ArgumentParser()
    train_command.configure(parser)
    return train_command.main(parser.parse_args(words))


def test_settings_survive_the_command_line():
    settings = Settings(model="resnet32", lr=0.25, augment="none", coarse_units=2, seed=9, correction="difference")
    parser = argparse.ArgumentParser()
    train_command.configure(parser)
    args = parser.parse_args(settings.arguments())
    assert Settings(**{name: getattr(args, name) for name in settings.as_dict()}) == settings


def test_json_is_the_only_output(tmp_path, capsys):
    words = Settings(epochs=1, **SMALL).arguments()
    assert run_command(*words, "--out", str(tmp_path), "--json", "--quiet") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["settings"]["threads"] == 1
    assert err == ""


WRONG = [
    ("--model resnet21", "model: got 'resnet21', expected one of resnet8"),
    ("--model resnet8 --parts 4", "parts: got 4 for 3 blocks"),
    ("--parts 0", "parts: got 0, expected at least 1"),
    ("--epochs 0", "epochs: got 0, expected at least 1"),
    ("--batch-size 0", "batch_size: got 0, expected at least 1"),
    ("--lr nan", "lr: got nan, expected a positive number"),
    ("--lr 0", "lr: got 0.0, expected a positive number"),
    ("--threads -1", "threads: got -1, expected at least 0"),
    ("--seed -1", "seed: got -1, expected at least 0"),
    ("--weight-decay -1", "weight_decay: got -1.0, expected at least 0"),
    ("--resume", "got no checkpoint to resume, expected parareal.checkpoint"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_wrong_arguments_end_with_one_line_and_nothing_written(tmp_path, capsys, words, message):
    out = tmp_path / "out"
    assert run_command(*words.split(), "--out", str(out)) == 2
    said = capsys.readouterr().err
    assert said.startswith("pyparareal train: error: ")
    assert message in said
    assert said.count("\n") == 1
    assert not out.exists()


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


def test_a_full_disk_is_one_clear_line(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert run_command(*Settings(epochs=1, **SMALL).arguments(), "--out", str(tmp_path)) == 1
    assert "OSError: [Errno 28] No space left on device" in capsys.readouterr().err


def test_importing_the_package_and_asking_for_help_import_no_torch():
    script = "import sys, pyparareal.nn.train_command; sys.argv[1:] = ['--help']\n"
    script += "try: pyparareal.nn.train_command._main()\nexcept SystemExit: pass\n"
    script += "sys.exit(any(m in sys.modules for m in ('torch', 'sklearn', 'matplotlib')))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert b"--compare-serial" in done.stdout
