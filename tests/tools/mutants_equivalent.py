# SPDX-License-Identifier: BSD-3-Clause
"""Mutants that no test can see, each with the reason: (file, line, token, which of its kind in the line)."""

EQUIVALENT: dict[tuple[str, str, str, int], str] = {
    (
        "pyparareal/parareal.py",
        "f, g = arrays.empty_like(u[1:]), arrays.empty_like(u[1:])",
        "1",
        1,
    ): "f gets a row more than there are slices; no row past the last slice is ever written or read",
}
