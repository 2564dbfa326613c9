// SPDX-License-Identifier: BSD-3-Clause
// Wheel, drag, pinch, keys, buttons and filters of the timeline.

class Timeline {
  constructor(data, tip) {
    const get = (id) => document.getElementById(id);
    this.frame = get("lanes");
    this.canvas = get("gantt");
    this.lanes = new Lanes(data);
    this.colours = new Colours(data);
    this.painter = new Painter(this.canvas, get("overview"), this.lanes, this.colours);
    this.tip = tip;
    this.fingers = new Map();
    this.resize();
    this.pointer();
    this.overview(get("overview"));
    this.canvas.addEventListener("wheel", (happened) => this.wheel(happened), { passive: false });
    this.canvas.addEventListener("keydown", (happened) => this.key(happened));
    this.canvas.addEventListener("blur", () => this.choose(-1));
    this.frame.addEventListener("scroll", () => this.redraw());
    new ResizeObserver(() => this.resize()).observe(this.frame);
  }

  get view() { return this.painter.view; }

  // One drawing per frame of the screen, however many events there are.
  redraw() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = undefined;
      this.draw();
    });
  }

  draw() {
    this.painter.scroll = this.frame.scrollTop;
    this.painter.draw();
    const { from, to } = this.view;
    const words = [from, to, to - from].map(secondsWords);
    document.getElementById("range").textContent = `${words[0]} to ${words[1]}, ${words[2]} wide`;
    const arrows = this.painter.arrowsInView;
    document.getElementById("arrows").textContent = arrows > this.painter.mostArrows
      ? `${arrows.toLocaleString("en")} arrows in view: only those of the chosen event are drawn. Zoom in for more.` : "";
  }

  resize() {
    const most = Math.max(180, Math.min(window.innerHeight * 0.7, 720));
    this.canvas.style.height = `${Math.min(this.lanes.height, most)}px`;
    document.getElementById("below").style.height = `${Math.max(0, this.lanes.height - most)}px`;
    this.redraw();
  }

  // Shows these seconds, or as much of them as there is; at least 20 ns.
  show(from, to) {
    const { begin, finish } = this.lanes, margin = 0.02 * (finish - begin);
    const span = Math.min(Math.max(to - from, Math.min(2e-8, finish - begin)), finish - begin + 2 * margin);
    const start = Math.min(Math.max((from + to - span) / 2, begin - margin), finish + margin - span);
    const same = start === this.view.from && start + span === this.view.to;
    this.painter.view = { from: start, to: start + span };
    this.redraw();
    return !same;
  }

  // From the first event to the last: there may be much time after it.
  events() {
    const last = this.lanes.data.end.reduce((a, b) => Math.max(a, b), 0);
    if (last > 0) this.show(0, 1.01 * last);
  }

  fit() { this.show(this.lanes.begin, this.lanes.finish); }

  // The time at x stays where it is; factor > 1 shows less.
  zoom(factor, x = this.painter.width / 2) {
    const { from, to } = this.view, time = this.painter.time(x);
    return this.show(time - (time - from) / factor, time + (to - time) / factor);
  }

  pan(seconds) {
    const { from, to } = this.view;
    return this.show(from + seconds, to + seconds);
  }

  wheel(happened) {
    const scale = happened.deltaMode === 1 ? 16 : 1; // lines or pixels
    const { width } = this.painter, seconds = (this.view.to - this.view.from) / width;
    const across = happened.shiftKey ? happened.deltaY : happened.deltaX;
    const moved = Math.abs(across) > Math.abs(happened.deltaY) || happened.shiftKey
      ? this.pan(across * scale * seconds)
      : this.zoom(Math.exp(-happened.deltaY * scale * (happened.ctrlKey ? 0.01 : 0.002)), happened.offsetX);
    if (moved || happened.ctrlKey) happened.preventDefault(); // all in view already: the page scrolls on
  }

  pointer() {
    const { canvas, fingers } = this;
    canvas.addEventListener("pointerdown", (happened) => {
      canvas.setPointerCapture(happened.pointerId);
      fingers.set(happened.pointerId, happened);
      this.moved = false;
      if (happened.shiftKey) this.painter.box = [happened.offsetX, happened.offsetX];
    });
    canvas.addEventListener("pointermove", (happened) => {
      const before = fingers.get(happened.pointerId);
      if (!before) return this.hover(happened, false);
      if (Math.hypot(happened.offsetX - before.offsetX, happened.offsetY - before.offsetY) < 3 && !this.moved) return;
      this.moved = true;
      this.tip.hide();
      this.drag(before, happened);
      fingers.set(happened.pointerId, happened);
    });
    const up = (happened) => {
      const tapped = fingers.delete(happened.pointerId) && !this.moved && happened.type === "pointerup";
      if (this.painter.box) this.boxed();
      else if (tapped) this.hover(happened, true);
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("pointerleave", (happened) => {
      if (happened.pointerType === "mouse" && !fingers.size) this.choose(-1);
    });
    canvas.addEventListener("dblclick", () => this.zoomTo(this.painter.chosen));
  }

  // One finger or the mouse moves, two pinch, with shift a box is drawn.
  drag(before, now) {
    const seconds = (this.view.to - this.view.from) / this.painter.width;
    const other = [...this.fingers.values()].find((finger) => finger.pointerId !== now.pointerId);
    if (this.painter.box) {
      this.painter.box[1] = now.offsetX;
      return this.redraw();
    }
    if (!other) {
      this.frame.scrollTop -= now.pointerType === "mouse" ? now.offsetY - before.offsetY : 0;
      return this.pan((before.offsetX - now.offsetX) * seconds);
    }
    const apart = (finger) => Math.max(20, Math.abs(finger.offsetX - other.offsetX));
    this.zoom(apart(now) / apart(before), (now.offsetX + other.offsetX) / 2);
    return this.pan(((before.offsetX - now.offsetX) / 2) * seconds);
  }

  boxed() {
    const [a, b] = this.painter.box.map((x) => this.painter.time(x)).sort((x, y) => x - y);
    const wide = Math.abs(this.painter.box[1] - this.painter.box[0]) > 4;
    this.painter.box = null;
    if (wide) this.show(a, b);
    else this.redraw();
  }

  hover(happened, aloud) {
    const { painter, lanes } = this;
    const tolerance = ((happened.pointerType === "touch" ? 8 : 2) * (this.view.to - this.view.from)) / painter.width;
    const inAxis = happened.offsetY < AXIS;
    const { event, near } = inAxis ? { event: -1, near: 0 }
      : lanes.at(painter.time(happened.offsetX), happened.offsetY + this.frame.scrollTop, tolerance);
    this.choose(event, happened.clientX, happened.clientY, near - 1, aloud);
  }

  // Outlines an event and says what it is; -1 for none.
  choose(event, x, y, more = 0, aloud = false) {
    if (event < 0) this.tip.hide();
    if (event !== this.painter.chosen) {
      this.painter.chosen = event;
      this.redraw();
    }
    if (event < 0) return;
    const { data } = this.lanes, rows = eventWords(data, event);
    for (const other of this.lanes.partners.get(event) ?? []) {
      if (other === event) continue;
      const type = data.types[data.type[other]];
      rows.push([data.start[other] >= data.start[event] ? "arrow to" : "arrow from",
        `${type.name} on ${data.tracks[data.track[other]].words}`]);
    }
    if (more > 0) rows.push(["and", `${more >= 5000 ? "5000 or more" : more} more here: zoom in`]);
    this.tip.show(data.types[data.type[event]].name, rows, x, y, aloud);
  }

  // Brings an event into view and says what it is, as if pointed at.
  reveal(event) {
    if (event < 0) return;
    const { data } = this.lanes, { from, to } = this.view, y = this.lanes.top(event);
    if (data.end[event] < from || data.start[event] > to) {
      const half = (to - from) / 2;
      this.show(data.start[event] - half, data.start[event] + half);
    }
    const height = this.canvas.clientHeight;
    const above = y - this.frame.scrollTop;
    if (above < AXIS || above + this.lanes.row > height) this.frame.scrollTop = y - height / 2;
    const place = this.canvas.getBoundingClientRect();
    const x = Math.min(Math.max(this.painter.x(data.start[event]), 0), this.painter.width);
    this.choose(event, place.left + x, place.top + y - this.frame.scrollTop + this.lanes.row, 0, true);
  }

  zoomTo(event) {
    if (event < 0) return;
    const { start, end, seconds } = this.lanes.data, margin = Math.max(0.1 * seconds[event], 1e-8);
    this.show(start[event] - margin, end[event] + margin);
  }

  key(happened) {
    const step = 0.15 * (this.view.to - this.view.from), { shiftKey: shift } = happened, { chosen } = this.painter;
    const move = (across, down) => this.reveal(this.lanes.beside(chosen, across, down));
    const keys = {
      ArrowLeft: () => (shift ? move(-1, 0) : this.pan(-step)),
      ArrowRight: () => (shift ? move(1, 0) : this.pan(step)),
      ArrowUp: () => (shift ? move(0, -1) : (this.frame.scrollTop -= 40)),
      ArrowDown: () => (shift ? move(0, 1) : (this.frame.scrollTop += 40)),
      "+": () => this.zoom(1.5), "=": () => this.zoom(1.5), "-": () => this.zoom(1 / 1.5),
      Home: () => this.fit(), 0: () => this.fit(), Enter: () => this.zoomTo(chosen), Escape: () => this.choose(-1),
    };
    if (!keys[happened.key] || happened.ctrlKey || happened.metaKey || happened.altKey) return;
    happened.preventDefault();
    keys[happened.key]();
  }

  overview(small) {
    const centre = (happened) => {
      const { begin, finish } = this.lanes, half = (this.view.to - this.view.from) / 2;
      const time = begin + (happened.offsetX / small.clientWidth) * (finish - begin);
      this.show(time - half, time + half);
    };
    small.addEventListener("pointerdown", (happened) => {
      small.setPointerCapture(happened.pointerId);
      centre(happened);
    });
    small.addEventListener("pointermove", (happened) => happened.buttons && centre(happened));
  }

  // After a filter or a search.
  changed() {
    this.lanes.arrange();
    this.lanes.search(this.lanes.words);
    if (this.lanes.place[this.painter.chosen] < 0) this.choose(-1);
    this.painter.picture = null;
    this.resize();
    this.count();
  }

  count() {
    const { shown, data, words, found } = this.lanes, number = (count) => count.toLocaleString("en");
    const seconds = found.reduce((sum, event) => sum + data.seconds[event], 0);
    document.getElementById("count").textContent = `${number(shown)} of ${number(data.events)} events shown` +
      (words ? `; “${words}” found in ${number(found.length)}, ${secondsWords(seconds)} added up` : "");
  }
}
