# SPDX-License-Identifier: BSD-3-Clause
"""Theorem: a captured call of any op, on any layout, replays with the bits of the solve it was taken from."""

import contextlib
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from ops_backends import BACKENDS, arrange, assert_same_bits, lacks, random_state
from relax_calls import arguments
from test_timeline_solves import heat

from pyparareal import MGRIT, _core, ops, solve, traced_ops
from pyparareal.profiling import Timeline, capture, replay
from pyparareal.profiling.captured_files import read

F64, F32 = np.dtype("float64"), np.dtype("float32")
OPS = sorted(traced_ops.FORMS)


def relaxation(op):
    def make(rng, dtype, like):
        u, positional, keywords = arguments(op, (5, 2, 6), dtype, 4, rng)
        f = rng.standard_normal((5, 4, *u.shape[1:])).astype(dtype)
        keywords |= {"target": like(u[::-1].copy()), "norms": like(np.zeros(5)), "every": like(np.zeros_like(f))}
        given = [like(one) if isinstance(one, np.ndarray) else one for one in (u, *positional)]
        return lambda: getattr(ops, op)(*given, f=like(f), norm="max_abs", **keywords)

    return make


def states(rng, dtype, count=1, shape=(5, 2, 6)):
    return [random_state(rng, shape, dtype, special=0.1) for _ in range(count)]


def dense(rng, dtype, like, adjoint=False):
    u, weight, slopes = (
        states(rng, dtype, 1, (3, 2, 4)) + states(rng, dtype, 1, (3, 2, 4, 4)) + states(rng, dtype, 1, (3, 2, 2, 4))
    )
    u, weight, slopes = like(u), like(weight), like(slopes)
    if adjoint:
        return lambda: ops.relax_dense_adjoint(u, weight, slopes, 2, scale=2.0)
    bias = like(states(rng, dtype, 1, (3, 2, 4))[0])
    return lambda: ops.relax_dense(u, weight, bias, 0.1, 2, slopes=slopes, activation="silu")


def gru(rng, dtype, like, kind="relax"):
    gates, weight, bias = (like(random_state(rng, s, dtype)) for s in ((3, 2, 2, 12), (12, 4), (4,)))
    u, end = like(random_state(rng, (3, 2, 2, 4), dtype)), like(random_state(rng, (3, 2, 4), dtype))
    if kind == "relax":
        return lambda: ops.relax_gru(end, gates, weight, bias, 2)
    if kind == "adjoint":
        return lambda: ops.relax_gru_adjoint(u, gates, weight, bias, end, d_gates=gates)
    chain, products, sides = (like(random_state(rng, (n, 2, w), dtype)) for n, w in ((6, 4), (5, 12), (5, 12)))
    diagonal, norms = like(random_state(rng, (3, 4), dtype)), like(np.zeros(5))
    return lambda: ops.newton_gru(chain, products, sides, diagonal, None, factor=0.5, residuals=norms)


def mlp(rng, dtype, like):
    u = like(0.1 * rng.standard_normal((3, 1, 2 * 4 + 4)).astype(dtype))
    x, y = like(rng.random((7, 2)).astype(dtype)), like(rng.random((7, 1)).astype(dtype))
    first = like(rng.integers(0, 7, (3, 5)))
    alpha = like(0.1 * rng.random((3, 5)))
    return lambda: ops.relax_mlp_sgd(u, (2, 4, 1), x, y, alpha, 5, first=first, count=2, hidden="tanh")


def scan(op):
    def make(rng, dtype, like):
        a, b = states(rng, dtype, 1, (6, 2, 3, 3) if op == "scan_block" else (6, 2, 3)) + states(
            rng, dtype, 1, (6, 2, 3)
        )
        a, b, start = like(a), like(b), like(random_state(rng, (2, 3), dtype))
        return lambda: getattr(ops, op)(a, b, start, out=b)

    return make


def pointwise(op):
    def make(rng, dtype, like):
        f, g, h, u = map(like, states(rng, dtype, 4))
        v = like(states(rng, dtype, 1, (2, 2, 6))[0])
        return {
            "parareal_update": lambda: ops.parareal_update(f, g, h, u, out=f),
            "slice_norms": lambda: ops.slice_norms(f, u, norm="sum_abs"),
            "extract": lambda: ops.extract(u, start=1, step=2),
            "inject": lambda: ops.inject(v, u, start=1, step=2),
            "c_relax": lambda: ops.c_relax(f, u, 0.7),
        }[op]

    return make


SIXTEEN = ("parareal_update", "slice_norms", "extract", "inject", "c_relax")
MAKE = {
    **{op: pointwise(op) for op in SIXTEEN},
    **{op: relaxation(op) for op in ("relax_diagonal", "relax_tridiagonal", "relax_stencil", "relax_rk")},
    "relax_mlp_sgd": mlp,
    "relax_gru": gru,
    "relax_gru_adjoint": lambda *given: gru(*given, kind="adjoint"),
    "newton_gru": lambda *given: gru(*given, kind="newton"),
    "relax_dense": dense,
    "relax_dense_adjoint": lambda *given: dense(*given, adjoint=True),
    "scan_diag": scan("scan_diag"),
    "scan_block": scan("scan_block"),
}


def test_every_op_is_here():
    assert sorted(MAKE) == OPS
    assert len(OPS) == 17


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_every_op_replays_with_its_bits(tmp_path, op, backend, monkeypatch):
    rng = np.random.default_rng(OPS.index(op))
    for dtype in (F64, F32, np.dtype("float16")) if op in SIXTEEN else (F64, F32):
        call = MAKE[op](rng, dtype, backend.like)
        with capture(op, tmp_path) as captured, np.errstate(all="ignore"):
            result = call()
        (path,) = captured.paths
        found = replay(path)
        assert found.same
        assert set(found.same) == set(found.outputs)
        assert all(found.same.values()), str(found)
        assert found.promised
        assert type(next(iter(found.outputs.values()))) is type(backend.like(np.zeros(1)))
        # What the caller got is among what was replayed: the digests are of the right arrays.
        first = result[0] if isinstance(result, tuple) else result
        expected = backend.to_numpy(first)
        assert any(
            one.shape == first.shape and same_bits(backend.to_numpy(one), expected) for one in found.outputs.values()
        )


def same_bits(got, expected):
    try:
        assert_same_bits(got, expected)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("op", ["parareal_update", "extract"])
@pytest.mark.parametrize("backend", [one for one in BACKENDS if "torch" in one.id])
def test_bfloat16(tmp_path, op, backend):
    torch = pytest.importorskip("torch")
    u = torch.randn(5, 2, 3, device=backend.device).to(torch.bfloat16)
    u[0, 0, 0] = float("nan")
    with capture(op, tmp_path) as captured:
        ops.parareal_update(u, u * 2, u * 3) if op == "parareal_update" else ops.extract(u, step=2)
    found = replay(captured.paths[0])
    assert found.ok
    assert next(iter(found.outputs.values())).dtype == torch.bfloat16


STRIDED = ("wide", "every other slice", "every third feature", "transposed", "slices backward", "one slice repeated")


@pytest.mark.parametrize("layout", STRIDED)
def test_strides_are_kept(tmp_path, layout):
    u = arrange(np.arange(60.0).reshape(5, 3, 4), layout)
    with capture("slice_norms", tmp_path) as captured:
        ops.slice_norms(u)
    place = read(captured.paths[0])[0].arguments["u"]
    assert (tuple(place.shape), tuple(place.strides)) == (u.shape, u.strides)
    assert replay(captured.paths[0]).ok


def test_views_of_one_array_stay_views_of_one_array(tmp_path):
    """``out`` is the next row of the states: in memory of its own the op would do the same, but not cost the same."""
    c = np.random.default_rng(0).standard_normal((6, 1, 3))
    g = np.zeros((5, 1, 3))
    with capture("c_relax", tmp_path) as captured:
        ops.c_relax(c[1:], g, 0.5, out=c[1:])
    saved, contents = read(captured.paths[0])
    phi, out = saved.arguments["phi"], saved.arguments["out"]
    assert (phi.block, phi.offset) == (out.block, out.offset)
    assert len(contents) == 2
    assert replay(captured.paths[0], repeats=2).ok


def test_what_is_only_written_is_not_kept(tmp_path):
    u = np.zeros((100, 1, 100))
    with capture("c_relax", tmp_path) as captured:
        ops.c_relax(u, u, 0.5)
    assert captured.paths[0].stat().st_size < 1.1 * u.nbytes
    assert replay(captured.paths[0]).ok


def test_the_calls_of_a_solve(tmp_path):
    case = {**heat(), "m": 8, "method": MGRIT(), "tol": 1e-9}
    expected = solve(**case)
    with Timeline() as timeline, capture("relax_tridiagonal", tmp_path, calls=range(2, 5)) as captured:
        solution = solve(**case)
    assert solution.u.tobytes() == expected.u.tobytes()
    assert [path.name for path in captured.paths] == [f"relax_tridiagonal.{n}.npz" for n in (2, 3, 4)]
    assert captured.called == sum(e.facts.get("op") == "relax_tridiagonal" for e in timeline.record.events)
    assert all(replay(path).ok for path in captured.paths)
    assert _core.relax_tridiagonal is traced_ops.plain("relax_tridiagonal")


def saved(tmp_path):
    u = np.random.default_rng(0).standard_normal((4, 1, 6))
    with capture("relax_stencil", tmp_path) as captured:
        ops.relax_stencil(u, np.array([0.25, 0.5, 0.25]), 3)
    return captured.paths[0]


def block_of_u(path):
    """Its name in the file; blocks are numbered by their addresses."""
    return f"block{read(path)[0].arguments['u'].block}"


def changed(path, about=None, **entries):
    with np.load(path) as file:
        whole = {name: file[name] for name in file.files}
    if about is not None:
        known = json.loads(whole["about"].tobytes())
        about(known)
        whole["about"] = np.frombuffer(json.dumps(known).encode(), np.uint8)
    file = io.BytesIO()
    np.savez(file, **{name: one for name, one in (whole | entries).items() if one is not None})
    path.write_bytes(file.getvalue())
    return path


def test_other_numbers_are_noticed(tmp_path):
    path = saved(tmp_path)
    name = block_of_u(path)
    with np.load(path) as file:
        block = file[name].copy()
    block[6] ^= 1  # a bit of one number
    found = replay(changed(path, **{name: block}))
    assert not found.ok
    assert "NOT the bits of the capture" in str(found)


def wrong(**fields):
    return lambda about: about.update(fields)


def beyond(about):
    about["arguments"]["u"]["array"]["shape"] = [4000, 1, 6]


def renamed(about):
    about["arguments"] = {name.upper(): one for name, one in about["arguments"].items()}


WRONG = {
    "another format": (wrong(format=2), "format: got 2, expected 1"),
    "no op": (wrong(op="relax_sphere"), "op: got relax_sphere of version .*, which is another one now"),
    "other arguments": (renamed, "op: got relax_stencil of version .*, which is another one now"),
    "beyond the block": (beyond, "damaged: ValueError: u: bytes"),
    "no blocks": (lambda about: about.pop("blocks"), "damaged: KeyError: 'blocks'"),
    "an output too many": (lambda about: about["outputs"][0].pop("name"), "damaged: TypeError"),
}


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_named(tmp_path, change, said):
    path = changed(saved(tmp_path), change)
    with pytest.raises(ValueError, match=rf"relax_stencil.0.npz: {said}"):
        replay(path)


def fields_of(value, path=()):
    """The way to each value in what JSON holds, and in its lists and objects."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield (*path, key)
        yield from fields_of(one, (*path, key))


@pytest.mark.parametrize("wrong", [None, -1, 1.5, "x", [2, 3], {"value": 3}], ids=repr)
def test_a_file_with_any_field_wrong_is_refused_or_still_a_call(tmp_path, wrong):
    """Another number may be as good; nothing else than ValueError may come of what is not."""
    path = saved(tmp_path)
    whole = path.read_bytes()
    with np.load(path) as file:
        about = json.loads(file["about"].tobytes())
    for way in fields_of(about):

        def change(about, way=way):
            for key in way[:-1]:
                about = about[key]
            about[way[-1]] = wrong

        path.write_bytes(whole)
        with contextlib.suppress(ValueError):
            replay(changed(path, change))


@pytest.mark.parametrize("data", [b"", b"no archive", None, "flipped"], ids=["empty", "text", "cut", "flipped"])
def test_a_damaged_file_is_named(tmp_path, data):
    path = saved(tmp_path)
    whole = path.read_bytes()
    if data == "flipped":
        data = bytearray(whole)
        data[len(whole) // 3] ^= 255
    path.write_bytes(whole[: len(whole) // 2] if data is None else data)
    with pytest.raises(ValueError, match=r"relax_stencil\.0\.npz: (not a captured call, or damaged|damaged)"):
        replay(path)


def test_a_block_that_is_missing_or_short_is_named(tmp_path):
    for entry in (None, np.zeros(3, np.uint8), np.zeros((4, 6))):
        path = saved(tmp_path)
        damaged = changed(path, **{block_of_u(path): entry})
        with pytest.raises(ValueError, match=r"relax_stencil\.0\.npz: damaged"):
            replay(damaged)


def test_a_call_that_did_not_come_is_an_error(tmp_path):
    captured = capture("slice_norms", tmp_path, calls=[0, 3])
    with pytest.raises(ValueError, match="calls: got 3, but slice_norms was called 1 times"), captured:
        ops.slice_norms(np.zeros((2, 1, 1)))
    assert len(captured.paths) == 1


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="op: got 'relax', expected one of parareal_update"):
        capture("relax", tmp_path)
    with pytest.raises(ValueError, match="calls: got -1, expected 0 or more"):
        capture("extract", tmp_path, calls=-1)
    with pytest.raises(TypeError, match=r"calls: got 0\.5"):
        capture("extract", tmp_path, calls=[0.5])
    with pytest.raises(RuntimeError, match="op: extract is surrounded already"), capture("extract", tmp_path):
        capture("extract", tmp_path).__enter__()
    path = saved(tmp_path)
    for asked, said in (
        ({"device": "tpu"}, "device: got 'tpu'"),
        ({"library": "jax"}, "library: got 'jax'"),
        ({"library": "cupy"}, "library: got 'cupy', expected numpy or torch for device='cpu'"),
        ({"repeats": 0}, "repeats: got 0, expected an int of at least 1"),
    ):
        with pytest.raises(ValueError, match=said):
            replay(path, **asked)


def test_a_c_function_is_refused_and_the_op_is_left_as_it_was(tmp_path):
    import ctypes

    from pyparareal import tableaux
    from pyparareal.slopes import SlopeFunction

    slope = SlopeFunction(ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value, 2, dtype="float64")
    said = "rhs: got a right-hand side as a C function, whose code cannot be saved"
    with pytest.raises(TypeError, match=said), capture("relax_rk", tmp_path):
        ops.relax_rk(np.zeros((2, 1, 2)), slope, (), tableaux.RK4, 0.1, 3)
    assert list(tmp_path.iterdir()) == []
    assert _core.relax_rk is traced_ops.plain("relax_rk")


@pytest.mark.skipif(lacks("torch"), reason="torch is not installed")
def test_another_library_gives_the_same_bits(tmp_path):
    path = saved(tmp_path)
    found = replay(path, library="torch")
    assert found.ok
    assert type(found.outputs["out"]).__name__ == "Tensor"
    u = np.zeros((4, 1, 6))
    with capture("slice_norms", tmp_path) as captured:
        ops.slice_norms(u[::-1])
    with pytest.raises(ValueError, match="library: got 'torch', which has no negative strides"):
        replay(captured.paths[0], library="torch")


def test_timed_replays_start_from_the_same_numbers(tmp_path):
    """``out`` is ``f_old``: without putting it back every call would add the bracket once more."""
    f, g = np.ones((2, 1, 3)), np.zeros((2, 1, 3))
    with capture("parareal_update", tmp_path) as captured:
        ops.parareal_update(f, g + 1, g, out=f)
    started_from = []

    def watch(call, out, f_old, *others):
        started_from.append(f_old[0, 0, 0])
        call(out, f_old, *others)

    traced_ops.surround("parareal_update", watch)
    try:
        found = replay(captured.paths[0], repeats=3)
    finally:
        traced_ops.leave_alone("parareal_update")
    assert started_from == [1.0] * 4
    assert len(found.samples.seconds) == 3
    np.testing.assert_array_equal(found.outputs["out"], 2)


def test_the_command(tmp_path):
    path = saved(tmp_path)
    command = [sys.executable, "-W", "error", "-m", "pyparareal.profiling.replay"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, path, "--repeats", "2"], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "relax_stencil, call 0 of cpu, again on cpu by numpy\n  out [4, 1, 6]: the bits of the capture\n" in done.stdout
    )
    assert "us a call (median of 2;" in done.stdout
    path.write_bytes(b"x")
    done = subprocess.run([*command, path], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "relax_stencil.0.npz: not a captured call" in done.stderr


def test_the_function_stays_the_function_whoever_imports_the_command():
    code = (
        "import pyparareal.profiling.replay\nimport pyparareal.profiling as p\n"
        "from pyparareal.profiling import replay\n"
        "from pyparareal.profiling.replaying import replay as own\nassert p.replay is replay is own"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
