# SPDX-License-Identifier: BSD-3-Clause
"""The promises of the package as a whole: a silent import, the framework wall, floors, one name per op."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyparareal
from pyparareal import _core, ops, reference

PACKAGE = Path(pyparareal.__file__).parent
ROOT = Path(__file__).resolve().parents[1]
IN_TREE = (ROOT / "csrc").is_dir() and PACKAGE.parent == ROOT
in_tree = pytest.mark.skipif(not IN_TREE, reason="the sources are not here: run from outside the tree")

OPS = {
    "parareal_update", "slice_norms", "extract", "inject", "c_relax",
    "relax_diagonal", "relax_tridiagonal", "relax_stencil", "relax_rk", "relax_mlp_sgd",
    "relax_gru", "relax_gru_adjoint", "newton_gru", "relax_dense", "relax_dense_adjoint",
    "scan_diag", "scan_block",
}  # fmt: skip
SYSTEM_LIBRARIES = {"c", "m", "dl", "rt", "pthread", "stdc++", "gcc_s", "gomp"}
SANITIZERS = {"asan", "ubsan"}  # `make sanitize` runs these tests on an instrumented extension

# DESIGN, "The house". A module may import from its own floor and from those below, never from above.
FLOORS = {
    "_core": 0, "cy_ops": 0, "_version": 0, "errors": 0,
    "ops": 1, "reference": 1, "arrays": 1, "streams": 1, "_trace": 1, "_timing": 1, "torch_ops": 1, "norms": 1,
    "relax_ops": 1, "mlp_ops": 1, "reference_mlp": 1, "_outputs": 1, "_bandwidth": 1, "slopes": 1, "cuda_slopes": 1,
    "dense_ops": 1, "reference_dense": 1, "reference_rhs": 1,
    "gru_ops": 1, "reference_gru": 1, "torch_gru": 1, "scan_ops": 1, "reference_scan": 1, "torch_scan": 1,
    "torch_autograd": 1, "traced_ops": 1, "pages": 1, "_progress": 1,
    "runtime": 2, "time_grid": 2, "propagators": 2, "tableaux": 2, "operators": 2,
    "implicit": 2, "compiled": 2,
    "parareal": 3, "solution": 3, "solver": 3, "problems": 3, "mgrit": 3, "hierarchy": 3, "equations": 3,
    "relaxation": 3, "stopping": 3, "checks": 3, "method_runs": 3, "blocks": 3, "cuts": 3, "handshake": 3,
    "held_values": 3, "survivors": 3,
    "newton": 3, "newton_run": 3, "newton_fused": 3, "linear_chain": 3, "linearise": 3,
    "newton_blocks": 3, "coarse_blocks": 3,
    "autograd_jacobians": 3, "growth": 3, "forcing": 3, "vjp": 3, "adjoint_step": 3, "adjoint": 3, "differentiable": 3,
    "adjoint_options": 3, "adjoint_blocks": 3, "tree_sum": 3, "states": 3, "solve_notes": 3,
    "convergence": 3, "error_propagation": 3, "spectra": 3, "prediction": 3,
    "nn": 4, "training": 4, "profiling": 5, "verification": 5,
    "cli": 6, "__main__": 6, "_doctor": 6, "solve_command": 6, "solve_report": 6, "runs_command": 6, "runs_report": 6,
    "profile_command": 6, "profile_cases": 6, "profile_runs": 6, "verify_command": 6, "bench_command": 6,
}  # fmt: skip


def python(*args):
    return subprocess.run([sys.executable, *args], capture_output=True, text=True)


@pytest.mark.no_sanitize
@pytest.mark.parametrize(
    "module",
    [
        "pyparareal",
        "pyparareal.ops",
        "pyparareal.solver",
        "pyparareal.cli",
        "pyparareal._core",
        "pyparareal.training",
        "pyparareal.profiling.analysis",
        "pyparareal.profile_command",
    ],
)
def test_import_is_silent_and_light(module):
    heavy = ("torch", "cupy", "matplotlib", "scipy", "sklearn", "PIL")
    done = python("-W", "error", "-c", f"import sys, {module}; sys.exit(str([m for m in {heavy} if m in sys.modules]))")
    assert done.stderr.strip() == "[]"
    assert done.stdout == ""


def needed(library):
    """The shared libraries an ELF file asks for: the DT_NEEDED entries of its dynamic section."""
    import struct

    data = Path(library).read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01", "a 64-bit little-endian ELF file"
    (table,), (size, count) = struct.unpack_from("<Q", data, 0x28), struct.unpack_from("<HH", data, 0x3A)
    # Section header: name, type, flags, address, offset, size, link, ...
    sections = [struct.unpack_from("<IIQQQQI", data, table + i * size) for i in range(count)]
    dynamic = next(s for s in sections if s[1] == 6)
    strings = sections[dynamic[6]][4]
    entries = struct.iter_unpack("<qQ", data[dynamic[4] : dynamic[4] + dynamic[5]])
    return [data[strings + v : data.index(b"\0", strings + v)].decode() for tag, v in entries if tag == 1]


def base_name(soname):
    """libgomp.so.1 and its vendored name libgomp-a1b2c3.so.1.0.0 are both gomp."""
    return re.fullmatch(r"lib(.+?)(-[0-9a-f]{6,})?\.so[.0-9]*", soname)[1]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ELF files")
@pytest.mark.parametrize("library", sorted(PACKAGE.rglob("*.so")), ids=lambda p: p.name.partition(".")[0])
def test_extensions_need_only_system_libraries(library):
    names = {base_name(n) for n in needed(library) if not n.startswith("ld-linux")}
    assert "c" in names, "read the wrong section"
    assert names <= SYSTEM_LIBRARIES | SANITIZERS


@in_tree
def test_no_framework_header_under_csrc():
    wall = re.compile(r'#\s*include\s*[<"](torch|ATen|c10|cupy|jax|xla|tensorflow)', re.IGNORECASE)
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    assert len(sources) > 10
    assert [str(p) for p in sources if wall.search(p.read_text())] == []
    # pybind11 and Python stay in bindings/; the kernels are for any caller.
    python_header = re.compile(r'#\s*include\s*[<"](pybind11|Python\.h)')
    assert {p.parent.name for p in sources if python_header.search(p.read_text())} <= {"bindings"}


def imports_of(path):
    """Top names under pyparareal that a file imports, inside functions too, but not for type checking only."""
    tree = ast.parse(path.read_text())
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    package = ("pyparareal", *path.relative_to(PACKAGE).parts[:-1])
    for node in (n for n in ast.walk(tree) if id(n) not in guarded):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            full = (base + (node.module or "")).rstrip(".")
            names = [f"{full}.{alias.name}" for alias in node.names] if full == "pyparareal" else [full]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("pyparareal."))


def top_name(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    name = top_name(path)
    if name == "__init__":
        return
    assert name in FLOORS, "a new module needs its floor here and in DESIGN"
    unknown = [used for used in imports_of(path) if used not in FLOORS and (PACKAGE / f"{used}.py").exists()]
    assert unknown == []
    above = [used for used in imports_of(path) if FLOORS.get(used, 0) > FLOORS[name]]
    assert above == []


def test_the_floor_check_reads_imports():
    found = set(imports_of(PACKAGE / "cli.py"))
    assert {"_version", "errors"} <= found
    assert "ops" in set(imports_of(PACKAGE / "mgrit.py"))


def test_one_name_per_op_everywhere():
    header = (Path(pyparareal.get_include()) / "pyparareal" / "ops.h").read_text()
    assert set(re.findall(r"^Status (\w+)\(", header, re.MULTILINE)) == OPS
    for module in (reference, ops, _core):
        assert {name for name in OPS if callable(getattr(module, name, None))} == OPS, module.__name__
    pxd = PACKAGE / "cy_ops.pxd"
    assert {name for name in OPS if re.search(rf"\b{name}\b", pxd.read_text())} == OPS


def test_headers_and_type_information_are_installed():
    include = Path(pyparareal.get_include()) / "pyparareal"
    assert {"ops.h", "types.h"} <= {p.name for p in include.iterdir()}
    assert all((PACKAGE / name).exists() for name in ("py.typed", "_core.pyi", "cy_ops.pxd"))


def test_version_is_single_sourced():
    metadata = importlib.import_module("importlib.metadata")
    assert pyparareal.__version__ == _core.build_info()["version"]
    assert pyparareal.__version__ == metadata.version("pyparareal") or not IN_TREE


@in_tree
@pytest.mark.no_sanitize
def test_stub_follows_from_the_bindings():
    done = python(str(ROOT / "tests" / "tools" / "make_stubs.py"), "--check")
    assert done.returncode == 0, done.stderr


@in_tree
def test_files_stay_small():
    suffixes = {".py", ".pyx", ".pxd", ".h", ".cpp", ".cu"}
    folders = ("csrc", "pyparareal", "tests", "bench", "examples")
    files = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in suffixes]
    sizes = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files if "third_party" not in p.parts}
    assert {name: lines for name, lines in sizes.items() if lines > 450} == {}
