# SPDX-License-Identifier: BSD-3-Clause
"""Mutants that no test can see, each with the reason: (file, line, token, which of its kind in the line)."""

EQUIVALENT: dict[tuple[str, str, str, int], str] = {}
