# SPDX-License-Identifier: BSD-3-Clause
"""The training job behind ``pyparareal train``.

``settings`` what to do; ``loop`` the training; ``checkpoint`` saving and resuming;
``step_time`` measured and predicted times; ``report`` tables, curves and HTML; ``job`` puts them together.
"""
