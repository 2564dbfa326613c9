# SPDX-License-Identifier: BSD-3-Clause
"""Which figures of the records are headlines, in which words, and which of them lose.

``docs/figures.rst`` is generated from this table and the records; a recorded case is either here or in
:data:`NOT_HEADLINES` with the reason, so that no figure is left out because it looks bad.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Headline:
    """One figure: ``metric`` of ``case``, times ``scale``, in ``unit``.

    Parameters
    ----------
    words : what it is, in a line
    goal : what was wanted, such as "at least 40"; empty where there was no goal
    interval : names of the metrics with the ends of its interval, or of one or two sample sets: the interval is then
        that of the first's median, or of the first's median over the second's
    losing : it does not reach its goal, or the serial or another program is better
    kind : "measured"; "tested" for counts of what was right; "computed" where nothing was run (FLOPs, bytes)
    digits : printed
    """

    case: str
    metric: str
    words: str
    unit: str = ""
    scale: float = 1.0
    goal: str = ""
    interval: tuple[str, ...] = ()
    losing: bool = False
    kind: str = "measured"
    digits: int = 3


def _lose(*row: str, **options: object) -> Headline:
    return Headline(*row, losing=True, **options)  # type: ignore[arg-type]


def _count(case: str, metric: str, words: str, **options: object) -> Headline:
    return Headline(case, metric, words, kind="tested", **options)  # type: ignore[arg-type]


H, X, PC = Headline, "times", "%"

KERNELS = (
    H("ops.parareal_update", "bandwidth_fraction", "Update and norm in one pass, 64 MB: of the copy bandwidth",
      goal="at least 0.85", interval=("bandwidth_fraction_low", "bandwidth_fraction_high")),
    H("ops.parareal_update", "speedup_vs_torch", "Update and norm in one pass, 64 MB: over torch", X,
      interval=("speedup_vs_torch_low", "speedup_vs_torch_high")),
    _lose("ops.overhead", "ratio_vs_torch_add", "A call on tiny arrays: time over that of torch.add", X,
          interval=("ratio_vs_torch_add_low", "ratio_vs_torch_add_high")),
    H("ops.relax", "heat_one_slice_over_all_cores", "Heat, 1,024 slices side by side over one after the other", X),
    H("ops.relax", "lorenz_numpy_over_one_thread", "Lorenz, 10,000 trajectories: NumPy over the kernel, one thread", X,
      interval=("lorenz_numpy", "lorenz_one_thread")),
    H("ops.relax_dense", "of_bmm_forward_d128_1_thread", "Residual layers of width 128, one thread: over torch.bmm", X,
      interval=("d128_1_thread_bmm", "d128_1_thread_forward")),
    _lose("ops.relax_dense", "of_bmm_forward_d16_1_thread",
          "Residual layers of width 16, one thread: over torch.bmm", X,
          interval=("d16_1_thread_bmm", "d16_1_thread_forward")),
    _lose("ops.relax_dense", "of_bmm_forward_one_row_1_thread",
          "Residual layers of width 64 and one row: over torch.bmm", X,
          interval=("one_row_1_thread_bmm", "one_row_1_thread_forward")),
    H("relax.mlp_sgd", "xor_vs_torch", "Gradient descent on a tiny network, many slices at once: over torch", X,
      interval=("xor_torch", "xor_one_thread")),
    H("relax.user_rhs", "numpy_over_lanes", "A right-hand side compiled by Numba: over NumPy", X,
      interval=("numpy", "lanes")),
    _lose("relax.user_rhs", "lanes_over_compiled_in",
          "A right-hand side compiled by Numba: its time over that of one built in", X,
          interval=("lanes", "compiled_in")),
    H("sequence.scan", "bandwidth_fraction", "Affine recurrence, many lanes: of the copy bandwidth",
      goal="at least 0.70",
      interval=("bandwidth_fraction_low", "bandwidth_fraction_high")),
    _lose("sequence.scan", "bandwidth_fraction_1_lane", "Affine recurrence, one lane: of the copy bandwidth",
          interval=("bandwidth_fraction_low_1_lane", "bandwidth_fraction_high_1_lane")),
    _lose("sequence.scan", "bandwidth_fraction_8_lanes", "Affine recurrence, 8 lanes: of the copy bandwidth",
          interval=("bandwidth_fraction_low_8_lanes", "bandwidth_fraction_high_8_lanes")),
    _lose("sequence.scan", "bandwidth_fraction_block2_64_lanes",
          "Affine recurrence, blocks of 2: of the copy bandwidth",
          interval=("bandwidth_fraction_low_block2_64_lanes", "bandwidth_fraction_high_block2_64_lanes")),
)  # fmt: skip

CHAINS = (
    H("mgrit.vs_pymgrit", "heat_two_level", "MGRIT, heat, two levels, one thread: over PyMGRIT, factored step", X,
      goal="at least 40"),
    H("mgrit.vs_pymgrit", "heat_multilevel", "MGRIT, heat, six levels, one thread: over PyMGRIT, factored step",
      X, goal="at least 40"),
    H("mgrit.vs_pymgrit", "heat_stock", "MGRIT, heat, two levels, one thread: over PyMGRIT's own step",
      X, goal="at least 200"),
    H("mgrit.vs_pymgrit", "dahlquist", "MGRIT, Dahlquist's equation, one thread: over PyMGRIT", X, goal="at least 300"),
    _lose("mgrit.vs_pymgrit", "setup_share_heat_two_level", "MGRIT, heat, two levels: set-up, share of a solve",
          PC, 100,
          goal="at most 1"),
    _lose("mgrit.vs_pymgrit", "setup_share_dahlquist", "MGRIT, Dahlquist's equation: set-up, share of a solve",
          PC, 100, goal="at most 1"),
    H("mgrit.heat_cycle", "ms_two_level", "A two-level cycle, heat, 16,384 steps on 255 points, one thread", "ms",
      interval=("two_level",)),
    H("mgrit.heat_cycle", "ratio_to_cpp_loop", "A two-level cycle: its time over that of a plain C++ loop",
      goal="at most 1/8", interval=("two_level", "cpp_loop_two_level")),
    _lose("mgrit.heat_cycle", "ms_serial", "The best serial C++ solve; five two-level cycles take longer", "ms",
          interval=("serial_both_ends",)),
    _lose("mgrit.heat_cycle", "ratio_to_serial_multilevel", "One cycle of six levels over the serial solve", X,
          interval=("multilevel", "serial_both_ends")),
    H("mgrit.overhead", "outside_kernels_fraction", "Two-level cycle of 1,024 heat steps: outside kernels", PC, 100,
      goal="at most 20"),
    _lose("mgrit.overhead", "outside_kernels_fraction_dahlquist",
          "Two-level cycle of Dahlquist's equation: outside kernels",
          PC, 100,
          goal="at most 20"),
    H("mgrit.memory", "peak_rss_bytes", "200 million time points: most memory", "GB", 1e-9),
    H("mgrit.bounds", "largest_ratio", "Measured factors per cycle over their bounds, largest of 189 runs",
      goal="at most 1", digits=4),
    _count("mgrit.golden", "matched", "MGRIT histories of independent programs reproduced, of 121"),
    _count("mgrit.theorems", "held", "MGRIT exactness theorems, bitwise, of 167"),
    _count("parareal.golden", "matched", "Published parareal convergence histories reproduced, of 5"),
    _count("parareal.theorems", "bitwise_points", "Points bitwise equal to the serial chain, of 6,974"),
)  # fmt: skip

NETWORKS = (
    H("train.digits", "accuracy_parareal", "Digits, four parts (make train): 355 test images right", PC, 100),
    H("train.digits", "accuracy_serial", "Digits, the serial network (make train): 355 test images right", PC, 100),
    _lose("train.digits", "parareal_step_over_serial_step",
          "Digits, four parts (make train): a step in one process over the serial step", X),
    H("train.digits_cv", "accuracy_gap_pp", "Digits, cross-validation: parareal minus serial", "points",
      goal="within 0.5",
      interval=("ci_low", "ci_high"), losing=True),
    H("train.digits_cv", "correction_gain_pp_4",
      "Digits, cross-validation, four parts: what the coarse correction adds", "points",
      interval=("correction_gain_low_4", "correction_gain_high_4")),
    _lose("train.curves_cv", "accuracy_gap_pp", "Joined curves, where depth is needed: parareal minus serial", "points",
          interval=("ci_low", "ci_high")),
    _lose("train.curves_cv", "accuracy_gap_pp_unit_coarse",
          "Joined curves, a residual unit per coarse net: parareal minus serial", "points",
          interval=("ci_low_unit_coarse", "ci_high_unit_coarse")),
    _lose("train.cluttered_cv", "accuracy_gap_pp", "Cluttered digits: parareal minus serial", "points",
          interval=("ci_low", "ci_high")),
    H("train.resnet1001", "parallel_6_vs_network", "ResNet-1001, 6 parts in two threads: step over the serial step", X,
      interval=("parallel_6", "network")),
    _lose("train.resnet1001", "parallel_3_vs_network",
          "ResNet-1001, 3 parts in two threads: step over the serial step", X, interval=("parallel_3", "network")),
    _lose("train.resnet1001", "batched_9_vs_network", "ResNet-1001, 9 parts batched: step over the serial step",
          X, interval=("batched_9",
          "network")),
    _lose("train.modes", "batched_vs_serial", "A small network, batched: step over that of mode serial", X,
          interval=("batched", "serial")),
    _lose("train.modes", "parallel_vs_serial", "A small network, a thread per part: step over that of mode serial",
          X, interval=("parallel", "serial")),
    H("train.costs", "resnet1001_6_critical", "ResNet-1001, 6 parts: critical path over the serial network's FLOPs", X,
      kind="computed"),
    H("train.costs", "resnet20_digits_6_critical",
      "Digits ResNet-20, 6 parts: critical path; longer than with 4 parts", X, kind="computed",
      losing=True),
)  # fmt: skip

DEPTH = (
    H("depth.dense", "ratio_w16", "1,024 layers by 2 + 2 iterations, width 16: over torch's loop",
      X, goal="at most 0.5",
      interval=("ratio_low_w16", "ratio_high_w16")),
    H("depth.dense", "ratio_w64", "1,024 layers by 2 + 2 iterations, width 64: over torch's loop",
      X, goal="at most 1.3",
      interval=("ratio_low_w64", "ratio_high_w64")),
    H("depth.dense", "ratio_w128", "1,024 layers by 2 + 2 iterations, width 128: over torch's loop",
      X, goal="at most 2.5",
      interval=("ratio_low_w128", "ratio_high_w128")),
    _lose("depth.dense", "fused_serial_w16", "The serial kernel, width 16: over torch's loop; it is exact", X,
          interval=("fused_serial_low_w16", "fused_serial_high_w16")),
    _lose("depth.dense", "fused_serial_w64", "The serial kernel, width 64: over torch's loop; it is exact", X,
          interval=("fused_serial_low_w64", "fused_serial_high_w64")),
    _lose("depth.dense", "fused_serial_w128", "The serial kernel, width 128: over torch's loop; it is exact", X,
          interval=("fused_serial_low_w128", "fused_serial_high_w128")),
    H("depth.dense", "gradient_error", "Relative error of the gradient of 2 + 2 iterations", PC, 100),
    H("depth.training", "largest_gap",
      "Adaptive networks: largest gap of the loss to serial, in spreads over three seeds"),
    _lose("depth.training", "text_fixed_gap",
          "A fixed 2 + 2, a transformer on a text: gap of the loss, in spreads over three seeds"),
    H("depth.estimate", "estimated_over_true_error_min_smooth", "Estimated over true gradient error, smallest, smooth"),
    _lose("depth.estimate", "estimated_over_true_error_min",
          "Estimated over true gradient error, smallest, ReLU: its kinks are not seen"),
    _count("depth.golden", "matched", "TorchBraid's histories and acceptance cases reproduced, of 60"),
)  # fmt: skip

SEQUENCES = (
    H("sequence.gru", "vs_nn_gru", "nn.GRU, 16,384 steps: over torch.nn.GRU, by the serial kernel", X,
      interval=("nn_gru_inference", "ours_inference")),
    H("sequence.gru", "vs_cell_loop", "nn.GRU, 16,384 steps: over a loop of the cell", X, goal="at least 10",
      interval=("cell_loop_inference", "ours_inference")),
    _lose("sequence.gru", "ours_hybrid_inference_ms",
          "nn.GRU, 16,384 steps in chunks side by side: the serial kernel wins", "ms",
          interval=("ours_hybrid_inference",)),
    H("sequence.gru", "ours_inference_ms", "nn.GRU, 16,384 steps by the serial kernel", "ms",
      interval=("ours_inference",)),
    _lose("sequence.gru", "ours_mgrit_inference_ms", "nn.GRU, 16,384 steps by MGRIT: the serial kernel wins", "ms",
          interval=("ours_mgrit_inference",)),
    H("sequence.custom_cell", "vs_loop", "nn.Recurrence, a cell of one's own: over its loop", X, goal="at least 10",
      interval=("loop_inference", "ours_inference")),
    H("sequence.compiled_cell", "vs_compiled_loop",
      "nn.Recurrence, a cell of one's own: over a loop compiled in blocks", X,
      interval=("compiled_loop_inference", "ours_inference")),
    _lose("sequence.gru_kernel", "newton_vs_serial_kernel_2_threads",
          "Newton's method: the serial kernel's time over its", X),
    H("sequence.gru_kernel", "newton_fused_vs_unfused_2_threads",
      "Newton's iteration fused: over torch's operations", X,
      interval=("newton_2_threads_newton_unfused", "newton_2_threads_newton_fused")),
    H("sequence.training", "largest_gap", "Trainings: largest gap of the loss to serial, in spreads over three seeds"),
    _lose("sequence.training", "adding_long_chunks_fallbacks",
          "Gates near 1, chunks alone: updates that went serial, of 90",
          kind="tested"),
    _count("sequence.golden", "matched", "TorchBraid's histories of implicit GRUs reproduced, of 15"),
)  # fmt: skip

RUNS = (
    _count("runs.xor", "rows_in_band", "Rows of the paper's XOR tables within 2 cycles or 30 %, of 45"),
    _lose("runs.xor", "parallel_25600_seconds", "25,600 steps of the XOR network in parallel", "s",
          interval=("parallel_25600_seconds",)),
    H("runs.xor", "serial_25600_seconds", "25,600 steps of the XOR network, serially", "s",
      interval=("serial_25600_seconds",)),
    H("runs.updates", "xor_vs_torch", "XOR updates of many slices at once: over torch's loop", X, goal="at least 200"),
    H("runs.updates", "adder_full_gemm_fraction", "Adder, full batch: over the batched products alone", X,
      goal="at least 0.8"),
    H("runs.equal_serial", "max_abs_diff", "Largest difference to the weights of serial training", kind="tested"),
)  # fmt: skip

DEVICES = (
    H("devices.scaling", "solve_2_ranks", "MGRIT on two processes: over one", X, goal="at least 1.6",
      interval=("mgrit_2_ranks_low", "mgrit_2_ranks_high")),
    H("devices.scaling", "parareal_2_ranks", "parareal on two processes: over one", X,
      interval=("parareal_2_ranks_low", "parareal_2_ranks_high")),
    _lose("devices.scaling", "mgrit_2_ranks_vs_serial", "MGRIT on two processes: the serial chain's time over its", X,
          interval=("serial", "mgrit_2_ranks")),
    _lose("devices.scaling", "parareal_2_ranks_vs_serial",
          "parareal on two processes: the serial chain's time over its", X,
          interval=("serial", "parareal_2_ranks")),
    H("devices.scaling", "parareal_net_2_ranks", "A parareal network of two parts, on two processes: over one", X,
      goal="at least 1.5", interval=("parareal_net_2_ranks_low", "parareal_net_2_ranks_high")),
    H("devices.vs_pipelining", "parareal_net_vs_pipeline_4",
      "Its step over that of torch's pipeline, 4 micro-batches", X,
      interval=("parareal_net", "pipeline_4")),
    _lose("devices.vs_pipelining", "layer_parallel_vs_serial",
          "LayerParallel 2 + 2 on two processes: over its serial step", X,
          interval=("layer_parallel", "serial")),
    _lose("devices.vs_pipelining", "gradient_error_layer_parallel",
          "LayerParallel 2 + 2: relative error of its gradient",
          PC, 100),
    _count("devices.bits", "compared", "Values, gradients, histories equal in bits on 1 to 4 processes"),
    _count("devices.faults", "recovered",
           "Deaths of a rank after which the run ended with the undisturbed bits, of 31"),
)  # fmt: skip

PROFILING = (
    H("profiling.off_cost", "ns_per_range", "A named range while nobody listens", "ns", goal="at most 100"),
    H("profiling.on_cost", "relative_slowdown", "Tracing a solve of 1,000 launches: time added",
      PC, 100, goal="at most 5", interval=("relative_slowdown_low", "relative_slowdown_high")),
    H("profiling.report", "open_seconds", "The report of 100,000 events: until it can be used", "s", goal="at most 3"),
    H("profiling.report", "bytes", "The report of 100,000 events: its size", "MB", 1e-6, goal="at most 5"),
    _count("verify.planted_faults", "found", "Planted faults that verify finds and names"),
)  # fmt: skip

SECTIONS = {
    "Kernels": KERNELS,
    "Chains": CHAINS,
    "Parareal networks": NETWORKS,
    "Deep networks, layers at once": DEPTH,
    "Sequences": SEQUENCES,
    "Training runs": RUNS,
    "Processes": DEVICES,
    "Profiling and verify": PROFILING,
}
HEADLINES = tuple(row for section in SECTIONS.values() for row in section)

# Recorded in another form
ELSEWHERE = {"runs.adder": "its rows are in ``bench/results/adder_rows.jsonl`` and in :doc:`training`"}

# Recorded, but no headline: why
NOT_HEADLINES = {
    "train.digits_cv_more": "repeats train.digits_cv with more repetitions and says the same",
}
