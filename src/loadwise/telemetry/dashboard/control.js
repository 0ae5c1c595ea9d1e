// The form that changes settings, and the switches. The admin key lives in its field and nowhere else.

import { byId, h, say } from "./dom.js";

const FIELDS = [
  ["ensemble_strategy", "Ensemble strategy", "how a member is selected", ["weighted_voting", "best_of_n", "adaptive"]],
  ["compile_mode", "Compile mode", "of the middle load", ["default", "reduce-overhead", "max-autotune"]],
  ["load_threshold_high", "High load from", "0 to 1", "number"],
  ["load_threshold_low", "Low load below", "0 to 1", "number"],
  ["objectives.time_to_first_token_s", "First token within", "seconds", "number"],
  ["objectives.time_per_output_token_s", "Each token within", "seconds", "number"],
  ["max_ensemble_size", "Ensemble size", "members at most", "number"],
  ["tuning_interval_sec", "Tuning interval", "seconds", "number"],
  ["experiment.block_share", "Unoptimised share", "of time, to measure the gain", "number"],
  ["default_member", "Default member", "empty: highest quality", "text"],
  ["enable_dynamic_tuning", "Tune parameters by load", "", "check"],
  ["enable_ensemble", "Select among members", "", "check"],
  ["enable_torch_compile", "Compile models", "", "check"],
];

const at = (config, path) => path.split(".").reduce((value, part) => value?.[part], config);

export class Control {
  constructor(readKey) {
    this.readKey = readKey;
    this.config = null;
    this.version = null;
    this.inputs = new Map();
    byId("settings").append(...FIELDS.map((field) => this.field(...field)));
    byId("control").addEventListener("submit", (event) => { event.preventDefault(); this.configure(false); });
    byId("preview").addEventListener("click", () => this.configure(true));
    byId("revert").addEventListener("click", () => this.fill());
    byId("start").addEventListener("click", () => this.post("start", null, "Optimisation runs."));
    byId("stop").addEventListener("click", () => byId("confirm-dialog").showModal());
    byId("confirm-dialog").addEventListener("close", (event) => {
      if (event.target.returnValue === "stop") this.post("stop", null, "Optimisation is stopped; the default member answers untouched.");
      event.target.returnValue = "";
    });
  }

  field(path, label, hint, kind) {
    const id = `set-${path.replaceAll(".", "-")}`;
    const input = Array.isArray(kind)
      ? h("select", { id }, kind.map((option) => h("option", {}, option)))
      : h("input", { id, type: kind === "check" ? "checkbox" : kind, step: kind === "number" ? "any" : null, autocomplete: "off" });
    input.addEventListener("input", () => this.compare());
    const words = [label, hint ? h("span", { class: "hint" }, ` ${hint}`) : null];
    const wrap = kind === "check" ? h("label", { class: "field check" }, input, h("span", {}, words)) : h("label", { class: "field" }, h("span", {}, words), input);
    this.inputs.set(path, { input, wrap, kind });
    return wrap;
  }

  /** Shows a frame's configuration, unless the reader is changing it. */
  show(frame) {
    const running = frame.running, first = this.config === null;
    byId("stop").disabled = !running;
    byId("start").disabled = running;
    if (frame.config_version === this.version && !first) return;
    const dirty = !first && this.changes() !== null;
    this.config = frame.config;
    this.version = frame.config_version;
    say(byId("control-version"), `configuration ${frame.config_version}`);
    if (!dirty) this.fill(false);
    else this.compare();
  }

  fill(quiet = true) {
    for (const [path, { input, kind }] of this.inputs) {
      const value = at(this.config, path);
      if (kind === "check") input.checked = Boolean(value);
      else input.value = value ?? "";
    }
    if (quiet) this.tell("", "");
    this.compare();
  }

  /** What differs from the configuration in force, nested as the server takes it; null for nothing. */
  changes() {
    const found = {};
    for (const [path, { input, kind }] of this.inputs) {
      const value = valueOf(input, kind);
      if (value === (at(this.config, path) ?? null)) continue;
      const [group, name] = path.split(".");
      if (name) (found[group] ??= {})[name] = value;
      else found[group] = value;
    }
    return Object.keys(found).length ? found : null;
  }

  compare() {
    const dirty = this.config !== null && this.changes() !== null;
    for (const id of ["preview", "apply", "revert"]) byId(id).disabled = !dirty;
    for (const [path, { input, wrap, kind }] of this.inputs) {
      wrap.dataset.changed = this.config && valueOf(input, kind) !== (at(this.config, path) ?? null) ? "yes" : "no";
      wrap.dataset.wrong = "no";
      input.removeAttribute("aria-invalid");
    }
  }

  async configure(dryRun) {
    const changes = this.changes();
    if (changes === null) return;
    const answer = await this.post(dryRun ? "configure?dry_run=true" : "configure", changes, null);
    if (!answer) return;
    const lines = Object.entries(answer.changes).map(([name, { from, to }]) => `${name}: ${JSON.stringify(from)} → ${JSON.stringify(to)}`);
    this.tell("good", `${dryRun ? "Would change" : `Applied as configuration ${answer.version}`}:\n${lines.join("\n") || "nothing"}`);
  }

  async post(path, body, done) {
    const own = byId("admin-key").value;
    const headers = { ...this.readKey(), ...(own ? { "x-loadwise-admin-key": own } : {}), "content-type": "application/json" };
    this.tell("", "Sending…");
    try {
      const answer = await fetch(`v1/optimization/${path}`, { method: "POST", headers, credentials: "omit", body: body === null ? null : JSON.stringify(body) });
      const said = await answer.json();
      if (!answer.ok) return this.refused(said.error);
      if (done) this.tell("good", done);
      return said;
    } catch {
      return this.refused({ message: "The server cannot be reached; nothing was changed." });
    }
  }

  refused(error) {
    this.tell("bad", error?.message ?? "The server refused it; nothing was changed.");
    for (const [path, { input, wrap }] of this.inputs) {
      if (!error?.param || (path !== error.param && !path.endsWith(`.${error.param}`))) continue;
      wrap.dataset.wrong = "yes";
      input.setAttribute("aria-invalid", "true");
      input.focus();
    }
    return null;
  }

  tell(tone, text) {
    byId("said").dataset.tone = tone;
    say(byId("said"), text);
  }
}

function valueOf(input, kind) {
  if (kind === "check") return input.checked;
  if (input.value === "") return null;
  return kind === "number" ? Number(input.value) : input.value;
}
