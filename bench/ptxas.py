# SPDX-License-Identifier: BSD-3-Clause
"""What ptxas says of every CUDA kernel: registers, spills, shared memory. ``bench/ptxas.py [--arch 90] [--all]``.

Compiles each ``csrc/cuda/*.cu`` with ``-Xptxas -v``, one at a time, and writes ``bench/results/ptxas_sm<arch>.json``. A
source whose content hash (:mod:`bench.gpu_ledger`, headers included) and compiler are those of the file is not compiled
again, unless ``--all`` asks for it. ``--stale`` compiles nothing and lists the sources that would be. Prints a table.

No GPU is needed, and none of this says how fast a kernel is. Dynamic shared memory is asked for at launch, so ptxas
does not know it. Exit status: 0, also with ``--stale``; 1 if a source did not compile or there is no nvcc.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script: bench is the one beside it, pyparareal an installed one first
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import bench  # noqa: F401

    sys.path.append(sys.path.pop(0))

from bench import gpu_ledger, machine, run

ROOT = Path(__file__).resolve().parents[1]
# The device flags of setup.py.
FLAGS = ("-std=c++17", "-lineinfo", "-fmad=false", "-O3", "-DNDEBUG", "-DPYPARAREAL_WITH_CUDA=1")
INCLUDES = ("-Icsrc/include", "-Icsrc/third_party")

# One multiprocessor of sm_80, sm_90 and sm_100 alike: 65536 registers, handed out to warps in units of 256, 64 warps.
REGISTERS, UNIT, MOST_WARPS = 65536, 256, 64

MOST_LINES = 12  # of a compiler that complains: what follows from the first error

ENTRY = re.compile(r"Compiling entry function '([^']+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?used (\d+) barriers)?(?:.*?(\d+) bytes smem)?")


@dataclass
class Kernel:
    """One entry function; bytes, but for ``registers`` of a thread, ``barriers`` and ``warps``.

    ``warps`` is how many a multiprocessor has registers for, of 64.
    """

    kernel: str
    registers: int = 0
    warps: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    stack: int = 0
    static_shared: int = 0
    barriers: int = 0


def main(argv: list[str] | None = None) -> int:
    """Compile what changed, write the file, print the table."""
    args = _parser().parse_args(argv)
    path = ROOT / "bench" / "results" / f"ptxas_sm{args.arch}.json"
    old = _read(path)
    hashes = {name: digest for name, digest in gpu_ledger.content_hashes(ROOT).items() if name.endswith(".cu")}
    nvcc = find_nvcc()
    compiler = version_of(nvcc) if nvcc else old.get("nvcc", "")
    stale = [name for name, digest in hashes.items() if _kept(old, compiler, name, digest) is None or args.all]
    if args.stale:
        print("\n".join(stale), end="\n" if stale else "")
        return 0
    if stale and not nvcc:
        print("ptxas.py: no nvcc in $CUDA_HOME/bin, $CUDA_PATH/bin or $PATH", file=sys.stderr)
        return 1
    sources, failed = {}, []
    for name, digest in hashes.items():
        if name in stale:
            found = compile_one(str(nvcc), name, args.arch)
            failed += [name] if found is None else []
        else:
            found = old["sources"][name]["kernels"]
        if found is not None:
            sources[name] = {"hash": digest, "kernels": found}
    command = " ".join(["nvcc", *FLAGS, f"-arch=sm_{args.arch}", *INCLUDES, "-cubin -Xptxas -v", "SOURCE"])
    record = {"kind": "ptxas", "command": command, "nvcc": compiler, "arch": args.arch, "commit": machine.commit()}
    run.write_json(path, record | {"sources": sources})
    print(table(sources), end="")
    return 1 if failed else 0


def find_nvcc() -> str | None:
    """Where ``setup.py`` looks: $CUDA_HOME/bin, $CUDA_PATH/bin, $PATH."""
    homes = [os.environ[name] + "/bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    return next(filter(None, (shutil.which("nvcc", path=path) for path in [*homes, os.environ.get("PATH")])), None)


def version_of(nvcc: str) -> str:
    """For instance ``13.0.88``."""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\bV(\d+(?:\.\d+)+)", said)
    return found[1] if found else "unknown"


def compile_one(nvcc: str, source: str, arch: str) -> list[dict[str, Any]] | None:
    """The kernels of one source, sorted by name; None, and the compiler's first words, if it does not compile."""
    command = [nvcc, *FLAGS, f"-arch=sm_{arch}", *INCLUDES, "-cubin", "-o", os.devnull, "-Xptxas", "-v", source]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        said = "\n".join(done.stderr.splitlines()[:MOST_LINES])
        print(f"{source}: does not compile\n{said}", file=sys.stderr)
        return None
    return [asdict(kernel) for kernel in parse(done.stderr)]


def parse(said: str) -> list[Kernel]:
    """The entry functions in ptxas's output, sorted by their readable names."""
    found: list[Kernel] = []
    for line in said.splitlines():
        if entry := ENTRY.search(line):
            found.append(Kernel(entry[1]))
        elif not found:
            continue
        elif frame := FRAME.search(line):
            kernel = found[-1]
            kernel.stack, kernel.spill_stores, kernel.spill_loads = (int(n) for n in frame.groups())
        elif used := USED.search(line):
            kernel = found[-1]
            kernel.registers, kernel.barriers, kernel.static_shared = (int(n or 0) for n in used.groups())
            kernel.warps = warps_for(kernel.registers)
    for kernel, name in zip(found, readable([kernel.kernel for kernel in found]), strict=True):
        kernel.kernel = name
    return sorted(found, key=lambda kernel: kernel.kernel)


def warps_for(registers: int) -> int:
    """Warps a multiprocessor has registers for: ``32 registers`` each, rounded up to a unit."""
    each = -(-32 * registers // UNIT) * UNIT
    return min(MOST_WARPS, REGISTERS // each) if each else MOST_WARPS


def readable(mangled: list[str]) -> list[str]:
    """``copy_kernel<unsigned short, false>``; what it was where there is no ``c++filt``."""
    filt = shutil.which("c++filt")
    if not filt or not mangled:
        return mangled
    done = subprocess.run([filt], input="\n".join(mangled), capture_output=True, text=True, check=False)
    names = done.stdout.splitlines()
    return [_short(name) for name in names] if len(names) == len(mangled) else mangled


def _short(name: str) -> str:
    """Without return type, namespaces and parameters."""
    for part in ("(anonymous namespace)::", "pyparareal::cuda::", "pyparareal::"):
        name = name.replace(part, "")
    name = name.removeprefix("void ")
    depth = 0
    for at, letter in enumerate(name):  # the parameters begin at the first parenthesis outside the template's brackets
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            return name[:at]
    return name


def table(sources: dict[str, Any]) -> str:
    """One line per source, and one per kernel that spills."""
    text = f"{'source':40} {'kernels':>7} {'registers':>12} {'warps':>8} {'static shared':>14} {'spilling':>9}\n"
    for name, entry in sources.items():
        kernels = entry["kernels"]
        if not kernels:
            text += f"{name:40} {0:7}\n"
            continue
        registers, warps = ([kernel[key] for kernel in kernels] for key in ("registers", "warps"))
        spilling = [kernel for kernel in kernels if kernel["spill_stores"] or kernel["spill_loads"]]
        shared = max(kernel["static_shared"] for kernel in kernels)
        text += f"{name:40} {len(kernels):7} {min(registers):5} to {max(registers):3} {min(warps):2} to {max(warps):2}"
        text += f" {shared:14} {len(spilling):9}\n"
        for kernel in spilling:
            bytes_of = f"{kernel['spill_stores']} bytes stored, {kernel['spill_loads']} loaded"
            text += f"    {kernel['kernel']}: {bytes_of}\n"
    return text


def _kept(old: dict[str, Any], compiler: str, name: str, digest: str) -> list[Any] | None:
    """The kernels on file, if they are those of this content and compiler."""
    entry = old.get("sources", {}).get(name, {})
    same = entry.get("hash") == digest and old.get("nvcc") == compiler
    return entry.get("kernels") if same else None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and content.get("kind") == "ptxas" else {}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/ptxas.py", description="Registers, spills and shared memory.")
    parser.add_argument("--arch", default="90", help="compute capability without the dot (default: 90)")
    parser.add_argument("--all", action="store_true", help="compile every source again")
    parser.add_argument("--stale", action="store_true", help="only list the sources whose record is not of now")
    return parser


if __name__ == "__main__":
    sys.exit(main())
