// What is known of one cell: exact values, the lens's first choices, the column through depth, who looks there.

import { shortest } from "../data/half.js";
import { h, svg, token } from "./dom.js";

const LINES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#5d3a9b"]; // Okabe & Ito
const DASHES = ["", "6 3", "2 3", "8 3 2 3", "4 4", "1 4", "10 4"];
const ALL = ["lens_token", "lens_probability", "lens_entropy", "next_rank", "next_probability"];

/** What the cell (row, column) holds: one line a fact, [name, value]. */
export function facts({ capture, lens }, scene, [row, column], drawn = column) {
  const { nLayer, nToken } = capture, lines = [];
  const place = row < nLayer ? `layer ${row}` : "output";
  lines.push(["cell", h("span", {}, `${place}, token ${column} `, token(lens.tokens[column]))]);
  if (row < nLayer) {
    const value = scene.value(row, drawn);
    lines.push([scene.kind === "diff" ? "difference" : "attention", Number.isNaN(value) ? (capture.attends(row) ? "none" : "this layer has none") : shortest(value, scene.half)]);
  }
  if (lens.absent) return [...lines, ["lens", `none: ${lens.absent}`]];
  const choices = [];
  for (let rank = 0; rank < lens.nRank; rank++) {
    const id = lens.at("lens_token", row, column, rank), chance = lens.at("lens_probability", row, column, rank);
    if (id === undefined || chance === undefined) break;
    if (id >= 0) choices.push(h("li", {}, token(lens.spell(id)), " ", h("data", { value: String(chance) }, shortest(chance))));
  }
  const entropy = lens.at("lens_entropy", row, column), rank = lens.at("next_rank", row, column), chance = lens.at("next_probability", row, column);
  lines.push(["lens", h("ol", { class: "choices" }, choices)]);
  if (entropy !== undefined) lines.push(["entropy", `${shortest(entropy)} nats`]);
  if (column + 1 < nToken && rank !== undefined && rank >= 0) {
    lines.push(["next came", h("span", {}, token(lens.tokens[column + 1]), ` rank ${rank}, probability ${shortest(chance)}`)]);
  }
  return lines;
}

export const list = (lines) => h("dl", {}, lines.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));

/** See that what `facts` needs of a column is here. */
export const need = (lens, column) => lens.ensure(ALL, column, column + 1);

/** A column through depth: probability of the tokens that the lens names there, and of the one that really came next. */
export function trajectory({ capture, lens }, column, row) {
  const { nLayer, nToken } = capture, series = new Map();
  for (let depth = 0; depth <= nLayer; depth++)
    for (let rank = 0; rank < lens.nRank; rank++) {
      const id = lens.at("lens_token", depth, column, rank);
      if (id === undefined || id < 0) continue;
      if (!series.has(id)) series.set(id, { name: lens.spell(id), values: new Array(nLayer + 1).fill(null), most: 0 });
      const line = series.get(id), chance = lens.at("lens_probability", depth, column, rank);
      line.values[depth] = chance;
      line.most = Math.max(line.most, chance);
    }
  const next = column + 1 < nToken ? lens.ids?.[column + 1] : undefined;
  const lines = [...series].filter(([id]) => id !== next).map(([, line]) => line).sort((a, b) => b.most - a.most).slice(0, 5);
  if (column + 1 < nToken && lens.arrays.next_probability) {
    const values = Array.from({ length: nLayer + 1 }, (_, depth) => lens.at("next_probability", depth, column) ?? null);
    if (values.some((value) => value !== null && !Number.isNaN(value))) lines.unshift({ name: lens.tokens[column + 1], next: true, values });
  }
  return chart(lines, nLayer, row);
}

function chart(lines, nLayer, row) {
  const [width, height, left, below] = [330, 150, 30, 20];
  const x = (depth) => left + (depth / nLayer) * (width - left - 8), y = (value) => 6 + (1 - value) * (height - below - 6);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "probability by depth" });
  for (const value of [0, 0.5, 1]) {
    picture.append(svg("line", { x1: left, x2: width - 8, y1: y(value), y2: y(value), class: "axis" }));
    const tick = svg("text", { x: left - 4, y: y(value) + 4, class: "tick", "text-anchor": "end" });
    tick.textContent = String(value);
    picture.append(tick);
  }
  for (const depth of new Set([0, Math.round(nLayer / 2), nLayer])) {
    const tick = svg("text", { x: x(depth), y: height - 5, class: "tick", "text-anchor": "middle" });
    tick.textContent = String(depth);
    picture.append(tick);
  }
  picture.append(svg("line", { x1: x(row), x2: x(row), y1: y(1), y2: y(0), class: "here" }));
  const legend = lines.map((line, place) => {
    const colour = LINES[place % LINES.length], dash = DASHES[place % DASHES.length];
    let path = "", open = false;
    line.values.forEach((value, depth) => {
      const there = value !== null && !Number.isNaN(value);
      if (there) {
        path += `${open ? "L" : "M"}${x(depth).toFixed(1)} ${y(value).toFixed(1)}`;
        const dot = svg("circle", { cx: x(depth), cy: y(value), r: 2.2, fill: colour });
        const title = svg("title");
        title.textContent = `depth ${depth}: ${shortest(value)}`;
        dot.append(title);
        picture.append(dot);
      }
      open = there;
    });
    picture.append(svg("path", { d: path || "M0 0", stroke: colour, "stroke-dasharray": dash, fill: "none", "stroke-width": 1.8 }));
    const key = svg("svg", { viewBox: "0 0 26 8", class: "key", "aria-hidden": "true" },
      svg("path", { d: "M0 4L26 4", stroke: colour, "stroke-dasharray": dash, "stroke-width": 2.5 }));
    return h("li", {}, key, token(line.name), line.next ? " (came next)" : "");
  });
  return h("figure", {}, picture, h("ul", { class: "legend" }, legend),
    h("figcaption", {}, "A gap: the token is not among the first choices that were stored."));
}

/** Who looks at a key: the later queries that look there most. */
export function attenders(found, lens, key, go) {
  if (!found) return h("p", {}, "Needs the rows of all later queries, which are too many to fetch. Choose max or mean over heads.");
  const ranked = Array.from(found.values, (value, place) => ({ query: found.from + place, value }))
    .filter(({ value }) => value > 0).sort((a, b) => b.value - a.value).slice(0, 8);
  if (!ranked.length) return h("p", {}, "No stored query looks here.");
  const note = found.partial ? h("p", { class: "note" }, `Queries from ${found.from} on: of earlier ones the store keeps no reduction.`) : null;
  return h("div", {}, h("ol", { class: "bars" }, ranked.map(({ query, value }) => {
    const bar = h("span", { class: "bar" });
    bar.style.width = `${Math.max(1, value * 100)}%`;
    return h("li", {}, h("button", { type: "button", onclick: () => go(query) }, `${query} `, token(lens.tokens[query])),
      h("span", { class: "track" }, bar), h("data", { value: String(value) }, shortest(value, found.half)));
  })), note);
}
