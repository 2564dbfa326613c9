# SPDX-License-Identifier: BSD-3-Clause
"""Blocks on streams of one GPU, with copies as if it were two, and on two where there are two: the bits of one stream.

The order of streams is tested by delaying them.
"""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from distributed_cases import CASES, parareal  # noqa: E402
from mgrit_cases import POOR  # noqa: E402
from newton_cases import Logistic  # noqa: E402
from placement_cases import require_same  # noqa: E402
from test_kept_cycles import heat  # noqa: E402

from pyparareal import LocalRuntime, Newton  # noqa: E402
from pyparareal.propagators import Map  # noqa: E402
from pyparareal.runtime import device_streams  # noqa: E402

pytestmark = pytest.mark.gpu


class Boom(ArithmeticError):
    pass


def on_gpu(case, name="cuda:0"):
    moved = {"u0": torch.as_tensor(case["u0"]).to(name)}
    # Of the coarse steps some take a sine or cosine of NumPy.
    waves = Map(lambda u: 0.8 * torch.sin(2.5 * u), batch_invariant=True), POOR[2], POOR[2]
    there = dict(zip(map(id, POOR), waves, strict=True))
    coarse = case.get("coarse")
    if isinstance(coarse, list):
        moved["coarse"] = [there.get(id(one), one) for one in coarse]
    elif coarse is not None:
        moved["coarse"] = there.get(id(coarse), coarse)
    moved |= {key: torch.as_tensor(case[key]).to(name) for key in ("rhs", "initial") if case.get(key) is not None}
    return case | moved


GPU_CASES = {
    "parareal": parareal,
    "parareal, forced": CASES["parareal, forced"],
    "parareal, heat": CASES["parareal, heat"],
    "parareal, float32": CASES["parareal, float32"],
    "FCF, every point": CASES["FCF, every point"],
    "FCF, heat": lambda: heat(levels=3),
    "FCF, heat, every point": lambda: heat() | {"save": "all"},
    "three levels": CASES["three levels"],
    "FCF, residual": CASES["FCF, residual"],
    "Newton": lambda: parareal() | {"fine": Logistic(slope=0.5), "method": Newton("full")},
    "Newton, diagonal": lambda: parareal() | {"fine": Logistic(slope=0.5), "method": Newton("diagonal")},
}


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("name", GPU_CASES)
def test_streams_have_the_bits_of_one(name, copies, monkeypatch):
    if copies:  # as if the second entry were another device
        monkeypatch.setattr(device_streams, "Here", device_streams.Elsewhere)
    require_same(lambda: on_gpu(GPU_CASES[name]()), {"devices": ["cuda:0"] * 2})


@pytest.mark.parametrize("copies", [False, True])
def test_nobody_reads_too_early(copies, monkeypatch):
    """Each block is delayed before and after its work, by about 10 ms: longer than everything else here takes."""
    if copies:
        monkeypatch.setattr(device_streams, "Here", device_streams.Elsewhere)
        room = device_streams.Elsewhere._room

        def late(self, like):
            torch.cuda._sleep(20_000_000)
            return room(self, like)

        monkeypatch.setattr(device_streams.Elsewhere, "_room", late)
    streams = set()

    def step(u):
        streams.add(torch.cuda.current_stream().cuda_stream)
        torch.cuda._sleep(20_000_000)
        v = 3.9 * u * (1 - u)
        torch.cuda._sleep(20_000_000)
        return v

    def plain(u):
        return 3.9 * u * (1 - u)

    torch.cuda._sleep(20_000_000)
    u = torch.rand(8, 3, device="cuda")  # ready only after the delay
    expected, got = torch.empty_like(u), torch.empty_like(u)
    runtime = LocalRuntime(devices=["cuda:0"] * 2)
    for _ in range(3):
        LocalRuntime().map(Map(plain), u, slice(0, 8, 1), 2, out=expected)
        runtime.map(Map(step), u, slice(0, 8, 1), 2, out=got)
        assert torch.equal(got, expected)
        u = got.clone()
        got.zero_()
    assert len(streams) == 2
    assert torch.cuda.current_stream().cuda_stream not in streams


def test_an_error_on_one_stream_leaves_the_others_joined():
    def step(u, points):
        if points.start:
            raise Boom
        torch.cuda._sleep(20_000_000)
        return u + 1

    u = torch.zeros(4, 1, device="cuda")
    with pytest.raises(Boom):
        LocalRuntime(devices=["cuda:0"] * 2).map(Map(step, pass_points=True), u, slice(0, 4, 1), out=u)
    assert u.cpu().ravel().tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("name", [*GPU_CASES, "modules"])
def test_two_gpus_have_the_bits_of_one(name):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    problem = GPU_CASES.get(name, lambda: CASES["parareal, modules"]())

    def placed():
        case = on_gpu(problem())
        for key in ("fine", "coarse"):
            if isinstance(case.get(key), torch.nn.Module):
                case[key].to("cuda:0")
        return case

    for devices in (["cuda:0", "cuda:1"], ["cuda:1"], ["cuda:1", "cuda:0", "cuda:1"]):
        require_same(placed, {"devices": devices})
