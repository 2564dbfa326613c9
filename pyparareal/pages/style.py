# SPDX-License-Identifier: BSD-3-Clause
"""Colours and layout of the reports. Ink and quiet words have a contrast of at least 4.5 on paper and on panels."""

from __future__ import annotations

from collections.abc import Mapping

LIGHT = {"paper": "#ffffff", "ink": "#1d1f21", "quiet": "#5f6368", "rule": "#d8dadd", "panel": "#f5f6f7"}
DARK = {"paper": "#16181b", "ink": "#e6e7e9", "quiet": "#a0a5ab", "rule": "#3a3f45", "panel": "#1f2226"}


def themed(light: Mapping[str, str], dark: Mapping[str, str]) -> str:
    """Style rules that set these colours beside the common ones: as the reader's system says, or by ``data-theme``."""
    rules = {
        name: "; ".join(f"--{key}: {value}" for key, value in colours.items())
        for name, colours in (("light", LIGHT | dict(light)), ("dark", DARK | dict(dark)))
    }
    return (
        f":root {{ color-scheme: light dark; {rules['light']}; }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ {rules['dark']}; }} }}\n"
        f":root[data-theme=light] {{ color-scheme: light; }} "
        f":root[data-theme=dark] {{ color-scheme: dark; {rules['dark']}; }}\n"
    )


BASE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 66em; margin: 1.5em auto; padding: 0 1em; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.5em; line-height: 1.25; } h2 { font-size: 1.15em; margin-top: 1.8em; }
table { border-collapse: collapse; margin: .7em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .7em; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } .words { text-align: left; }
th { color: var(--quiet); font-weight: 600; }
.scroll { overflow-x: auto; } .note { color: var(--quiet); font-size: .88em; max-width: 60em; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); } svg .bold { font-weight: 600; }
.grid { stroke: var(--rule); } .axis { stroke: var(--quiet); fill: none; }
"""
