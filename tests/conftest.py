# SPDX-License-Identifier: BSD-3-Clause
"""One hypothesis profile (the same examples in every run), and a visible skip where there is no CUDA device."""

import hypothesis
import pytest

from pyparareal import _core

# No deadline: a shared machine may stall any example, and no test here asserts a time.
hypothesis.settings.register_profile("pyparareal", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("pyparareal")


def pytest_collection_modifyitems(items):
    if _core.cuda_device_count() > 0:
        return
    skip = pytest.mark.skip(reason="no CUDA device (or an extension built without CUDA)")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
