// Attention of a capture that keeps queries and keys: rows are replayed in a worker, which holds the keys.

import source from "worker:./replay_worker.js";

const MOST = 512 * 2 ** 20;
const BLOCK = 256;

export class Replay {
  #worker = null;
  #waiting = new Map();
  #parts = new Map(); // name → promises of blocks of keys
  #number = 0;

  constructor(capture) {
    this.capture = capture;
    [, , this.nKv, this.size] = capture.shape("attention_k");
  }

  /** float32 (layer, head, query, key), rounded to float16. Ranges are [start, stop], a number, or null for all. */
  async block(layers, heads, queries, keys) {
    const { capture, nKv, size } = this, { nLayer, nHead, layers: infos } = capture;
    const range = (part, all) => (part === null ? [0, all] : Array.isArray(part) ? part : [part, part + 1]);
    [layers, heads, queries] = [range(layers, nLayer), range(heads, nHead), range(queries, capture.nRow)];
    keys = range(keys, queries[1]);
    const [part, first] = await this.#keys(layers, queries[1]);
    const data = await capture.readFloats("attention_q", [queries, layers, null, null]);
    return this.#ask({ part, first, layers, heads, queries, keys, data, infos, nHead, nKv, size });
  }

  /** See that the worker has the keys of tokens 0 … stop-1 in these layers: the name of what it has, and its first layer. */
  async #keys([low, high], stop) {
    const { capture } = this, sources = capture.layers.slice(low, high).map(({ key_source: from }, place) => from ?? low + place);
    let [first, last] = [Math.min(...sources), Math.max(...sources) + 1];
    if (this.#parts.has(`0-${capture.nLayer}`)) [first, last] = [0, capture.nLayer];
    const name = `${first}-${last}`, bytes = 4 * stop * (last - first) * this.nKv * this.size;
    if (bytes > MOST) throw new Error(`The keys of ${stop} tokens take ${Math.round(bytes / 2 ** 20)} MiB: too much to replay in a page. lens render draws them, or look at one layer in the map.`);
    if (!this.#parts.has(name)) this.#parts.set(name, []);
    const blocks = this.#parts.get(name);
    for (let block = 0; block * BLOCK < stop; block++) blocks[block] ??= this.#read(name, block, [first, last]);
    await Promise.all(blocks.slice(0, Math.ceil(stop / BLOCK)));
    return [name, first];
  }

  async #read(part, block, layers) {
    const from = block * BLOCK, { capture } = this, count = Math.min(BLOCK, capture.nRow - from);
    try {
      const keys = await capture.readFloats("attention_k", [[from, from + count], layers, null, null]);
      this.#start().postMessage({ part, keys, from, count, nLayer: layers[1] - layers[0] }, [keys.buffer]);
    } catch (error) {
      this.#parts.get(part)[block] = undefined;
      throw error;
    }
  }

  #start() {
    if (!this.#worker) {
      const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
      this.#worker = new Worker(address);
      this.#worker.onmessage = ({ data: { id, found, error } }) => {
        const [resolve, reject] = this.#waiting.get(id);
        this.#waiting.delete(id);
        if (error) reject(new Error(`Attention could not be replayed: ${error}`));
        else resolve(found);
      };
      this.#worker.onerror = (event) => {
        for (const [, reject] of this.#waiting.values()) reject(new Error(`Attention could not be replayed: ${event.message}`));
      };
    }
    return this.#worker;
  }

  #ask(request) {
    const id = ++this.#number;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, [resolve, reject]);
      this.#start().postMessage({ ...request, id });
    });
  }
}
