// The first block: what burns, where time goes, who is at fault, what was changed and how to undo it.

import { byId, command, h, nothing, say, show } from "./dom.js";
import { ago, NONE, or, seconds, words } from "./format.js";

export function verdict(frame) {
  const found = frame.diagnosis;
  byId("verdict").dataset.culprit = found.culprit;
  say(byId("sentence"), found.sentence);
  say(byId("bypass"), found.bypass);
  byId("bypass").dataset.on = found.bypassed ? "yes" : "no";
  show(byId("burns"), found.burns, () => burns(found.burns));
  show(byId("stages"), [found.stages, found.slowest], () => stages(found));
  const recent = frame.changes.filter((change) => change.ago_s < 3600).slice(0, 4);
  show(byId("recent-changes"), recent.map((change) => [change.time, change.what, ago(change.ago_s)]), () => changes(recent));
}

function burns(rows) {
  if (!rows.length) return nothing("No request in the last hour.", "Burn rates appear with the first answers.");
  const head = h("tr", {}, h("th", { scope: "col" }, h("span", { class: "hidden-text" }, "Objective")), h("th", { scope: "col" }, "5 min"), h("th", { scope: "col" }, "1 hour"));
  return h("table", { class: "burns" }, h("thead", {}, head), h("tbody", {}, rows.slice(0, 6).map((row) => h("tr", {},
    h("th", { scope: "row" }, row.objective, h("small", {}, row.route)),
    cell(row.burn_5m, row.missed_5m, row.requests_5m), cell(row.burn_1h, row.missed_1h, row.requests_1h)))));
}

function cell(burn, missed, requests) {
  if (burn === null) return h("td", {}, "–", h("small", {}, NONE));
  return h("td", { class: burn > 1 ? "hot" : "" }, `${burn.toFixed(1)}×`, h("small", {}, `${missed} of ${requests}`));
}

function stages({ stages, slowest }) {
  const known = stages.filter((stage) => stage.mean_s !== null);
  if (!known.some((stage) => stage.mean_s > 0)) return nothing("No answer was timed yet.", "Gateway, queue, prefill and decode appear with the first answers.");
  const total = known.reduce((sum, stage) => sum + stage.mean_s, 0);
  const bar = h("div", { class: "stack", "aria-hidden": "true" }, known.map((stage) => {
    const part = h("span", { class: `stage-${stage.name}` });
    part.style.flexGrow = stage.mean_s / total;
    return part;
  }));
  const keys = stages.map((stage) => h("li", {}, h("i", { class: `stage-${stage.name}`, "aria-hidden": "true" }),
    h("span", {}, stage.name, " ", h("small", {}, stage.note)),
    h("span", { class: stage.name === slowest ? "hot" : "" }, or(stage.mean_s, seconds, "not told apart"))));
  return [bar, h("ul", { class: "keys" }, keys)];
}

function changes(rows) {
  if (!rows.length) return h("li", {}, nothing("Nothing.", "Strategy, configuration, members and builds are as they were."));
  return grouped(rows).map((group) => h("li", {}, group.map(line), group[0].undo ? command(group[0].undo) : h("small", {}, group[0].rests)));
}

const line = (row) => h("div", {}, row.what, " ", h("time", { datetime: row.time }, `${words(row.reason)}, ${ago(row.ago_s)}`));

/** Neighbouring changes that one command undoes. */
function grouped(rows) {
  const groups = [];
  for (const row of rows) {
    const before = groups.at(-1)?.[0];
    if (before?.undo === row.undo && before?.rests === row.rests) groups.at(-1).push(row);
    else groups.push([row]);
  }
  return groups;
}
