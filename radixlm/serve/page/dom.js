// Elements are built, never parsed from text: nothing a model says can become markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element. Props: class, text, onNAME (listeners), dataset; everything else is an attribute (true, false or text). */
export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** An SVG element, as `h`. */
export function s(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "class") element.setAttribute("class", value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const ICONS = {
  send: "M12 19V5M5.5 11.5 12 5l6.5 6.5",
  stop: "M7.5 7.5h9v9h-9z",
  menu: "M4 7h16M4 12h16M4 17h10",
  panel: "M4 5h16v14H4zM14.5 5v14",
  copy: "M9 9h10v10H9zM5 15V5h10",
  again: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4",
  edit: "M5 19h3.5L19 8.5 15.5 5 5 15.500z",
  chance: "M5 19V9M12 19V5M19 19v-6",
  trash: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12",
  pin: "M9 4h6l-1 6 3 3H7l3-3zM12 13v7",
};

/** A 24 x 24 line icon. */
export function icon(name) {
  return s("svg", { viewBox: "0 0 24 24", "aria-hidden": "true", class: "glyph" }, s("path", { d: ICONS[name] }));
}

/** A button with an icon and a name for those who cannot see it. */
export function iconButton(name, label, onclick, more = {}) {
  return h(
    "button",
    { type: "button", class: "icon", "aria-label": label, title: label, onclick, ...more },
    icon(name),
  );
}

const plain = new Intl.NumberFormat("en");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/** 1,234 or 12.3K. */
export const count = (value) => (value < 10_000 ? plain.format(value) : compact.format(value));

/** 93 % */
export const percent = (share) => `${Math.round(share * 100)} %`;

/** 4 ms, 1.2 s, 3 min */
export function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds < 10 ? Math.round(seconds * 10) / 10 : Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}
