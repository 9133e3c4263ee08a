// What is known of the node or edge that was chosen.

import { age, byId, bytes, count, html, perSecond, portName, ruleText, set, verdictWord } from "./dom.js";

let drawn = "";

// `choice` is null, {node} or {edges}; `close` and `choose` are what its buttons do.
export function draw(choice, hooks) {
  const panel = byId("details");
  set(panel, { hidden: choice ? null : "" });
  const state = JSON.stringify(choice);
  if (state === drawn) return;
  drawn = state;
  // whoever reads on in the panel keeps the place
  const focused = panel.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const close = html("button", { type: "button", class: "close", "aria-label": "Close details", "data-key": "close" }, "✕");
  close.addEventListener("click", hooks.close);
  panel.replaceChildren(...(choice ? [close, ...(choice.node ? aboutNode(choice, hooks) : aboutEdges(choice))] : []));
  if (focused) [...panel.querySelectorAll("[data-key]")].find((it) => it.dataset.key === focused)?.focus();
}

function list(entries) {
  const rows = entries.filter(([, value]) => value !== null && value !== "");
  return html("dl", {}, ...rows.flatMap(([name, value]) => [html("dt", {}, name), html("dd", {}, value)]));
}

function aboutNode({ node, edges }, { choose }) {
  const labels = Object.entries(node.labels).map(([name, value]) => `${name}=${value}`).join(" ");
  const policy = { true: "policy decides", false: "no policy: open" };
  const button = ({ edge, index }) => {
    const other = edge.from === node.id ? `to ${edge.to}` : `from ${edge.from}`;
    const ports = edge.ports.slice(0, 3).map(portName).join(", ");
    const word = verdictWord(edge.verdict);
    const element = html("button", { type: "button", class: `edge-button ${edge.verdict}`, "data-key": `e${index}` },
      `${word} ${other}, ${ports}`);
    element.addEventListener("click", () => choose(index));
    return html("li", {}, element, html("p", { class: "numbers" }, numbers(edge)), ...rulesOf(edge));
  };
  const endpoint = node.kind === "endpoint";
  return [
    html("h2", {}, node.id),
    list([
      ["Not running", node.pending],
      ["Labels", labels],
      ["Addresses", node.addresses.join(", ")],
      ["What reaches it", endpoint ? policy[node.ingress_isolated] : ""],
      ["What it sends", endpoint ? policy[node.egress_isolated] : ""],
    ]),
    html("h3", {}, edges.length ? "Seen" : "Nothing seen"),
    html("ul", { class: "plain" }, ...edges.map(button)),
  ];
}

function numbers(edge) {
  const connections = `${count(edge.connections)} ${edge.connections === 1 ? "connection" : "connections"}`;
  return `${count(edge.packets)} packets (${perSecond(edge.packets_per_second)}/s), ${bytes(edge.bytes)}, ${connections}`;
}

// Each once, however many ports it decides about.
function rulesOf(edge) {
  const words = new Set(edge.ports.flatMap((port) => ruleText(port).split("\n")));
  return [...words].map((rule) => html("p", { class: "rule" }, rule));
}

function aboutEdges({ title, edges }) {
  const parts = edges.slice(0, 40).flatMap(({ edge }) => {
    const word = verdictWord(edge.verdict);
    const head = html("h3", { class: edge.verdict }, `${word}: ${edge.from} → ${edge.to}`);
    const from = edge.addresses.length
      ? [html("p", {}, `Outside: ${edge.addresses.join(", ")}${edge.more_addresses ? " and others" : ""}`)] : [];
    const more = edge.more_ports ? [html("p", {}, `${count(edge.more_ports)} more ports`)] : [];
    return [head, ...from, ...edge.ports.map(aboutPort), ...more];
  });
  const more = edges.length > 40 ? [html("p", {}, `${edges.length - 40} more`)] : [];
  return [html("h2", {}, title), ...parts, ...more];
}

function aboutPort(port) {
  const rules = port.rules.map((rule) => html("li", {},
    html("b", {}, `${rule.kind} ${rule.namespace ? `${rule.namespace}/` : ""}${rule.name}`),
    html("br"), `${rule.direction}, ${rule.index === null ? "default deny: no rule allows it" : `rule ${rule.index}`}`,
    html("br"), html("code", {}, rule.source)));
  const none = port.current ? "no policy had a say" : "judged by an earlier policy";
  return html("div", { class: "port" },
    html("h4", {}, portName(port)),
    list([
      ["Reason", port.drop_reason],
      ["Packets", `${count(port.packets)} (${perSecond(port.packets_per_second)}/s)`],
      ["Bytes", `${bytes(port.bytes)} (${port.bytes_per_second === null ? "…" : bytes(port.bytes_per_second)}/s)`],
      ["Connections", count(port.connections)],
      ["Last packet", age(port.idle_seconds)],
    ]),
    rules.length ? html("ul", { class: "rules" }, ...rules) : html("p", {}, none));
}
