# SPDX-License-Identifier: BSD-3-Clause
"""The result for people: tables for the terminal, and one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...atomic_files import write_files
from .page import page as page
from .tables import PREDICTION_NOTE as PREDICTION_NOTE
from .tables import body_tables as body_tables
from .tables import speed_ratios as speed_ratios
from .tables import text_table as text_table
from .tables import when_it_will_not_help as when_it_will_not_help


def write(out: Path, result: dict[str, Any]) -> None:
    """``report.html`` in ``out``."""
    write_files(out, {"report.html": page(result).encode()})
