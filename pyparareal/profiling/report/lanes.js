// SPDX-License-Identifier: BSD-3-Clause
// Where every event is: tracks one below the other, in each a row per depth of nesting. No drawing here.

const AXIS = 22, HEAD = 20, GAP = 8;

class Lanes {
  constructor(data) {
    this.data = data;
    this.begin = 0;
    this.finish = Math.max(data.seconds_traced, 1e-9);
    this.kinds = new Set(data.types.map((type) => type.kind));
    this.levels = new Set(data.types.map((type) => type.level));
    this.ranks = new Set(data.tracks.map((track) => track.rank));
    this.hidden = { kind: new Set(), level: new Set(), rank: new Set() };
    this.words = "";
    this.partners = partners(data.flow);
    this.groups = [...new Set(this.partners.values())];
    this.arrange();
    this.search("");
  }

  // Rows of the events that no filter hides, and where they begin.
  arrange() {
    const { data, hidden } = this;
    const shown = data.types.map((type) => !hidden.kind.has(type.kind) && !hidden.level.has(type.level));
    this.shown = 0;
    for (const track of data.tracks) {
      const rows = hidden.rank.has(track.rank) ? [] : nested(data, track, shown);
      this.shown += rows.reduce((sum, row) => sum + row.length, 0);
      track.rows = rows.map((row) => Int32Array.from(row));
    }
    const lanes = data.tracks.reduce((sum, track) => sum + track.rows.length, 0);
    this.row = lanes > 60 ? 13 : 18; // pixels: many ranks need to be seen side by side
    this.place = new Int16Array(data.events).fill(-1); // row within the track, -1 hidden
    let y = AXIS + (data.marks.length ? 12 : 0);
    for (const track of data.tracks) {
      track.y = y;
      if (!track.rows.length) continue;
      y += HEAD + track.rows.length * this.row + GAP;
      track.rows.forEach((row, depth) => row.forEach((event) => (this.place[event] = depth)));
    }
    this.height = y;
  }

  // Events whose name, region or facts have the words in them; all of them for no words.
  search(words) {
    const { data } = this;
    this.words = words.trim().toLowerCase();
    const has = (text) => text.toLowerCase().includes(this.words);
    this.matchType = data.types.map((type) => !this.words || has(`${type.name} ${type.region} ${type.kind}`));
    this.matchFact = data.facts.map((facts) => this.words !== "" && has(JSON.stringify(facts)));
    this.found = [];
    if (!this.words) return;
    for (let event = 0; event < data.events; event++) {
      if (this.place[event] >= 0 && this.matches(event)) this.found.push(event);
    }
    this.found.sort((a, b) => data.start[a] - data.start[b]);
  }

  matches(event) {
    return this.matchType[this.data.type[event]] || this.matchFact[this.data.fact[event]];
  }

  top(event) {
    const track = this.data.tracks[this.data.track[event]];
    return track.y + HEAD + this.place[event] * this.row;
  }

  // The event at a time and a height; tolerance in seconds. The nearest one if several are that near.
  at(time, y, tolerance) {
    const { data } = this;
    for (const track of data.tracks) {
      const depth = Math.floor((y - track.y - HEAD) / this.row);
      if (depth < 0 || depth >= track.rows.length) continue;
      const row = track.rows[depth];
      let best = -1, nearest = tolerance, near = 0;
      for (let k = firstEnding(data, row, time - tolerance); k < row.length; k++) {
        const event = row[k];
        if (data.start[event] > time + tolerance) break;
        const away = Math.max(data.start[event] - time, time - data.end[event], 0);
        near++;
        if (best < 0 || away < nearest) [best, nearest] = [event, away];
        if (near > 5000) break; // only said as "many more"
      }
      return { event: best, near };
    }
    return { event: -1, near: 0 };
  }

  // The event beside one in its row, or in the row above or below it at the same time.
  beside(event, across, down) {
    const { data } = this;
    const rows = data.tracks.flatMap((track) => track.rows);
    if (event < 0 || this.place[event] < 0) return rows.length ? rows[0][0] : -1;
    const here = rows.indexOf(data.tracks[data.track[event]].rows[this.place[event]]);
    if (across) return rows[here][rows[here].indexOf(event) + across] ?? event;
    const row = rows[here + down];
    if (!row) return event;
    const k = firstEnding(data, row, data.start[event]);
    return row[Math.min(k, row.length - 1)];
  }
}

// Position in a row of the first event that ends at `time` or later; events of a row do not overlap.
function firstEnding(data, row, time) {
  let low = 0, high = row.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (data.end[row[middle]] < time) low = middle + 1;
    else high = middle;
  }
  return low;
}

// What lies inside another event comes into the row below it. Events of a track are sorted by start, the longer first.
function nested(data, track, shown) {
  const rows = [], open = [];
  for (let event = track.first; event < track.first + track.count; event++) {
    if (!shown[data.type[event]]) continue;
    while (open.length && open[open.length - 1] <= data.start[event] + 0.5e-9) open.pop();
    (rows[open.length] ??= []).push(event);
    open.push(data.end[event]);
  }
  return rows;
}

// By event the events it waits for or that wait for it: those with the same flow number; 0 is none.
function partners(flow) {
  const groups = new Map(), found = new Map();
  flow.forEach((number, event) => {
    if (!number) return;
    if (groups.has(number)) groups.get(number).push(event);
    else groups.set(number, [event]);
  });
  for (const group of groups.values()) {
    if (group.length > 1) for (const event of group) found.set(event, group);
  }
  return found;
}
