# SPDX-License-Identifier: BSD-3-Clause
"""``pyparareal train``: options, and one clear line for what is wrong."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
for library in ("sklearn", "safetensors"):
    pytest.importorskip(library, reason=f"{library} is not installed: pip install 'pyparareal[train]'")

import pyparareal.nn  # noqa: E402
from pyparareal.nn import train_command  # noqa: E402
from pyparareal.nn.training_job.settings import Settings  # noqa: E402

SMALL = {"model": "resnet8", "width": 2, "parts": 2, "threads": 1}


def run_command(*words):
    parser = argparse.ArgumentParser()
    train_command.configure(parser)
    return train_command.main(parser.parse_args(words))


MANY = [
    Settings(),
    Settings(model="resnet32", lr=0.25, augment="none", coarse_units=2, seed=9, correction="difference"),
    Settings(coarse_units=None, preprocess_units=None, coarse_budget=0.2, width=8, image_size=12),
    Settings(parts=3, part_sizes=(3, 3, 3), schedule="step", milestones=(0.25, 0.5), warm_up=0.0),
    Settings(balance="time", precision="bfloat16", device="auto", execution="auto", threads=0),
    Settings(data="cifar10", data_dir="some/where"),
    Settings(data="mnist", data_dir=".", augment="none"),
]


@pytest.mark.parametrize("settings", MANY)
def test_settings_survive_the_command_line_and_json(settings):
    parser = argparse.ArgumentParser()
    train_command.configure(parser)
    assert train_command.settings_of(parser.parse_args(settings.arguments())) == settings
    assert Settings(**json.loads(json.dumps(settings.as_dict()))) == settings
    assert Settings().arguments() == []


def test_augmentation_follows_the_data_unless_it_is_said():
    assert Settings().augment == "shift"
    assert Settings(data="cifar10", data_dir=".").augment == "crop_flip"
    assert Settings(data="cifar10", data_dir=".", augment="none").augment == "none"


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
    ("--warm-up 1", "warm_up: got 1.0, expected a share of all steps"),
    ("--milestones 0.5,0.5", "milestones: got [0.5, 0.5], expected rising shares"),
    ("--schedule linear", "schedule: got 'linear', expected one of cosine, step, constant"),
    ("--balance memory", "balance: got 'memory', expected one of blocks, flops, time, params"),
    ("--part-sizes 3,3,4", "part_sizes: got [3, 3, 4], expected the sum 9, the blocks of resnet20"),
    ("--part-sizes 3,0,6", "part_sizes: got [3, 0, 6], expected positive ints"),
    ("--part-sizes 3,6 --parts 3", "parts: got 3, but part_sizes makes 2 parts"),
    ("--part-sizes 3,6 --balance flops", "part_sizes: got sizes together with balance 'flops'"),
    ("--coarse-budget 0", "coarse_budget: got 0.0, expected a positive number"),
    ("--precision float16", "precision: got 'float16' on the CPU, expected float32 or bfloat16"),
    ("--precision int8", "precision: got 'int8', expected one of float32, bfloat16, float16"),
    ("--device tpu", "device: got 'tpu', expected cpu, cuda, cuda:<number> or auto"),
    ("--device cuda:99", "device: got 'cuda:99', expected one that is here: cpu"),
    ("--data cifar", "data: got 'cifar', expected one of digits, "),
    ("--data cifar10", "data_dir: got none, expected the directory with the original files of cifar10"),
    ("--data-dir here", "data_dir: got 'here', expected none: digits needs no files"),
    ("--augment mirror", "augment: got 'mirror', expected one of none, shift, crop_flip"),
    ("--model vgg16 --balance flops", "image_shape: got (1, 8, 8), expected at least 32x32 pixels for VGG"),
    ("--model resnet8 --width 2 --balance params --parts 4", "parts: got 4 for 3 blocks"),
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--epochs many", "argument --epochs: invalid int value: 'many'"),
        ("--part-sizes 3,x", "argument --part-sizes: invalid row of ints value: '3,x'"),
        ("--coarse-units few", "argument --coarse-units: invalid auto or int value: 'few'"),
        ("--resume --restart", "argument --restart: not allowed with argument --resume"),
    ],
)
def test_words_that_cannot_be_read_end_with_one_line(capsys, words, message):
    with pytest.raises(SystemExit) as stopped:
        run_command(*words.split())
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


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
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(Path(pyparareal.nn.__file__).parents[2]), "PYTHONWARNINGS": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"--compare-serial" in done.stdout
