// Figures for people. What was not measured is null, and says so.

export const NONE = "no data yet";

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

export const or = (value, format, none = "–") => (known(value) ? format(value) : none);

export function seconds(value) {
  if (value === 0) return "0 s";
  if (value < 0.001) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 1) return `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms`;
  return `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

export const percent = (value, digits = 0) => `${(value * 100).toFixed(digits)} %`;

export function points(value) {
  const shown = Math.abs(value * 100).toFixed(1);
  return `${value < 0 ? "−" : "+"}${shown}`;
}

export const decimal = (value) => value.toFixed(2);

export const count = (value) => value.toLocaleString("en");

export const rate = (value) => (value < 10 ? value.toFixed(1) : value.toFixed(0));

export function ago(value) {
  if (value < 60) return "just now";
  if (value < 3600) return `${Math.floor(value / 60)} min ago`;
  return `${Math.floor(value / 3600)} h ago`;
}

export function clock(time_s, withSeconds = true) {
  const options = { hour: "2-digit", minute: "2-digit", hour12: false };
  if (withSeconds) options.second = "2-digit";
  return new Date(time_s * 1000).toLocaleTimeString("en-GB", options);
}

export const words = (name) => name.replaceAll("_", " ");
