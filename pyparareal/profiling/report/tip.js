// SPDX-License-Identifier: BSD-3-Clause
// What is said of an event or a point: beside the pointer, and to a screen reader. Text alone, never markup.

class Tip {
  constructor(box, live) {
    Object.assign(this, { box, live });
  }

  // rows: pairs of words; x, y in the window.
  show(title, rows, x, y, aloud) {
    const list = document.createElement("dl");
    for (const [name, value] of rows) {
      list.append(element("dt", name), element("dd", value));
    }
    this.box.replaceChildren(element("strong", title), list);
    this.box.hidden = false;
    const { width, height } = this.box.getBoundingClientRect();
    const left = Math.max(4, Math.min(x + 14, document.documentElement.clientWidth - width - 4));
    const top = y + 18 + height > window.innerHeight ? Math.max(4, y - height - 12) : y + 18;
    this.box.style.left = `${left}px`;
    this.box.style.top = `${top}px`;
    if (aloud) this.live.textContent = [title, ...rows.map(([name, value]) => `${name} ${value}`)].join(", ");
  }

  hide() {
    this.box.hidden = true;
  }
}

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

// Everything known of an event, as pairs of words.
function eventWords(data, event) {
  const type = data.types[data.type[event]], track = data.tracks[data.track[event]];
  const rows = [["lasted", secondsWords(data.seconds[event])], ["began at", secondsWords(data.start[event])],
    ["kind", type.kind]];
  if (type.level !== null) rows.push(["level", levelWords(type.level).replace("level ", "")]);
  if (type.region && type.region !== type.name) rows.push(["in", type.region]);
  rows.push(["on", track.words]);
  for (const [name, value] of Object.entries(data.facts[data.fact[event]] ?? {})) {
    rows.push([name, typeof value === "string" ? value : JSON.stringify(value)]);
  }
  return rows;
}

// Points of the charts say what they are when pointed at or focused, and on a tap.
function chartTips(tip) {
  for (const point of document.querySelectorAll("[data-tip]")) {
    const show = () => {
      const { left, bottom } = point.getBoundingClientRect();
      const [title, ...rows] = point.dataset.tip.split("\n");
      tip.show(title, rows.map((row) => row.split("\t")), left, bottom - 10, false);
    };
    for (const name of ["pointerenter", "focus", "click"]) point.addEventListener(name, show);
    for (const name of ["pointerleave", "blur"]) point.addEventListener(name, () => tip.hide());
  }
}
