// Joins the feed to the page's parts. Every value shown comes from the server's last frame.

import { TimeChart } from "./charts.js";
import { Control } from "./control.js";
import { byId, say } from "./dom.js";
import { Feed } from "./feed.js";
import { clock, decimal, rate, seconds } from "./format.js";
import * as panels from "./panels.js";
import { verdict } from "./verdict.js";

const state = { key: null, span: "600", latency: "first", tracks: {}, frame: null, names: [] };
const charts = {
  load: new TimeChart(byId("load-chart"), { label: "Load score and strategy over time", height: 250 }),
  latency: new TimeChart(byId("latency-chart"), { label: "Latency over time" }),
  share: new TimeChart(byId("share-chart"), { label: "Requests per second by member over time", height: 290 }),
};
const readKey = () => {
  if (!state.key) return {};
  return state.key.kind === "admin" ? { "x-loadwise-admin-key": state.key.value } : { authorization: `Bearer ${state.key.value}` };
};
const control = new Control(readKey);
const feed = new Feed(readKey, { state: connection, event: hear });

function hear(name, value) {
  if (name === "timeline") state.tracks = value.tracks;
  if (name === "frame") {
    for (const [span, track] of Object.entries(value.tracks)) merge(span, track);
    state.frame = value;
    render();
  }
  if (name === "trouble") banner("warn", value.message);
}

/** Newer points replace those of the same time, and old ones leave. */
function merge(span, track) {
  const known = state.tracks[span] ??= { step_s: track.step_s, points: [] };
  for (const point of track.points) {
    const at = known.points.findLastIndex((found) => Math.abs(found.t - point.t) < known.step_s / 2);
    if (at >= 0) known.points[at] = point;
    else known.points.push(point);
  }
  while (known.points.length > Number(span) / known.step_s + 1) known.points.shift();
}

function render() {
  const frame = state.frame;
  if (!frame) return;
  for (const member of frame.members) if (!state.names.includes(member.model_id)) state.names.push(member.model_id);
  byId("system-status").dataset.state = frame.system_status;
  say(byId("system-status"), frame.system_status);
  say(byId("version-line"), `configuration ${frame.config_version}, ${frame.config.ensemble_strategy.replaceAll("_", " ")}`);
  banner(frame.running ? "" : "warn", frame.running ? "" : "Optimisation is bypassed: the default member answers every request untouched.");
  verdict(frame);
  panels.tiles(frame, lastWhole());
  panels.percentiles(frame);
  panels.shares(frame, style);
  panels.members(frame, style);
  panels.gain(frame);
  panels.alerts(frame);
  panels.journal(frame);
  control.show(frame);
  draw();
}

const style = (name) => `m${state.names.indexOf(name) % 8}`;

/** The newest stretch that is over: the present one has not had its whole time. */
function lastWhole() {
  const points = state.tracks["600"]?.points ?? [];
  return points.length > 1 ? points.at(-2) : null;
}

function draw() {
  const frame = state.frame, track = state.tracks[state.span] ?? { step_s: 2, points: [] };
  const span = Number(state.span), now = frame.time_s, points = track.points.filter((point) => point.t > now - span - track.step_s);
  const base = { span, now, step: track.step_s, xs: points.map((point) => point.t) };
  const of = (name) => points.map((point) => point[name] ?? null);
  charts.load.draw({
    ...base, top: 1, format: decimal, bands: bands(points),
    nothing: frame.running ? "The load appears with the first look at the engines." : "Load is not measured while optimisation is stopped.",
    series: [{ name: "load score", style: "c-load", values: of("load"), filled: true }],
    limits: [{ name: `high from ${frame.thresholds.high}`, value: frame.thresholds.high, style: "c-high" }, { name: `low below ${frame.thresholds.low}`, value: frame.thresholds.low, style: "c-low" }],
  });
  const limit = state.latency === "first" ? frame.objectives.time_to_first_token_s : frame.objectives.time_per_output_token_s;
  charts.latency.draw({
    ...base, format: seconds, nothing: "Latencies appear with the first answers.",
    series: [{ name: "p95", style: "c-p95", values: of(`${state.latency}_p95`) }, { name: "p50", style: "c-p50", values: of(`${state.latency}_p50`) }],
    limits: [{ name: `objective ${seconds(limit)}`, value: limit, style: "c-objective" }],
  });
  charts.share.draw({
    ...base, format: rate, nothing: "Shares appear with the first answers.",
    series: [
      ...state.names.map((name) => ({ name, style: style(name), stacked: true, values: points.map((point) => (point.members[name] ?? 0) / track.step_s) })),
      { name: "refused", style: "c-refused", stacked: true, values: of("refused_rps") },
    ],
  });
}

/** Stretches of one strategy. */
function bands(points) {
  const found = [];
  for (const point of points) {
    const last = found.at(-1);
    if (!point.strategy) continue;
    if (last && last.name === point.strategy) last.to = point.t;
    else found.push({ name: point.strategy, from: point.t, to: point.t });
  }
  for (const [place, band] of found.entries()) if (found[place + 1]) band.to = found[place + 1].from;
  return found;
}

function connection(now, message = "", retryMs = 0) {
  document.body.dataset.connection = now;
  const last = state.frame ? `, figures of ${clock(state.frame.time_s)}` : "";
  const said = { connecting: "connecting…", live: "live", lost: `disconnected${last}`, refused: "key needed" };
  say(byId("connection-text"), said[now]);
  if (now === "lost") banner("bad", `${message} Trying again in ${Math.round(retryMs / 1000)} s.`);
  if (now === "refused") {
    banner("warn", message);
    if (!byId("key-dialog").open) byId("key-dialog").showModal();
  }
}

function banner(tone, text) {
  byId("banner").hidden = !text;
  byId("banner").dataset.tone = tone;
  say(byId("banner"), text);
}

function segments(id, attribute, change) {
  byId(id).addEventListener("click", (event) => {
    const chosen = event.target.closest("button");
    if (!chosen) return;
    for (const button of byId(id).children) button.setAttribute("aria-pressed", String(button === chosen));
    change(chosen.dataset[attribute]);
    if (state.frame) draw();
  });
}

segments("spans", "span", (span) => { state.span = span; });
segments("latencies", "kind", (kind) => { state.latency = kind; });
byId("key-button").addEventListener("click", () => byId("key-dialog").showModal());
byId("key-dialog").addEventListener("close", (event) => {
  const value = byId("key-value").value;
  if (event.target.returnValue === "use") state.key = value ? { kind: byId("key-kind").value, value } : null;
  if (event.target.returnValue === "forget") state.key = null;
  byId("key-value").value = "";
  if (event.target.returnValue) feed.restart();
  event.target.returnValue = "";
});
feed.connect();
