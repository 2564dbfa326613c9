// SPDX-License-Identifier: BSD-3-Clause
// Draws what is in view, on the canvas of the timeline and on the small one over it.

const COLUMN = 2, DIM = 0.18; // pixels; opacity of what was not searched for

class Painter {
  constructor(canvas, overview, lanes, colours) {
    Object.assign(this, { canvas, overview, lanes, colours });
    this.view = { from: lanes.begin, to: lanes.finish };
    this.scroll = 0;
    this.chosen = -1;
    this.box = null; // while a box is drawn: its two ends in pixels
    this.words = new Map(); // widths of labels
  }

  get width() { return this.canvas.clientWidth; }
  x(time) { return ((time - this.view.from) / (this.view.to - this.view.from)) * this.width; }
  time(x) { return this.view.from + (x / this.width) * (this.view.to - this.view.from); }

  draw() {
    const pen = sized(this.canvas), { lanes, colours } = this, height = this.canvas.clientHeight;
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    pen.fillStyle = colours.paper;
    pen.fillRect(0, 0, this.width, height);
    this.grid(pen, height);
    for (const track of lanes.data.tracks) {
      const y = track.y - this.scroll;
      if (!track.rows.length || y > height || y + HEAD + track.rows.length * lanes.row < 0) continue;
      track.rows.forEach((row, depth) => this.row(pen, row, y + HEAD + depth * lanes.row));
    }
    this.marks(pen, height);
    for (const track of lanes.data.tracks) if (track.rows.length) this.head(pen, track, track.y - this.scroll);
    this.arrows(pen);
    this.outline(pen);
    this.axis(pen);
    this.minimap();
  }

  head(pen, track, y) {
    const words = track.words + track.more;
    pen.fillStyle = this.colours.paper;
    pen.fillRect(0, y + 2, this.measure(pen, words) + 10, HEAD - 4);
    pen.fillStyle = this.colours.ink;
    pen.fillText(words, 4, y + HEAD / 2 + 1, this.width - 8);
  }

  // Events too narrow to be seen are drawn as columns: how high a colour is, is its share of the column's time.
  row(pen, row, y) {
    const { lanes } = this, { data } = lanes, height = lanes.row - 2, { from, to } = this.view;
    const scale = this.width / (to - from), columns = new Columns(pen, this.colours, y, height, COLUMN / scale);
    const dim = lanes.words !== "";
    for (let k = firstEnding(data, row, from); k < row.length; k++) {
      const event = row[k], found = !dim || lanes.matches(event);
      if (data.start[event] > to) break;
      const a = (data.start[event] - from) * scale, b = (data.end[event] - from) * scale;
      if (b - a < 1.5) {
        columns.add(Math.floor(a / COLUMN), data.type[event], data.seconds[event], found);
        continue;
      }
      pen.globalAlpha = found ? 1 : DIM;
      this.event(pen, event, Math.max(a, -2), Math.min(b, this.width + 2), y, height);
    }
    columns.draw();
    pen.globalAlpha = 1;
  }

  event(pen, event, a, b, y, height) {
    const { colours, lanes } = this, type = lanes.data.type[event], { kind, name } = lanes.data.types[type];
    const { fill, ink } = colours.fills[type], gap = b - a > 4 ? 0.5 : 0;
    pen.fillStyle = fill;
    pen.fillRect(a, y, b - a - gap, height);
    if (colours.patterns[kind] && b - a > 4) {
      pen.fillStyle = colours.patterns[kind];
      pen.fillRect(a, y, b - a - gap, height);
    }
    if (b - a < 26 || lanes.row < 16 || pen.globalAlpha < 1) return;
    const [left, room] = [Math.max(a, 0) + 4, Math.min(b, this.width) - Math.max(a, 0) - 8];
    const text = this.fitted(pen, name, room);
    if (!text) return;
    if (colours.patterns[kind]) { // letters are read on a plain ground
      pen.fillStyle = fill;
      pen.fillRect(left - 2, y, this.measure(pen, text) + 4, height);
    }
    pen.fillStyle = ink;
    pen.fillText(text, left, y + height / 2 + 0.5);
  }

  measure(pen, text) {
    if (!this.words.has(text)) this.words.set(text, pen.measureText(text).width);
    return this.words.get(text);
  }

  fitted(pen, text, room) {
    if (this.measure(pen, text) <= room) return text;
    const letters = Math.floor((room / this.measure(pen, text)) * text.length) - 1;
    return letters < 3 ? "" : text.slice(0, letters) + "…";
  }

  grid(pen, height) {
    pen.fillStyle = this.colours.rule;
    for (const tick of timeTicks(this.view, this.width)) pen.fillRect(Math.round(this.x(tick.time)), 0, 1, height);
  }

  axis(pen) {
    const { colours } = this;
    pen.fillStyle = colours.panel;
    pen.fillRect(0, 0, this.width, AXIS - 2);
    pen.fillStyle = colours.ink;
    pen.textAlign = "center";
    for (const tick of timeTicks(this.view, this.width)) {
      const half = pen.measureText(tick.words).width / 2 + 2;
      pen.fillText(tick.words, Math.min(Math.max(this.x(tick.time), half), this.width - half), AXIS / 2 - 1);
    }
    pen.textAlign = "left";
    if (this.box) {
      pen.fillStyle = colours.mark;
      pen.globalAlpha = 0.25;
      pen.fillRect(Math.min(...this.box), 0, Math.abs(this.box[1] - this.box[0]), this.canvas.clientHeight);
      pen.globalAlpha = 1;
    }
  }

  // Where iterations end; their numbers where there is room.
  marks(pen, height) {
    pen.strokeStyle = pen.fillStyle = this.colours.mark;
    pen.setLineDash([4, 3]);
    let free = -1e9, line = -1e9;
    for (const mark of this.lanes.data.marks) {
      const x = this.x(mark.time);
      if (x < 0 || x > this.width || x - line < 14) continue;
      line = x;
      pen.globalAlpha = 0.8;
      stroke(pen, [[x, AXIS - 2], [x, height]]);
      const wide = this.measure(pen, mark.words) + 6;
      if (x - wide < Math.max(free, 0)) continue;
      pen.globalAlpha = 1;
      pen.fillStyle = this.colours.paper;
      pen.fillRect(x - wide, AXIS - 2, wide - 1, 13);
      pen.fillStyle = this.colours.mark;
      pen.fillText(mark.words, x - wide + 3, AXIS + 5);
      free = x;
    }
    pen.globalAlpha = 1;
    pen.setLineDash([]);
  }

  arrows(pen) {
    const { lanes } = this, { data } = lanes, { from, to } = this.view, near = [];
    for (const group of lanes.groups) {
      let first = Infinity, last = -Infinity, high = Infinity, low = -Infinity, seen = 0;
      for (const event of group) {
        if (lanes.place[event] < 0) continue;
        first = Math.min(first, data.start[event]);
        last = Math.max(last, data.end[event]);
        high = Math.min(high, lanes.top(event));
        low = Math.max(low, lanes.top(event));
        seen++;
      }
      const there = low >= this.scroll && high <= this.scroll + this.canvas.clientHeight;
      if (seen > 1 && last >= from && first <= to && there) near.push(group);
    }
    this.arrowsInView = near.length;
    this.mostArrows = Math.max(60, this.width / 3); // more are a grey cloud: then only those of the event under the pointer
    for (const group of near) {
      const strong = this.chosen >= 0 && group.includes(this.chosen);
      if (near.length > this.mostArrows && !strong) continue;
      this.arrow(pen, group.filter((event) => lanes.place[event] >= 0), strong);
    }
  }

  // From what came first, at its end where that is before the later one's end, to each that waited for it.
  arrow(pen, group, strong) {
    const { lanes, colours } = this, { data } = lanes;
    const [first, ...rest] = [...group].sort((a, b) => data.start[a] - data.start[b]);
    pen.strokeStyle = pen.fillStyle = strong ? colours.mark : colours.ink;
    pen.lineWidth = strong ? 2 : 1;
    pen.globalAlpha = strong ? 1 : 0.65;
    for (const later of rest) {
      const from = [this.x(Math.min(data.end[first], data.end[later])), this.middle(first)];
      const to = [this.x(data.end[later]), this.middle(later)];
      const bend = Math.max(12, Math.abs(to[0] - from[0]) / 2);
      pen.beginPath();
      pen.moveTo(...from);
      pen.bezierCurveTo(from[0] + bend, from[1], to[0] - bend, to[1], ...to);
      pen.stroke();
      pen.beginPath();
      pen.moveTo(...to);
      pen.lineTo(to[0] - 7, to[1] - 3.5);
      pen.lineTo(to[0] - 7, to[1] + 3.5);
      pen.fill();
    }
    pen.globalAlpha = pen.lineWidth = 1;
  }

  middle(event) { return this.lanes.top(event) - this.scroll + this.lanes.row / 2 - 1; }

  outline(pen) {
    const { lanes, chosen } = this;
    if (chosen < 0 || lanes.place[chosen] < 0) return;
    const a = this.x(lanes.data.start[chosen]), b = this.x(lanes.data.end[chosen]);
    pen.strokeStyle = this.colours.mark;
    pen.lineWidth = 2;
    pen.strokeRect(a - 1, lanes.top(chosen) - this.scroll - 1, Math.max(b - a, 2) + 2, lanes.row);
    pen.lineWidth = 1;
  }

  // All time, one line per track, busy pixels alone; what the large canvas shows is framed.
  minimap() {
    const pen = sized(this.overview), { lanes, colours } = this, { data } = lanes;
    const width = this.overview.clientWidth, height = this.overview.clientHeight;
    pen.fillStyle = colours.panel;
    pen.fillRect(0, 0, width, height);
    if (this.picture?.width !== this.overview.width || this.picture.rows !== data.tracks[0]?.rows) this.busy(width, height);
    pen.drawImage(this.picture.tile, 0, 0, width, height);
    const span = lanes.finish - lanes.begin;
    const a = ((this.view.from - lanes.begin) / span) * width, b = ((this.view.to - lanes.begin) / span) * width;
    pen.fillStyle = colours.paper;
    pen.globalAlpha = 0.7;
    pen.fillRect(0, 0, a, height);
    pen.fillRect(b, 0, width - b, height);
    pen.globalAlpha = 1;
    pen.strokeStyle = colours.rule; // time in which nothing happened is time too
    pen.lineWidth = 1;
    pen.strokeRect(0.5, 0.5, width - 1, height - 1);
    pen.strokeStyle = colours.mark;
    pen.lineWidth = 2;
    pen.strokeRect(a + 1, 1, Math.max(b - a - 2, 2), height - 2);
    pen.lineWidth = 1;
  }

  // The deepest row is what works: drawn last, it covers what encloses it.
  busy(width, height) {
    const { lanes, colours } = this, { data } = lanes, tile = document.createElement("canvas");
    tile.width = this.overview.width;
    tile.height = this.overview.height;
    const pen = tile.getContext("2d"), scale = width / (lanes.finish - lanes.begin);
    pen.scale(tile.width / width, tile.height / height);
    const tracks = data.tracks.filter((track) => track.rows.length), thick = height / Math.max(tracks.length, 1);
    pen.fillStyle = colours.rule; // a line for each track, on which what it does stands
    tracks.forEach((_, k) => pen.fillRect(0, (k + 1) * thick - 1, width, 1));
    tracks.forEach((track, k) => track.rows.forEach((row) => {
      const high = Math.max(thick - (thick > 4 ? 1 : 0), 0.5);
      const columns = new Columns(pen, colours, k * thick, high, COLUMN / scale);
      for (const event of row) {
        const a = data.start[event] * scale, b = data.end[event] * scale;
        if (b - a < 1.5) columns.add(Math.floor(a / COLUMN), data.type[event], data.seconds[event], true);
        else {
          pen.fillStyle = colours.fills[data.type[event]].fill;
          pen.fillRect(a, k * thick, b - a, high);
        }
      }
      columns.draw();
    }));
    this.picture = { tile, width: this.overview.width, rows: data.tracks[0]?.rows };
  }
}

// Sums of seconds by colour in columns of a row; they come from left to right.
class Columns {
  constructor(pen, colours, y, height, seconds) {
    Object.assign(this, { pen, colours, y, height, seconds });
    this.place = -1;
    this.all = this.count = 0;
    this.sums = new Float64Array(2 * colours.palette.length); // what was not searched for in the second half
  }

  add(place, type, seconds, found) {
    if (place !== this.place) this.draw();
    this.place = place;
    this.sums[this.colours.number[type] + (found ? 0 : this.colours.palette.length)] += seconds + 1e-15; // it is there
    this.all += seconds + 1e-15;
    this.count++;
  }

  draw() {
    if (!this.count) return;
    const { pen, sums, colours: { palette } } = this;
    const high = Math.min(this.height, Math.max(3, (this.all / this.seconds) * this.height)); // seen, however short
    let bottom = this.y + this.height;
    for (let k = 0; k < sums.length; k++) {
      if (!sums[k]) continue;
      const part = (sums[k] / this.all) * high;
      pen.globalAlpha = k < palette.length ? 1 : DIM;
      pen.fillStyle = palette[k % palette.length];
      pen.fillRect(this.place * COLUMN, bottom - part, COLUMN, part);
      bottom -= part;
    }
    sums.fill(0);
    this.all = this.count = 0;
  }
}

function stroke(pen, points) {
  pen.beginPath();
  points.forEach(([x, y], k) => (k ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.stroke();
}

// A canvas with as many pixels as the screen has for it.
function sized(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((size) => Math.max(1, Math.round(size * ratio)));
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  return pen;
}

// Round times in view, about one per 90 pixels, with their words.
function timeTicks(view, width) {
  const rough = ((view.to - view.from) / width) * 90;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const [unit, words] = unitOf(Math.max(Math.abs(view.to), Math.abs(view.from)));
  const digits = Math.max(0, Math.min(9, Math.ceil(-Math.log10(step / unit) - 1e-9)));
  const ticks = [];
  for (let k = Math.ceil(view.from / step); k * step <= view.to && ticks.length < 100; k++) {
    ticks.push({ time: k * step, words: `${((k * step) / unit).toFixed(digits)} ${words}` });
  }
  return ticks;
}

function unitOf(seconds) {
  if (seconds === 0) return [1, "s"];
  if (seconds >= 1) return [1, "s"];
  if (seconds >= 1e-3) return [1e-3, "ms"];
  return seconds >= 1e-6 ? [1e-6, "µs"] : [1e-9, "ns"];
}

function secondsWords(seconds) {
  const [unit, words] = unitOf(seconds);
  return `${Number((seconds / unit).toPrecision(4))} ${words}`;
}
