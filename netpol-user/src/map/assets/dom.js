// Elements. Everything that is shown is set as text: names come from documents, and are never markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

export function html(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  set(element, attributes);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Attributes that are there already are left alone: setting one costs a new layout.
export function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) element.removeAttribute(name);
    else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
  }
}

export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

// Makes the children of `parent` those of `items`, in order. What is there already stays, with its focus.
export function keyed(parent, items, key, create, update) {
  const present = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let before = parent.firstElementChild;
  for (const item of items) {
    const id = key(item);
    let element = present.get(id);
    present.delete(id);
    if (!element) {
      element = create(item);
      element.dataset.key = id;
    }
    if (element === before) before = before.nextElementSibling;
    else parent.insertBefore(element, before);
    update(element, item);
  }
  for (const gone of present.values()) gone.remove();
}

export function perSecond(rate) {
  if (rate === null || rate === undefined) return "…";
  if (rate < 0.05) return "0";
  if (rate < 9.95) return rate.toFixed(1);
  if (rate < 999.5) return rate.toFixed(0);
  return rate < 999500 ? `${(rate / 1e3).toFixed(1)}k` : `${(rate / 1e6).toFixed(1)}M`;
}

export const count = (number) => number.toLocaleString("en");

export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (number >= 1024 && unit < units.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${number.toFixed(unit ? 1 : 0)} ${units[unit]}`;
}

export function age(seconds) {
  if (seconds < 2) return "now";
  if (seconds < 60) return `${seconds.toFixed(0)} s ago`;
  if (seconds < 3600) return `${(seconds / 60).toFixed(0)} min ago`;
  if (seconds < 86400) return `${(seconds / 3600).toFixed(0)} h ago`;
  return `${(seconds / 86400).toFixed(0)} d ago`;
}

export const verdictWord = (verdict) =>
  ({ denied: "✕ denied", "would-drop": "? would drop" })[verdict] ?? "allowed";

export function portName({ protocol, port }) {
  if (port !== null) return `${protocol} ${port}`;
  return /^\d/.test(protocol) ? `protocol ${protocol}` : protocol;
}

export function ruleText(port) {
  if (port.rules.length) return port.rules.map((rule) => rule.text).join("\n");
  return port.current ? "no policy" : "judged by an earlier policy";
}
