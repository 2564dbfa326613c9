# SPDX-License-Identifier: BSD-3-Clause
"""Theorem: Newton's method over 1, 2, 3 and 4 processes gives the bits, the history and the report of one."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

from processes import launch  # noqa: E402

HERE = Path(__file__).parent
RANKS = 4
pytestmark = [pytest.mark.slow, pytest.mark.no_sanitize]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("newton")
    codes, output = launch(HERE / "distributed_newton_worker.py", RANKS, folder, timeout=300)
    assert codes == [0] * RANKS, "\n".join(output)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("ranks", range(1, RANKS + 1))
def test_every_rank_has_what_one_process_has(found, ranks):
    for of_rank in found[:ranks]:
        cases = of_rank[str(ranks)]
        assert len(cases) > 30
        assert {name: what for name, what in cases.items() if what} == {}


# Slices, numbers in a state, and those that a rank hands on within a scan: the state before the next block, what its
# chunk and group start from, their maps A s + B so far; blocks of more than 4 rows have no chunks.
VOLUMES = [
    ("blocks", 240, 6, (5 + 2 * 3) * 6),
    ("diagonal", 69, 12, (5 + 2) * 12),
    ("large", 69, 18, 18),
    ("none", 69, 12, 0),
    ("trust", 69, 12, (5 + 2) * 12),
]


@pytest.mark.parametrize(("name", "slices", "size", "scanned"), VOLUMES, ids=lambda v: str(v))
def test_an_iteration_sends_what_the_formula_says(found, name, slices, size, scanned):
    largest = -(-slices // RANKS)
    for rank, of_rank in enumerate(found):
        states = {"states": 1 + (scanned > 0), "bytes": 8 * (size + scanned)} if rank + 1 < RANKS else {}
        # One exchange of the residuals and updates of all slices; ``trust`` asks before for the largest number.
        frames = 2 if name == "trust" else 1
        assert of_rank["volume"][name] == states | {"frames": frames, "numbers": frames * (3 + 2 + 2 * largest)}


def test_modules_are_exact_in_the_end_and_close_before(found):
    for of_rank in found:
        assert of_rank["modules"]["exact"] == []
        # |W| < 1 and |tanh'| <= 1: residuals below 1e-9 leave errors of a few times that, in either solve.
        assert of_rank["modules"]["error"] < 1e-7
