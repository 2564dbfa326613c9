# SPDX-License-Identifier: BSD-3-Clause
"""Right-hand sides of one's own as CUDA C++, for :func:`pyparareal.ops.relax_rk` on a CUDA device.

The statements become the body of a function in the kernel that ``relax_rk`` has there, compiled by NVRTC through CuPy
for the device at hand, without contraction to fused multiply-adds: the bits are those of the same operations on the
CPU. What was compiled is kept in ``$XDG_CACHE_HOME/pyparareal`` (``~/.cache/pyparareal``), by the contents of all that
went into it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pyparareal
from pyparareal import _core
from pyparareal.slopes import DTYPES, integer
from pyparareal.traced_ops import elsewhere

Array = Any

MOST_COMPONENTS = 64  # a trajectory lives in the registers of a thread, or next to them
MOST_PARAMETERS = 64  # max_device_parameters of rk_kernel.h
_FEW_STAGES, _THREADS, _MOST_BLOCKS = 4, 128, 2**31 - 1  # rk_kernel.h
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_PARAMETER = re.compile(r"(?<!\.)(?<!->)\bp\s*\[\s*(\d+)\s*\]")  # p[2]
_OPTIONS = ("--std=c++17", "--fmad=false", "--device-as-default-execution-space", "--define-macro=NDEBUG")

_SOURCE = """\
#include "pyparareal/rk_kernel.h"

namespace pyparareal {{

using T = {number};

struct OwnRhs {{
  static constexpr int components = {components};
  const T* p;

  PYPARAREAL_HD void slope(T t, const T* u, T* du) const {{
#line 1 "{name}"
{text}
#line 1 "pyparareal"
  }}
}};

template <int most, bool own_steps>
PYPARAREAL_HD void run(const RungeKuttaArguments<T>& a) {{
  rk_own<OwnRhs, most, own_steps>(a, static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x,
                                  static_cast<int64_t>(gridDim.x) * blockDim.x);
}}

}}  // namespace pyparareal

using pyparareal::RungeKuttaArguments, pyparareal::T;
"""
_KERNEL = """\
extern "C" __global__ void __launch_bounds__(pyparareal::rk_threads) {name}(const RungeKuttaArguments<T> a) {{
  pyparareal::run<pyparareal::{most}, {own}>(a);
}}
"""


class CudaSlope:
    """``du = slope(t, u, p)`` as CUDA C++ statements, for states of ``components`` numbers.

    Parameters
    ----------
    text : str
        Statements that set ``du[0]``, ``du[1]``, ... from the time ``t``, the state ``u[0]``, ... and the parameters
        ``p[0]``, .... All are of the type ``T``, double or float like the state; a constant such as ``8.0 / 3`` is a
        double, so write ``T(8) / 3`` where the state may be float32. Functions of the CUDA math library may be called.
    components : int
        At most 64.
    parameters : int, optional
        How many it reads, at most 64: a call with another count is then refused. Without it a call must give at least
        those that the text names by number, such as ``p[2]``; beyond the ones given a parameter is zero.

    Raises
    ------
    ValueError
        If the text names a parameter beyond ``parameters``; on first use of a dtype and device, if the text does not
        compile: with the compiler's message, in which ``rhs(2)`` is the second line of the text.
    ImportError
        On first use, without CuPy.
    """

    def __init__(self, text: str, components: int, parameters: int | None = None) -> None:
        if not isinstance(text, str):
            raise TypeError(f"text: got {type(text).__name__}, expected CUDA C++ statements")
        if not text.strip():
            raise ValueError("text: got nothing, expected CUDA C++ statements")
        self.text, self.components = text, integer("components", components, 1)
        if self.components > MOST_COMPONENTS:
            raise ValueError(f"components: got {components}, expected {MOST_COMPONENTS} at most on a CUDA device")
        self.parameters = None if parameters is None else integer("parameters", parameters, 0)
        if self.parameters is not None and self.parameters > MOST_PARAMETERS:
            raise ValueError(f"parameters: got {parameters}, expected {MOST_PARAMETERS} at most on a CUDA device")
        named = [int(k) + 1 for k in _PARAMETER.findall(_COMMENT.sub(" ", text))]
        self._least_parameters = max(named, default=0)
        if self.parameters is not None and self.parameters < self._least_parameters:
            last = self._least_parameters - 1
            raise ValueError(f"text: got p[{last}], expected the {self.parameters} parameters p[0], ...")

    def __repr__(self) -> str:
        count = "" if self.parameters is None else f", {self.parameters} parameters"
        return f"CudaSlope({self.components} components{count})"

    def check_parameters(self, count: int) -> None:
        """ValueError unless the text reads so many parameters, as far as is known."""
        if self.parameters not in (None, count) or count < self._least_parameters:
            expected = self.parameters if self.parameters is not None else f"{self._least_parameters} or more"
            raise ValueError(f"parameters: got {count} numbers, expected {expected} for {self!r}")

    def source(self, dtype: str) -> str:
        """What the compiler gets, for states of this dtype."""
        if dtype not in DTYPES:
            raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
        number = {"float64": "double", "float32": "float"}[dtype]
        head = _SOURCE.format(number=number, components=self.components, name="rhs", text=self.text)
        return head + "".join(
            _KERNEL.format(name=kernel_name(few, own), most="few_stages" if few else "max_stages", own=str(own).lower())
            for few in (True, False)
            for own in (True, False)
        )

    def relax(
        self,
        out: Array | None,
        u: Array,
        parameters: Sequence[float],
        tableau: tuple[Any, Any, Any],
        dt: Any,
        m: int,
        substeps: int,
        times: Any,
        f: Array | None,
        g: Array | None,
        every: Array | None,
        target: Array | None,
        norms: Array | None,
        norm: int,
        stream: Any,
    ) -> None:
        """What :func:`pyparareal.ops.relax_rk` was asked for, on arrays of one CUDA device: one launch, and norms."""
        sides = (f, g, every, target, norms, norm, stream)
        packed, columns, device, handle = _core.rk_arguments(
            out, u, self.components, parameters, tableau, dt, m, substeps, times, *sides
        )
        if not _on_cuda(u):
            raise ValueError("rhs: got a right-hand side in CUDA C++, expected u on a CUDA device")
        if columns:
            own = not isinstance(dt, float)
            few = len(tableau[1]) <= _FEW_STAGES
            given = (out, u, None, parameters, tableau, dt, m, substeps, times, *sides)
            with elsewhere("relax_rk", given, stream):
                self._launch(kernel_name(few, own), str(u.dtype).rpartition(".")[2], packed, columns, device, handle)
            arrays = (dt if own else None, times if hasattr(times, "dtype") else None, f, g, every)
            _core.rk_launched(out, u, *arrays, stream)
        if norms is not None:
            end = out if out is not None or every is None else every[:, -1]
            _core.slice_norms(norms, end, target, norm, stream, 0)

    def _launch(self, kernel: str, dtype: str, packed: bytes, columns: int, device: int, handle: int) -> None:
        cupy = _cupy()
        with cupy.cuda.Device(device) as place:
            module = _module(self.source(dtype), place.id, place.compute_capability)
            arguments = np.frombuffer(packed, np.dtype((np.void, len(packed))))
            blocks = min(-(-columns // _THREADS), _MOST_BLOCKS)
            # A null handle is the default stream, which ExternalStream takes for the current one of CuPy.
            on = cupy.cuda.ExternalStream(handle, device) if handle else cupy.cuda.Stream.null
            module.get_function(kernel)((blocks,), (_THREADS,), (arguments,), stream=on)


def _on_cuda(u: Array) -> bool:
    # "cuda:0" of torch, "<CUDA Device 0>" of CuPy
    return str(getattr(u, "device", "cpu")).lower().strip("<").startswith("cuda")


def kernel_name(few: bool, own: bool) -> str:
    """The kernel for schemes of few stages or of all, with step sizes of their own or one."""
    return f"relax_rk_{'few' if few else 'most'}_stages{'_own_steps' if own else ''}"


def _cupy() -> Any:
    try:
        import cupy
    except ImportError:
        raise ImportError(
            "a right-hand side in CUDA C++ is compiled by CuPy, which is not installed: pip install 'pyparareal[cupy]'"
        ) from None
    return cupy


@functools.lru_cache(maxsize=256)
def _module(source: str, device: int, capability: str) -> Any:
    """The module, loaded on a device; its code from the disk where it was compiled before."""
    cupy = _cupy()
    module = cupy.cuda.Module()
    module.load(compiled(source, capability))
    return module


def cache_folder() -> Path:
    """Where compiled code is kept."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "pyparareal"


def compiled(source: str, capability: str) -> bytes:
    """The code of ``source`` for a compute capability such as ``"90"``, from the disk or of the compiler.

    A folder that cannot be written to only costs the time to compile.
    """
    path = cache_folder() / f"{_key(source, capability)}.cubin"
    with contextlib.suppress(OSError):
        return path.read_bytes()
    code = compile_source(source, capability)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when complete: another process sees all of it or nothing.
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
            part.write(code)
        os.replace(part.name, path)
    return code


def _key(source: str, capability: str) -> str:
    version = _cupy().cuda.nvrtc.getVersion()
    said = repr((source, capability, _OPTIONS, version, _headers_digest()))
    return hashlib.sha256(said.encode()).hexdigest()


@functools.lru_cache(maxsize=1)
def _headers_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(pyparareal.get_include()).rglob("*.h")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def compile_source(source: str, capability: str) -> bytes:
    """A cubin by NVRTC, or PTX of the newest architecture it knows where the device is newer."""
    nvrtc = _cupy().cuda.nvrtc
    known = [arch for arch in nvrtc.getSupportedArchs() if arch <= int(capability)]
    exact = int(capability) in known
    target = f"sm_{capability}" if exact else f"compute_{max(known)}"
    options = (*_OPTIONS, f"--gpu-architecture={target}", f"--include-path={pyparareal.get_include()}")
    program = nvrtc.createProgram(source, "pyparareal_rhs.cu", (), ())
    try:
        nvrtc.compileProgram(program, options)
        return nvrtc.getCUBIN(program) if exact else nvrtc.getPTX(program)
    except nvrtc.NVRTCError:
        raise ValueError(f"text: does not compile:\n{nvrtc.getProgramLog(program).strip()}") from None
    finally:
        nvrtc.destroyProgram(program)
