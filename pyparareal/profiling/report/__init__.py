# SPDX-License-Identifier: BSD-3-Clause
"""One HTML page that works offline: what ran when, and what to make of it."""

from __future__ import annotations

from .page import page as page
