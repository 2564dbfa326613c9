# SPDX-License-Identifier: BSD-3-Clause
"""List every CUDA source whose content has no passing GPU run in ``bench/results``; nothing if all have one.

CUDA sources are ``csrc/cuda/*.cu``, ``*.cuh``, the modules of ``pyparareal`` that hold kernels to compile at run
time, and the project headers these include. The content hash of a file covers the files it includes, so a changed
header asks for a new run of every kernel that sees it. A run passes a file if it was built, tested and sanitized at
that hash (``bench/gpu.sh``).
Exit status is always 0; ``--json`` prints the list as JSON. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("build", "tests", "memcheck", "racecheck")  # what a passing run consists of
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"]', re.MULTILINE)


def content_hashes(root: Path = ROOT) -> dict[str, str]:
    """Content hash of every CUDA source, by path relative to ``root``."""
    kernels = sorted(p for p in (root / "csrc" / "cuda").glob("*") if p.suffix in (".cu", ".cuh", ".h"))
    kernels += sorted(p for p in (root / "pyparareal").rglob("*.py") if "__global__" in p.read_text())
    files: set[Path] = set()
    for kernel in kernels:
        files |= _closure(kernel, root)
    return {p.relative_to(root).as_posix(): _hash(p, root) for p in sorted(files)}


def uncovered(root: Path = ROOT) -> list[dict[str, str]]:
    """``{source, hash, reason}`` of every CUDA source without a passing run of its present content."""
    runs = _runs(root / "bench" / "results")
    missing = []
    for source, digest in content_hashes(root).items():
        seen = [run for run in runs if run.get("sources", {}).get(source) == digest]
        if any(all(run.get("stages", {}).get(stage) is True for stage in STAGES) for run in seen):
            continue
        failed = sorted({s for run in seen for s in STAGES if run.get("stages", {}).get(s) is not True})
        reason = f"run failed: {', '.join(failed)}" if seen else "no GPU run of this content"
        missing.append({"source": source, "hash": digest, "reason": reason})
    return missing


def main(argv: list[str]) -> int:
    """Print the ledger."""
    if unknown := [a for a in argv if a != "--json"]:
        print(f"gpu_ledger.py: got {unknown[0]!r}, expected no argument or --json", file=sys.stderr)
    missing = uncovered()
    if "--json" in argv:
        print(json.dumps(missing, indent=1))
    else:
        for entry in missing:
            print(f"{entry['source']}  {entry['hash'][:12]}  {entry['reason']}")
    return 0


def _closure(path: Path, root: Path) -> set[Path]:
    """The file and every project file it includes, however deep."""
    found, waiting = set(), [path]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += _included(current, root)
    return found


def _included(path: Path, root: Path) -> list[Path]:
    """Project files named by the include lines of ``path``; vendored and system headers are not ours."""
    csrc = root / "csrc"
    found = []
    for name in INCLUDE.findall(path.read_text()):
        for folder in (path.parent, csrc / "include", csrc, root):
            candidate = (folder / name).resolve()
            if candidate.is_file() and candidate.is_relative_to(csrc.resolve()):
                found.append(candidate)
                break
    return [p for p in found if "third_party" not in p.relative_to(csrc.resolve()).parts]


def _hash(path: Path, root: Path) -> str:
    digest = hashlib.sha256()
    for part in sorted(_closure(path, root)):
        digest.update(
            f"{part.relative_to(root).as_posix()}\0{hashlib.sha256(part.read_bytes()).hexdigest()}\n".encode()
        )
    return digest.hexdigest()


def _runs(folder: Path) -> list[dict[str, object]]:
    """Every readable ``gpu_run`` record; other JSON files there are results of cases."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            print(f"{path.name}: not readable as JSON, ignored", file=sys.stderr)
            continue
        if isinstance(content, dict) and content.get("kind") == "gpu_run":
            found.append(content)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
