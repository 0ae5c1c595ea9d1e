// Charts over time as SVG: lines, stacked areas, limits and bands, with a cross-hair for mouse and keyboard.

import { h, s, say } from "./dom.js";
import { clock } from "./format.js";

const MARGIN = { left: 58, right: 14, top: 14, bottom: 24 };
const BAND = 18;
const TICKS_S = [10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600];
// A chart begins at its first point, and is never shorter than this.
const SHORTEST_S = 60;
// Rows of the table that stands for a chart.
const ROWS = 60;

/**
 * A chart in `figure`. `draw(data)` takes {span, now, step, xs, series, limits, bands, top, format}:
 * series are {name, style, values, stacked}; values of null leave a gap.
 */
export class TimeChart {
  constructor(figure, { label, height = 220 }) {
    this.label = label;
    this.height = height;
    this.data = null;
    this.at = null;
    this.svg = s("svg", { role: "img", height, "aria-label": label });
    this.tip = h("div", { class: "tip", hidden: "" });
    this.empty = h("p", { class: "empty", hidden: "" });
    this.plot = h("div", { class: "plot", tabindex: "0", role: "group", "aria-label": `${label}. Arrow keys read the values.` }, this.svg, this.tip, this.empty);
    this.spoken = h("p", { class: "hidden-text", "aria-live": "polite" });
    this.sheet = h("div", { class: "sheet", tabindex: "0", role: "region", "aria-label": `${label}, as a table` });
    this.details = h("details", { ontoggle: () => this.table() }, h("summary", {}, "Show as a table"), this.sheet);
    figure.append(this.plot, this.spoken, this.details);
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => this.leave());
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.plot.addEventListener("blur", () => this.leave());
    new ResizeObserver(() => this.redraw()).observe(this.plot);
  }

  draw(data) {
    // What is not there yet would leave most of the chart empty.
    const reach = data.xs.length ? data.now - data.xs[0] : data.span;
    this.data = { ...data, span: Math.min(data.span, Math.max(SHORTEST_S, reach)) };
    this.redraw();
  }

  redraw() {
    const data = this.data, width = this.plot.clientWidth;
    if (!data || !width) return;
    const bottom = MARGIN.bottom + (data.bands ? BAND + 6 : 0);
    this.scale = {
      width, bottom: this.height - bottom,
      x: (t) => MARGIN.left + (width - MARGIN.left - MARGIN.right) * (1 - (data.now - t) / data.span),
      y: (value) => this.height - bottom - (this.height - bottom - MARGIN.top) * Math.min(1, value / this.top()),
    };
    this.svg.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    const seen = data.series.some((one) => one.values.some((value) => (one.stacked ? value > 0 : value !== null)));
    this.empty.hidden = seen;
    say(this.empty, seen ? "" : data.nothing);
    this.svg.replaceChildren(this.grid(), this.times(), ...this.bands(), ...this.series(), ...this.limits(), this.cross());
    this.svg.setAttribute("aria-label", `${this.label}. ${seen ? this.sentence(data.xs.length - 1) : data.nothing}`);
  }

  top() {
    const { series, limits = [], top } = this.data;
    if (top) return top;
    let most = 0;
    for (const values of this.layers(series)) for (const value of values.tops) most = Math.max(most, value ?? 0);
    const allowed = Math.max(...limits.map((limit) => limit.value), 0);
    // A limit far above what happens would flatten it.
    return nice(Math.max(most, allowed <= most * 4 ? allowed : 0) * 1.1 || allowed || 1);
  }

  grid() {
    const { width, y } = this.scale, top = this.top();
    return s("g", {}, [0, 0.25, 0.5, 0.75, 1].flatMap((part) => [
      s("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(part * top), y2: y(part * top) }),
      s("text", { x: MARGIN.left - 8, y: y(part * top) + 4, "text-anchor": "end" }, this.data.format(part * top)),
    ]));
  }

  times() {
    const { span, now } = this.data, { width, x } = this.scale;
    const room = Math.max(2, Math.floor((width - MARGIN.left) / 90));
    const step = TICKS_S.find((found) => span / found <= room) ?? TICKS_S.at(-1);
    const marks = [];
    for (let t = Math.ceil((now - span) / step) * step; t <= now; t += step) {
      const at = x(t);
      if (at < MARGIN.left + 16 || at > width - 22) continue;
      marks.push(s("text", { x: at, y: this.height - 6, "text-anchor": "middle" }, clock(t, step < 60)));
    }
    return s("g", {}, marks);
  }

  bands() {
    const { bands, step } = this.data, { x, bottom, width } = this.scale;
    return (bands ?? []).flatMap((band, place) => {
      const end = place + 1 < bands.length ? x(band.to) : Math.min(width - MARGIN.right, x(band.to + step));
      const from = Math.max(MARGIN.left, x(band.from)), to = Math.max(from, end);
      const label = to - from > band.name.length * 7 + 8 ? [s("text", { class: "band-label", x: (from + to) / 2, y: bottom + 19, "text-anchor": "middle" }, band.name)] : [];
      return [s("rect", { class: `band b-${band.name}`, x: from, y: bottom + 6, width: Math.max(1, to - from), height: BAND, rx: 3 }), ...label];
    });
  }

  /** Each series with what lies below it: nothing, or the stacked series before. */
  layers(series) {
    let below = this.data.xs.map(() => 0);
    return series.map((one) => {
      const tops = one.values.map((value, at) => (value === null ? null : value + (one.stacked ? below[at] : 0)));
      const layer = { ...one, tops, base: one.stacked ? below : null };
      if (one.stacked) below = tops.map((value, at) => value ?? below[at]);
      return layer;
    });
  }

  series() {
    const { xs, step } = this.data, { x, y } = this.scale;
    return this.layers(this.data.series).flatMap((layer) => runs(xs, layer.tops, step).flatMap((run) => {
      const across = run.map((at) => `${x(xs[at] + step / 2).toFixed(1)},${y(layer.tops[at]).toFixed(1)}`);
      const back = run.toReversed().map((at) => `${x(xs[at] + step / 2).toFixed(1)},${y(layer.base?.[at] ?? 0).toFixed(1)}`);
      const area = s("path", { class: `${layer.stacked ? "stacked" : "area"} ${layer.style}`, d: `M${across.join("L")}L${back.join("L")}Z` });
      if (layer.stacked) return [area];
      const line = s("path", { class: `line ${layer.style}`, d: `M${across.join("L")}` });
      line.setAttribute("fill", "none");
      return layer.filled ? [area, line] : [line];
    }));
  }

  limits() {
    const { width, y } = this.scale, top = this.top();
    return (this.data.limits ?? []).filter((limit) => limit.value <= top).flatMap((limit) => [
      s("line", { class: `limit ${limit.style}`, x1: MARGIN.left, x2: width - MARGIN.right, y1: y(limit.value), y2: y(limit.value) }),
      s("text", { class: `limit-label ${limit.style}`, x: width - MARGIN.right - 4, y: y(limit.value) - 5, "text-anchor": "end" }, limit.name),
    ]);
  }

  cross() {
    const at = this.at;
    this.tip.hidden = at === null || at >= this.data.xs.length;
    if (this.tip.hidden) return s("g");
    const { xs, step } = this.data, { x, y, bottom, width } = this.scale, left = x(xs[at] + step / 2);
    this.tip.replaceChildren(...this.lines(at).map((line) => h("div", {}, line)));
    this.tip.style.transform = `translateX(${left > width / 2 ? left - this.tip.offsetWidth - 12 : left + 12}px)`;
    const knobs = this.layers(this.data.series).filter((layer) => layer.tops[at] !== null)
      .map((layer) => s("circle", { class: `knob ${layer.style}`, cx: left, cy: y(layer.tops[at]), r: 4 }));
    return s("g", {}, s("line", { class: "cross", x1: left, x2: left, y1: MARGIN.top, y2: bottom }), knobs);
  }

  lines(at) {
    const band = this.data.bands?.find((found) => found.from <= this.data.xs[at] && this.data.xs[at] <= found.to);
    const values = this.data.series.map((one) => `${one.name}: ${one.values[at] === null ? "no data" : this.data.format(one.values[at])}`);
    return [clock(this.data.xs[at]), ...values, ...(band ? [`strategy: ${band.name}`] : [])];
  }

  sentence(at) {
    return this.lines(at).join(", ");
  }

  point(event) {
    const { xs, step } = this.data ?? {};
    if (!xs?.length || !this.scale) return;
    const left = event.clientX - this.svg.getBoundingClientRect().left;
    let best = 0;
    xs.forEach((t, at) => { if (Math.abs(this.scale.x(t + step / 2) - left) < Math.abs(this.scale.x(xs[best] + step / 2) - left)) best = at; });
    this.at = best;
    this.redraw();
  }

  key(event) {
    const last = (this.data?.xs.length ?? 0) - 1;
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    if (!(event.key in moves) || last < 0) return;
    event.preventDefault();
    this.at = Math.min(last, Math.max(0, (this.at ?? last) + (this.at === null ? 0 : moves[event.key])));
    this.redraw();
    say(this.spoken, this.sentence(this.at));
  }

  leave() {
    this.at = null;
    if (this.data) this.redraw();
  }

  table() {
    if (!this.details.open || !this.data) return;
    const { xs, series, format } = this.data, first = Math.max(0, xs.length - ROWS);
    const head = h("tr", {}, h("th", { scope: "col" }, "time"), series.map((one) => h("th", { scope: "col" }, one.name)));
    const rows = xs.slice(first).map((t, place) => h("tr", {}, h("th", { scope: "row" }, clock(t)),
      series.map((one) => h("td", {}, one.values[first + place] === null ? "–" : format(one.values[first + place]))))).toReversed();
    this.sheet.replaceChildren(h("table", {}, h("thead", {}, head), h("tbody", {}, rows)));
  }
}

/** Neighbouring points with values, as lists of indices: a gap in time or a null ends a run. */
export function runs(xs, values, step) {
  const found = [];
  let run = [];
  xs.forEach((t, at) => {
    const gap = run.length > 0 && t - xs[run.at(-1)] > 3.5 * step;
    if (gap || values[at] === null) {
      if (run.length) found.push(run);
      run = [];
    }
    if (values[at] !== null) run.push(at);
  });
  if (run.length) found.push(run);
  return found;
}

/** The next of 1, 2, 2.5, 4, 5, 8 times a power of ten. */
export function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 2.5, 4, 5, 8, 10].find((step) => step * power >= value - 1e-12);
}
