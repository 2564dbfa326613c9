# SPDX-License-Identifier: BSD-3-Clause
"""Colours and layout of the report. Ink on paper has a contrast of at least 4.5 in both themes."""

from __future__ import annotations

from ....pages.style import BASE, themed

_LIGHT = {
    "serial": "#5f6368", "parareal": "#0b6fb8", "preprocess": "#7a52c7", "fine": "#0b6fb8", "coarse": "#a85a00",
    "head": "#1f7a4d", "update": "#6b7075", "right": "11 111 184", "wrong": "217 105 0",
}  # fmt: skip
_DARK = {
    "serial": "#a0a5ab", "parareal": "#5eb1f0", "preprocess": "#8d68d8", "fine": "#2a7fc0", "coarse": "#b86a10",
    "head": "#2a8a5a", "update": "#777c82", "right": "70 150 220", "wrong": "230 125 30",
}  # fmt: skip

STYLE = (
    f"""
{themed(_LIGHT, _DARK)}{BASE}"""
    + """\
.honest { border-left: 4px solid var(--coarse); padding-left: 1em; max-width: 60em; }
.flow { display: flex; flex-wrap: wrap; gap: 1em 1.4em; } .pair { display: flex; flex-wrap: wrap; gap: 0 2em; }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; }
.confusion th, .confusion td { padding: .15em .3em; min-width: 1.25em; text-align: center; border: 0;
  font-size: .82em; }
.confusion .corner { font-weight: 400; font-size: .7em; } .confusion .none { color: var(--quiet); opacity: .6; }
.confusion .right { background: rgb(var(--right) / var(--shade)); }
.confusion .wrong { background: rgb(var(--wrong) / var(--shade)); font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 1em; }
svg.fit { width: 100%; max-width: 420px; height: auto; } svg.natural { max-width: none; }
svg.timeline { max-width: 100%; height: auto; } svg.narrow { display: none; }
@media (max-width: 700px) { svg.wide { display: none; } svg.narrow { display: block; } }
.mark { stroke: var(--ink); fill: none;
  stroke-width: 1.5; stroke-dasharray: 3 2; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; } .dashed { stroke-dasharray: 5 4; }
.curve.serial, .ring.serial { stroke: var(--serial); } .curve.parareal, .ring.parareal { stroke: var(--parareal); }
.dot.serial { fill: var(--serial); } .dot.parareal { fill: var(--parareal); }
.ring { fill: none; stroke-width: 2; }
.preprocess { --hue: var(--preprocess); } .fine { --hue: var(--fine); } .coarse { --hue: var(--coarse); }
.head { --hue: var(--head); } .update { --hue: var(--update); }
.bar { fill: var(--hue); stroke: var(--paper); stroke-width: .5; } .bar.back { fill-opacity: .3; }
.bar.critical { stroke: var(--ink); stroke-width: 1.6; } svg .inside { fill: #fff; }
.piece { fill: var(--panel); stroke: var(--hue); stroke-width: 1.5; } .plain { fill: var(--panel);
  stroke: var(--quiet); }
.wire { fill: none; stroke: var(--quiet); stroke-width: 1.4; } .wire.thin { stroke-dasharray: 4 3; }
.wire.chain { stroke: var(--coarse); stroke-width: 2; } .tip { fill: var(--quiet); }
.sum { fill: var(--paper); stroke: var(--ink); stroke-width: 1.4; }
.keys { font-size: .88em; display: flex; flex-wrap: wrap; gap: .2em 1.2em; } .key { display: inline-block; width: 1em;
  height: .8em; margin-right: .4em; background: var(--hue); } .key.back { opacity: .35; }
"""
)
