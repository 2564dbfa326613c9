# SPDX-License-Identifier: BSD-3-Clause
"""Options of the training job: measured once, resumed bit for bit, and part of the checkpoint's identity."""

import dataclasses
import json
import re
from functools import partial

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
for library in ("sklearn", "safetensors"):
    pytest.importorskip(library, reason=f"{library} is not installed: pip install 'pyparareal[train]'")

from pyparareal.nn import costs, data, models  # noqa: E402
from pyparareal.nn.execution import auto  # noqa: E402
from pyparareal.nn.training_job import build, checkpoint, device, job, loop, step_time  # noqa: E402
from pyparareal.nn.training_job.settings import Settings  # noqa: E402

SMALL = {"model": "resnet14", "width": 2, "parts": 3, "threads": 1, "epochs": 1, "batch_size": 128}  # 10 steps
RESULTS = ("parareal.safetensors", "metrics.json")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(autouse=True)
def _quick_times(monkeypatch):
    """The times in the report are not what is tested here."""
    monkeypatch.setattr(job, "measure", partial(step_time.measure, repeats=1))


def run(out, settings, stop_after=None, **options):
    asked = iter(range(10**6))
    stop = (lambda: next(asked) >= stop_after) if stop_after is not None else (lambda: False)
    return job.run_job(settings, out, interrupted=stop, compare_serial=False, **options)


def contents(out):
    return {name: (out / name).read_bytes() for name in RESULTS}


def interrupted(out, settings, steps=4):
    with pytest.raises(job.Interrupted):
        run(out, settings, steps)


EVERY = [
    Settings(**SMALL, schedule="step", warm_up=0.0, weight_decay=1e-3),
    Settings(**SMALL, precision="bfloat16", balance="flops"),
    Settings(**SMALL, coarse_units=None, preprocess_units=None, coarse_budget=0.3, balance="params"),
    Settings(**SMALL, part_sizes=(1, 2, 3), schedule="constant", correction="difference"),
]


@pytest.mark.parametrize("settings", EVERY)
def test_every_option_resumes_bit_for_bit(tmp_path, settings):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = run(whole, settings)
    interrupted(broken, settings)
    run(broken, settings, resume=True)
    assert contents(whole) == contents(broken)
    network = result["networks"]["parareal"]
    assert job.recheck(broken) == {"parareal": network["test_accuracy"]}
    assert len({json.dumps(result["settings"]), json.dumps(EVERY[0].as_dict())}) == 1 + (settings != EVERY[0])


@pytest.fixture
def clock(monkeypatch):
    """Times of blocks and modes as the test says; counts the measurements."""

    class Clock:
        blocks, mode, measured = (1, 1, 1, 1, 1, 1), "serial", 0  # times of blocks were measured

    def seconds(chain, example, **_):
        assert example.shape == (128, 1, 8, 8)
        Clock.measured += 1
        return tuple(float(s) for s in Clock.blocks)

    def modes(*_):
        return {"mode": Clock.mode, "seconds": {Clock.mode: 1.0}, "refused": {}}

    monkeypatch.setattr(costs, "measure_seconds", seconds)
    monkeypatch.setattr(auto, "_measured", modes)
    return Clock


def test_what_was_measured_is_reused_on_resuming(tmp_path, clock):
    settings = Settings(**SMALL, balance="time", execution="auto")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    clock.blocks, clock.mode = (1, 1, 1, 1, 4, 4), "parallel"
    result = run(whole, settings)
    assert result["networks"]["parareal"]["part_sizes"] == [4, 1, 1]
    assert result["body"]["balance"] == "time"
    assert [part["seconds"] for part in result["body"]["parts"]] == [4.0, 4.0, 4.0]
    interrupted(broken, settings)
    # The machine is another one now.
    clock.blocks, clock.mode, clock.measured = (4, 4, 1, 1, 1, 1), "serial", 0
    result = run(broken, settings, resume=True)
    assert result["networks"]["parareal"]["part_sizes"] == [4, 1, 1]
    assert result["networks"]["parareal"]["execution"] == "parallel"
    assert clock.measured == 0
    modes = {kind: entry["mode"] for kind, entry in result["networks"]["parareal"]["measured_modes"].items()}
    # Inputs that the run had met keep their mode; that of the test images was first met now.
    assert [
        modes[f"{kind} torch.float32 cpu"] for kind in ("forward and backward [128, 1, 8, 8]", "forward [99, 1, 8, 8]")
    ] == [
        "parallel",
        "serial",
    ]
    assert job.recheck(broken) == job.recheck(whole)


def test_the_weights_of_a_resumed_run_with_a_measured_partition_are_the_same(tmp_path, clock):
    settings = Settings(**SMALL, balance="time")
    clock.blocks = (1, 2, 1, 1, 4, 4)
    run(tmp_path / "whole", settings)
    interrupted(tmp_path / "broken", settings)
    clock.blocks, clock.measured = (4, 4, 1, 1, 1, 1), 0
    run(tmp_path / "broken", settings, resume=True)
    assert clock.measured == 0
    assert contents(tmp_path / "whole") == contents(tmp_path / "broken")


def test_both_networks_of_a_job_have_one_measured_partition(tmp_path, clock):
    settings = Settings(**SMALL, balance="time")
    with pytest.raises(job.Interrupted):
        job.run_job(settings, tmp_path, interrupted=iter([False] * 3 + [True] * 9).__next__)
    assert clock.measured == 1  # not once per network
    clock.blocks = (9, 1, 1, 1, 1, 1)
    job.run_job(settings, tmp_path, resume=True)
    assert clock.measured == 1
    partitions = [checkpoint.read_identity(file)["partition"] for file in tmp_path.glob("*.checkpoint")]
    assert partitions[0] == partitions[1]
    assert partitions[0]["sizes"] == [2, 2, 2]


# A checkpoint of something else


def saved(path, settings, digits, name="parareal"):
    torch.manual_seed(settings.seed)
    net, identity = build.build(name, settings, digits)
    optimiser = loop.make_optimiser(net, settings)
    checkpoint.save(path, net, optimiser, identity, {"epoch": 0})
    return net, optimiser, identity


OTHERS = [
    (Settings(**SMALL | {"model": "resnet8"}), "model: 'resnet8' there, 'resnet14' here"),
    (Settings(**SMALL | {"width": 3}), "width: 3 there, 2 here"),
    (Settings(**SMALL, part_sizes=(1, 2, 3)), r"part_sizes: \[1, 2, 3\] there, None here"),
    (Settings(**SMALL, coarse_units=None), "coarse_units: None there, 0 here"),
    (Settings(**SMALL, precision="bfloat16"), "precision: 'bfloat16' there, 'float32' here"),
]


@pytest.mark.parametrize(("other", "message"), OTHERS)
def test_a_checkpoint_of_another_network_is_named_and_changes_nothing(tmp_path, digits, other, message):
    settings = Settings(**SMALL)
    file = tmp_path / "parareal.checkpoint"
    saved(file, other, digits)
    before = file.read_bytes()
    with pytest.raises(checkpoint.CheckpointError, match=f"nothing was changed. {message}$"):
        run(tmp_path, settings, resume=True)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_another_partition_under_the_same_settings_is_named(tmp_path, digits, clock):
    # Times decide: the same settings, cut on another machine.
    settings = Settings(**SMALL, balance="time")
    file = tmp_path / "parareal.checkpoint"
    saved(file, settings, digits)
    clock.blocks = (1, 1, 1, 1, 4, 4)
    net, identity = build.build("parareal", settings, digits)
    optimiser = loop.make_optimiser(net, settings)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    random = torch.get_rng_state()
    with pytest.raises(
        checkpoint.CheckpointError, match=r"partition\.sizes: \[2, 2, 2\] there, \[4, 1, 1\] here; partition\.seconds"
    ):
        checkpoint.load(file, net, optimiser, identity)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert not optimiser.state
    assert torch.equal(random, torch.get_rng_state())


def test_other_data_are_named(tmp_path, digits):
    settings = Settings(**SMALL)
    file = tmp_path / "parareal.checkpoint"
    relabelled = dataclasses.replace(digits, train=dataclasses.replace(digits.train, y=digits.train.y.flip(0)))
    saved(file, settings, relabelled)
    with pytest.raises(checkpoint.CheckpointError, match=r"nothing was changed. data: '\w+' there, '\w+' here"):
        run(tmp_path, settings, resume=True)


def test_a_recorded_partition_of_another_network_is_refused(tmp_path, digits):
    settings = Settings(**SMALL, balance="time")
    file = tmp_path / "parareal.checkpoint"
    net, optimiser, identity = saved(file, Settings(**SMALL), digits)
    cut = identity["partition"] | {"parameters": [7] * 6}
    identity |= {"settings": settings.as_dict(), "partition": cut}
    checkpoint.save(file, net, optimiser, identity, {"epoch": 0})
    with pytest.raises(
        checkpoint.CheckpointError, match=r"parareal.checkpoint: config: of another network, parameters"
    ):
        run(tmp_path, settings, resume=True)


def test_settings_of_another_version_are_refused(tmp_path, digits):
    file = tmp_path / "parareal.checkpoint"
    net, optimiser, identity = saved(file, Settings(**SMALL), digits)
    identity["settings"]["sorcery"] = 1
    checkpoint.save(file, net, optimiser, identity, {"epoch": 0})
    with pytest.raises(checkpoint.CheckpointError, match=r"settings of another version of pyparareal .*'sorcery'"):
        checkpoint.read_settings(file)


# Partitions and maps


@pytest.mark.parametrize("balance", ["flops", "params"])
def test_parts_are_those_of_the_partition(digits, balance):
    from pyparareal.nn import partition

    settings = Settings(**SMALL | {"parts": 4, "width": None}, balance=balance)
    net, identity = build.build("parareal", settings, digits)
    serial = models.build("resnet14", channels=1, classes=10)
    assert net.part_sizes == partition(serial, 4, balance, example=torch.zeros(2, 1, 8, 8, device="meta")).sizes
    assert identity["partition"]["sizes"] == list(net.part_sizes)
    assert net.part_sizes != (2, 2, 1, 1)  # that of equal numbers of blocks


def test_automatic_maps_stay_within_the_budget(digits):
    cheap, rich = (
        build.build(
            "parareal", Settings(**SMALL, coarse_units=None, preprocess_units=None, coarse_budget=budget), digits
        )
        for budget in (0.4, 4.0)
    )
    relative = [[cost["relative"] for cost in identity["maps"][1:]] for _, identity in (cheap, rich)]
    assert max(relative[0]) <= 0.4
    assert 0.4 < max(relative[1]) <= 4.0
    assert cheap[1]["maps"] != rich[1]["maps"]


def test_equal_seeds_give_equal_bodies_whatever_the_maps(digits):
    nets = [
        build.build(name, Settings(**SMALL, coarse_units=units), digits)[0]
        for name, units in (("serial", 0), ("parareal", 0), ("parareal", None))
    ]
    bodies = [torch.cat([p.flatten() for p in net.parameters()])[:50] for net in (nets[0],)]
    bodies += [torch.cat([p.flatten() for p in net.serial().parameters()])[:50] for net in nets[1:]]
    assert torch.equal(bodies[0], bodies[1])
    assert torch.equal(bodies[1], bodies[2])


# Precision and device


@pytest.mark.parametrize("execution", ["serial", "batched", "parallel"])
def test_bfloat16_is_used_for_products_and_the_loss_stays_float32(digits, execution):
    settings = Settings(**SMALL | {"parts": 6}, precision="bfloat16", execution=execution)
    net, _ = build.build("parareal", settings, digits)
    seen = set()
    hooks = [m.register_forward_hook(lambda m, a, y: seen.add(y.dtype)) for m in (*net.coarse, net.head)]
    state = loop.State()
    trainer = loop.Trainer(net, loop.make_optimiser(net, settings), settings, state)
    batch = digits.train.take(torch.arange(16))
    trainer.step(batch, 0.1, job._Silent())
    assert torch.bfloat16 in seen
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in net.parameters())
    for hook in hooks:
        hook.remove()
    exact = loop.evaluate(net, digits.validation)
    rounded = loop.evaluate(net, digits.validation, precision="bfloat16")
    assert exact.loss != rounded.loss
    # Eight bits of significand: 2^-8 per product, ten layers deep; a wrong precision context would give zero.
    assert rounded.loss == pytest.approx(exact.loss, rel=10 * 2**-8)


def test_float16_scales_the_loss_skips_what_overflows_and_remembers_the_scale(digits):
    settings = Settings(**SMALL, precision="float16")  # refused by the job on the CPU, which is slow at it
    net, _ = build.build("parareal", settings, digits)
    optimiser = loop.make_optimiser(net, settings)
    batch, state = digits.train.take(torch.arange(16)), loop.State()
    start = [p.detach().clone() for p in net.parameters()]

    def step():
        loop.Trainer(net, optimiser, settings, state).step(batch, 0.1, job._Silent())  # as after resuming
        return [p.detach().clone() for p in net.parameters()]

    state.scaler = torch.amp.GradScaler("cpu").state_dict() | {
        "scale": 2.0**60
    }  # beyond float16, whose largest is 2^16
    assert all(map(torch.equal, start, step()))
    assert state.scaler["scale"] == 2.0**59
    state.scaler["scale"] = 2.0**4
    assert not all(map(torch.equal, start, step()))
    assert state.scaler["scale"] == 2.0**4
    assert json.loads(json.dumps(state.scaler)) == state.scaler


def test_devices_are_resolved_or_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.resolve("auto", "float32") == device.resolve("cpu", "bfloat16") == "cpu"
    with pytest.raises(ValueError, match=re.escape("expected one that is here: cpu (torch finds no CUDA device)")):
        device.resolve("cuda", "float32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.resolve("auto", "float16") == device.resolve("cuda", "float32") == "cuda:0"
    assert device.resolve("cuda:1", "float32") == "cuda:1"
    with pytest.raises(ValueError, match="device: got 'cuda:2', expected one that is here: cpu or cuda:0 to cuda:1"):
        device.resolve("cuda:2", "float32")
    for wrong in ("cpu:0", "cuda:", "cuda:x", "", "cuda:-1"):
        with pytest.raises(ValueError, match="expected cpu, cuda, cuda:<number> or auto"):
            device.resolve(wrong, "float32")
    with pytest.raises(ValueError, match="precision: got 'float16' on the CPU"):
        device.resolve("cpu", "float16")


def test_auto_device_is_recorded_and_kept(tmp_path):
    settings = Settings(**SMALL | {"threads": 0}, device="auto")
    interrupted(tmp_path, settings)
    recorded = checkpoint.read_settings(tmp_path / "parareal.checkpoint")
    assert recorded.device in ("cpu", "cuda:0")
    assert recorded.threads == torch.get_num_threads()
    result = run(tmp_path, settings, resume=True)
    assert result["settings"]["device"] == recorded.device


def test_the_callers_torch_settings_come_back():
    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with device.reproducible(Settings(threads=2)):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 2
    assert (torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_on_cuda_too_a_resumed_run_is_the_undisturbed_one(tmp_path, precision):
    settings = Settings(**SMALL, device="cuda", precision=precision)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(whole, settings)
    interrupted(broken, settings)
    run(broken, settings, resume=True)
    assert contents(whole) == contents(broken)
