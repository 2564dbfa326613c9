# SPDX-License-Identifier: BSD-3-Clause
"""Networks, recurrences, training and backward passes in the trace: which parts ran, where, and in which region."""

from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pyparareal import LocalRuntime, TimeGrid, nn, solve  # noqa: E402
from pyparareal.profiling import Recorder  # noqa: E402
from pyparareal.propagators import Map  # noqa: E402


def network(execution):
    torch.manual_seed(0)
    linear = torch.nn.Linear
    return nn.PararealNetwork(
        [linear(4, 4) for _ in range(3)],
        preprocess=[linear(4, 4) for _ in range(3)],
        coarse=[linear(4, 4) for _ in range(2)],
        head=linear(4, 2),
        execution=execution,
    )


def recorded(work):
    with Recorder() as recorder:
        result = work()
    return result, recorder.record().events


@pytest.mark.parametrize("execution", ["serial", "batched", "parallel"])
def test_every_part_is_launched_once_in_its_region(execution):
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # or there is no other thread for a part
    try:
        net, x = network(execution), torch.randn(5, 4)
        expected = net(x)
        found, events = recorded(lambda: net(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, expected)
    launches = Counter((event.region, event.name) for event in events if event.kind == "launch")
    parts = {f"{kind}[{n}]" for kind in ("preprocess", "fine") for n in range(3)}
    if execution == "batched":
        parts = {"preprocess[0, 1, 2]", "fine[0, 1, 2]"}
    assert launches == Counter(
        [("network.parts", part) for part in parts]
        + [("network.coarse", f"coarse[{n}]") for n in range(2)]
        + [("network.head", "head")]
    )
    threads = {event.stream for event in events if event.name.startswith("fine")}
    assert ("main" not in threads) == (execution == "parallel")
    waits = [event.region for event in events if (event.kind, event.name) == ("wait", "threads")]
    assert waits == (["network.parts"] if execution == "parallel" else [])


def test_gradients_of_parts_in_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        net, x = network("parallel"), torch.randn(5, 4)
        net(x)
        loss = net(x).sum()
        _, events = recorded(loss.backward)
    finally:
        torch.set_num_threads(before)
    launches = {(e.region, e.name) for e in events if e.kind == "launch"}
    assert launches == {("backward network.parts", f"backward fine[{n}]") for n in range(3)}


def test_a_compiled_network_has_nothing_of_it():
    net, x = network("serial"), torch.randn(5, 4)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    expected = compiled(x)
    found, events = recorded(lambda: compiled(x))
    assert torch.equal(found, expected)
    assert [event for event in events if event.kind != "region"] == []


def test_the_backward_pass_of_a_solve():
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    fine = Map(lambda u: u + 0.1 * torch.sin(weight * u), batch_invariant=True)
    coarse = Map(lambda u: u + 0.1 * weight * u, batch_invariant=True)
    u0 = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)

    def work():
        solution = solve(fine, u0, TimeGrid(0, 1, 12), m=3, tol=1e-8, coarse=coarse, parameters=[weight])
        solution.u[-1].sum().backward()
        return solution

    solution, events = recorded(work)
    (went,) = solution.adjoint
    passes = [event for event in events if event.name == "backward parareal.fine"]
    assert len(passes) == went.iterations > 0
    assert {event.level for event in events if event.region == "backward parareal.coarse"} == {1}
    assert {event.region for event in passes} == {"backward"}
    assert sum(event.name == "parareal.fine" for event in events) == solution.iterations


def test_blocks_of_slices_in_threads_are_in_the_region_of_who_started_them():
    case = {
        "fine": Map(lambda u: 0.9 * u, batch_invariant=True), "u0": np.ones((1, 2)), "grid": TimeGrid(0, 1, 24), "m": 4,
        "tol": None, "max_iterations": 2, "coarse": Map(lambda u: 0.6 * u, batch_invariant=True),
    }  # fmt: skip
    solution, events = recorded(lambda: solve(**case, runtime=LocalRuntime(devices=["cpu", "cpu"])))
    fine = [event for event in events if event.kind == "launch" and event.level == 0]
    assert {event.stream for event in fine} != {"main"}
    assert sum(event.facts["slices"] * event.facts["steps"] for event in fine) == solution.stats.fine_steps
    verbs = [event for event in events if event.kind == "verb" and event.name == "map"]
    waits = [event for event in events if event.kind == "wait"]
    assert len(waits) == len(verbs)
    assert all(any(v.start <= w.start <= w.end <= v.end for v in verbs) for w in waits)


def test_a_recurrence_forward_and_backward():
    torch.manual_seed(0)
    gru = nn.GRU(3, 4, method="hybrid", jacobian="none", chunk=4, warm_up=2)
    x = torch.randn(16, 2, 3, requires_grad=True)

    def work():
        output, _ = gru(x)
        output.sum().backward()

    _, events = recorded(work)
    regions = {event.region for event in events}
    assert {"recurrence.chunks", "backward"} <= regions, regions
    assert any(event.kind == "launch" and event.region == "recurrence.chunks" for event in events)
    assert any(event.region == "backward recurrence.again" for event in events)


def test_the_training_loop():
    from pyparareal.nn.data import Images, Split
    from pyparareal.nn.training_job.loop import State, make_optimiser, train
    from pyparareal.nn.training_job.settings import Settings

    class Silent:
        def step(self, *numbers):
            pass

    images = Images(torch.randn(6, 1, 4, 4), torch.randint(0, 2, (6,)))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    settings = Settings(epochs=1, batch_size=3)
    options = {"save": lambda: None, "interrupted": lambda: False, "progress": Silent()}
    state = State()
    with Recorder() as recorder:
        train(net, make_optimiser(net, settings), Split(images, images, images, 2), settings, state, **options)
    record = recorder.record()
    counts = Counter(event.name for event in record.events if event.name.startswith("train."))
    assert counts == {
        "train.data": 3,
        "train.forward": 2,
        "train.backward": 2,
        "train.update": 2,
        "train.evaluation": 1,
    }
    losses = [sample.value for sample in record.samples if sample.counter == "loss"]
    assert sum(losses) / 2 == pytest.approx(state.history[0]["train_loss"])  # batches of one size


@pytest.mark.parametrize(
    ("make", "name", "steps"),
    [
        (lambda: nn.GRU(3, 4), "GRUStep", 10),
        (lambda: nn.LSTM(3, 4, num_layers=2), "LSTM", None),
        (lambda: nn.LSTM(3, 4, method="serial"), "LSTM", None),
        (lambda: nn.Recurrence(torch.nn.GRUCell(3, 4), method="serial"), "CellStep", 10),
    ],
    ids=["GRU", "LSTM", "LSTM serial", "Recurrence"],
)
def test_a_recurrence_one_step_after_the_other_is_one_launch(make, name, steps):
    torch.manual_seed(0)
    net, x = make(), torch.randn(10, 2, 3)
    _, events = recorded(lambda: net(x))
    regions = [event for event in events if event.kind == "region"]
    launches = [event for event in events if event.kind == "launch"]
    assert [event.name for event in regions] == ["recurrence.serial"]
    assert (launches[0].name, launches[0].facts.get("steps")) == (name, steps)
    assert {event.region for event in launches} == {"recurrence.serial"}


def test_sequences_of_several_lengths_by_torchs_own_kernels_are_one_launch():
    _, events = recorded(lambda: nn.LSTM(3, 4)(torch.randn(10, 3, 3), lengths=[4, 10, 0]))
    assert [event.name for event in events if event.kind == "launch"] == ["LSTM"]
