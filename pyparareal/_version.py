# SPDX-License-Identifier: BSD-3-Clause
"""The version, in one place: pyproject.toml and the extension read it from here."""

__version__ = "0.1.0"
