# SPDX-License-Identifier: BSD-3-Clause
"""One torch thread: the networks here are tiny, and threads of several test processes would fight for the cores."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _one_thread():
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
