# SPDX-License-Identifier: BSD-3-Clause
"""Right-hand sides in CUDA C++: what NVRTC would get, compiled for the host and run thread by thread, gives the bits of
the reference; nvcc and NVRTC, where there are any, take it; and the cache on the disk."""

import ctypes
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from ops_backends import BACKENDS, assert_same_bits
from own_slopes import COMPONENTS, DTYPES, PARAMETERS, PYTHON, TEXT, compiler, numpy_slope, states

import pyparareal
from pyparareal import _core, cuda_slopes, ops, reference, tableaux
from pyparareal.cuda_slopes import CudaSlope
from pyparareal.reference import UniformTimes

ROOT = Path(__file__).resolve().parents[1]
KERNELS = [cuda_slopes.kernel_name(few, own) for few in (True, False) for own in (True, False)]
GPU = [backend for backend in BACKENDS if any(mark.name == "gpu" for mark in backend.marks)]

HOST = """
extern "C" void host_{name}(const void* arguments, unsigned blocks, unsigned threads) {{
  const auto& a = *static_cast<const RungeKuttaArguments<T>*>(arguments);
  emulate_launch(blocks, threads, 0, [&] {{ {name}(a); }});
}}
"""


class Nvrtc:
    """The part of ``cupy.cuda.nvrtc`` in use, with the host's compiler behind it."""

    NVRTCError = RuntimeError

    def __init__(self, folder):
        self.folder, self.compiled, self.options = folder, 0, None

    def getVersion(self):
        return 13, 0

    def getSupportedArchs(self):
        return 80, 90

    def createProgram(self, source, name, headers, names):
        assert (headers, names) == ((), ())
        return {"source": source}

    def compileProgram(self, program, options):
        self.compiled += 1
        self.options = options
        source, library = self.folder / f"own{self.compiled}.cpp", self.folder / f"own{self.compiled}.so"
        source.write_text(program["source"] + "".join(HOST.format(name=name) for name in KERNELS))
        include = [f"-I{pyparareal.get_include()}", "-include", str(ROOT / "tests/cpp/emulate_cuda.h")]
        flags = ["-std=c++17", "-O0", "-ffp-contract=off", "-fPIC", "-shared"]
        command = [*compiler("CXX", "c++"), *flags, *include, str(source), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True)
        program["log"] = done.stderr
        if done.returncode:
            raise RuntimeError("NVRTC_ERROR_COMPILATION (6)")
        program["code"] = library.read_bytes()

    def getCUBIN(self, program):
        return program["code"]

    getPTX = getCUBIN

    def getProgramLog(self, program):
        return program["log"]

    def destroyProgram(self, program):
        program.clear()


class Module:
    """``cupy.cuda.Module`` of a library for the host; remembers its launches."""

    count, launches = 0, []

    def load(self, code):
        Module.count += 1
        path = Nvrtc.place / f"module{Module.count}.so"
        path.write_bytes(code)
        self.library = ctypes.CDLL(str(path))

    def get_function(self, name):
        def launch(grid, block, arguments, stream):
            (packed,) = arguments
            assert packed.size == 1
            Module.launches.append((name, grid, block, stream))
            getattr(self.library, f"host_{name}")(ctypes.c_void_p(packed.ctypes.data), grid[0], block[0])

        return launch


class Device:
    compute_capability = "90"

    def __init__(self, number):
        self.id = number

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


@pytest.fixture
def host(monkeypatch, tmp_path):
    """The host in place of a device; returns the compiler."""
    if not (ROOT / "tests/cpp/emulate_cuda.h").exists():
        pytest.skip("no C++ sources: the tests run outside the source tree")
    nvrtc = Nvrtc(tmp_path)
    Nvrtc.place = tmp_path
    stream = types.SimpleNamespace(null="null stream")
    cuda = types.SimpleNamespace(nvrtc=nvrtc, Device=Device, Module=Module, Stream=stream, ExternalStream=None)
    monkeypatch.setattr(cuda_slopes, "_cupy", lambda: types.SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(cuda_slopes, "_on_cuda", lambda u: True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cuda_slopes._module.cache_clear()
    Module.launches.clear()
    yield nvrtc
    cuda_slopes._module.cache_clear()


def cases(name, dtype, rng):
    """Arguments of both functions that between them take every way through the kernels."""
    schemes = (tableaux.EULER, tableaux.RK4, tableaux.COOPER_VERNER_8, tableaux.MIDPOINT)
    for i, (tableau, shape, m) in enumerate(zip(schemes, [(5,), (3, 2), (130,), (1,)], (3, 2, 2, 4), strict=True)):
        for own in (True, False):
            u = states(rng, name, shape, dtype)
            dt = 0.02 * (0.5 + rng.random((shape[0], m))) if own else 0.01
            uniform = UniformTimes(0.5, 2.0, 2000, 3, 5)
            keywords = {"times": uniform if i % 2 else rng.random((shape[0], m)), "substeps": 1 + i % 3}
            sides = "fg"[: i % 3]
            keywords |= {key: rng.standard_normal((shape[0], m, *u.shape[1:])).astype(dtype) for key in sides}
            yield u, PARAMETERS[name], tableau, dt, m, keywords


@pytest.mark.no_sanitize
@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_the_reference_on_the_host(host, name, dtype):
    rng, rhs = np.random.default_rng(1), CudaSlope(TEXT[name], COMPONENTS[name])
    names = set()
    for u, *positional, keywords in cases(name, dtype, rng):
        m = positional[-1]
        every, expected_every = (np.full((len(u), m, *u.shape[1:]), 7, u.dtype) for _ in range(2))
        out = np.full_like(u, 7)
        ops.relax_rk(u, rhs, *positional, every=every, out=out, **keywords)
        expected = reference.relax_rk(u, numpy_slope(name), *positional, every=expected_every, **keywords)
        assert_same_bits(out, expected)
        assert_same_bits(every, expected_every)
        last, grid, block, stream = Module.launches[-1]
        names.add(last)
        columns = u.size // u.shape[-1]
        assert (grid, block, stream) == ((-(-columns // 128),), (128,), "null stream")
    assert names == set(KERNELS)
    assert host.compiled == 1  # once for all schemes
    assert {"--fmad=false", "--gpu-architecture=sm_90"} <= set(host.options)


@pytest.mark.no_sanitize
def test_some_states_kept_and_norms_after_the_launch(host):
    rng, rhs = np.random.default_rng(4), CudaSlope(TEXT["forced"], 2)
    u = states(rng, "forced", (9,), "float64")
    call = (PARAMETERS["forced"], tableaux.RK4, 0.1, 6)
    for given in ("out", "every"):
        found = []
        for module, own in ((ops, rhs), (reference, numpy_slope("forced"))):
            every, norms = np.full((9, 3, 2), 7.0), np.full(9, 7.0)
            more = {"times": np.ones((9, 6)), "target": u, "norms": norms}
            end = module.relax_rk(u, own, *call, **more, **({"every": every} if given == "every" else {}))
            found.append((every if given == "every" else end, norms))
        assert_same_bits(found[0][0], found[1][0])
        assert_same_bits(found[0][1], found[1][1])


@pytest.mark.no_sanitize
def test_strided_views_in_place(host):
    rng, rhs = np.random.default_rng(2), CudaSlope(TEXT["lorenz"], 3)
    memory = np.full((7, 8, 6), 7.0)
    view = memory[:, ::2, ::2]
    view[...] = states(rng, "lorenz", (7, 4), "float64")
    expected = reference.relax_rk(view.copy(), "lorenz", PARAMETERS["lorenz"], tableaux.RK4, 0.01, 3)
    assert ops.relax_rk(view, rhs, PARAMETERS["lorenz"], tableaux.RK4, 0.01, 3, out=view) is view
    assert_same_bits(np.ascontiguousarray(view), expected)
    assert (memory[:, 1::2] == 7).all()
    assert (memory[..., 1::2] == 7).all()


@pytest.mark.no_sanitize
def test_code_is_compiled_once_and_kept(host, tmp_path, monkeypatch):
    rhs, arguments = CudaSlope("du[0] = p[0] * u[0];", 1), ((-2.0,), tableaux.EULER, 0.5, 1)
    u = np.ones((3, 1))
    folder = tmp_path / "cache" / "pyparareal"

    def step(rhs=rhs, u=u, parameters=arguments[0]):
        return ops.relax_rk(u, rhs, parameters, *arguments[1:])[0, 0]

    assert step() == 0.0
    assert [path.suffix for path in folder.iterdir()] == [".cubin"]  # and no part of one
    assert step(parameters=(2.0,)) == 2.0
    assert host.compiled == 1  # parameters are arguments
    cuda_slopes._module.cache_clear()  # as in another process
    assert step() == 0.0
    assert host.compiled == 1
    assert step(u=u.astype("float32")) == 0.0
    assert step(CudaSlope("du[0] = p[0] * u[0] ;", 1)) == 0.0
    assert host.compiled == 3
    assert len(list(folder.iterdir())) == 3
    # Other headers, another compiler or another device: other code.
    source = rhs.source("float64")
    keys = {cuda_slopes._key(source, "90"), cuda_slopes._key(source, "80"), cuda_slopes._key(source + " ", "90")}
    monkeypatch.setattr(cuda_slopes, "_headers_digest", lambda: "other")
    keys.add(cuda_slopes._key(source, "90"))
    monkeypatch.setattr(Nvrtc, "getVersion", lambda self: (13, 1))
    keys.add(cuda_slopes._key(source, "90"))
    assert len(keys) == 5
    # Where nothing can be written it is compiled every time.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cuda_slopes._module.cache_clear()
    assert step() == 0.0
    assert host.compiled == 4


@pytest.mark.no_sanitize
def test_text_that_does_not_compile(host):
    rhs = CudaSlope("du[0] = u[0];\ndu[1] = speed;", 2)
    with pytest.raises(ValueError, match=r"^text: does not compile:\n(?s:.)*rhs:2:.*speed"):
        ops.relax_rk(np.ones((3, 2)), rhs, (), tableaux.EULER, 0.5, 1)
    assert not (cuda_slopes.cache_folder()).exists()


def test_a_newer_device_gets_ptx(host):
    host.getCUBIN = None
    assert cuda_slopes.compile_source(CudaSlope("du[0] = u[0];", 1).source("float64"), "103")
    assert "--gpu-architecture=compute_90" in host.options


@pytest.mark.parametrize("dtype", DTYPES)
def test_arguments_fit_a_launch(dtype):
    # 4 KiB on every architecture and driver.
    packed, columns, device, stream = _core.rk_arguments(
        None, np.ones((3, 4, 2), dtype), 2, (), ((((),), (1.0,), (0.0,))), 0.1, 1, 1, None, None, None,
        np.ones((3, 1, 4, 2), dtype), None, None, 0, None
    )  # fmt: skip
    assert len(packed) <= 4096
    assert (columns, device, stream) == (12, 0, 0)


def test_mistakes():
    with pytest.raises(TypeError, match=r"^text: got int, expected CUDA C\+\+ statements$"):
        CudaSlope(1, 3)
    with pytest.raises(ValueError, match=r"^text: got nothing"):
        CudaSlope(" \n", 3)
    with pytest.raises(ValueError, match=r"^components: got 65, expected 64 at most on a CUDA device$"):
        CudaSlope("du[0] = u[0];", 65)
    rhs, u = CudaSlope(TEXT["lorenz"], 3), np.ones((4, 3))

    def call(state=u, parameters=PARAMETERS["lorenz"], **keywords):
        ops.relax_rk(state, rhs, parameters, tableaux.RK4, 0.1, 2, **keywords)

    with pytest.raises(ValueError, match=r"^u: got shape \[4, 2\], expected 3 components on the last axis$"):
        call(np.ones((4, 2)))
    with pytest.raises(TypeError, match=r"^u: got dtype float16, expected float64 or float32"):
        call(np.ones((4, 3), "f2"))
    with pytest.raises(ValueError, match=r"^parameters: got 65 numbers, expected 64 at most$"):
        call(parameters=(1.0,) * 65)
    with pytest.raises(ValueError, match=r"^times: got shape \[4\], expected \[4, 2\], slices and m$"):
        call(times=np.ones(4))
    with pytest.raises(ValueError, match=r"^rhs: got a right-hand side in CUDA C\+\+, expected u on a CUDA device$"):
        call()
    with pytest.raises(ValueError, match=r"^dtype: got 'float16', expected one of float64, float32$"):
        rhs.source("float16")


def test_parameters_beyond_those_given():
    u = np.ones((4, 3))

    def call(rhs, parameters):
        ops.relax_rk(u, rhs, parameters, tableaux.RK4, 0.1, 2)

    lorenz = CudaSlope(TEXT["lorenz"], 3)
    for count in (0, 1, 2):
        message = rf"^parameters: got {count} numbers, expected 3 or more for CudaSlope\(3 components\)$"
        with pytest.raises(ValueError, match=message):
            call(lorenz, PARAMETERS["lorenz"][:count])
    declared = CudaSlope("for (int i = 0; i < 3; ++i) du[i] = p[i] * u[i];", 3, 3)
    for given in ((), (1.0,) * 2, (1.0,) * 4):
        message = rf"^parameters: got {len(given)} numbers, expected 3 for CudaSlope\(3 components, 3 parameters\)$"
        with pytest.raises(ValueError, match=message):
            call(declared, given)
    with pytest.raises(TypeError, match=r"^parameters: got float, expected a sequence of floats$"):
        call(declared, 1.0)
    with pytest.raises(ValueError, match=r"^text: got p\[2\], expected the 2 parameters p\[0\], ...$"):
        CudaSlope(TEXT["lorenz"], 3, 2)
    for count, error, message in (
        (-1, ValueError, "^parameters: got -1, expected 0 or more$"),
        (65, ValueError, "^parameters: got 65, expected 64 at most on a CUDA device$"),
        (True, TypeError, "^parameters: got bool, expected an int$"),
        (2.0, TypeError, "^parameters: got float, expected an int$"),
    ):
        with pytest.raises(error, match=message):
            CudaSlope("du[0] = 0;", 1, count)
    # What is not the parameters: other arrays, members, comments.
    assert CudaSlope("T up[3]; s.p[4]; s->p[5]; /* p[6]\n p[7] */ du[0] = up[2] + p[ 1 ]; // p[8]", 1, 2)


def test_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(cuda_slopes, "_on_cuda", lambda u: True)
    with pytest.raises(ImportError, match=r"by CuPy, which is not installed: pip install 'pyparareal\[cupy\]'$"):
        ops.relax_rk(np.ones((4, 3)), CudaSlope(TEXT["lorenz"], 3), PARAMETERS["lorenz"], tableaux.RK4, 0.1, 2)


@pytest.mark.no_sanitize
def test_nvcc_takes_the_source(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not found")
    (tmp_path / "own.cu").write_text(CudaSlope(TEXT["forced"], 2).source("float64"))
    command = ["nvcc", "-std=c++17", "-fmad=false", "-arch=sm_90", f"-I{pyparareal.get_include()}", "-cubin", "own.cu"]
    done = subprocess.run([*command, "-Xptxas", "-v"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spills = dict(re.findall(r"entry function '(\w+)'(?s:.)*?(\d+) bytes spill stores", done.stderr))
    assert set(spills) == set(KERNELS)
    assert {spills[kernel] for kernel in KERNELS if "few" in kernel} == {"0"}


def nvrtc_or_skip():
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except Exception as error:
        pytest.skip(f"no NVRTC behind CuPy: {type(error).__name__}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_nvrtc_takes_the_source(dtype):
    nvrtc_or_skip()
    for name, text in TEXT.items():
        code = cuda_slopes.compile_source(CudaSlope(text, COMPONENTS[name]).source(dtype), "90")
        assert all(kernel.encode() in code for kernel in KERNELS)
    with pytest.raises(ValueError, match=r'^text: does not compile:\nrhs\(2\): error: identifier "speed"'):
        cuda_slopes.compile_source(CudaSlope("du[0] = u[0];\ndu[1] = speed;", 2).source(dtype), "90")


@pytest.mark.parametrize("backend", GPU)
@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_the_reference_on_a_device(backend, name, dtype):
    pytest.importorskip("cupy")
    rng, rhs = np.random.default_rng(1), CudaSlope(TEXT[name], COMPONENTS[name])
    for u, *positional, keywords in cases(name, dtype, rng):
        expected = reference.relax_rk(u, numpy_slope(name), *positional, **keywords)
        moved = [backend.like(x) if isinstance(x, np.ndarray) else x for x in (u, *positional)]
        more = {key: backend.like(x) if isinstance(x, np.ndarray) else x for key, x in keywords.items()}
        assert_same_bits(backend.to_numpy(ops.relax_rk(moved[0], rhs, *moved[1:], **more)), expected)


@pytest.mark.gpu
def test_on_a_stream_of_the_caller():
    torch = pytest.importorskip("torch")
    pytest.importorskip("cupy")
    rhs, stream = CudaSlope(TEXT["lorenz"], 3), torch.cuda.Stream()
    u = states(np.random.default_rng(3), "lorenz", (1000,), "float64")
    expected = reference.relax_rk(u, "lorenz", PARAMETERS["lorenz"], tableaux.RK4, 0.01, 50)
    call = (PARAMETERS["lorenz"], tableaux.RK4, 0.01, 50)
    on_device = torch.from_numpy(u).cuda()
    torch.cuda.synchronize()
    named = ops.relax_rk(on_device, rhs, *call, stream=stream.cuda_stream)
    stream.synchronize()
    assert_same_bits(named.cpu().numpy(), expected)
    with torch.cuda.stream(stream):
        current = ops.relax_rk(on_device, rhs, *call)
    stream.synchronize()
    assert_same_bits(current.cpu().numpy(), expected)
    assert set(PYTHON) == set(TEXT)
