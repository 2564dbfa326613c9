# SPDX-License-Identifier: BSD-3-Clause
"""Measurements of pyparareal: cases, the runner, the GPU ledger. Not part of the installed package."""
