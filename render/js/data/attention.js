// Attention of one capture on the drawn scale: a query at a time for the main view, blocks for maps. What is read is
// kept up to a budget. In float32 as render/source.py, so that colours are equal.

import { rounded } from "./half.js";
import { Replay } from "./replay.js";
import { StoreError } from "./store.js";
import { REDUCE, SCORES } from "../math/reduce.js";
import { TRANSFORMS } from "../math/scales.js";
import { rollout } from "../math/rollout.js";

const KEPT = 96 * 2 ** 20;
const MOST = 512 * 2 ** 20;

export class Attention {
  #rows = new Map();
  #size = 0;
  #norms = null;
  #means = null;

  constructor(capture, lens) {
    Object.assign(this, { capture, lens, replayed: capture.about.attention === "qk" });
    if (this.replayed && capture.has("attention_q") && capture.has("attention_k")) this.replay = new Replay(capture);
  }

  /** Why there is no attention of every head, or null. */
  get absent() {
    return this.replay || (!this.replayed && this.capture.has("attention_weight")) ? null : this.capture.whyAbsent("attention_weight");
  }

  /** What a row of one head costs to get: bytes that are read or made. */
  get cost() {
    const { nLayer, nHead, nToken } = this.capture;
    return this.replay ? 8 * nToken : 2 * nLayer * nHead * nToken;
  }

  /** Attention of one query, all heads: {data, nLayer, nHead, nKey}, keys 0 … query. */
  rows(query) {
    if (!this.#rows.has(query)) {
      const found = this.#read(query);
      found.catch(() => this.#rows.delete(query));
      this.#rows.set(query, found);
      this.#size += 4 * this.capture.nLayer * this.capture.nHead * (query + 1);
      for (const old of this.#rows.keys()) {
        if (this.#size <= KEPT || old === query) break;
        this.#rows.delete(old);
        this.#size -= 4 * this.capture.nLayer * this.capture.nHead * (old + 1);
      }
    }
    return this.#rows.get(query);
  }

  /** Part of it: float32 (layer, head, query, key) of layers, heads and queries [start, stop). */
  block(layers, heads, queries, keys = null) {
    if (this.replay) return this.replay.block(layers, heads, queries, keys);
    return this.capture.readFloats("attention_weight", [layers, heads, queries, keys]);
  }

  /** Values of a query (layer, key) and, where a scale takes something away, what (layer): {values, strip}. */
  async shown(query, heads, scale) {
    const transform = TRANSFORMS[scale], nKey = query + 1;
    const after = (values) => (transform.after ? transform.after(values, nKey) : values);
    if (heads.stored && !transform.before) return { values: after(await this.#reduced(heads.stored, query)), strip: null };
    if (heads.rollout && transform.norms) throw new StoreError("A rollout has no value vectors of its own: choose another scale than value-norm.");
    const weights = heads.rollout ? await this.#rollout(query) : await this.rows(query);
    return finished(weights, await this.row(query, transform.norms), heads, transform);
  }

  /** Values of some queries in one layer, of a head or (null) reduced: a list of float32 (key), keys 0 … query. */
  async mapped(layer, head, heads, scale, queries) {
    const transform = TRANSFORMS[scale], { nHead } = this.capture;
    if (heads.rollout && head === null) throw new StoreError("A map shows one layer, a rollout goes through all: choose other heads.");
    const [first, last] = [queries[0], queries[queries.length - 1]], span = last - first + 1;
    const dense = span <= 2 * queries.length;
    const chosen = head === null ? null : [head, head + 1], width = head === null ? nHead : 1;
    const spans = dense ? [[first, last + 1]] : queries.map((query) => [query, query + 1]);
    const blocks = await Promise.all(spans.map((part) => this.block(layer, chosen, part, [0, last + 1])));
    const one = head === null ? heads : { name: "max", choose: () => null };
    return Promise.all(queries.map(async (query, place) => {
      const data = new Float32Array(width * (query + 1)), block = blocks[dense ? 0 : place], height = dense ? span : 1;
      for (let h = 0; h < width; h++) {
        const from = (h * height + (dense ? query - first : 0)) * (last + 1);
        data.set(block.subarray(from, from + query + 1), h * (query + 1));
      }
      const weights = { data, nLayer: 1, nHead: width, nKey: query + 1 };
      if (one.stored && !transform.before) { // the store's own reductions are float16
        const values = REDUCE[one.name](weights, null).map(rounded);
        return transform.after ? transform.after(values, query + 1) : values;
      }
      const row = await this.row(query, transform.norms, layer, head);
      return finished(weights, row, one, transform, layer).values;
    }));
  }

  /** What choices of heads and scales look at: {ids, sinks, norms}. */
  async row(query, norms = false, layer = null, head = null) {
    const { ids, special } = await this.lens.refined;
    const sinks = Array.from({ length: query + 1 }, (_, key) => key === 0 || Boolean(special[key]));
    return { ids: ids.subarray(0, query + 1), sinks, norms: norms ? await this.#valueNorms(layer, head) : null };
  }

  /** Attention to one key in one layer from every later query: [{query, value}], of what the store can tell cheaply. */
  async column(layer, key, heads, budget) {
    const { capture } = this, first = Math.max(key, capture.nPrompt - 1);
    if (heads.stored && capture.has(`attention_${heads.stored}`)) {
      const origin = capture.nPrompt - 1;
      const values = await capture.readFloats(`attention_${heads.stored}`, [[first - origin, capture.nRow - origin], layer, key]);
      return { from: first, values, partial: key < first, half: true };
    }
    const { nHead, nRow } = capture;
    const cost = this.cost * (this.replay ? nHead : 1) * (nRow - key);
    if (this.absent || cost > budget) return null;
    const data = await this.block(layer, null, [key, nRow], [key, key + 1]);
    const count = nRow - key;
    const attention = { data, nLayer: 1, nHead, nKey: count };
    let mask = null;
    if (heads.list) mask = Uint8Array.from({ length: nHead }, (_, head) => Number(heads.list.includes(head)));
    return { from: key, values: REDUCE[heads.name](attention, mask), partial: false, half: heads.name !== "mean" && heads.name !== "median" };
  }

  async #read(query) {
    const { nLayer, nHead, nRow } = this.capture;
    if (query >= nRow) throw new StoreError(`Token ${query} has no row of attention: it was not fed to the model, or not committed yet.`);
    const data = await this.block(null, null, query, [0, query + 1]);
    return this.#checked({ data, nLayer, nHead, nKey: query + 1 }, query);
  }

  #checked(attention, query) {
    const { data, nLayer, nHead, nKey } = attention;
    for (let layer = 0; layer < nLayer; layer++) {
      if (this.capture.attends(layer) && Number.isNaN(data[layer * nHead * nKey])) {
        throw new StoreError(`Attention of layer ${layer}, query ${query} is missing although it was committed: the store is damaged. Run lens verify.`);
      }
    }
    return attention;
  }

  async #reduced(name, query) {
    const { capture } = this, origin = capture.nPrompt - 1;
    if (query >= origin && capture.has(`attention_${name}`)) {
      const data = await capture.readFloats(`attention_${name}`, [query - origin, null, [0, query + 1]]);
      this.#checked({ data, nLayer: capture.nLayer, nHead: 1, nKey: query + 1 }, query);
      return data;
    }
    return REDUCE[name](await this.rows(query), null).map(rounded);
  }

  async #valueNorms(layer, head) {
    const { capture } = this;
    if (!capture.has("value_norm")) throw new StoreError(`The scale value-norm needs the lengths of value vectors (value_norm), and ${capture.whyAbsent("value_norm")}.`);
    this.#norms ??= capture.readFloats("value_norm").then((data) => ({ data, nKey: capture.shape("value_norm")[2] }));
    const { data, nKey } = await this.#norms;
    const first = ((layer ?? 0) * capture.nHead + (head ?? 0)) * nKey;
    return { data: data.subarray(first), nKey };
  }

  async #rollout(query) {
    const { nLayer, nHead, nRow } = this.capture;
    const cost = Math.max(2 * nLayer * nHead * nRow * nRow, 4 * nLayer * nRow * nRow);
    if (cost > MOST) throw new StoreError(`A rollout reads the attention of all earlier queries, ${Math.round(cost / 2 ** 20)} MiB here: too much for a page. lens render --heads rollout draws it.`);
    this.#means ??= this.#averages();
    const data = rollout(await this.#means, nLayer, nRow, query);
    return { data, nLayer, nHead: 1, nKey: query + 1 };
  }

  async #averages() {
    const { nLayer, nHead, nRow } = this.capture, means = new Float32Array(nLayer * nRow * nRow);
    const data = await this.block(null, null, [0, nRow], [0, nRow]);
    for (let layer = 0; layer < nLayer; layer++)
      for (let query = 0; query < nRow; query++) {
        const part = new Float32Array(nHead * nRow);
        for (let head = 0; head < nHead; head++) {
          const from = ((layer * nHead + head) * nRow + query) * nRow;
          part.set(data.subarray(from, from + nRow), head * nRow);
        }
        means.set(REDUCE.mean({ data: part, nLayer: 1, nHead, nKey: nRow }, null), (layer * nRow + query) * nRow);
      }
    return means;
  }
}

/** Heads of one query put on the drawn scale and reduced: {values (layer, key), strip (layer) or null}. */
function finished(weights, row, heads, transform, layer = 0) {
  const chosen = heads.choose(weights, row), size = weights.nLayer * weights.nHead;
  const mask = chosen && chosen.length > size ? chosen.subarray(layer * weights.nHead, layer * weights.nHead + size) : chosen;
  const reduce = REDUCE[heads.rollout ? "max" : heads.name];
  const values = reduce(transform.before ? transform.before(weights, row) : weights, mask);
  const strip = transform.strip ? reduce({ ...weights, data: SCORES.sink(weights, row), nKey: 1 }, mask) : null;
  return { values: transform.after ? transform.after(values, weights.nKey) : values, strip };
}
