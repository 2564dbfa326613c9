// SPDX-License-Identifier: BSD-3-Clause
// What an event is painted in. The hues are those of Okabe and Ito, darkened or lightened to 3:1 against the paper;
// kinds that are no work also have a pattern, so that no one needs the hues.

const HUES = ["blue", "vermilion", "green", "purple", "ochre", "sky"];
const KIND_HUES = { region: "plain", verb: "sky", launch: "blue", copy: "green", wait: "ochre", message: "purple" };
const PATTERNS = { wait: "hatched", copy: "barred", message: "dotted" };
const STRENGTH = { region: 0.3, verb: 0.55 }; // of the hue, so that what encloses is paler than what works

class Colours {
  constructor(data) {
    this.data = data;
    this.by = new Set(data.types.map((type) => type.level).filter((level) => level !== null)).size > 1 ? "level" : "name";
    this.names = namesBySeconds(data);
    this.read();
  }

  // Take the theme's colours from the style sheet.
  read() {
    const style = getComputedStyle(document.documentElement);
    const get = (name) => style.getPropertyValue(`--${name}`).trim();
    for (const name of ["paper", "ink", "quiet", "rule", "panel", "mark"]) this[name] = get(name);
    this.hues = Object.fromEntries([...HUES, "plain"].map((name) => [name, get(name)]));
    this.fills = this.data.types.map((type) => {
      const hue = this.hue(type), full = this.by === "name" && hue !== "plain";
      const fill = mix(this.hues[hue], this.paper, full ? 1 : STRENGTH[type.kind] ?? 1);
      return { fill, ink: contrast(fill, "#ffffff") > contrast(fill, "#000000") ? "#ffffff" : "#000000" };
    });
    this.palette = [...new Set(this.fills.map(({ fill }) => fill))]; // each colour once, and its number by type
    this.number = Uint16Array.from(this.fills, ({ fill }) => this.palette.indexOf(fill));
    this.patterns = Object.fromEntries(Object.keys(PATTERNS).map((kind) => [kind, pattern(kind, this.paper)]));
  }

  hue(type) {
    if (this.by === "kind") return KIND_HUES[type.kind] ?? "plain";
    if (this.by === "level") return type.level === null ? "plain" : HUES[type.level % HUES.length];
    const rank = this.names.indexOf(family(type.name));
    return rank >= 0 && rank < HUES.length ? HUES[rank] : "plain";
  }

  // [words, hue, kind] of every entry of the legend.
  legend() {
    const types = this.data.types;
    if (this.by === "kind") {
      return Object.keys(KIND_HUES).filter((kind) => types.some((type) => type.kind === kind))
        .map((kind) => [kind, KIND_HUES[kind], kind]);
    }
    const patterned = Object.entries(PATTERNS).filter(([kind]) => types.some((type) => type.kind === kind))
      .map(([kind, how]) => [`${kind}: ${how}`, "plain", kind]);
    if (this.by === "level") {
      const levels = [...new Set(types.map((type) => type.level))].sort((a, b) => (a ?? 1e9) - (b ?? 1e9));
      return [...levels.map((level) => [levelWords(level), this.hue({ level }), "launch"]), ...patterned];
    }
    const rows = this.names.slice(0, HUES.length).map((name, k) => [name, HUES[k], "launch"]);
    if (this.names.length > HUES.length) rows.push(["other names", "plain", "launch"]);
    return [...rows, ...patterned];
  }
}

function levelWords(level) {
  return level === null ? "no level" : level === 0 ? "level 0 (finest)" : `level ${level}`;
}

// The names by the seconds of their own, in which nothing else ran inside them on their track; the longest first.
function namesBySeconds(data) {
  const seconds = new Map(), add = (event, value) => {
    const name = family(data.types[data.type[event]].name);
    seconds.set(name, (seconds.get(name) ?? 0) + value);
  };
  for (const track of data.tracks) {
    const open = [];
    for (let event = track.first; event < track.first + track.count; event++) {
      while (open.length && data.end[open[open.length - 1]] <= data.start[event] + 0.5e-9) open.pop();
      if (open.length) add(open[open.length - 1], -data.seconds[event]);
      add(event, data.seconds[event]);
      open.push(event);
    }
  }
  return [...seconds.keys()].sort((a, b) => seconds.get(b) - seconds.get(a));
}

// fine[0] and fine[1] do the same work: one colour.
function family(name) {
  return name.replace(/\[\d+\]/g, "");
}

function rgb(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

function mix(colour, paper, share) {
  const [a, b] = [rgb(colour), rgb(paper)];
  return "#" + a.map((v, k) => Math.round(share * v + (1 - share) * b[k]).toString(16).padStart(2, "0")).join("");
}

// WCAG 2, relative luminance and contrast ratio.
function contrast(a, b) {
  const light = (colour) => rgb(colour).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, k) => sum + [0.2126, 0.7152, 0.0722][k] * v, 0);
  const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
  return (x + 0.05) / (y + 0.05);
}

// Waits are hatched, copies barred, messages dotted, in the colour of the paper.
function pattern(kind, paper) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 6;
  const pen = tile.getContext("2d");
  pen.strokeStyle = pen.fillStyle = paper;
  pen.globalAlpha = 0.75;
  if (kind === "wait") {
    pen.lineWidth = 1.6;
    for (const shift of [-6, 0, 6]) {
      pen.moveTo(shift, 6);
      pen.lineTo(shift + 6, 0);
    }
    pen.stroke();
  } else if (kind === "copy") pen.fillRect(0, 0, 1.5, 6);
  else pen.fillRect(1, 1, 2, 2);
  return pen.createPattern(tile, "repeat");
}
