# SPDX-License-Identifier: BSD-3-Clause
"""Mutants that no test can see, each with the reason: (file, line, token, which of its kind in the line)."""

EQUIVALENT: dict[tuple[str, str, str, int], str] = {
    (
        "pyparareal/parareal.py",
        "f, g = arrays.empty_like(u[1:]), arrays.empty_like(u[1:])",
        "1",
        1,
    ): "f gets a row more than there are slices; no row past the last slice is ever written or read",
    (
        "csrc/cpu/parallel.h",
        "const int64_t most = threads > 0 ? threads : omp_get_max_threads();",
        ">",
        1,
    ): "0 threads would become a team of one: slower, and no number of threads changes a bit",
    (
        "csrc/cpu/parallel.h",
        "if (team > 1) {",
        ">",
        1,
    ): "a parallel region of one thread does what the caller's thread does",
    (
        "csrc/cpu/parallel.h",
        "if (!contiguous || space.slices < 1) return;",
        "1",
        1,
    ): "no slices become one slice of no features: there is no chunk either way",
}
