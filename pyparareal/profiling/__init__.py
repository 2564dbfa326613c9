# SPDX-License-Identifier: BSD-3-Clause
"""See where the time goes: timelines, rooflines, captured kernels, and a report in plain words."""
