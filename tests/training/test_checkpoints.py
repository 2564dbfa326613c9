# SPDX-License-Identifier: BSD-3-Clause
"""Interrupted runs go on to the same bits; files of other runs, and those that are none, are refused."""

import functools
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from networks import equal, examples, mlp  # noqa: E402

from pyparareal.nn.training_job.checkpoint import CheckpointError  # noqa: E402
from pyparareal.solution import Status  # noqa: E402
from pyparareal.training import SGD, Adam, HalfSquaredError, Rules, TrainingRuns, checkpoint  # noqa: E402


def make(steps=60, **options):
    options = {"lr": 0.05, "stagnation": None, **options}
    return TrainingRuns(mlp(), torch.nn.MSELoss(), examples(), steps=steps, **options)


class Killed(Exception):
    pass


def killed_after(count):
    """A callback that raises in the cycle after ``count``."""
    cycles = []

    def callback(first, k, residual):
        cycles.append((first, k))
        if len(cycles) > count:
            raise Killed

    return callback


@pytest.mark.parametrize("cycles", [1, 3, 7, 9, 12])
@pytest.mark.parametrize("guess", ["zeros", "coarse"])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, cycles, guess):
    options = {"rules": "naive", "window": 32, "optimiser": "adam", "lr": 0.005, "guess": guess}
    whole = make(**options).run()
    assert sum(whole.iterations) > 13
    path = tmp_path / "run.npz"
    with pytest.raises(Killed):
        make(**options).run(checkpoint=path, callback=killed_after(cycles))
    seen = []
    rest = make(**options).run(checkpoint=path, callback=lambda first, k, residual: seen.append((first, k)))
    assert seen[0] == (0, cycles + 2) or seen[0][0] > 0  # the cycle that raised was written before
    assert equal(rest.weights, whole.weights)
    assert equal(rest.moments["exp_avg_sq"], whole.moments["exp_avg_sq"])
    assert json.dumps(rest.residuals) == json.dumps(whole.residuals)  # as text, in which NaN is itself
    assert rest.iterations == whole.iterations
    again = make(**options).run(checkpoint=path, callback=killed_after(0))  # a finished run has nothing left to do
    assert equal(again.weights, whole.weights)


@pytest.mark.parametrize("failed", ["too many", "converged"])
def test_a_run_killed_after_its_last_cycle_does_not_take_another(tmp_path, failed):
    options = {"rules": "naive", "max_iterations": 4} if failed == "too many" else {}
    whole = make(**options).run()
    path = tmp_path / "run.npz"
    with pytest.raises(Killed):
        make(**options).run(checkpoint=path, callback=killed_after(whole.iterations[0] - 1))
    rest = make(**options).run(checkpoint=path)
    assert rest.iterations == whole.iterations
    assert rest.status is whole.status
    assert equal(rest.weights, whole.weights)


@pytest.mark.parametrize("cycles", [1, 5])
@pytest.mark.parametrize("guess", ["zeros", "coarse"])
def test_steps_and_seconds_before_an_interruption_count(tmp_path, cycles, guess):
    """A cycle begins with C-points alone, so all parts together take the steps of a run that was never interrupted."""
    options = {"steps": 64, "levels": None, "max_coarse": 4, "cycle": "F", "rules": "naive", "guess": guess}
    whole, seen = make(**options).run(), []

    def stop():
        seen.append(True)
        return len(seen) % cycles == 0

    parts = [make(**options).run(checkpoint=tmp_path / "run.npz", stop=stop) for _ in range(3)]
    rest = make(**options).run(checkpoint=tmp_path / "run.npz")
    assert rest.iterations == whole.iterations
    for part, more in zip(parts, [*parts[1:], rest], strict=True):
        assert more.seconds > part.seconds * 0.9 > 0  # without what it took to write the last checkpoint
        assert all(a <= b for a, b in zip(part.steps_taken, more.steps_taken, strict=True))
    assert rest.steps_taken == whole.steps_taken
    assert parts[0].steps_taken[0] < whole.steps_taken[0]


def test_a_run_goes_on_in_its_windows_whatever_memory_there_is_now(tmp_path):
    options, path = {"steps": 80, "memory": 20_000}, tmp_path / "run.npz"
    whole = make(**options).run()
    assert len(whole.windows) > 2
    with pytest.raises(Killed):
        make(**options).run(checkpoint=path, callback=killed_after(7))
    rest = make(steps=80).run(checkpoint=path)
    assert rest.iterations == whole.iterations
    assert equal(rest.weights, whole.weights)


def test_a_stopped_run_can_go_on(tmp_path):
    path = tmp_path / "run.npz"
    result = make().run(checkpoint=path, stop=lambda: True)
    assert result.status is Status.STOPPED
    assert result.iterations == (1,)
    assert equal(make().run(checkpoint=path).weights, make().run().weights)


@pytest.mark.parametrize("options", [{"levels": 1}, {"rules": "naive", "max_iterations": 1}])
def test_what_is_trained_serially_can_be_stopped_between_windows(tmp_path, options):
    path, seen = tmp_path / "run.npz", []

    def stop():
        seen.append(True)
        return len(seen) == 2

    options = {"window": 10, **options}
    result = make(**options).run(checkpoint=path, stop=stop)
    assert result.status is Status.STOPPED
    assert result.steps_done == 20
    rest = make(**options).run(checkpoint=path)
    assert rest.status.ok
    assert equal(rest.weights, make(**options).run().weights)


def test_checkpoints_of_other_runs_or_none_are_refused(tmp_path):
    path = tmp_path / "run.npz"
    make().run(checkpoint=path)
    for wrong, said in [
        ({"lr": 0.06}, "lr is 0.05 there, 0.06 here"),
        ({"tol": 1e-3}, "tol is 1e-09 there, 0.001 here"),
        ({"rules": "slow"}, "rules"),
    ]:
        with pytest.raises(CheckpointError, match=said):
            make(**wrong).run(checkpoint=path)
    content = path.read_bytes()
    for broken in (content[: len(content) // 2], b"", b"no checkpoint"):
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match="not a whole checkpoint"):
            make().run(checkpoint=path)


def test_a_checkpoint_of_another_loss_forward_pass_or_rule_is_refused(tmp_path):
    """Names do not tell them apart: they are asked what they compute."""

    class Scaled(torch.nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.inner, self.factor = mlp(), factor

        def forward(self, x):
            return self.factor * self.inner(x)

    def run(loss=None, factor=1.0, rules="solver1"):
        loss = loss or (lambda a, b: (a - b).square().mean())
        runs = TrainingRuns(Scaled(factor), loss, examples(), steps=40, lr=0.05, rules=rules)
        return runs.run(checkpoint=tmp_path / "run.npz", stop=lambda: True).status

    assert run() is Status.STOPPED
    for other in ({"loss": lambda a, b: (a - b).abs().mean()}, {"factor": 1.0001}):
        with pytest.raises(CheckpointError, match="what loss and forward pass compute is another"):
            run(**other)
    assert run() is Status.STOPPED  # and its own goes on

    def rule(factor):
        return lambda level, points, stride: (points[:, None] * factor + [0, 1]) % 16

    (tmp_path / "run.npz").unlink()
    assert run(rules=Rules(data=rule(1))) is Status.STOPPED
    for factor, growth in ((3, None), (1, 1.5)):
        with pytest.raises(CheckpointError, match="rule"):
            run(rules=Rules(growth, data=rule(factor)))
    assert run(rules=Rules(data=rule(1))) is Status.STOPPED


def test_equal_settings_are_the_same_run_however_they_are_written(tmp_path):
    def run(**options):
        return make(**options).run(checkpoint=tmp_path / "run.npz", stop=lambda: True).status

    for a, b in [
        ({"alpha_max": 8}, {"alpha_max": np.float64(8)}),
        ({"optimiser": SGD(weight_decay=0)}, {"optimiser": SGD()}),
        ({"optimiser": Adam(betas=[0.9, 0.999])}, {"optimiser": "adam"}),
    ]:
        (tmp_path / "run.npz").unlink(missing_ok=True)
        assert run(**a) is Status.STOPPED
        assert run(**b) is Status.STOPPED  # and not refused


def test_a_checkpoint_does_not_depend_on_where_a_rule_lies_in_memory():
    """Its text does; with the loss of the kernel it would be why the kernel is not used."""

    def rule(level, points, stride):
        return (points[:, None] + [0, 1]) % 16

    a, b = (
        TrainingRuns(
            mlp(), HalfSquaredError(), examples(), steps=40, lr=0.02, rules=Rules(data=functools.partial(rule))
        ).identity()
        for _ in range(2)
    )
    assert a == b


def test_a_checkpoint_of_examples_in_any_dtype(tmp_path):
    """NumPy knows no bfloat16."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 2))

    def loss(prediction, target):
        return (prediction - target.to(prediction.dtype)).square().mean()

    x, y = examples(dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float16, torch.int64, torch.bool):
        runs = TrainingRuns(net, loss, (x, y.to(dtype)), steps=8, lr=0.01)
        path = tmp_path / f"{dtype}.npz"
        assert runs.run(checkpoint=path).status.ok
        assert runs.run(checkpoint=path).status.ok
    assert checkpoint.digest(x.to(torch.complex64)) != checkpoint.digest(x.to(torch.complex64) + 1)


def test_files_that_are_no_checkpoints_are_refused_by_name(tmp_path):
    path = tmp_path / "run.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        make().run(checkpoint=path)
    np.savez(path, json=np.frombuffer(b"[1, 2]", np.uint8))
    with pytest.raises(CheckpointError, match=r"not a whole checkpoint .*its JSON is a list"):
        make().run(checkpoint=path)
    text = b'{"format": "%s", "identity": {}}' % checkpoint.FORMAT.encode()
    np.savez(path, json=np.frombuffer(text, np.uint8))
    with pytest.raises(CheckpointError, match=r"not a whole checkpoint .*without first, windows"):
        make().run(checkpoint=path)


def test_wrong_arguments_of_run_are_refused_before_any_step(tmp_path):
    runs = make(fused=False)
    runs.step.step = None  # no step can be taken
    for wrong, error, said in [
        ({"checkpoint": tmp_path}, ValueError, "checkpoint: got .*, a directory"),
        ({"checkpoint": tmp_path / "no" / "run.npz"}, ValueError, "whose directory .*no does not exist"),
        ({"checkpoint": 5}, TypeError, "checkpoint: got int, expected a path"),
        ({"checkpoint": "/dev/null"}, ValueError, "checkpoint: got /dev/null, which is no regular file"),
        ({"checkpoint": "/proc/run.npz"}, OSError, "checkpoint: /proc/run.npz cannot be written"),
        ({"callback": 3}, TypeError, "callback: got 3"),
        ({"stop": True}, TypeError, "stop: got True"),
    ]:
        with pytest.raises(error, match=said):
            runs.run(**wrong)
    assert not (tmp_path / "no").exists()
