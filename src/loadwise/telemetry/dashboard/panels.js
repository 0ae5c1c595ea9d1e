// Tiles, percentiles, shares, members, gain, alerts and the journal.

import { byId, command, h, nothing, s, say, show } from "./dom.js";
import { clock, count, decimal, NONE, or, percent, points, rate, seconds, words } from "./format.js";

const strategyOf = (frame) => frame.strategy?.name ?? null;

export function tiles(frame, last) {
  const latency = frame.latency.time_to_first_token_s, gain = frame.improvement.value === null ? null : frame.improvement;
  const rows = [
    ["Load", or(frame.load?.score, decimal, null), frame.load ? `pool ${frame.load.pool}` : "not measured", ""],
    ["Strategy", strategyOf(frame), frame.strategy ? words(frame.strategy.reason) : "before the first decision", `s-${strategyOf(frame)}`],
    ["Requests", or(last?.rps, (value) => `${rate(value)} /s`, null), `${count(frame.requests.in_flight)} in flight, ${count(frame.requests.refused_5m)} refused in 5 min`, frame.requests.refused_5m ? "hot" : ""],
    ["Within objectives", or(frame.requests.within_fraction_5m, percent, null), `of ${count(frame.requests.last_5m + frame.requests.refused_5m)} in 5 min`, ""],
    ["First token, p95", or(latency.p95, seconds, null), `objective ${seconds(frame.objectives.time_to_first_token_s)}`, ""],
    ["Measured gain", gain ? `${points(gain.value)} pt` : null, gain ? `95 %: ${points(gain.low)} to ${points(gain.high)}` : "not enough evidence yet", ""],
  ];
  show(byId("tiles"), rows, () => rows.map(([name, value, note, style]) => h("dl", { class: "tile" },
    h("dt", {}, name), h("dd", { class: value === null ? "none" : style }, value ?? NONE), h("dd", { class: "note" }, note))));
}

export function percentiles(frame) {
  const rows = [["First token", frame.latency.time_to_first_token_s], ["Per output token", frame.latency.time_per_output_token_s], ["Whole answer", frame.latency.total_s]];
  show(byId("percentiles"), rows, () => h("table", { class: "percentiles" },
    h("thead", {}, h("tr", {}, ["five minutes", "p50", "p95", "p99"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map(([name, row]) => h("tr", {}, h("th", { scope: "row" }, name), ["p50", "p95", "p99"].map((at) => h("td", {}, or(row[at], seconds))))))));
}

export function shares(frame, styles) {
  const rows = frame.members.map((member) => [member.model_id, member.share_5m]);
  show(byId("shares"), rows, () => h("ul", { class: "keys flow" }, rows.map(([name, share]) => h("li", {},
    h("i", { class: styles(name), "aria-hidden": "true" }), h("span", {}, name), h("span", {}, or(share, percent))))));
}

export function members(frame, styles) {
  byId("members").className = "members";
  show(byId("members"), frame.members, () => {
    if (!frame.members.length) return nothing("No member yet.", "Start the server with --model NAME=DIR or --upstream NAME=URL.");
    const head = ["member", "share", "first token p95", "within objectives", "queue", "errors", "health", "weight", "quality", "build"];
    return h("table", {}, h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, frame.members.map((member) => memberRow(member, styles(member.model_id), head))));
  });
}

function memberRow(member, style, head) {
  const fill = h("b", { class: style });
  fill.style.width = `${100 * (member.share_5m ?? 0)}%`;
  const cells = [
    [or(member.share_5m, percent), h("span", { class: "meter", "aria-hidden": "true" }, fill)],
    [or(member.first_token_s.p95, seconds)],
    [or(member.within_5m, percent)],
    [queue(member)],
    [member.requests_5m ? `${member.failed_5m} of ${count(member.requests_5m)}` : "–"],
    [h("span", { class: "pill", "data-state": member.unread ? "failed" : member.health }, member.unread ? "unread" : member.health), replicas(member)],
    [member.weight.toFixed(2)],
    [or(member.quality, decimal, "unknown")],
    [build(member)],
  ];
  const name = h("span", {}, h("span", { class: "name" }, h("i", { class: style, "aria-hidden": "true" }), member.model_id), " ", h("small", {}, member.default ? `default, ${member.engine ?? "library"}` : member.engine ?? "library"));
  return h("tr", {}, h("th", { scope: "row" }, name), cells.map((cell, place) => h("td", { "data-label": head[place + 1] }, cell)));
}

function queue(member) {
  if (member.waiting === null) return `${member.in_flight} in flight`;
  return `${member.waiting} waiting, ${member.running ?? member.in_flight} running`;
}

function replicas(member) {
  const unwell = Object.entries(member.replicas).filter(([, health]) => health !== "healthy");
  if (!unwell.length) return null;
  return h("small", { class: "replicas" }, unwell.map(([name, health]) => `${name} ${health}`).join(", "));
}

function build(member) {
  if (!member.build) return "as loaded";
  return h("span", { class: "pill", "data-state": member.build.state, title: member.build.cause || null }, [member.build.mode, member.build.state].filter(Boolean).join(" "));
}

export function gain(frame) {
  const found = frame.improvement;
  const rolled = frame.rollout.filter((row) => row.mode !== "full").map(({ route, key, share, reason, harm }) => ({ route, key, share, reason, harm }));
  show(byId("gain"), [found, rolled], () => {
    const { share, seconds: block_s, strata, first_look_at_strata: first, suspended } = found.blocks;
    if (found.value === null) {
      const why = share > 0
        ? `${percent(share)} of time goes without optimisation, in blocks of ${block_s} s in random order, to compare with. ${strata} of ${first} groups of blocks have ended before the first look.`
        : "No time goes without optimisation to compare with. Set the unoptimised share above 0 to measure the gain.";
      return h("div", {}, nothing("Not enough evidence yet.", why), rollouts(rolled));
    }
    return h("div", { class: "gain" },
      h("p", { class: "big" }, points(found.value), h("small", {}, " points of requests within objectives")),
      interval(found),
      h("p", { class: "quiet" }, `${percent(found.confidence)} interval ${points(found.low)} to ${points(found.high)}, valid however often one looks. With optimisation ${percent(found.optimised_fraction, 1)}, without ${percent(found.unoptimised_fraction, 1)}; ${strata} groups of blocks, ${suspended} blocks suspended.`),
      h("ul", { class: "keys" }, Object.entries(found.latency_ratios).filter(([, ratio]) => ratio).map(([name, ratio]) => h("li", {},
        h("i", { class: "c-p95", "aria-hidden": "true" }), h("span", {}, words(name)), h("span", {}, `× ${ratio.value.toFixed(2)} (${ratio.low.toFixed(2)} to ${ratio.high.toFixed(2)})`)))),
      rollouts(rolled));
  });
}

/** How far each rollout is, and why. */
function rollouts(rows) {
  if (!rows.length) return null;
  return h("ul", { class: "keys" }, rows.map((row) => h("li", {}, h("i", { class: "c-p50", "aria-hidden": "true" }),
    h("span", {}, `rollout of ${row.key ? `${row.route} for ${row.key}` : row.route}`),
    h("span", {}, `${percent(row.share)} optimised, ${row.harm ? `taken back: ${words(row.harm)}` : words(row.reason)}`))));
}

function interval({ value, low, high }) {
  const reach = Math.max(0.05, Math.abs(low), Math.abs(high)) * 1.15;
  const x = (at) => 300 + (280 * at) / reach;
  return s("svg", { viewBox: "0 0 600 64", role: "img", "aria-label": `Gain ${points(value)} points, interval ${points(low)} to ${points(high)}` },
    s("line", { class: "axis", x1: 20, x2: 580, y1: 30, y2: 30 }),
    s("line", { class: "zero", x1: 300, x2: 300, y1: 14, y2: 44 }),
    s("text", { x: 300, y: 60, "text-anchor": "middle" }, "no difference"),
    s("text", { x: 20, y: 60 }, "worse"), s("text", { x: 580, y: 60, "text-anchor": "end" }, "better"),
    s("line", { class: "reach", x1: x(low), x2: x(high), y1: 30, y2: 30 }),
    s("circle", { class: "at", cx: x(value), cy: 30, r: 7 }));
}

export function alerts(frame) {
  const rows = frame.alerts;
  say(byId("alerts-count"), rows.length ? `${rows.length} active` : "");
  show(byId("alerts"), rows, () => {
    if (!rows.length) return nothing("No alert is active.", "Conditions are looked at on every turn of the control loop.");
    return rows.map((alert) => h("article", { class: "alert" },
      h("p", { class: "name" }, h("span", { class: "pill", "data-state": alert.severity }, alert.severity), words(alert.name)),
      h("p", {}, alert.summary), evidence(alert.evidence), h("p", { class: "do" }, alert.remedy),
      alert.undo ? h("details", {}, h("summary", {}, "Undo what loadwise changed"), h("p", { class: "do" }, alert.undo)) : null));
  });
}

/** The figures that an alert rests on, the limit among them. */
const evidence = (figures) => h("p", { class: "quiet" }, Object.entries(figures).filter(([, value]) => value !== null)
  .map(([name, value]) => `${words(name)} ${typeof value === "number" ? Number(value.toPrecision(4)) : value}`).join(", "));

export function journal(frame) {
  const rows = frame.changes;
  say(byId("journal-count"), rows.length ? `${rows.length} since the start` : "");
  show(byId("journal"), rows.map((row) => [row.time, row.what]), () => {
    if (!rows.length) return h("li", {}, nothing("Nothing was changed yet.", "Each change of strategy, configuration, members and builds is listed here with its reason."));
    return rows.map((row) => h("li", {}, h("time", { datetime: row.time }, clock(Date.parse(row.time) / 1000)),
      h("div", {}, row.what, h("div", { class: "why" }, words(row.reason))),
      row.undo ? h("details", {}, h("summary", {}, "Undo"), command(row.undo)) : null));
  });
}
