// The same as a table: a row for each port of each edge. Denied ones first, and in an order that does not jump.

import { age, byId, count, html, keyed, perSecond, portName, ruleText, set, text, verdictWord } from "./dom.js";

const ROWS = 400;

export function rows(graph) {
  return graph.edges.flatMap((edge, index) =>
    edge.ports.map((port) => ({ edge, index, port, key: `${edge.from} ${edge.to} ${edge.verdict} ${portName(port)}` })));
}

export function start(choose) {
  byId("rows").addEventListener("keydown", (event) => {
    const row = event.target.closest("tr");
    const next = { ArrowDown: row?.nextElementSibling, ArrowUp: row?.previousElementSibling }[event.key];
    if (next) {
      event.preventDefault();
      next.focus();
    } else if (event.key === "Enter" && row) choose(Number(row.dataset.edge));
  });
  byId("rows").addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row) choose(Number(row.dataset.edge));
  });
}

export function draw(graph, { matches, chosen }) {
  const wanted = rows(graph).filter(matches.row);
  const shown = wanted.slice(0, ROWS);
  keyed(byId("rows"), shown, (row) => row.key, create, (line, { edge, index, port }) => {
    set(line, { class: `${edge.verdict} ${chosen.has(index) ? "chosen" : ""}`, "data-edge": index });
    const idle = age(port.idle_seconds);
    const cells = [
      verdictWord(edge.verdict), edge.from, edge.to, portName(port),
      perSecond(port.packets_per_second), count(port.packets), idle, ruleText(port),
    ];
    cells.forEach((cell, column) => text(line.children[column], cell));
  });
  const of = (verdict) => wanted.filter((row) => row.edge.verdict === verdict).length;
  const would = of("would-drop") ? `, ${of("would-drop")} that audited policies would drop` : "";
  text(byId("caption"), `The same as a table: ${of("denied")} denied, ${of("allowed")} allowed${would}`);
  const left = wanted.length - shown.length + graph.more_edges;
  set(byId("more"), { hidden: left === 0 ? "" : null });
  text(byId("more"), left ? `${count(left)} more; search finds them` : "");
}

function create() {
  const number = { class: "number" };
  const cells = [{}, {}, {}, {}, number, number, number, { class: "rule" }];
  return html("tr", { tabindex: 0 }, ...cells.map((attributes) => html("td", attributes)));
}
