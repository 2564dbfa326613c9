# SPDX-License-Identifier: BSD-3-Clause
"""``pyparareal doctor``: what is installed, what works, and the command that mends each thing that does not."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pyparareal import reference
from pyparareal._version import __version__

NEEDED_DRIVER = 580  # the first driver branch that runs CUDA 13 programs (NVIDIA, CUDA 13 compatibility table)
TRAIN_MODULES = {
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "Pillow": "PIL",
    "safetensors": "safetensors",
    "matplotlib": "matplotlib",
}
BUILD = "in the source tree: pip install --no-build-isolation -e ."
BUILD_CUDA = f"install the CUDA toolkit 13, then {BUILD.replace('pip', 'PYPARAREAL_CUDA=1 pip')}"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report. ``ok`` is None for a plain fact; ``mend`` is the command to run where not ok."""

    name: str
    value: str
    ok: bool | None = None
    mend: str = ""
    required: bool = False


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def main(args: argparse.Namespace) -> int:
    """Print the findings; 1 if something the base package needs does not work, else 0."""
    findings = list(examine())
    healthy = all(f.ok is not False for f in findings if f.required)
    if args.json:
        print(json.dumps({"healthy": healthy, "findings": [dataclasses.asdict(f) for f in findings]}, indent=2))
        return int(not healthy)
    width = max(len(f.name) for f in findings)
    for finding in findings:
        mark = {None: " ", True: "+", False: "-"}[finding.ok]
        print(f"{mark} {finding.name:<{width}}  {finding.value}")
        if finding.ok is False and finding.mend:
            print(f"  {'':<{width}}  mend: {finding.mend}")
    return int(not healthy)


def examine() -> Iterator[Finding]:
    """Every finding, cheapest first; a broken part is a finding, never an exception."""
    yield Finding("pyparareal", f"{__version__} in {Path(__file__).parent}")
    yield Finding("python", f"{platform.python_version()} ({platform.machine()}, {platform.system()})")
    try:
        core = importlib.import_module("pyparareal._core")
    except ImportError as error:
        yield Finding("extension", f"does not load: {error}", False, BUILD, required=True)
        return
    yield from _extension(core)
    yield from _cuda(core)
    yield _library("numpy", lambda name: np.asarray, required=True)
    yield from _torch(core)
    yield from _cupy(core)
    yield from _training()


def _extension(core: Any) -> Iterator[Finding]:
    info = core.build_info()
    match = info.get("version") == __version__
    compiler = str(info.get("compiler"))
    built = f"{info.get('version')}, built with {'gcc ' * compiler[:1].isdigit()}{compiler}"
    yield Finding("extension", built if match else f"{built}: other than the package", match, BUILD, required=True)
    yield Finding("cpu kernels", f"{info.get('simd', 'one')} instructions")
    threads = f"OpenMP, {info.get('threads', '?')} threads by default (OMP_NUM_THREADS or threads= change it)"
    if info.get("openmp"):
        yield Finding("threads", threads, True)
    else:
        yield Finding("threads", "1: built without OpenMP", False, f"with a compiler that has -fopenmp, {BUILD}")


def _cuda(core: Any) -> Iterator[Finding]:
    info = core.build_info()
    if not info.get("cuda"):
        yield Finding("cuda kernels", "not built: arrays in host memory only", False, BUILD_CUDA)
        return
    archs = str(info.get("cuda_archs", "")).replace(";", ", sm_")
    yield Finding("cuda kernels", f"built for sm_{archs} with CUDA {_dotted(info['cuda_version'])}", True)
    installed, supported, built = _driver(), int(core.cuda_driver_version()), int(info["cuda_version"])
    get = f"install an NVIDIA driver >= {NEEDED_DRIVER}: https://www.nvidia.com/drivers"
    if installed is None and not supported:
        yield Finding("driver", f"none; falls back to the CPU (CUDA 13 needs driver >= {NEEDED_DRIVER})", False, get)
    elif supported // 1000 < built // 1000:  # within a major version, older drivers run newer builds
        has = f"{installed or 'unknown'}, for CUDA {_dotted(supported)}"
        text = f"{has}: too old for this build, which needs driver >= {NEEDED_DRIVER}; falls back to the CPU"
        yield Finding("driver", text, False, get)
    else:
        yield Finding("driver", f"{installed or 'unknown'}, for CUDA up to {_dotted(supported)}", True)
    count = int(core.cuda_device_count())
    yield Finding("cuda devices", str(count), count > 0, "nvidia-smi lists them; unset CUDA_VISIBLE_DEVICES")


def _dotted(version: int) -> str:
    """13.0 of 13000."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _driver() -> str | None:
    """Version of the loaded NVIDIA kernel module, from the file it publishes itself."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return None
    return next((word for word in words if word[:1].isdigit() and "." in word), None)


def _library(name: str, prepare: Callable[[str], Callable[[Any], Any]], *, required: bool = False) -> Finding:
    """Does the fused update on arrays of this library give the bits of the reference?"""
    package, _, place = name.partition(" ")
    try:
        version = f"{importlib.import_module(package).__version__}{place and ', ' + place}"
        return Finding(name, f"{version}: kernels {_compare(prepare(package))}", True, required=required)
    except Exception as error:
        # Whatever a broken installation raises is the finding.
        return Finding(name, f"{type(error).__name__}: {error}", False, f"pip install --upgrade {package}", required)


def _compare(convert: Callable[[Any], Any]) -> str:
    from pyparareal import arrays, ops

    random = np.random.default_rng(0)
    f, g, h, u = (random.standard_normal((4, 2, 33)) for _ in range(4))
    got = ops.parareal_update(*(convert(a) for a in (f, g, h, u)))
    want = reference.parareal_update(f, g, h, u)
    for ours, theirs in zip(got, want, strict=True):
        if not np.array_equal(arrays.to_numpy(ours), theirs):
            raise ArithmeticError("the kernels differ from the reference")
    return "match the reference"


def _torch(core: Any) -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        yield Finding("torch", "not installed", False, "pip install 'pyparareal[torch]'")
        return
    yield _library("torch", lambda name: importlib.import_module(name).from_numpy)
    if int(core.cuda_device_count()):
        if importlib.import_module("torch").cuda.is_available():
            yield _library("torch cuda", lambda name: lambda a: importlib.import_module(name).from_numpy(a).cuda())
        else:
            yield Finding("torch cuda", "this torch sees no device", False, "install a torch wheel with CUDA")


def _cupy(core: Any) -> Iterator[Finding]:
    if importlib.util.find_spec("cupy") is None:
        yield Finding("cupy", "not installed", False, "pip install 'pyparareal[cupy]' (useful with a GPU only)")
    elif not int(core.cuda_device_count()):
        yield Finding("cupy", "installed; not tried without a device")
    else:
        yield _library("cupy", lambda name: importlib.import_module(name).asarray)


def _training() -> Iterator[Finding]:
    missing = [name for name, module in TRAIN_MODULES.items() if importlib.util.find_spec(module) is None]
    text = f"without {', '.join(missing)}" if missing else "complete"
    yield Finding("train extra", text, not missing, "pip install 'pyparareal[train]'")
