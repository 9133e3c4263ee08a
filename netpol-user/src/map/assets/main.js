// The page: what arrives, what is chosen and what is filtered. Drawing is done by the modules beside this one.

import * as details from "./details.js";
import { byId, count, html, perSecond, set, text } from "./dom.js";
import * as picture from "./picture.js";
import * as table from "./table.js";

const state = { graph: null, picture: null, choice: null, open: new Set(), shut: new Set(), source: null };

// === what arrives ===

function connect() {
  state.source?.close();
  // nobody looks: nothing is read
  if (document.hidden) return;
  const query = new URLSearchParams({ open: [...state.open].join(","), shut: [...state.shut].join(",") });
  byId("file").href = `/map.svg?${query}`;
  const source = new EventSource(`/events?${query}`);
  state.source = source;
  source.addEventListener("picture", (event) => {
    const { graph, picture: drawn } = JSON.parse(event.data);
    Object.assign(state, { graph, picture: drawn });
    draw();
  });
  source.addEventListener("failure", (event) => say(`cannot read the kernel: ${event.data}`, "lost"));
  source.addEventListener("error", () => {
    say("connection lost, trying again", "lost");
    // a refusal ends the source; what breaks off comes back by itself
    if (source.readyState === EventSource.CLOSED && state.source === source) setTimeout(connect, 5000);
  });
}

function say(words, kind) {
  text(byId("state"), words);
  set(byId("state"), { class: kind });
}

// === what is filtered ===

function matches() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const verdict = byId("verdict").value;
  const within = Number(byId("seen").value) || Infinity;
  const has = (line) => words.every((word) => line.toLowerCase().includes(word));
  const line = ({ edge, port }) =>
    `${edge.verdict} ${edge.from} ${edge.to} ${port.protocol} ${port.port ?? ""} ${port.rules.map((rule) => rule.text).join(" ")}`;
  const row = (it) =>
    (verdict === "all" || it.edge.verdict === verdict) && it.port.idle_seconds <= within && has(line(it));
  const passing = new Set(table.rows(state.graph).filter(row).map((it) => it.index));
  return {
    active: words.length > 0 || verdict !== "all" || within !== Infinity,
    row,
    edge: (curve) => curve.edges.some((index) => passing.has(index)),
    node: (node) => words.length > 0 && has(node.id),
  };
}

// === what is chosen: a node or an edge of the picture, or an edge of the table ===

function chosenEdges() {
  const { choice, graph, picture: drawn } = state;
  if (choice?.pair) {
    const { from, to, verdict } = choice.pair;
    return new Set(graph.edges.flatMap((e, i) => (e.from === from && e.to === to && e.verdict === verdict ? [i] : [])));
  }
  const curve = drawn.edges.find((edge) => edge.id === choice?.id);
  return new Set(curve ? curve.edges : []);
}

function choice() {
  const node = state.graph.nodes.find((it) => it.id === state.choice?.id);
  const all = state.graph.edges.map((edge, index) => ({ edge, index }));
  if (node) return { node, edges: all.filter(({ edge }) => edge.from === node.id || edge.to === node.id) };
  const chosen = chosenEdges();
  const edges = all.filter(({ index }) => chosen.has(index));
  if (!edges.length) return null;
  const [{ edge }] = edges;
  return { title: edges.length === 1 ? `${edge.from} → ${edge.to}` : `${edges.length} connections`, edges };
}

function choose(id) {
  state.choice = { id };
  draw();
  byId("details").focus();
}

function chooseEdge(index) {
  const { from, to, verdict } = state.graph.edges[index];
  state.choice = { pair: { from, to, verdict } };
  draw();
  byId("details").focus();
}

function close() {
  if (!state.choice) return;
  const inside = byId("details").contains(document.activeElement);
  state.choice = null;
  draw();
  if (inside) byId("picture").focus();
}

function toggle(namespace, open) {
  const [one, other] = open ? [state.open, state.shut] : [state.shut, state.open];
  one.add(namespace);
  other.delete(namespace);
  connect();
}

// === drawing ===

function draw() {
  const { graph, picture: drawn } = state;
  if (!graph) return;
  const filter = matches();
  const chosen = chosenEdges();
  const selected = state.choice?.id ?? drawn.edges.find((edge) => edge.edges.some((index) => chosen.has(index)))?.id;
  picture.draw(drawn, { matches: filter, selected });
  picture.remark();
  table.draw(graph, { matches: filter, chosen });
  details.draw(choice(), { choose: chooseEdge, close });
  banner(graph);
  const rate = (verdict) => graph.edges.filter((edge) => edge.verdict === verdict)
    .reduce((sum, edge) => (edge.packets_per_second === null ? sum : (sum ?? 0) + edge.packets_per_second), null);
  const word = graph.enforced ? `● enforced, generation ${graph.generation}` : "▲ NOT ENFORCED";
  const policies = `${count(graph.policies)} ${graph.policies === 1 ? "policy" : "policies"}`;
  const verdicts = ["allowed", "denied", "would-drop"].filter((verdict) =>
    verdict !== "would-drop" || graph.edges.some((edge) => edge.verdict === verdict));
  const rates = verdicts.map((verdict) => `${verdict} ${perSecond(rate(verdict))} packets/s`);
  say([word, policies, ...rates].join(" · "), graph.enforced ? "enforced" : "unenforced");
  const quiet = graph.edges.length === 0;
  set(byId("empty"), { hidden: quiet ? null : "" });
  text(byId("empty"), graph.nodes.length ? "No packet has been seen yet." : "Nothing is loaded: `netpol load PATH` enforces policies.");
}

function banner(graph) {
  const element = byId("banner");
  set(element, { hidden: graph.enforced ? "" : null });
  const problems = graph.enforced ? [] : graph.problems;
  const state = problems.join("\n");
  if (element.dataset.state === state && element.childElementCount) return;
  element.dataset.state = state;
  const more = problems.length > 5 ? [html("li", {}, `${problems.length - 5} more; netpol status names them`)] : [];
  element.replaceChildren(html("b", {}, "▲ Not enforced, so more may pass than policies allow:"),
    html("ul", {}, ...problems.slice(0, 5).map((problem) => html("li", {}, problem)), ...more));
}

const THEMES = ["auto", "light", "dark"];

function theme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  text(byId("theme"), `Theme: ${name}`);
  localStorage.setItem("theme", name);
}

// === the beginning ===

theme(THEMES.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "auto");
byId("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "auto";
  theme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
});
const voice = html("p", { class: "voice", "aria-live": "polite" });
document.body.append(voice);
picture.start({ choose, toggle, say: (words) => text(voice, words) });
table.start(chooseEdge);
for (const id of ["search", "verdict", "seen"]) byId(id).addEventListener("input", draw);
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    byId("search").focus();
  } else if (event.key === "Escape") {
    if (typing && byId("search").value) {
      byId("search").value = "";
      draw();
    } else close();
  }
});
document.addEventListener("visibilitychange", connect);
connect();
