# SPDX-License-Identifier: BSD-3-Clause
"""Test problems: the set-ups of published parareal runs."""

from __future__ import annotations

from .published import Problem as Problem
from .published import brusselator as brusselator
from .published import burgers as burgers
from .published import fitzhugh_nagumo as fitzhugh_nagumo
from .published import heat_1d as heat_1d
from .published import hopf as hopf
from .published import lorenz as lorenz
