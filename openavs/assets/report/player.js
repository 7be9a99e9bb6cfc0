"use strict";
// The player of the reports and of the page of `openavs serve`: draws the masks of a result over its video or pictures.
// Each `.player` has its data as JSON, see openavs/visualization/player.py. The first one is joined with the timeline,
// the images and the table of its page: each seeks, and a line marks the time in all of them. A click on the picture is
// the event `openavs:point`; unless it is canceled, it plays or pauses. Texts of results become text, never HTML.
((root) => {
  const OUTSIDE = 0, INSIDE = 1, EDGE = 2, RIM = 3; // of a mask's pixels; the rim is just outside
  const FALLBACK = [128, 128, 128]; // color of boxes of phrases without a mask
  const MAX_DECODED = 400; // masks kept
  const MIN_LABELED = 280; // pixels of a picture whose masks have labels
  const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;
  const textColor = ([r, g, b]) => (0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#000" : "#fff");
  const label = (name, score) => (score === null ? name : `${name} ${score.toFixed(2)}`);
  const make = (tag, values, ...children) => {
    const element = Object.assign(document.createElement(tag), values);
    element.append(...children);
    return element;
  };

  // ------------------------------------------------------------------------------------------------------------ masks

  // Decodes a compressed run-length code of COCO (column by column, background first) to a cropped map of pixels.
  const decode = (code, [height, width]) => {
    const runs = [];
    for (let i = 0; i < code.length; ) {
      let value = 0, shift = 0, bits;
      do {
        bits = code.charCodeAt(i++) - 48;
        value |= (bits & 31) << shift;
        shift += 5;
      } while (bits & 32);
      if (bits & 16) value |= -1 << shift;
      runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
    }
    const spans = []; // first and last pixel
    for (let i = 1, end = runs[0]; i < runs.length; end += runs[i] + (runs[i + 1] ?? 0), i += 2)
      if (runs[i]) spans.push([end, end + runs[i] - 1]);
    const reach = Math.max(1, Math.round(Math.min(height, width) / 270)); // of the contour
    let top = height, bottom = -1;
    for (const [first, last] of spans) {
      const isOneColumn = Math.floor(first / height) === Math.floor(last / height);
      top = Math.min(top, isOneColumn ? first % height : 0);
      bottom = Math.max(bottom, isOneColumn ? last % height : height - 1);
    }
    if (!spans.length) return { kinds: new Uint8Array(0), left: 0, top: 0, columns: 0, rows: 0 };
    const left = Math.floor(spans[0][0] / height) - reach;
    top -= reach;
    const columns = Math.floor(spans.at(-1)[1] / height) - left + reach + 1, rows = bottom - top + reach + 1;
    const kinds = new Uint8Array(columns * rows);
    for (const [first, last] of spans)
      for (let p = first; p <= last; p++)
        kinds[((p % height) - top) * columns + Math.floor(p / height) - left] = INSIDE;
    const near = [];
    for (let k = 1; k <= reach; k++) near.push(k, -k, k * columns, -k * columns);
    for (let p = 0; p < kinds.length; p++)
      if (kinds[p] === INSIDE) {
        if (near.some((step) => kinds[p + step] === OUTSIDE || kinds[p + step] === RIM)) kinds[p] = EDGE;
        for (const step of near.slice(0, 4)) if (kinds[p + step] === OUTSIDE) kinds[p + step] = RIM;
      }
    return { kinds, left, top, columns, rows };
  };

  // Writes a mask into the pixels of an image, little-endian as all of today's machines.
  const paint = (pixels, [height, width], mask, [r, g, b], opacity) => {
    const color = (b << 16) | (g << 8) | r;
    const values = [0, (Math.round(255 * opacity) << 24) | color, (255 << 24) | color, 150 << 24];
    const first = Math.max(0, -mask.left), last = Math.min(mask.columns, width - mask.left);
    for (let y = Math.max(0, -mask.top); y < Math.min(mask.rows, height - mask.top); y++)
      for (let x = first, p = y * mask.columns + first, q = (y + mask.top) * width + mask.left + first; x < last; x++, p++, q++)
        if (mask.kinds[p]) pixels[q] = values[mask.kinds[p]];
  };

  // A clock for pictures without a video.
  class Clock {
    constructor(duration) {
      Object.assign(this, { duration, paused: true, time: 0, since: 0 });
    }
    get currentTime() {
      return this.paused ? this.time : Math.min(this.time + (performance.now() - this.since) / 1000, this.duration);
    }
    set currentTime(time) {
      Object.assign(this, { time, since: performance.now() });
    }
    play() {
      if (this.time >= this.duration) this.time = 0;
      Object.assign(this, { paused: false, since: performance.now() });
    }
    pause() {
      Object.assign(this, { time: this.currentTime, paused: true });
    }
  }

  // ----------------------------------------------------------------------------------------------------------- player

  class Player {
    constructor(element) {
      this.element = element;
      const data = element.querySelector("script[type='application/json']");
      this.data = data && JSON.parse(data.textContent);
      this.video = element.querySelector("video");
      this.decoded = new Map();
      this.reset();
      element.classList.add("plays");
      if (this.data) this.build();
      this.media = this.video ?? new Clock(this.data?.end ?? 0);
      if (!this.video || this.video.error) this.useImages();
      const begin = this.linkedTime ?? this.data?.begin;
      if (begin) this.media.currentTime = begin;
      this.show();
    }
    find(selector) {
      return this.element.querySelector(selector);
    }
    get end() {
      return this.media.duration || this.data?.end || Number(timeline()?.dataset.end);
    }
    get time() {
      return this.media.currentTime;
    }
    get isMain() {
      return this.element === root.querySelector(".player");
    }
    // The time of the frame that the page's address names, such as `report.html#f12`.
    get linkedTime() {
      const index = this.isMain && /^#f(\d+)$/.exec(location.hash)?.[1];
      return index ? this.data?.views[0].frames.find((frame) => frame.index === Number(index))?.time : undefined;
    }

    // ----------------------------------------------------------------------------------------------- what is visible

    reset() {
      Object.assign(this, { hidden: new Set(), solo: null, last: 0, threshold: null, opacity: 0.45 });
    }
    isVisible(object) {
      return object === null || (this.solo === null ? !this.hidden.has(object) : this.solo === object);
    }
    // `null` is the threshold of the result, which shows what it has.
    reaches(score) {
      return this.threshold === null || score === null || score >= this.threshold;
    }
    frameAt(view, time) {
      return view.frames.find((frame) => frame.start <= time && time < frame.stop) ?? null;
    }
    // The size and the segments of a view at a time; masks in motion are replaced by those of a sampled frame near it.
    segmentsAt(view, time) {
      const frame = this.frameAt(view, time), moving = view === this.data.views[0] && !this.images && this.data.moving;
      const rows = moving && !(frame && Math.abs(frame.time - time) < 0.03) && moving.frames[Math.floor(time * moving.rate)];
      return rows ? { size: moving.size, segments: rows } : { size: view.size, segments: frame?.segments ?? [] };
    }
    visibleAt(view, time) {
      const { size, segments } = this.segmentsAt(view, time);
      const visible = segments.filter(([object, score]) => this.isVisible(object) && this.reaches(score));
      return { size, segments: visible.sort((one, other) => one[1] - other[1]) };
    }
    // Boxes that a lower threshold adds.
    addedAt(frame) {
      if (this.threshold === null) return [];
      return (frame?.candidates ?? []).filter(([, object, score]) => this.isVisible(object) && this.reaches(score));
    }
    maskOf(code, size) {
      const key = `${code}/${size[1]}`;
      let mask = this.decoded.get(key);
      if (!mask) {
        if (this.decoded.size >= MAX_DECODED) this.decoded.clear();
        this.decoded.set(key, (mask = decode(this.data.codes[code], size)));
      }
      return mask;
    }

    // ------------------------------------------------------------------------------------------------------- drawing

    draw() {
      if (!this.data) return;
      const start = performance.now();
      this.views.forEach((view, i) => this.drawView(view, this.data.views[i]));
      this.element.dataset.drawn = (performance.now() - start).toFixed(1); // ms
    }
    drawView({ stage, canvas, layer }, view) {
      const scale = window.devicePixelRatio || 1;
      canvas.width = Math.max(1, Math.round(stage.clientWidth * scale));
      canvas.height = Math.max(1, Math.round(stage.clientHeight * scale));
      const context = canvas.getContext("2d");
      const { size, segments } = this.visibleAt(view, this.shownTime);
      if (segments.length) {
        [layer.height, layer.width] = size;
        const image = new ImageData(size[1], size[0]);
        const pixels = new Uint32Array(image.data.buffer);
        for (const [object, , code] of segments)
          paint(pixels, size, this.maskOf(code, size), this.data.objects[object].color, this.opacity);
        layer.getContext("2d").putImageData(image, 0, 0);
        context.drawImage(layer, 0, 0, canvas.width, canvas.height);
      }
      const occupied = [];
      for (const [object, score, code] of segments.toReversed()) {
        const mask = this.maskOf(code, size), { name, color } = this.data.objects[object];
        const x = (mask.left * canvas.width) / size[1], y = (mask.top * canvas.height) / size[0];
        this.drawLabel(context, label(name, score), color, x, y, scale, occupied);
      }
      const [height, width] = this.data.size;
      for (const [phrase, object, score, box] of this.addedAt(this.frameAt(view, this.shownTime))) {
        const [x0, y0, x1, y1] = box.map((value, i) => value * (i % 2 ? canvas.height / height : canvas.width / width));
        const color = object === null ? FALLBACK : this.data.objects[object].color;
        for (const [style, dash] of [["#fff", []], [css(color), [6 * scale, 4 * scale]]]) {
          context.setLineDash(dash);
          Object.assign(context, { strokeStyle: style, lineWidth: dash.length ? 2 * scale : 3 * scale });
          context.strokeRect(x0, y0, x1 - x0, y1 - y0);
        }
        this.drawLabel(context, label(phrase, score), color, x0, y0, scale, occupied);
      }
    }
    // A plate above (x, y), moved down until it covers no other one; left out if there is no room.
    drawLabel(context, text, color, x, y, scale, occupied) {
      if (context.canvas.width < MIN_LABELED * scale) return;
      context.font = `600 ${13 * scale}px system-ui, sans-serif`;
      const { width: across, height: down } = context.canvas;
      const height = 20 * scale, width = Math.min(context.measureText(text).width + 10 * scale, across);
      const left = Math.max(0, Math.min(x, across - width));
      let top = y >= height ? y - height : Math.max(0, y);
      const isFree = () =>
        occupied.every(([l, t, w]) => left >= l + w || l >= left + width || top >= t + height || t >= top + height);
      while (top + height <= down && !isFree()) top += height;
      if (top + height > down) return;
      occupied.push([left, top, width]);
      context.fillStyle = css(color);
      context.fillRect(left, top, width, height);
      Object.assign(context, { fillStyle: textColor(color), textBaseline: "middle" });
      context.fillText(text, left + 5 * scale, top + height / 2 + scale, width - 10 * scale);
    }

    // ---------------------------------------------------------------------------------------------------------- time

    // Pictures are shown for a while: masks are those of the picture's own frame.
    get shownTime() {
      return this.images ? (this.image?.time ?? this.time) : this.time;
    }
    useImages() {
      const listed = this.data?.images?.map(([start, src]) => ({ start, src }));
      const frames = this.data?.views[0].frames ?? [];
      const figures = this.isMain ? [...root.querySelectorAll("figure[data-start] img:first-child")] : [];
      const images = listed ?? figures.map((img) => ({ start: Number(img.closest("figure").dataset.start), src: img.src }));
      for (const image of images) image.time = frames.find((frame) => Math.abs(frame.start - image.start) < 1e-3)?.time;
      this.element.classList.toggle("absent", this.video !== null);
      if (!images.length) return;
      this.images = images;
      this.element.classList.add("pictures");
      if (this.video) this.media = new Clock(this.data.end);
      for (const view of this.views) view.stage.prepend((view.still = make("img", { alt: "" })));
      this.drawnKey = null;
    }
    showImage() {
      const image = this.images.findLast(({ start }) => start <= this.time + 1e-3) ?? this.images[0];
      if (image === this.image) return;
      this.image = image;
      for (const { still } of this.views) still.src = image.src;
    }
    seek(time) {
      this.media.currentTime = Math.min(Math.max(time, 0), this.end);
      this.show();
    }
    step(count) {
      const times = this.data.views[0].frames.map((frame) => frame.time);
      const next = count > 0 ? times.find((time) => time > this.time + 0.01) : times.findLast((time) => time < this.time - 0.01);
      if (next !== undefined) this.seek(next);
    }
    playOrPause() {
      if (this.media.paused) Promise.resolve(this.media.play()).catch(() => {}); // such as a video without its file
      else this.media.pause();
      this.follow();
    }
    follow() {
      cancelAnimationFrame(this.request);
      if (this.images && this.time >= this.end) this.media.pause();
      this.show();
      if (!this.media.paused) this.request = requestAnimationFrame(() => this.follow());
    }
    show() {
      const time = this.time;
      const slider = this.find(".seek input");
      if (slider) {
        slider.value = time;
        slider.setAttribute("aria-valuetext", `${time.toFixed(1)} s`);
        this.find(".seek output").value = `${time.toFixed(1)} s`;
      }
      if (this.isMain) markTime(time);
      if (!this.data) return;
      if (this.images) this.showImage();
      const frame = this.frameAt(this.data.views[0], this.shownTime);
      this.find(".status").textContent = frame?.status ?? "";
      this.find(".play").textContent = this.media.paused ? "Play" : "Pause";
      const key = `${frame?.index} ${this.segmentsAt(this.data.views[0], this.shownTime).segments.join()}`;
      if (key !== this.drawnKey) this.draw();
      this.drawnKey = key;
    }

    // ------------------------------------------------------------------------------------------------------- controls

    build() {
      this.views = [...this.element.querySelectorAll(".stage")].map((stage) => {
        stage.style.setProperty("--ratio", this.data.size[1] / this.data.size[0]);
        stage.addEventListener("click", (event) => this.point(event, stage));
        new ResizeObserver(() => this.draw()).observe(stage);
        return { stage, canvas: stage.querySelector("canvas"), layer: document.createElement("canvas") };
      });
      if (this.video) this.video.controls = false; // the canvas would cover them
      this.buildToggles();
      this.buildThreshold();
      const on = (selector, type, act) => this.find(selector)?.addEventListener(type, act);
      on(".play", "click", () => this.playOrPause());
      on(".sound", "click", () => this.mute());
      on(".captions", "click", () => this.caption());
      on(".full", "click", () => this.enlarge());
      on(".reset", "click", () => this.change(() => this.reset()));
      on(".opacity", "input", ({ target }) => this.change(() => (this.opacity = Number(target.value))));
      this.element.addEventListener("keydown", (event) => this.press(event));
      this.change(() => {});
    }
    // Shows other masks of the same clip.
    load(data) {
      const names = this.data.objects.map(({ name }) => name), find = (i) => data.objects.findIndex(({ name }) => name === names[i]);
      const hidden = [...this.hidden].map(find).filter((i) => i >= 0);
      const solo = this.solo === null || find(this.solo) < 0 ? null : find(this.solo);
      Object.assign(this, { data, hidden: new Set(hidden), solo, last: 0, threshold: null, drawnKey: null });
      this.decoded.clear();
      this.buildToggles();
      this.buildThreshold();
      this.change(() => {});
      this.show();
    }
    buildToggles() {
      this.toggles = this.data.objects.map(({ name, color }, i) => {
        const key = i < 9 ? [make("kbd", { textContent: i + 1 })] : [];
        const dot = make("span", { className: "dot" });
        dot.style.setProperty("--c", css(color));
        const button = make("button", { type: "button", className: "toggle" }, dot, name, ...key);
        button.addEventListener("click", ({ altKey }) => (altKey ? this.isolate(i) : this.toggle(i)));
        button.addEventListener("dblclick", () => this.isolate(i));
        return button;
      });
      this.find(".toggles").replaceChildren(...this.toggles);
    }
    // Marks of the scores of masks, and shorter ones of the boxes below the threshold, from the lowest to the highest.
    buildThreshold() {
      const frames = this.data.views.flatMap((view) => view.frames);
      const masks = frames.flatMap((frame) => frame.segments.map(([object, score]) => [object, score, "mask"]));
      const boxes = frames.flatMap((frame) => frame.candidates.map(([, object, score]) => [object, score, "box"]));
      this.scores = [...masks, ...boxes].filter(([, score]) => score !== null);
      const field = this.find(".by-score");
      if (field) field.hidden = !this.scores.length;
      if (!field || field.hidden) return;
      const values = [...this.scores.map(([, score]) => score), this.data.threshold];
      const low = Math.max(0, Math.floor(100 * Math.min(...values) - 1) / 100);
      const high = Math.min(1, Math.ceil(100 * Math.max(...values) + 1) / 100);
      const slider = Object.assign(this.find(".threshold"), { min: low, max: high, step: 0.005 });
      slider.oninput = () => this.change(() => (this.threshold = Number(slider.value)));
      const marks = new Map(this.scores.map((row) => [`${row[0]} ${row[1].toFixed(3)} ${row[2]}`, row]));
      const elements = [...marks.values()].map(([object, score, kind]) => {
        const mark = make("i", { className: kind });
        mark.style.left = `${(100 * (score - low)) / (high - low)}%`;
        mark.style.setProperty("--c", css(object === null ? FALLBACK : this.data.objects[object].color));
        return mark;
      });
      this.find(".marks").replaceChildren(...elements);
    }
    // Changes what is visible, and shows it at once.
    change(act) {
      act();
      this.toggles.forEach((button, i) => {
        button.setAttribute("aria-pressed", this.isVisible(i));
        button.classList.toggle("alone", this.solo === i);
        button.title = this.solo === i ? "Solo ends it" : "Alt-click or double-click for solo";
      });
      this.find(".opacity").value = this.opacity;
      this.showThreshold();
      if (this.media) this.draw();
      if (this.isMain)
        for (const bar of root.querySelectorAll("[data-object]")) {
          const object = this.data.objects.findIndex(({ name }) => name === bar.dataset.object);
          bar.classList.toggle("out", !this.isVisible(object) || !this.reaches(Number(bar.dataset.score)));
        }
    }
    showThreshold() {
      const slider = this.find(".threshold"), value = this.threshold ?? this.data.threshold;
      if (!slider) return;
      if (this.threshold === null) slider.value = this.data.threshold;
      const count = (kind) => this.scores.filter((row) => row[2] === kind && this.reaches(row[1])).length;
      const total = this.scores.filter((row) => row[2] === "mask").length;
      const change = this.threshold === null ? "" : `: ${count("mask")} of ${total} masks, ${count("box")} more boxes`;
      const text = `${value.toFixed(3).replace(/0$/, "")}${change}`;
      this.find(".by-score output").value = text;
      slider.setAttribute("aria-valuetext", text);
    }
    toggle(object) {
      this.change(() => {
        this.last = object;
        this.solo = null;
        if (!this.hidden.delete(object)) this.hidden.add(object);
      });
    }
    isolate(object) {
      this.change(() => Object.assign(this, { last: object, solo: this.solo === object ? null : object }));
    }
    mute() {
      if (!this.video) return;
      this.video.muted = !this.video.muted;
      this.find(".sound").setAttribute("aria-pressed", this.video.muted);
    }
    caption() {
      const [track] = this.video?.textTracks ?? [];
      if (!track) return;
      track.mode = track.mode === "showing" ? "hidden" : "showing";
      this.find(".captions").setAttribute("aria-pressed", track.mode === "showing");
    }
    enlarge() {
      if (document.fullscreenElement) document.exitFullscreen();
      else this.element.requestFullscreen?.();
    }
    press(event) {
      const { key, target } = event;
      const isRange = target.matches("input"), isButton = target.matches("button,summary,a");
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if ((isRange && key.startsWith("Arrow")) || (isButton && key === " ")) return; // their own keys
      const focused = this.toggles.indexOf(target);
      const actions = {
        " ": () => this.playOrPause(),
        ArrowLeft: () => this.seek(this.time - 1),
        ArrowRight: () => this.seek(this.time + 1),
        ",": () => this.step(-1),
        ".": () => this.step(1),
        s: () => this.isolate(focused < 0 ? this.last : focused),
        "[": () => this.change(() => (this.opacity = Math.max(0, this.opacity - 0.1))),
        "]": () => this.change(() => (this.opacity = Math.min(1, this.opacity + 0.1))),
        m: () => this.mute(),
        c: () => this.caption(),
        f: () => this.enlarge(),
        "?": () => (this.find(".keys").open = !this.find(".keys").open),
      };
      const digit = /^[1-9]$/.test(key) && Number(key) <= this.toggles.length;
      const act = digit ? () => this.toggle(Number(key) - 1) : Object.hasOwn(actions, key) && actions[key];
      if (!act) return;
      event.preventDefault();
      act();
    }
    // The object under a point: that with the highest score.
    objectAt(view, x, y) {
      const { size, segments } = this.visibleAt(view, this.shownTime);
      const column = Math.floor((x * size[1]) / this.data.size[1]), row = Math.floor((y * size[0]) / this.data.size[0]);
      const found = segments.findLast(([, , code]) => {
        const { kinds, left, top, columns, rows } = this.maskOf(code, size);
        const across = column - left, down = row - top;
        if (across < 0 || down < 0 || across >= columns || down >= rows) return false;
        return [INSIDE, EDGE].includes(kinds[down * columns + across]);
      });
      return found ? found[0] : null;
    }
    point(event, stage) {
      const index = this.views.findIndex((view) => view.stage === stage), view = this.data.views[index];
      const box = stage.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * this.data.size[1];
      const y = ((event.clientY - box.top) / box.height) * this.data.size[0];
      const object = this.objectAt(view, x, y), frame = this.frameAt(view, this.shownTime);
      const name = object === null ? null : this.data.objects[object].name;
      const sampled = { frame: frame?.index ?? null, sampled: frame?.time ?? null }; // its masks are of this time
      const detail = { x, y, ...sampled, time: this.shownTime, object: name, view: index, shift: event.shiftKey };
      stage.focus({ preventScroll: true });
      const isFree = stage.dispatchEvent(new CustomEvent("openavs:point", { bubbles: true, cancelable: true, detail }));
      if (!isFree) return;
      if (event.altKey && object !== null) this.isolate(object);
      else this.playOrPause();
    }
  }

  // ------------------------------------------------------------------------------------------------------------- page

  const players = new WeakMap();
  const main = () => players.get(root.querySelector(".player"));
  const timeline = () => root.querySelector(".time[data-end]"); // Gradio has a .time, too
  const markTime = (time) => {
    const lanes = timeline();
    if (lanes) {
      lanes.classList.add("plays");
      const head = lanes.querySelector(".playhead") ?? lanes.appendChild(make("div", { className: "playhead" }));
      head.style.left = `${100 * Math.min(time / Number(lanes.dataset.end), 1)}%`;
    }
    for (const element of root.querySelectorAll("[data-start]")) {
      const isNow = Number(element.dataset.start) <= time && time < Number(element.dataset.stop);
      element.classList.toggle("now", isNow);
    }
  };
  // The page of `openavs serve` exchanges its elements.
  const scan = () => {
    for (const element of root.querySelectorAll(".player"))
      if (!players.has(element)) players.set(element, new Player(element));
    if (timeline()?.matches(".plays") === false) main()?.show();
  };
  const ofVideo = (target) => target.tagName === "VIDEO" && players.get(target.closest(".player"));

  // Events of media do not bubble: they are caught on their way down.
  for (const [event, act] of [
    ["play", (player) => player.follow()],
    ["pause", (player) => player.show()],
    ["timeupdate", (player) => player.show()],
    ["seeked", (player) => player.show()],
    ["loadedmetadata", (player) => player.show()],
    ["error", (player) => (player.useImages(), player.show())],
  ])
    root.addEventListener(event, ({ target }) => ofVideo(target) && act(ofVideo(target)), true);
  root.addEventListener("openavs:data", ({ target, detail }) => players.get(target)?.load(detail));
  root.addEventListener("input", ({ target }) => {
    if (target.matches(".seek input")) players.get(target.closest(".player"))?.seek(Number(target.value));
  });
  root.addEventListener("click", (event) => {
    const lane = event.target.closest(".time[data-end] svg:not(.legend)");
    const link = event.target.closest("a[data-time]");
    const player = main();
    if (!player || !(lane || link)) return;
    if (lane) {
      const box = lane.getBoundingClientRect();
      player.seek((Number(timeline().dataset.end) * (event.clientX - box.left)) / box.width);
      player.find(".stage")?.focus({ preventScroll: true });
    } else {
      event.preventDefault();
      player.seek(Number(link.dataset.time));
      player.element.scrollIntoView({ block: "nearest" });
    }
  });
  new MutationObserver(scan).observe(root, { childList: true, subtree: true });
  scan();
})(document);
