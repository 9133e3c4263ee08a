// The picture. Where everything is was decided by the program; this draws it, moves around in it, and says what was chosen.

import { byId, keyed, set, svg, text } from "./dom.js";

const view = { box: null, own: false };
let shown = null;
let current = null;
let hooks = {};

const canvas = () => byId("picture");

export function start(given) {
  hooks = given;
  const stage = canvas();
  stage.addEventListener("keydown", onKey);
  stage.addEventListener("focus", () => mark(current ?? firstItem()));
  stage.addEventListener("blur", () => mark(null, true));
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.15 : 1 / 1.15, at(event));
  }, { passive: false });
  drag(stage);
  byId("closer").addEventListener("click", () => zoom(1 / 1.3));
  byId("farther").addEventListener("click", () => zoom(1.3));
  byId("fit").addEventListener("click", fit);
  new ResizeObserver(() => view.own || fit()).observe(stage);
}

export function draw(picture, { matches, selected }) {
  const first = shown === null;
  const resized = first || ["x", "y", "width", "height"].some((side) => shown[side] !== picture[side]);
  shown = picture;
  keyed(byId("frames"), picture.boxes, (box) => box.namespace, createFrame, updateFrame);
  const live = new Set(picture.edges.filter(matches.edge).map((edge) => edge.id));
  const ends = new Set(picture.edges.filter((edge) => live.has(edge.id)).flatMap((edge) => [edge.from, edge.to]));
  const chosen = (id) => (selected === id ? "chosen" : "");
  keyed(byId("edges"), picture.edges, (edge) => edge.id, createEdge, (group, edge) => {
    set(group, {
      class: `link ${edge.verdict} ${live.has(edge.id) ? "" : "dim"} ${chosen(edge.id)}`,
      opacity: live.has(edge.id) ? edge.strength.toFixed(2) : 0.06,
      "aria-label": edge.sentence,
    });
    const [wide, line] = group.children;
    set(wide, { d: edge.path });
    set(line, { d: edge.path, "stroke-width": edge.stroke.toFixed(2) });
    text(group.lastElementChild, edge.sentence);
  });
  keyed(byId("nodes"), picture.nodes, (node) => node.id, createNode, (group, node) => {
    const dim = matches.active && !ends.has(node.id) && !matches.node(node) ? "dim" : "";
    set(group, {
      class: `node ${node.kind} ${node.pending ? "pending" : ""} ${dim} ${chosen(node.id)}`,
      transform: `translate(${node.x.toFixed(1)} ${node.y.toFixed(1)})`,
      "aria-label": `${node.id}, ${node.subtitle}`,
    });
    const [box, title, subtitle] = group.children;
    set(box, { width: node.width, height: node.height });
    set(title, { y: node.height / 2 - 3 });
    set(subtitle, { y: node.height / 2 + 14 });
    text(title, shortened(node.title, node.kind === "group" ? 24 : 19));
    text(subtitle, node.kind === "group" ? `${node.subtitle} · click opens` : shortened(node.subtitle, 28));
  });
  const labelled = picture.edges.filter((edge) => edge.label && live.has(edge.id));
  keyed(byId("labels"), labelled, (edge) => edge.id, createLabel, (group, edge) => {
    const { x, y, width, height, lines } = edge.label;
    set(group, {
      class: `label ${edge.verdict} ${chosen(edge.id)}`,
      transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`,
      opacity: Math.max(0.6, edge.strength).toFixed(2),
    });
    set(group.firstElementChild, { x: -width / 2, y: -height / 2, width, height });
    keyed(group.lastElementChild, lines.map((line, row) => ({ line, row })), (it) => String(it.row),
      () => svg("text"), (element, { line, row }) => {
        set(element, { y: (-height / 2 + 14 + 15 * row).toFixed(1) });
        text(element, line);
      });
  });
  if (resized && !view.own) fit();
}

function createFrame(box) {
  const title = svg("text", { class: "namespace", role: "button" });
  title.addEventListener("click", () => hooks.toggle(box.namespace, false));
  return svg("g", {}, svg("rect", { class: "frame", rx: 12 }), title);
}

function updateFrame(group, { namespace, x, y, width, height }) {
  const [box, title] = group.children;
  set(box, { x, y, width, height });
  set(title, { x: x + 16, y: y + 24, "aria-label": `close namespace ${namespace}` });
  text(title, `▾ ${shortened(namespace, 40)}`);
}

function createEdge(edge) {
  const line = svg("path", { class: `edge ${edge.verdict}`, "marker-end": `url(#arrow-${edge.verdict})` });
  const group = svg("g", { role: "button" }, svg("path", { class: "reach" }), line, svg("title"));
  group.addEventListener("click", () => hooks.choose(edge.id));
  return group;
}

function createNode(node) {
  const title = svg("text", { class: "title", x: 14 });
  const subtitle = svg("text", { class: "subtitle", x: 14 });
  const whole = svg("title");
  text(whole, node.id);
  const group = svg("g", { role: "button" }, svg("rect", { rx: 9 }), title, subtitle, whole);
  group.addEventListener("click", () => (node.kind === "group" ? hooks.toggle(node.namespace, true) : hooks.choose(node.id)));
  return group;
}

function createLabel(edge) {
  const group = svg("g", {}, svg("rect", { rx: 6 }), svg("g"));
  group.addEventListener("click", () => hooks.choose(edge.id));
  return group;
}

const shortened = (name, most) => {
  const letters = [...name];
  return letters.length <= most ? name : `${letters.slice(0, most - 1).join("")}…`;
};

// === moving around ===

export function fit() {
  if (!shown) return;
  view.own = false;
  const { clientWidth, clientHeight } = canvas();
  // small pictures are not blown up
  const scale = Math.min(1.15, clientWidth / shown.width, clientHeight / shown.height) || 1;
  const [width, height] = [clientWidth / scale || shown.width, clientHeight / scale || shown.height];
  view.box = [shown.x + (shown.width - width) / 2, shown.y + (shown.height - height) / 2, width, height];
  apply();
}

function apply() {
  set(canvas(), { viewBox: view.box.map((side) => side.toFixed(1)).join(" ") });
}

function at(event) {
  const { left, top, width, height } = canvas().getBoundingClientRect();
  const [x, y, wide, high] = view.box;
  return [x + ((event.clientX - left) / width) * wide, y + ((event.clientY - top) / height) * high];
}

function zoom(factor, around) {
  if (!view.box) return;
  const [x, y, width, height] = view.box;
  const [px, py] = around ?? [x + width / 2, y + height / 2];
  const next = width * factor;
  if (next < 150 || next > 60000) return;
  view.own = true;
  view.box = [px - (px - x) * factor, py - (py - y) * factor, next, height * factor];
  apply();
}

function drag(stage) {
  let from = null;
  stage.addEventListener("pointerdown", (event) => {
    from = { x: event.clientX, y: event.clientY, box: view.box };
  });
  stage.addEventListener("pointermove", (event) => {
    if (!from?.box || !(event.buttons & 1)) return;
    const [dx, dy] = [event.clientX - from.x, event.clientY - from.y];
    if (Math.hypot(dx, dy) < 5) return;
    view.own = true;
    const scale = from.box[2] / stage.clientWidth;
    view.box = [from.box[0] - dx * scale, from.box[1] - dy * scale, from.box[2], from.box[3]];
    apply();
  });
  stage.addEventListener("pointerup", () => (from = null));
}

// === the keyboard: one stop of Tab, arrows to the nearest thing in that direction ===

function items() {
  if (!shown) return [];
  const nodes = shown.nodes.map((node) => ({ id: node.id, node, x: node.x + node.width / 2, y: node.y + node.height / 2 }));
  const labels = shown.edges.filter((edge) => edge.label).map((edge) => ({ id: edge.id, x: edge.label.x, y: edge.label.y }));
  return [...nodes, ...labels];
}

const firstItem = () => items()[0]?.id ?? null;

function mark(id, leaving = false) {
  for (const marked of canvas().querySelectorAll(".marked")) marked.classList.remove("marked");
  if (leaving) return;
  current = id;
  for (const element of canvas().querySelectorAll("[data-key]")) {
    if (element.dataset.key !== id) continue;
    element.classList.add("marked");
    const name = element.getAttribute("aria-label");
    if (name) hooks.say(name);
  }
}

// After each drawing: classes were set anew.
export function remark() {
  if (document.activeElement === canvas() && current) {
    for (const element of canvas().querySelectorAll("[data-key]")) {
      element.classList.toggle("marked", element.dataset.key === current);
    }
  }
}

const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function onKey(event) {
  const direction = DIRECTIONS[event.key];
  const all = items();
  const here = all.find((item) => item.id === current);
  if (direction && all.length) {
    event.preventDefault();
    mark((here ? nearest(all, here, direction) : all[0])?.id ?? current);
  } else if ((event.key === "Enter" || event.key === " ") && here) {
    event.preventDefault();
    if (here.node?.kind === "group") hooks.toggle(here.node.namespace, true);
    else hooks.choose(here.id);
  } else if (event.key === "+" || event.key === "-") zoom(event.key === "+" ? 1 / 1.3 : 1.3);
  else if (event.key === "0") fit();
}

function nearest(all, here, [dx, dy]) {
  let best = null;
  for (const item of all) {
    const [x, y] = [item.x - here.x, item.y - here.y];
    const ahead = x * dx + y * dy;
    if (item.id === here.id || ahead <= 4) continue;
    // beside the way counts more than on it
    const far = ahead + 2.5 * Math.abs(x * dy + y * dx);
    if (!best || far < best.far) best = { far, item };
  }
  return best?.item;
}
