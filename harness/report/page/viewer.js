// Golden and output under each other's eyes: five views that share zoom, position, frame and the pixel under the cursor.

const VIEWS = { side: "Side by side", slider: "Slider", blink: "Blink", onion: "Onion", heat: "Heat map" };
const ZOOM_MAX = 32;
const BLINK_MS = 500;
// Dark blue to yellow, evenly bright steps; an equal pixel is black.
const RAMP = [[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]];

const lastView = { name: "side" }; // kept from case to case

class Viewer {
  constructor(pictures, frames, fps, names = { golden: "golden", output: "output" }) {
    Object.assign(this, pictures, { names, frames, fps: fps || 8, frame: 0, split: 0.5, mix: 0.5, phase: 0, x: 0, y: 0, zoom: 1, fit: true });
    const any = this.golden ?? this.output;
    this.width = Math.max(...[this.golden, this.output].filter(Boolean).map((c) => c.width));
    this.height = Math.max(...[this.golden, this.output].filter(Boolean).map((c) => c.height)) / frames;
    this.both = Boolean(this.golden && this.output);
    this.comparable = this.both && this.golden.width === this.output.width && this.golden.height === this.output.height;
    if (this.comparable) this.measure();
    this.view = this.comparable ? lastView.name : "side";
    this.timers = {};
    this.panes = make("div", { class: "panes" });
    this.readout = make("output", { class: "readout", "aria-live": "off" });
    this.root = make("section", { class: "viewer", "aria-label": "Pictures", "data-view": this.view }, this.toolbar(), this.panes, this.readout);
    this.root.style.setProperty("--w", this.width);
    this.root.style.setProperty("--h", this.height);
    this.observer = new ResizeObserver(() => this.refit());
    this.observer.observe(this.panes);
    this.show(this.view);
    this.point(null);
    if (!any) throw new Error("a viewer needs a picture");
  }

  close() {
    this.observer.disconnect();
    Object.values(this.timers).forEach(clearInterval);
  }

  /** Largest difference, how many pixels differ, and an amplification by which nine tenths of those stay below white. */
  measure() {
    [this.a, this.b] = [pixelsOf(this.golden), pixelsOf(this.output)];
    const counts = new Array(256).fill(0);
    for (let i = 0; i < this.a.length; i += 4) counts[this.distance(i)]++;
    const differing = this.a.length / 4 - counts[0];
    this.largest = counts.findLastIndex((count) => count > 0);
    this.share = differing / (this.a.length / 4);
    let [most, below] = [1, counts[1]];
    while (below < 0.9 * differing) below += counts[++most];
    this.gain = Math.floor(255 / most);
  }

  distance(i) {
    const { a, b } = this;
    return Math.max(Math.abs(a[i] - b[i]), Math.abs(a[i + 1] - b[i + 1]), Math.abs(a[i + 2] - b[i + 2]));
  }

  // ------------------------------------------------------------------------------------------------------- tools

  toolbar() {
    const views = make("div", { class: "views", role: "group", "aria-label": "View" });
    for (const [name, title] of Object.entries(VIEWS)) {
      const button = make("button", { type: "button", "data-view": name, "aria-pressed": "false", disabled: name !== "side" && !this.comparable }, title);
      button.addEventListener("click", () => this.show(name));
      views.append(button);
    }
    const zoom = make("div", { class: "zoom", role: "group", "aria-label": "Zoom" });
    for (const [title, label, act] of [["−", "Zoom out", () => this.zoomBy(0.5)], ["+", "Zoom in", () => this.zoomBy(2)], ["Fit", "Fit the picture", () => this.refit(true)]]) {
      const button = make("button", { type: "button", "aria-label": label }, title);
      button.addEventListener("click", act);
      zoom.append(button);
    }
    this.scale = make("span", { class: "scale" });
    zoom.append(this.scale);
    this.knob = make("input", { type: "range", min: 0, max: 1000, value: 500 });
    this.knob.addEventListener("input", () => this.turn(this.knob.value / 1000));
    this.knobLabel = make("span");
    this.pause = make("button", { type: "button", "aria-pressed": "false" }, "Pause");
    this.pause.addEventListener("click", () => this.toggleBlink());
    this.extra = make("div", { class: "extra" }, make("label", {}, this.knobLabel, this.knob), this.pause);
    return make("div", { class: "tools" }, views, zoom, this.extra, this.frames > 1 && this.scrubber());
  }

  scrubber() {
    this.play = make("button", { type: "button", class: "play", "aria-pressed": "false" }, "Play");
    this.play.addEventListener("click", () => this.togglePlay());
    this.range = make("input", { type: "range", min: 0, max: this.frames - 1, value: 0, step: 1 });
    this.range.addEventListener("input", () => { this.togglePlay(false); this.seek(Number(this.range.value)); });
    this.count = make("output", { class: "count" });
    return make("div", { class: "scrubber", role: "group", "aria-label": "Frames" }, this.play, make("label", {}, "Frame", this.range), this.count);
  }

  seek(frame) {
    this.frame = (frame + this.frames) % this.frames;
    this.draw();
  }

  togglePlay(on = !this.timers.play) {
    clearInterval(this.timers.play);
    this.timers.play = on ? setInterval(() => this.seek(this.frame + 1), 1000 / this.fps) : 0;
    this.play.setAttribute("aria-pressed", String(on));
    this.play.textContent = on ? "Pause" : "Play";
  }

  toggleBlink(on = !this.timers.blink) {
    clearInterval(this.timers.blink);
    this.timers.blink = on ? setInterval(() => { this.phase = 1 - this.phase; this.draw(); }, BLINK_MS) : 0;
    this.pause.setAttribute("aria-pressed", String(!on));
    this.pause.textContent = on ? "Pause" : "Blink";
  }

  /** The view's own knob: where the slider divides, or how much of the output the onion mixes in. */
  turn(value) {
    if (this.view === "slider") this.split = value;
    if (this.view === "onion") this.mix = value;
    this.draw();
  }

  // ------------------------------------------------------------------------------------------------------- views

  show(view) {
    if (!this.comparable && view !== "side") return;
    lastView.name = this.view = this.root.dataset.view = view;
    this.toggleBlink(view === "blink" && !matchMedia("(prefers-reduced-motion: reduce)").matches);
    for (const button of this.root.querySelectorAll(".views button")) button.setAttribute("aria-pressed", String(button.dataset.view === view));
    const hasKnob = view === "slider" || view === "onion";
    this.knob.parentElement.hidden = !hasKnob;
    this.pause.hidden = view !== "blink";
    this.extra.hidden = !hasKnob && view !== "blink";
    this.knobLabel.textContent = view === "slider" ? "Divide" : "Output";
    this.knob.value = 1000 * (view === "slider" ? this.split : this.mix);
    const painters = {
      side: [["golden", this.paintOne], ["output", this.paintOne], ...(this.comparable ? [["difference", this.paintDifference]] : [])],
      slider: [[`${this.names.golden} | ${this.names.output}`, this.paintSlider]],
      blink: [["blink", this.paintBlink]],
      onion: [[`${this.names.golden} + ${this.names.output}`, this.paintOnion]],
      heat: [["heat map", this.paintHeat]],
    }[view];
    this.painters = painters.map(([title, paint]) => this.pane(title, paint.bind(this)));
    this.panes.replaceChildren(...this.painters.map((pane) => pane.figure));
    this.panes.dataset.count = painters.length;
    this.refit();
    this.draw();
  }

  pane(title, paint) {
    const note = make("span");
    const figure = make("figure", { class: "pane" }, make("figcaption", {}, make("b", {}, this.names[title] ?? title), note));
    if (title in this.problems && !this[title]) {
      figure.append(make("p", { class: "absent" }, this.problems[title]));
      return { figure, note, title };
    }
    const [width, height] = title in this.problems ? [this[title].width, this[title].height / this.frames] : [this.width, this.height];
    const canvas = make("canvas", { width, height });
    canvas.style.setProperty("--w", width);
    const label = `${this.names[title] ?? title}. Arrow keys move the pixel cursor, plus and minus zoom.`;
    const viewport = make("div", { class: "viewport", role: "img", tabindex: 0, "aria-label": label }, canvas, make("i", { class: "cursor" }), title.includes("|") && make("i", { class: "split" }));
    this.listen(viewport);
    figure.append(viewport);
    return { figure, note, title, paint, canvas, context: canvas.getContext("2d") };
  }

  draw() {
    for (const pane of this.painters) {
      if (!pane.paint) continue;
      pane.context.clearRect(0, 0, pane.canvas.width, pane.canvas.height);
      pane.note.textContent = pane.paint(pane) ?? "";
    }
    if (this.frames > 1) {
      this.range.value = this.frame;
      this.range.setAttribute("aria-valuetext", `frame ${this.frame + 1} of ${this.frames}`);
      this.count.textContent = `${this.frame + 1} / ${this.frames}`;
    }
    this.root.dataset.frame = this.frame;
    if (this.pointed) this.point(this.pointed);
  }

  /** One frame of a strip onto a pane, from column `left` on. */
  copy(context, strip, left = 0) {
    const height = strip.height / this.frames;
    const width = strip.width - left;
    if (width > 0) context.drawImage(strip, left, this.frame * height, width, height, left, 0, width, height);
  }

  paintOne({ context, title }) {
    this.copy(context, this[title]);
    return this.comparable ? "" : `${this[title].width}×${this[title].height / this.frames}`;
  }

  paintSlider({ context }) {
    const left = Math.round(this.split * this.width);
    this.copy(context, this.golden);
    this.copy(context, this.output, left);
    this.root.style.setProperty("--split", left);
    return `${this.names.golden} on the left, ${this.names.output} on the right`;
  }

  paintBlink({ context, figure }) {
    const name = this.phase ? "output" : "golden";
    this.copy(context, this[name]);
    figure.querySelector("b").textContent = this.names[name];
  }

  paintOnion({ context }) {
    this.copy(context, this.golden);
    context.globalAlpha = this.mix;
    this.copy(context, this.output);
    context.globalAlpha = 1;
    return `${Math.round(this.mix * 100)} % ${this.names.output}`;
  }

  paintDifference({ context }) {
    this.paintPixels(context, (out, o, i) => {
      for (let c = 0; c < 3; c++) out[o + c] = Math.abs(this.a[i + c] - this.b[i + c]) * this.gain;
    });
    return this.largest ? `×${this.gain} · largest ${this.largest}/255 · ${percent(this.share)} of pixels` : "identical: no pixel differs";
  }

  paintHeat({ context }) {
    this.paintPixels(context, (out, o, i) => {
      const d = this.distance(i);
      if (d) out.set(heat(d), o);
    });
    return this.largest ? `black: equal; blue: 1/255; yellow: 255/255, on a log scale; largest ${this.largest}/255` : "identical: no pixel differs";
  }

  paintPixels(context, paint) {
    const image = context.createImageData(this.width, this.height);
    const start = this.frame * this.width * this.height * 4;
    for (let o = 0; o < image.data.length; o += 4) {
      paint(image.data, o, start + o);
      image.data[o + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  // ----------------------------------------------------------------------------------------- zoom, position, pixel

  viewport() {
    return this.panes.querySelector(".viewport");
  }

  refit(force = false) {
    const width = this.viewport()?.clientWidth;
    if (!width) return;
    this.fitted = width / this.width;
    if (force) this.fit = true;
    if (this.fit) this.place(this.fitted, 0, 0);
    else this.place(this.zoom, this.x, this.y);
  }

  /** `zoom`: CSS pixels a picture's pixel; `x`, `y`: the picture's pixel in the upper left corner. */
  place(zoom, x, y) {
    this.zoom = Math.min(Math.max(zoom, this.fitted), Math.max(ZOOM_MAX, this.fitted));
    const visible = this.fitted / this.zoom;
    this.x = Math.min(Math.max(x, 0), this.width * (1 - visible));
    this.y = Math.min(Math.max(y, 0), this.height * (1 - visible));
    this.root.style.setProperty("--zoom", this.zoom);
    this.root.style.setProperty("--x", this.x);
    this.root.style.setProperty("--y", this.y);
    this.root.classList.toggle("zoomed", this.zoom > this.fitted * 1.001);
    this.scale.textContent = `${short(this.zoom)}×`;
  }

  /** Keeps the pixel at `at` (or the middle) where it is. */
  zoomBy(factor, at = this.pointed) {
    const zoom = Math.min(Math.max(this.zoom * factor, this.fitted), ZOOM_MAX);
    const visible = this.fitted / this.zoom;
    const [px, py] = at ?? [this.x + (this.width * visible) / 2, this.y + (this.height * visible) / 2];
    this.fit = zoom <= this.fitted;
    this.place(zoom, px - ((px - this.x) * this.zoom) / zoom, py - ((py - this.y) * this.zoom) / zoom);
  }

  listen(viewport) {
    const at = (event) => {
      const box = viewport.getBoundingClientRect();
      return [this.x + (event.clientX - box.left) / this.zoom, this.y + (event.clientY - box.top) / this.zoom];
    };
    let drag = null;
    viewport.addEventListener("pointerdown", (event) => {
      drag = [event.clientX, event.clientY, this.x, this.y];
      viewport.setPointerCapture(event.pointerId);
      if (this.view === "slider" && this.fit) this.divide(at(event)[0]);
    });
    viewport.addEventListener("pointerup", () => { drag = null; });
    viewport.addEventListener("pointercancel", () => { drag = null; });
    viewport.addEventListener("pointermove", (event) => {
      if (drag && this.view === "slider" && this.fit) this.divide(at(event)[0]);
      else if (drag && !this.fit) this.place(this.zoom, drag[2] - (event.clientX - drag[0]) / this.zoom, drag[3] - (event.clientY - drag[1]) / this.zoom);
      this.point(at(event));
    });
    viewport.addEventListener("pointerleave", () => this.point(null));
    viewport.addEventListener("dblclick", (event) => (this.fit ? this.zoomBy(4, at(event)) : this.refit(true)));
    viewport.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && document.activeElement !== viewport) return; // the page scrolls
      event.preventDefault();
      this.zoomBy(event.deltaY < 0 ? 1.25 : 0.8, at(event));
    }, { passive: false });
    viewport.addEventListener("keydown", (event) => this.key(event));
  }

  divide(x) {
    this.split = Math.min(Math.max(x / this.width, 0), 1);
    this.knob.value = 1000 * this.split;
    this.draw();
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in moves) {
      const [x, y] = this.pointed ?? [this.width / 2, this.height / 2];
      const step = event.shiftKey ? 10 : 1;
      const [dx, dy] = moves[event.key];
      this.point([Math.min(Math.max(Math.floor(x) + dx * step, 0), this.width - 1), Math.min(Math.max(Math.floor(y) + dy * step, 0), this.height - 1)]);
      this.readout.setAttribute("aria-live", "polite");
    } else if (event.key === "+" || event.key === "=") this.zoomBy(2);
    else if (event.key === "-") this.zoomBy(0.5);
    else if (event.key === "0") this.refit(true);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Read one pixel out of both pictures, and mark it in every pane. */
  point(at) {
    this.pointed = at;
    this.root.classList.toggle("pointing", Boolean(at));
    if (!at) {
      this.readout.textContent = "Point at a pixel to read it; double-click or + to zoom.";
      return;
    }
    const [x, y] = at.map(Math.floor);
    this.root.style.setProperty("--cx", x);
    this.root.style.setProperty("--cy", y);
    const values = ["golden", "output"].map((name) => this.pixel(name, x, y));
    const parts = [`x ${x}, y ${y}`, ...["golden", "output"].map((name, i) => `${this.names[name]} ${values[i]?.join(" ") ?? "–"}`)];
    if (values[0] && values[1]) parts.push(`difference ${values[0].map((v, c) => Math.abs(v - values[1][c])).join(" ")}`);
    this.readout.textContent = parts.join(" · ");
  }

  pixel(name, x, y) {
    const strip = this[name];
    const height = strip ? strip.height / this.frames : 0;
    if (!strip || x < 0 || y < 0 || x >= strip.width || y >= height) return null;
    return [...strip.getContext("2d").getImageData(x, y + this.frame * height, 1, 1).data].slice(0, 3);
  }
}

function pixelsOf(canvas) {
  return canvas.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, canvas.width, canvas.height).data;
}

function heat(distance) {
  const place = (Math.log2(distance) / 8) * (RAMP.length - 1);
  const [from, to] = [RAMP[Math.floor(place)], RAMP[Math.min(Math.floor(place) + 1, RAMP.length - 1)]];
  return from.map((v, c) => Math.round(v + (to[c] - v) * (place % 1)));
}

function percent(share) {
  return share && share < 0.001 ? "<0.1%" : `${(100 * share).toFixed(1)}%`;
}
