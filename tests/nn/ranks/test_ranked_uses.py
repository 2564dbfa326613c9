# SPDX-License-Identifier: BSD-3-Clause
"""What is done with a network over three ranks gives what it gives in one process; mistakes are told to all ranks."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

from processes import launch  # noqa: E402

import pyparareal.nn  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.no_sanitize]
RANKS = 3
# float64, sums of at most 8 * 8 terms through some 10 layers, in another order; as in tests/nn/execution_nets.py a
# factor of 10 for cancellation. A gradient that is missing errs by 1.
TOLERANCE = 10 * 64 * 10 * 2.0**-53


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uses")
    codes, output = launch(Path(__file__).parent / "ranked_uses_worker.py", RANKS, folder)
    assert codes == [0] * RANKS, "\n".join(output)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize(
    "use",
    [
        "losses_of_one_output",
        "passes_of_one_loss",
        "backward_passes_in_another_order",
        "within_modules_of_all_ranks",
        "gradient_of_the_input_alone",
        "without_gradients",
        "strides_of_images",
        "ignored_by_a_coarse_net",
        "checkpointed_blocks",
        "compiled_parts",
        "compiled_network",
        "copies_and_conversions",
        "clipped_in_bfloat16",
        "no_draw_leaves_no_trace",
        "draws_that_begin_late",
        "dropout_alone_in_training",
        "on_the_meta_device",
        "values_of_other_ranks_do_not_matter",
    ],
)
def test_the_bits_are_those_of_one_process(found, use):
    for of_rank in found:
        checks = of_rank[use] if isinstance(of_rank[use], list) else [of_rank[use]]
        assert checks == [True] * len(checks)


@pytest.mark.parametrize("mode", ["parallel", "batched", "auto"])
def test_the_parts_of_a_rank_run_in_any_mode(found, mode):
    for of_rank in found:
        error, executed = of_rank["modes_within_a_rank"][mode]
        assert error <= TOLERANCE
        assert executed == mode or mode == "auto"


def test_every_rank_has_its_share_under_the_names_of_the_whole(found):
    shares = [of_rank["shares_and_the_whole"] for of_rank in found]
    names = [name for share in shares for name in share["names"]]
    assert len(names) == len(set(names)) == 10 * 7 + (5 + 4 + 1) * 2
    assert {name for name in shares[2]["names"] if name.startswith(("head", "coarse"))} == {
        "coarse.3.weight", "coarse.3.bias", "head.1.weight", "head.1.bias",
    }  # fmt: skip
    assert [share["for one"] for share in shares] == [0, len(names), 0]
    for share in shares:
        assert [share[what] for what in ("share", "whole", "order", "loaded")] == [True] * 4


REFUSED = {
    "missing": "state: of another network, nothing was changed: 'coarse.3.bias' is missing",
    "unknown": "state: of another network, nothing was changed: 'fine.5.0.weight' is unknown",
    "shape": "state: of another network, nothing was changed: 'head.1.bias' has shape (4,), expected (3,)",
    "to": "to: got 3, expected None or one of the 3 ranks",
    "to, elsewhere": "to: rank 1 has 1, rank 0 has 0",
}


@pytest.mark.parametrize("name", REFUSED)
def test_states_that_do_not_fit_are_refused_on_every_rank(found, name):
    for of_rank in found:
        assert of_rank["states_that_are_refused"][name] == ["ValueError", REFUSED[name]]
        assert of_rank["states_that_are_refused"]["unchanged"]


def test_what_one_rank_alone_refuses_changes_nothing_on_the_others(found):
    kinds = [of_rank["states_that_are_refused"]["on one rank"][0] for of_rank in found]
    assert kinds == ["RankError", "RankError", "ValueError"]
    message = found[0]["states_that_are_refused"]["on one rank"][1]
    assert message.startswith("rank 0: load_full_state_dict: rank 2 failed: ValueError: state: of another network")


def test_a_share_is_not_saved_as_a_network(found):
    for rank, of_rank in enumerate(found):
        refused = of_rank["states_that_are_refused"]
        assert refused["saved"] == ["TypeError", "network: got RankedNetwork, expected a PararealNetwork"]
        assert refused["pickled"][0] == "TypeError"
        assert refused["pickled"][1].startswith("a network over ranks cannot be pickled")
        name, owner = ("head", 2) if rank < 2 else ("fine.0", 0)
        assert refused["module"][1].startswith(f"{name}: this module is on rank {owner}")


def test_weights_that_differ_are_refused_or_those_of_the_first_rank(found):
    for of_rank in found:
        kind, message, same = of_rank["weights_of_the_first_rank"]
        assert kind == "ValueError"
        assert message.startswith("preprocess.0.weight: rank 1 has [6, 4] torch.float32 trained with digest ")
        assert same


def test_options_of_modules_are_compared_and_not_their_addresses(found):
    for of_rank in found:
        same, other, _ = of_rank["options_of_modules"]
        assert same == ["", ""]
        assert other[0] == "ValueError"
        assert other[1].startswith("module fine.3.2: rank 2 has Scaled(<function ")
        assert " at 0x" not in other[1]


def test_parts_of_other_ranks_take_no_memory(found):
    alive = [of_rank["parts_of_other_ranks_are_freed"] for of_rank in found]
    assert alive == [[j in own for j in range(5)] for own in ((0, 1), (2, 3), (4,))]


def test_parts_are_dealt_out_as_asked_for(found):
    assert [of_rank["parts_as_asked_for"]["own"] for of_rank in found] == [[0], [1, 2, 3], [4]]
    for of_rank in found:
        case = of_rank["parts_as_asked_for"]
        assert case["same"]
        assert case["after"]
        assert case["sum"][1].startswith("parts_per_rank: got [1, 1, 1], expected 3 positive ints")
        assert case["kind"] == ["TypeError", "parts_per_rank: got int, expected a sequence of 3 ints"]
        assert case["differ"] == ["ValueError", "parts_per_rank: rank 1 has [1, 3, 1], rank 0 has [3, 1, 1]"]
        assert case["ranks"][1].startswith("runtime: got 3 ranks for 2 parts, expected a part for each")
        assert case["tied"][1].startswith("network: got 'fine.0.1.0.weight' and 'fine.4.1.0.weight' as one tensor")
        assert case["network"] == ["TypeError", "network: got RankedNetwork, expected a PararealNetwork"]
        assert case["runtime"] == ["TypeError", "runtime: got str, expected that of pyparareal.distributed()"]


def test_a_step_sends_the_states_of_the_formula_and_nothing_else(found):
    """Interface ``j`` is between the last part of one rank and the first of the next; float32."""
    ask, out = 6 * 8 * 8 * 4, 6 * 3 * 4
    for rank, of_rank in enumerate(found):
        case = of_rank["bytes_that_are_sent"]
        formula = {j: (forward, backward) for j, forward, backward in case["formula"]}
        expected = {"input": ask} if rank == 0 else {"output": out} if rank == RANKS - 1 else {}
        if rank + 1 < RANKS:
            expected["forward"] = formula[case["own"][-1] + 1][0]
        if rank > 0:
            expected["backward"] = formula[case["own"][0]][1]
        assert case["counted"] == expected
        assert case["carried"] == {
            "bytes": sum(expected.values()),
            "states": ("forward" in expected) + ("backward" in expected),
            "broadcasts": ("input" in expected) + ("output" in expected),
            "frames": 2,  # six numbers per forward and per backward pass
            "texts": 0,
        }
        assert case["same formula"]


DIFFERENCES = {
    "shape": "x.shape: rank 2 has [8, 4], rank 0 has [7, 4]",
    "dtype": "x.dtype: rank 1 has torch.float64, rank 0 has torch.float32",
    "gradient": "x.requires_grad: rank 1 has True, rank 0 has False",
    "strides": "x.stride: rank 2 has [1, 8], rank 0 has [4, 1]",
    "grad mode": "torch.is_grad_enabled(): rank 1 has False, rank 0 has True",
    "autocast": "torch.autocast: rank 2 has torch.bfloat16, rank 0 has None",
    "training": "network.training: rank 1 has True, rank 0 has False",
    "clipping": "max_norm: rank 1 has 2.0, rank 0 has 1.0",
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_inputs_that_differ_are_an_error_on_every_rank(found, name):
    for of_rank in found:
        assert of_rank["inputs_that_differ"][name] == ["ValueError", DIFFERENCES[name]]
        assert of_rank["inputs_that_differ"]["after"]  # nothing is lost


def test_what_one_rank_refuses_is_told_to_the_others(found):
    own = ["TypeError", "x: got list, expected a tensor [batch, features...]"]
    for rank, of_rank in enumerate(found):
        told = f"rank {rank}: forward pass 1: rank 1 failed: {': '.join(own)}"
        assert of_rank["inputs_that_differ"]["type"] == (own if rank == 1 else ["RankError", told])


FIRST = {
    "part": ("fine[2]", "ArithmeticError", "no batches of 13"),
    "interface": ("interface 2", "ValueError", "interface 2: preprocess[2] (C^3) must guess the output of part 2: "),
}


@pytest.mark.parametrize("name", FIRST)
def test_an_error_in_the_first_pass_of_a_kind_loses_nothing(found, name):
    place, kind, message = FIRST[name]
    for rank, of_rank in enumerate(found):
        case = of_rank["first_pass_that_fails"]
        if rank == 1:
            assert case[name][0] == kind
            assert case[name][1].startswith(message)
        else:
            assert case[name][0] == "RankError"
            assert case[name][1].startswith(f"rank {rank}: rank 1 failed at forward pass 1, {place}: {kind}: {message}")
        assert case["after"]


def test_a_runtime_is_needed():
    with pytest.raises(ValueError, match="there is no process group"):
        pyparareal.nn.over_ranks(None)
