# SPDX-License-Identifier: BSD-3-Clause
"""The training job behind ``pyparareal train``.

``settings`` what to do; ``device`` where and how precisely; ``build`` the networks; ``loop`` the training;
``checkpoint`` saving and resuming; ``step_time`` measured and predicted times; ``report`` tables, pictures and HTML;
``job`` puts them together. The images come from :mod:`..data`.
"""
