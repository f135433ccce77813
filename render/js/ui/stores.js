// The stores that this page may show, by name, opened when first asked for. A capture is called `0000` in the first
// store and `name#0000` in any.

import { Attention } from "../data/attention.js";
import { Lens } from "../data/lens.js";
import { Store, StoreError } from "../data/store.js";

export class Stores {
  #opened = new Map();
  #sides = new Map();

  /** `sources` is a list of [name, source]. */
  constructor(sources) {
    this.sources = new Map(sources);
    this.names = [...this.sources.keys()];
  }

  store(name) {
    if (!this.sources.has(name)) throw new StoreError(`There is no store ${name} here; there is ${this.names.join(", ")}.`);
    if (!this.#opened.has(name)) {
      const opened = Store.open(this.sources.get(name), name);
      opened.catch(() => this.#opened.delete(name));
      this.#opened.set(name, opened);
    }
    return this.#opened.get(name);
  }

  /** [name of the store, id of the capture] of a key; the first capture for null. */
  async resolve(key) {
    const at = key?.lastIndexOf("#") ?? -1, name = at < 0 ? this.names[0] : key.slice(0, at);
    const store = await this.store(name), id = (at < 0 ? key : key.slice(at + 1)) ?? store.ids[0];
    if (!id) throw new StoreError(`${name} holds no capture yet.`);
    return [store, id];
  }

  /** A capture with what reads it: {store, key, capture, lens, attention}. `lens` names a further lens. */
  async side(key, lens = null) {
    const [store, id] = await this.resolve(key), name = `${store.name}#${id}#${lens ?? ""}`;
    if (!this.#sides.has(name)) {
      const capture = await store.capture(id), reading = new Lens(capture, lens === capture.about.lens?.name ? null : lens);
      this.#sides.set(name, { store, capture, lens: reading, attention: new Attention(capture, reading), key: this.key(store, id) });
    }
    return this.#sides.get(name);
  }

  key(store, id) {
    return store.name === this.names[0] ? id : `${store.name}#${id}`;
  }

  /** All captures of all stores: [key, words]. */
  async list() {
    const found = [];
    for (const name of this.names) {
      const store = await this.store(name), index = await store.index();
      for (const id of store.ids) {
        const { prompt, completion } = index.get(id) ?? {}, text = `${completion || prompt || ""}`.replace(/\s+/g, " ").slice(0, 40);
        found.push([this.key(store, id), `${this.names.length > 1 ? `${name} ` : ""}${id}${text ? ` ${text}` : ""}`]);
      }
    }
    return found;
  }

  /** Forget all that was read: a store has grown. */
  forget() {
    this.#opened.clear();
    this.#sides.clear();
  }
}
