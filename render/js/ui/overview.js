// All heads at a glance: a small map of each, queries downwards and keys to the right, and scores to sort them by.

import { shortest } from "../data/half.js";
import { colours, level } from "../draw/colours.js";
import { SCORES } from "../math/reduce.js";
import { choice, h } from "./dom.js";

const SIDE = 24;
const BUDGET = 24 * 2 ** 20;
const SORTS = [["layer", "layer and head"], ["entropy", "entropy, focused first"], ["sink", "sink mass, least first"], ["induction", "induction score, highest first"]];
const WORDS = { entropy: "entropy", sink: "attention to sinks", induction: "induction" };

/** Sampled queries up to `query`, so many as the budget lets us read. */
function sampled(capture, query) {
  const count = Math.max(1, Math.min(SIDE, query + 1, Math.floor(BUDGET / (2 * capture.nLayer * capture.nHead * capture.nToken))));
  return Array.from({ length: count }, (_, place) => Math.round(query - ((count - 1 - place) * query) / Math.max(1, count - 1)));
}

/** Read what the small maps show: for every head, the largest weight in each of SIDE parts of the keys, by query. */
export async function small(capture, attention, query) {
  const queries = [...new Set(sampled(capture, query))], { nLayer, nHead } = capture, nKey = query + 1;
  const rows = await Promise.all(queries.map((q) => attention.rows(q)));
  const wide = Math.min(SIDE, nKey), maps = new Float32Array(nLayer * nHead * queries.length * wide);
  rows.forEach(({ data, nKey: n }, place) => {
    for (let head = 0; head < nLayer * nHead; head++)
      for (let key = 0; key < n; key++) {
        const at = (head * queries.length + place) * wide + Math.floor((key * wide) / nKey);
        const value = data[head * n + key];
        maps[at] = value !== value ? NaN : Math.max(maps[at], value);
      }
  });
  const row = await attention.row(query);
  const scores = Object.fromEntries(Object.keys(WORDS).map((name) => [name, SCORES[name](rows[rows.length - 1], row)]));
  return { queries, wide, maps, scores, query };
}

/** The fold of all heads beside the picture. Nothing is read until it is opened. */
export class Heads {
  #serial = 0;

  constructor(app) {
    this.app = app;
    this.body = h("div", {});
    this.title = h("summary", {}, "Heads");
    this.host = h("details", { class: "heads" }, this.title, this.body);
    this.host.open = app.state.sort !== null;
    this.host.addEventListener("toggle", () => {
      const open = this.host.open;
      if (open === (app.state.sort !== null)) return;
      app.state.sort = open ? "layer" : null;
      app.save();
      this.show();
    });
  }

  async show() {
    const { app } = this, { side, state } = app, serial = ++this.#serial;
    this.title.textContent = `Heads: all ${side.capture.nLayer} × ${side.capture.nHead}`;
    if (this.host.open !== (state.sort !== null)) this.host.open = state.sort !== null;
    if (!this.host.open) return;
    try {
      const { capture, attention } = side, key = `${side.key} ${state.query}`;
      if (this.key !== key) {
        if (!this.body.firstChild) this.body.textContent = "reading …";
        const found = await small(capture, attention, state.query);
        if (serial !== this.#serial) return;
        Object.assign(this, { found, key });
      }
      this.body.replaceChildren(overview(this.found, { capture, state, pick: this.#pick, sort: (sort) => app.set({ sort }) }));
    } catch (error) {
      if (serial === this.#serial) this.body.replaceChildren(h("p", {}, error.message));
    }
  }

  #pick = (layer, head, add) => {
    const { app } = this, { state } = app;
    if (state.view === "map") return app.set({ map: `${layer}.${head}` });
    const others = add && app.heads.list ? app.heads.list : [];
    const heads = others.includes(head) && others.length > 1 ? others.filter((one) => one !== head) : [...new Set([...others, head])].sort((a, b) => a - b);
    return app.set({ heads: heads.join(","), map: `${layer}.${head}` });
  };
}

/** The glyphs as buttons: `pick(layer, head, add)` is called with what was chosen. */
export function overview(found, { capture, state, pick, sort }) {
  const { nLayer, nHead } = capture, { queries, wide, maps, scores } = found;
  const { rgb } = colours(state.cmap), order = [];
  for (let layer = 0; layer < nLayer; layer++) if (capture.attends(layer)) for (let head = 0; head < Math.min(nHead, capture.layers[layer].n_head || nHead); head++) order.push(layer * nHead + head);
  const by = state.sort && state.sort !== "layer" ? state.sort : null;
  const sign = by === "induction" ? -1 : 1, last = (value) => (Number.isNaN(value) ? Infinity : sign * value);
  if (by) order.sort((a, b) => last(scores[by][a]) - last(scores[by][b]) || a - b);
  const glyphs = order.map((place) => {
    const layer = Math.floor(place / nHead), head = place % nHead;
    const small = h("canvas", { width: wide, height: queries.length, "aria-hidden": "true" });
    const image = new ImageData(wide, queries.length);
    for (let i = 0; i < wide * queries.length; i++) {
      const value = maps[place * wide * queries.length + i], q = Math.floor(i / wide);
      const key = ((i % wide) * (found.query + 1)) / wide;
      if (key > queries[q]) continue;
      const at = level(value, [0, 1]);
      for (let part = 0; part < 3; part++) image.data[4 * i + part] = at < 0 ? 200 : rgb[3 * at + part];
      image.data[4 * i + 3] = 255;
    }
    small.getContext("2d").putImageData(image, 0, 0);
    const words = Object.entries(WORDS).map(([name, word]) => `${word} ${shortest(Math.fround(Number(scores[name][place].toPrecision(3))))}`);
    const label = `layer ${layer}, head ${head}: ${words.join(", ")}`;
    return h("button", {
      type: "button", class: "glyph", title: label, "aria-label": label, "data-head": `${layer}.${head}`,
      onclick: (event) => pick(layer, head, event.shiftKey || event.ctrlKey || event.metaKey),
    }, small, h("span", { "aria-hidden": "true" }, by ? `${layer}.${head}` : String(head)));
  });
  const body = by ? [h("div", { class: "glyphs" }, glyphs)] : byLayer(order, glyphs, nHead);
  const about = queries.length > 1 ? `${queries.length} of the queries 0 … ${found.query}, downwards` : `query ${found.query}`;
  return h("div", {}, h("div", { class: "row" }, choice("sort by", SORTS, state.sort ?? "layer", sort)),
    h("p", { class: "note" }, `A map a head: keys to the right, ${about}. Scores are of query ${found.query}. Click: this head alone; with shift: among others.`), ...body);
}

function byLayer(order, glyphs, nHead) {
  const rows = new Map();
  order.forEach((place, at) => {
    const layer = Math.floor(place / nHead);
    rows.set(layer, [...(rows.get(layer) ?? []), glyphs[at]]);
  });
  return [...rows].map(([layer, found]) => h("div", { class: "glyphs" }, h("span", { class: "layer" }, String(layer)), found));
}
