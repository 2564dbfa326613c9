# SPDX-License-Identifier: BSD-3-Clause
"""Theorem: 1, 2, 3 and 4 processes give the bits, the history, the status and the cost of one; and what they send."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

from processes import launch, run_example  # noqa: E402

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "ranks_solve.py"
RANKS = 4
STATE = 16  # bytes: two float64


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    codes, output = launch(HERE / "distributed_worker.py", RANKS, folder, timeout=300)
    assert codes == [0] * RANKS, "\n".join(output)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.slow
@pytest.mark.no_sanitize
@pytest.mark.parametrize("ranks", range(1, RANKS + 1))
def test_every_rank_has_what_one_process_has(found, ranks):
    for of_rank in found[:ranks]:
        cases = of_rank[str(ranks)]
        assert len(cases) > 50
        assert {name: what for name, what in cases.items() if what} == {}


def states_in_a_cycle(nu, *, relaxed_to_the_end=False):
    """Each relaxation of a level shifts once, and so does the step from its C-points to the next level.

    Levels between shift before they interpolate; the coarsest hands on one state of its chain, or, where it is relaxed,
    one per sweep (there are two in the test) and one before it interpolates.
    """
    between = len(nu) - 1
    return sum(n + 2 for n in nu) + between + (2 + 1 if relaxed_to_the_end else 1)


# Name, slices of the largest block, states that a rank with a right neighbour sends in one iteration.
VOLUMES = [
    ("parareal", 3, 2),  # the end of the fine solve's starts, and of the coarse chain
    ("F", 3, states_in_a_cycle([0])),
    ("FCF", 3, states_in_a_cycle([1])),
    ("FCFCF", 3, states_in_a_cycle([2])),
    ("three levels", 7, states_in_a_cycle([1, 1])),  # 8 units of 9 steps in 4 blocks; one slice of 3 fills no unit
    ("three levels, other factors", 6, states_in_a_cycle([0, 1])),  # 10 units of 10 steps: 2, 3, 2, 3
    ("four levels, relaxed", 21, states_in_a_cycle([1, 1, 1], relaxed_to_the_end=True)),
]


@pytest.mark.slow
@pytest.mark.no_sanitize
@pytest.mark.parametrize(("name", "block", "states"), VOLUMES, ids=lambda v: str(v))
def test_an_iteration_sends_what_the_formula_says(found, name, block, states):
    for rank, of_rank in enumerate(found):
        sent = of_rank["volume"][name]
        expected = {"states": states, "bytes": STATE * states} if rank + 1 < RANKS else {}
        # One exchange of the norms of all slices, in a frame that has room for those of the largest block.
        assert sent == expected | {"frames": 1, "numbers": 3 + 2 + block}


@pytest.mark.slow
@pytest.mark.no_sanitize
def test_each_row_of_a_mesh_solves_its_own_problem(found):
    for of_rank in found:
        assert of_rank["mesh"]["bits"] == []
        assert of_rank["mesh"]["dim"].startswith("dim: got 'time', expected one of ('dp', 'pint')")


@pytest.mark.slow
@pytest.mark.no_sanitize
def test_a_solve_over_ranks_is_differentiable(found):
    for of_rank in found:
        assert of_rank["gradients"] == [True] * 3  # u0, weight and bias: the bits of one process


@pytest.mark.slow
@pytest.mark.no_sanitize
@pytest.mark.skipif(not EXAMPLE.exists(), reason="the sources are not here: run from outside the tree")
def test_the_example_has_the_bits_of_one_process():
    output = run_example(EXAMPLE)
    assert output.count("2 ranks") == output.count("the same bits as one process: yes") == 2
