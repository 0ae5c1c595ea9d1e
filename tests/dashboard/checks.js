// Checks that run inside the page; each returns what it found wrong.

/** Every text against what lies behind it, by the formula of WCAG 2.2, section 1.4.3. */
function lowContrast() {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] > 0.99) return colour;
    }
    return [255, 255, 255, 1];
  };
  const found = [];
  for (const element of document.querySelectorAll("main *, header *, footer *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    const hidden = element.closest("svg, [hidden], dialog, .hidden-text, :disabled") || !element.getClientRects().length;
    if (!own || hidden) continue;
    const style = getComputedStyle(element), front = light(rgba(style.color)), back = light(behind(element));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) found.push(`${element.className || element.tagName}: ${element.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return found;
}

/** Controls, regions and pictures without a name. */
function unnamed() {
  const byId = (id) => document.getElementById(id ?? "")?.textContent.trim();
  return [...document.querySelectorAll("button, input, select, section, [role=img], [role=group]")]
    .filter((element) => !element.closest("[hidden]"))
    .filter((element) => !(element.getAttribute("aria-label") || element.textContent.trim()
      || element.labels?.[0]?.textContent.trim() || byId(element.getAttribute("aria-labelledby"))))
    .map((element) => element.outerHTML.slice(0, 80));
}
