# SPDX-License-Identifier: BSD-3-Clause
"""Builds ``pyparareal._core`` (C++, with CUDA when nvcc is found) and ``pyparareal.cy_ops`` (Cython).

Neither torch nor NumPy is needed to build. Everything declarative is in pyproject.toml.
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pybind11
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, SetupError

ROOT = Path(__file__).resolve().parent
LINUX = sys.platform.startswith("linux")


def switch(name, default, pattern, expected):
    value = os.environ.get(name, "").strip() or default
    if not re.fullmatch(pattern, value):
        raise SetupError(f"{name}: got {value!r}, expected {expected}")
    return value


@dataclass(frozen=True)
class Switches:
    """The environment switches, read once."""

    cuda: str
    archs: tuple
    debug: bool
    jobs: int
    objects: Path

    @classmethod
    def parse(cls):
        archs = switch("PYPARAREAL_CUDA_ARCHS", "80;90;100", r"[0-9]{2,3}(;[0-9]{2,3})*", "numbers such as '80;90;100'")
        return cls(
            cuda=switch("PYPARAREAL_CUDA", "auto", "auto|0|1", "auto, 0 or 1"),
            archs=tuple(sorted(set(archs.split(";")), key=int)),
            debug=switch("PYPARAREAL_DEBUG", "0", "0|1", "0 or 1") == "1",
            jobs=int(switch("MAX_JOBS", str(os.cpu_count() or 1), "[1-9][0-9]*", "a positive integer")),
            objects=Path(switch("PYPARAREAL_OBJECTS", str(ROOT / "build" / "obj"), "/.*", "an absolute path")),
        )


def find_nvcc(wanted):
    """Path of nvcc, or None: built without CUDA."""
    homes = [os.environ[name] + "/bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = next(filter(None, (shutil.which("nvcc", path=path) for path in [*homes, os.environ.get("PATH")])), None)
    if wanted == "1" and nvcc is None:
        raise SetupError("PYPARAREAL_CUDA: got 1, expected nvcc in $CUDA_HOME/bin, $CUDA_PATH/bin or $PATH, found none")
    return nvcc if wanted != "0" else None


def toolkit_root(nvcc):
    # nvcc may be a wrapper script elsewhere, so ask it where it lives instead of trusting its path.
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.+)$", dry.stderr, re.MULTILINE)
    if not top:
        raise SetupError(f"{nvcc}: got no TOP= line from --dryrun, expected a CUDA toolkit:\n{dry.stderr}")
    return Path(top[1].strip()).resolve()


class BuildExt(build_ext):
    """Compiles in parallel; an object is rebuilt when its command, its source or any header it read has changed."""

    def run(self):
        self.on = Switches.parse()
        self.nvcc = find_nvcc(self.on.cuda)
        super().run()

    def build_extension(self, ext):
        on = self.on
        nvcc = self.nvcc if any(s.endswith(".cu") for s in ext.sources) else None
        sources = [s for s in ext.sources if nvcc or not s.endswith(".cu")]
        if any(s.endswith(".pyx") for s in sources):
            sources = cythonize([ext], build_dir="build/cython")[0].sources
        include = ["csrc/include", "csrc/third_party", pybind11.get_include(), sysconfig.get_path("include")]
        defines = {
            "PYPARAREAL_WITH_CUDA": int(bool(nvcc)),
            "PYPARAREAL_CUDA_ARCHS": '"%s"' % (";".join(on.archs) if nvcc else ""),
            "PYPARAREAL_VERSION": f'"{self.distribution.get_version()}"',
        }
        common = [f"-I{path}" for path in include] + [f"-D{key}={value}" for key, value in defines.items()]
        level = ["-O0", "-g"] if on.debug else ["-O3", "-DNDEBUG"]
        # -ffp-contract=off and -fmad=false: the exactness theorems are bitwise, so a*b+c is fused only where written.
        host = [*level, "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", *(["-fopenmp"] if LINUX else [])]
        cxx = shlex.split(os.environ.get("CXX", "c++"))
        cxxflags = shlex.split(os.environ.get("CXXFLAGS", ""))
        commands = {
            ".c": [*shlex.split(os.environ.get("CC", "cc")), *host],
            ".cpp": [*cxx, "-std=c++17", *host, "-Wall", "-Wextra", *cxxflags],
        }
        libraries, folders = [], []
        if nvcc:
            gencode = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in on.archs]
            gencode += [f"-gencode=arch=compute_{on.archs[-1]},code=compute_{on.archs[-1]}"]
            device = [nvcc, "-std=c++17", "-lineinfo", "-fmad=false", *gencode, *level]
            commands[".cu"] = [*device, "-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall"]
            root = toolkit_root(nvcc)
            common.append(f"-I{root}/include")
            folders = [str(d) for d in (root / "lib64", root / "targets/x86_64-linux/lib") if d.is_dir()]
            libraries = ["cudart_static", "dl", "rt", "pthread"]
        with ThreadPoolExecutor(on.jobs) as pool:
            objects = list(pool.map(lambda s: self.compile([*commands[Path(s).suffix], *common], s), sources))
        record = Path(self.build_temp, f"{ext.name}.objects")
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text("".join(f"{obj}\n" for obj in objects))
        # A hidden copy of the static CUDA runtime and C++ helpers cannot clash with another package's.
        link = ["-fopenmp", "-Wl,--exclude-libs,ALL"] if LINUX else []
        target = self.get_ext_fullpath(ext.name)
        self.compiler.link_shared_object(
            objects,
            target,
            libraries=libraries,
            library_dirs=folders,
            extra_postargs=[*link, *cxxflags],
            target_lang="c++",
        )

    def compile(self, command, source):
        name = hashlib.sha256(shlex.join([*command, source]).encode()).hexdigest()[:16]
        obj = self.on.objects / f"{Path(source).stem}-{name}.o"
        record = obj.with_suffix(".d")
        if obj.exists() and record.exists():
            read = re.sub(r"\\\n", " ", record.read_text().split(": ", 1)[1]).split()
            if all(os.path.exists(p) and os.path.getmtime(p) < obj.stat().st_mtime for p in [source, *read]):
                return str(obj)
        obj.parent.mkdir(parents=True, exist_ok=True)
        begin = time.time()
        done = subprocess.run([*command, "-MMD", "-MF", str(record), "-c", source, "-o", str(obj)], cwd=ROOT)
        if done.returncode:
            obj.unlink(missing_ok=True)
            raise CompileError(f"failed: {shlex.join(command)} -c {source}")
        os.utime(obj, (begin, begin))  # a source edited during the compilation is newer than its object
        return str(obj)


class BuildPy(build_py):
    """Adds ``csrc/include`` as ``pyparareal/include``: copied into a wheel, linked for an editable install."""

    def run(self):
        super().run()
        if self.editable_mode:
            link = ROOT / "pyparareal" / "include"
            if not link.is_symlink():
                link.symlink_to("../csrc/include")
        else:
            shutil.copytree(ROOT / "csrc/include", Path(self.build_lib, "pyparareal/include"), dirs_exist_ok=True)


def files(*patterns):
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))


core = files("csrc/*.cpp", "csrc/bindings/*.cpp", "csrc/cpu/*.cpp", "csrc/cuda/*.cu")
modules = [
    Extension("pyparareal._core", core),
    *(Extension("pyparareal.cy_ops", [p]) for p in files("pyparareal/*.pyx")),
]
setup(ext_modules=modules, cmdclass={"build_ext": BuildExt, "build_py": BuildPy})
