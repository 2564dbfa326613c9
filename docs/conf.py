# SPDX-License-Identifier: BSD-3-Clause
"""Sphinx: the API pages are the docstrings. Built offline, warnings are errors."""

from pyparareal import __version__

project = "pyparareal"
author = "pyparareal authors"
copyright = author
version = release = __version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"pyparareal {version}"

napoleon_google_docstring = False
napoleon_preprocess_types = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # the shapes and dtypes in the docstrings say more
default_role = "code"
