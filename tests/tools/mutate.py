# SPDX-License-Identifier: BSD-3-Clause
"""Mutation check: flip one sign, comparison or index of a kernel or method, and some fast test must fail.

Every mutant is one token of one file of ``TARGETS`` replaced by another; it is built and tested in a scratch copy of
the tree. A survivor is a gap in the tests (exit status 1) unless ``mutants_equivalent.py`` says why no test can see it.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from mutants_equivalent import EQUIVALENT
from mutants_of import Mutant, mutants_of

ROOT = Path(__file__).resolve().parents[2]
KERNEL_TESTS = ["tests/test_ops*.py"]
RELAX_TESTS = ["tests/test_ops_relax*.py"]
MLP_TESTS = ["tests/test_ops_mlp*.py"]
GRU_TESTS = ["tests/test_ops_gru*.py", "tests/test_torch_gru.py"]
DENSE_TESTS = ["tests/test_ops_dense*.py"]
SCAN_TESTS = ["tests/test_ops_scan*.py", "tests/test_torch_scan.py"]
SOLVER_TESTS = ["tests/test_solve*.py", "tests/test_theorems.py", "tests/test_parareal*.py", "tests/test_runtime*.py"]
MGRIT_TESTS = ["tests/test_mgrit*.py", "tests/test_golden_mgrit.py", "tests/test_solver.py"]
TARGETS = {
    "csrc/include/pyparareal/formulas.h": KERNEL_TESTS,
    "csrc/include/pyparareal/layout.h": KERNEL_TESTS,
    "csrc/cpu/update.cpp": KERNEL_TESTS,
    "csrc/cpu/norms.cpp": KERNEL_TESTS,
    "csrc/cpu/transfer.cpp": KERNEL_TESTS,
    "csrc/cpu/tiles_body.h": KERNEL_TESTS,
    "csrc/cpu/norm_tree.h": KERNEL_TESTS,
    "csrc/cpu/parallel.h": KERNEL_TESTS,
    "csrc/cpu/stream_copy.cpp": KERNEL_TESTS,
    "csrc/include/pyparareal/coefficients.h": RELAX_TESTS,
    "csrc/include/pyparareal/columns.h": RELAX_TESTS,
    "csrc/include/pyparareal/rhs.h": RELAX_TESTS,
    "csrc/relax_ops.cpp": RELAX_TESTS,
    "csrc/relax_checks.h": RELAX_TESTS,
    "csrc/cpu/relax.cpp": RELAX_TESTS,
    "csrc/cpu/relax_columns_body.h": RELAX_TESTS,
    "csrc/cpu/relax_tiles_body.h": RELAX_TESTS,
    "csrc/include/pyparareal/mlp.h": MLP_TESTS,
    "csrc/include/pyparareal/mlp_formulas.h": MLP_TESTS,
    "csrc/mlp_ops.cpp": MLP_TESTS,
    "csrc/cpu/mlp.cpp": MLP_TESTS,
    "csrc/cpu/mlp_body.h": MLP_TESTS,
    "csrc/cpu/mlp_tiles.h": MLP_TESTS,
    "csrc/cpu/mlp_wide_body.h": MLP_TESTS,
    "csrc/include/pyparareal/gru.h": GRU_TESTS,
    "csrc/include/pyparareal/gru_formulas.h": GRU_TESTS,
    "csrc/gru_ops.cpp": GRU_TESTS,
    "csrc/cpu/gru.cpp": GRU_TESTS,
    "csrc/cpu/gru_body.h": GRU_TESTS,
    "csrc/cpu/gru_tiles.h": GRU_TESTS,
    "pyparareal/torch_gru.py": GRU_TESTS,
    "csrc/include/pyparareal/dense.h": DENSE_TESTS,
    "csrc/include/pyparareal/dense_formulas.h": DENSE_TESTS,
    "csrc/dense_ops.cpp": DENSE_TESTS,
    "csrc/cpu/dense.cpp": DENSE_TESTS,
    "csrc/cpu/dense_body.h": DENSE_TESTS,
    "csrc/cpu/dense_tiles.h": DENSE_TESTS,
    "csrc/include/pyparareal/scan.h": SCAN_TESTS,
    "csrc/scan_ops.cpp": SCAN_TESTS,
    "csrc/cpu/scan.cpp": SCAN_TESTS,
    "csrc/cpu/scan_body.h": SCAN_TESTS,
    "csrc/cpu/scan_columns.h": SCAN_TESTS,
    "pyparareal/torch_scan.py": SCAN_TESTS,
    "pyparareal/time_grid.py": ["tests/test_time_grid.py", "tests/test_propagators.py", *SOLVER_TESTS],
    "pyparareal/runtime/local.py": SOLVER_TESTS,
    "pyparareal/parareal.py": SOLVER_TESTS,
    "pyparareal/mgrit.py": MGRIT_TESTS,
    "pyparareal/equations.py": MGRIT_TESTS,
    "pyparareal/hierarchy.py": MGRIT_TESTS,
    "pyparareal/relaxation.py": MGRIT_TESTS,
    "pyparareal/stopping.py": MGRIT_TESTS,
    "pyparareal/adjoint.py": ["tests/test_adjoint*.py"],
    "pyparareal/forcing.py": ["tests/test_forcing.py", "tests/test_adjoint*.py"],
    "pyparareal/vjp.py": ["tests/test_adjoint*.py"],
    "pyparareal/differentiable.py": ["tests/test_adjoint*.py"],
    "pyparareal/prediction.py": ["tests/test_prediction.py"],
    "pyparareal/runtime/model.py": ["tests/test_prediction.py"],
    "pyparareal/nn/parareal_network.py": ["tests/nn"],
}
TIMEOUT = 300  # seconds for one mutant's tests; a flipped loop bound may never end, which is a failure too


@dataclass(frozen=True)
class Verdict:
    mutant: Mutant
    word: str  # killed | survived | stillborn (does not compile) | equivalent


class Tree:
    """A scratch copy of what is built and tested, with one mutant in it at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (".ci", "csrc", "pyparareal", "tests", "bench", "examples"):
            ignored = shutil.ignore_patterns("*.so", "__pycache__", "include" if name == "pyparareal" else "results")
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, folder / name)
        (folder / "pyparareal" / "include").symlink_to("../csrc/include")
        # -O1: a mutant is compiled once and run for seconds.
        self.env = os.environ | {"PYPARAREAL_CUDA": "0", "CXXFLAGS": "-O1", "PYTHONPATH": str(folder), "MAX_JOBS": "2"}
        self.env |= {"OMP_NUM_THREADS": "2", "PYTHONDONTWRITEBYTECODE": "1", "PYPARAREAL_PYTHON": sys.executable}

    def build(self) -> bool:
        return self._run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], None) == 0

    def passes(self, patterns: list[str]) -> bool:
        files = [str(p) for pattern in patterns for p in sorted(self.folder.glob(pattern))]
        if not files:
            raise SystemExit(f"mutate: no test matches {patterns}")
        select = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
        return self._run([sys.executable, "-m", "pytest", *select, *files], TIMEOUT) == 0

    def sanitizers_object(self) -> bool:
        """Whether ASan or UBSan stop the C++ tests: an index past the end may well leave every result right."""
        return self._run([".ci/sanitize", "--cpp"], TIMEOUT) != 0

    def _run(self, command: list[str], timeout: int | None) -> int:
        try:
            return subprocess.run(
                command,
                cwd=self.folder,
                env=self.env,
                timeout=timeout,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            ).returncode
        except subprocess.TimeoutExpired:
            return -1

    def judge(self, mutant: Mutant) -> Verdict:
        path = self.folder / mutant.path
        original = path.read_text()
        path.write_text(mutant.applied_to(original))
        native = not mutant.path.endswith(".py")
        try:
            if native and not self.build():
                return Verdict(mutant, "stillborn")
            survived = self.passes(TARGETS[mutant.path]) and not (native and self.sanitizers_object())
            return Verdict(mutant, "survived" if survived else "killed")
        finally:
            path.write_text(original)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", choices=[[], *TARGETS], metavar="FILE", help="default: all targets")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--match", default="", help="only mutants whose description matches this regular expression")
    parser.add_argument("--every", type=int, default=1, metavar="K", help="judge every K-th mutant only")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="scratch trees at a time")
    args = parser.parse_args()

    files = args.files or list(TARGETS)
    found = [m for name in files for m in mutants_of(name, (ROOT / name).read_text())]
    stale = [key for key in EQUIVALENT if key[0] in files and not any(m.key == key for m in found)]
    if stale:
        print("mutants_equivalent.py names mutants that no longer exist:", *stale, sep="\n  ")
        return 1
    wanted = [m for m in found if re.search(args.match, str(m))][:: args.every]
    if args.list:
        print(*wanted, f"{len(wanted)} mutants", sep="\n")
        return 0
    verdicts = [Verdict(m, "equivalent") for m in wanted if m.key in EQUIVALENT]
    return report(verdicts + judge_all([m for m in wanted if m.key not in EQUIVALENT], args.jobs))


def judge_all(mutants: list[Mutant], jobs: int) -> list[Verdict]:
    with tempfile.TemporaryDirectory(prefix="mutate") as scratch:
        trees: queue.Queue[Tree] = queue.Queue()
        for i in range(jobs):
            trees.put(Tree(Path(scratch, str(i))))
        first = trees.queue[0]
        if not first.build():
            raise SystemExit("mutate: the tree does not build as it is")
        for patterns in {tuple(TARGETS[m.path]) for m in mutants}:
            if not first.passes(list(patterns)):
                raise SystemExit(f"mutate: these fail without any mutant: {' '.join(patterns)}")
        if any(m.path.startswith("csrc") for m in mutants) and first.sanitizers_object():
            raise SystemExit("mutate: .ci/sanitize --cpp fails without any mutant")
        for tree in list(trees.queue)[1:]:
            tree.build()

        def judge(mutant: Mutant) -> Verdict:
            tree, begin = trees.get(), time.monotonic()
            try:
                verdict = tree.judge(mutant)
            finally:
                trees.put(tree)
            print(f"{verdict.word:<9} {time.monotonic() - begin:5.1f} s  {mutant}", flush=True)
            return verdict

        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(judge, mutants))


def report(verdicts: list[Verdict]) -> int:
    for name in dict.fromkeys(v.mutant.path for v in verdicts):
        counts = Counter(v.word for v in verdicts if v.mutant.path == name)
        print(f"{name}: " + ", ".join(f"{count} {word}" for word, count in sorted(counts.items())))
    survivors = [v.mutant for v in verdicts if v.word == "survived"]
    print(f"{len(survivors)} survivors of {sum(v.word in ('killed', 'survived') for v in verdicts)}")
    for mutant in survivors:
        print(f"  {mutant}")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
