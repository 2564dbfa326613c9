// SPDX-License-Identifier: BSD-3-Clause
// Puts the parts together once the page is there.

const MANY = 8; // boxes of a filter

function toolbar(timeline) {
  const act = {
    in: () => timeline.zoom(1.5), out: () => timeline.zoom(1 / 1.5), fit: () => timeline.fit(),
    left: () => timeline.pan(-0.3 * (timeline.view.to - timeline.view.from)),
    right: () => timeline.pan(0.3 * (timeline.view.to - timeline.view.from)),
    next: () => found(timeline, 1), previous: () => found(timeline, -1),
  };
  for (const button of document.querySelectorAll("button[data-do]")) {
    button.addEventListener("click", act[button.dataset.do]);
  }
  const colour = document.getElementById("colour");
  colour.value = timeline.colours.by;
  colour.addEventListener("change", () => {
    timeline.colours.by = colour.value;
    recolour(timeline);
  });
  document.getElementById("search").addEventListener("input", (happened) => {
    timeline.lanes.search(happened.target.value);
    timeline.count();
    timeline.redraw();
  });
  document.getElementById("search").addEventListener("keydown", (happened) => {
    if (happened.key === "Enter") found(timeline, happened.shiftKey ? -1 : 1);
  });
}

// The next of the events that were searched for.
function found(timeline, step) {
  const { found: events } = timeline.lanes;
  if (!events.length) return;
  const here = events.indexOf(timeline.painter.chosen);
  timeline.reveal(events[(here + step + (here < 0 && step < 0 ? 1 : 0) + events.length) % events.length]);
}

function filters(timeline) {
  const { lanes } = timeline, none = Number.POSITIVE_INFINITY;
  const number = (values) => [...values].sort((a, b) => (a ?? none) - (b ?? none));
  const groups = { kind: [...lanes.kinds], level: number(lanes.levels), rank: number(lanes.ranks) };
  const words = { kind: (kind) => kind, level: levelWords, rank: (rank) => `rank ${rank}` };
  for (const [group, values] of Object.entries(groups)) {
    const place = document.getElementById(`${group}s`);
    place.hidden = values.length < 2;
    if (values.length > MANY) place.append(allOrNone(timeline, group, values));
    for (const value of values) {
      const box = document.createElement("input"), label = document.createElement("label");
      box.type = "checkbox";
      box.checked = true;
      box.value = String(value);
      box.addEventListener("change", () => {
        lanes.hidden[group][box.checked ? "delete" : "add"](value);
        timeline.changed();
      });
      label.append(box, words[group](value));
      place.append(label);
    }
  }
}

// Where there are many boxes: all of them at once, to go on from none.
function allOrNone(timeline, group, values) {
  const button = element("button", "All or none");
  button.type = "button";
  button.addEventListener("click", () => {
    const hidden = timeline.lanes.hidden[group], none = hidden.size === 0;
    for (const value of values) hidden[none ? "add" : "delete"](value);
    for (const box of button.parentNode.querySelectorAll("input")) box.checked = !none;
    timeline.changed();
  });
  return button;
}

function recolour(timeline) {
  const { colours } = timeline, place = document.getElementById("legend");
  colours.read();
  timeline.painter.picture = null;
  place.replaceChildren(...colours.legend().map(([words, hue, kind]) => {
    const entry = document.createElement("span"), key = document.createElement("i");
    key.className = `key ${kind}`;
    key.style.backgroundColor = mix(colours.hues[hue], colours.paper, STRENGTH[kind] ?? 1);
    entry.append(key, words);
    return entry;
  }));
  timeline.redraw();
}

function themes(redraw) {
  const root = document.documentElement, button = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const changed = () => {
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Use ${dark() ? "light" : "dark"} colours`);
    redraw();
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    changed();
  });
  system.addEventListener("change", changed);
  let before; // paper is white
  window.addEventListener("beforeprint", () => {
    before = root.dataset.theme;
    root.dataset.theme = "light";
    redraw();
  });
  window.addEventListener("afterprint", () => {
    if (before === undefined) delete root.dataset.theme;
    else root.dataset.theme = before;
    changed();
  });
  changed();
}

// Tables are sorted by a click on a head; figures by their value, words by the alphabet.
function sorting() {
  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th"), body = head.closest("table").tBodies[0], column = head.cellIndex;
      const up = head.getAttribute("aria-sort") === "descending";
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const order = (a, b) => (a === "" || b === "" ? (a === "") - (b === "")
        : (up ? 1 : -1) * (isFinite(a) && isFinite(b) ? a - b : a.localeCompare(b))); // what is not known comes last
      body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
    });
  }
}

async function start() {
  const tip = new Tip(document.getElementById("tip"), document.getElementById("said"));
  const packed = document.getElementById("events");
  sorting();
  chartTips(tip);
  document.addEventListener("keydown", (happened) => happened.key === "Escape" && tip.hide());
  let timeline;
  themes(() => timeline && (recolour(timeline), timeline.draw()));
  if (!packed) return performance.mark("drawn");
  timeline = new Timeline(await unpack(packed.textContent), tip);
  toolbar(timeline);
  filters(timeline);
  recolour(timeline);
  timeline.count();
  timeline.events();
  timeline.draw();
  for (const button of document.querySelectorAll("button[data-event]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const event = Number(button.dataset.event);
      if (timeline.lanes.place[event] < 0) return;
      timeline.zoomTo(event);
      timeline.canvas.focus();
      timeline.frame.scrollIntoView({ block: "center" });
      timeline.reveal(event);
    });
  }
  window.timeline = timeline;
  return performance.mark("drawn");
}

start().catch((error) => {
  const problem = document.getElementById("problem");
  problem.hidden = false;
  problem.textContent = `The timeline cannot be drawn: ${error.message}. Tables and charts are complete without it.`;
});
