// Elements made of text, never of markup: what a server or a model says is only ever shown.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; strings become text. Handlers are functions named "onclick" and the like. */
export function h(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same in SVG. */
export function s(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Sets an element's text only where it differs, so that a screen reader hears changes alone. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const shown = new WeakMap();

/** Replaces an element's children when what they show has changed; focus and selection survive otherwise. */
export function show(element, value, make) {
  const key = JSON.stringify(value);
  if (shown.get(element) === key) return;
  shown.set(element, key);
  element.replaceChildren(...[make(value)].flat());
}

/** A shell command with a button that copies it. */
export function command(text) {
  const button = h("button", { type: "button", "aria-label": `Copy: ${text}` }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select it";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return h("div", { class: "command" }, h("code", {}, text), button);
}

/** What stands where there is nothing to show yet, and what would change that. */
export function nothing(title, text) {
  return h("p", { class: "nothing" }, h("strong", {}, title), text);
}
