// What the lens says: arrays (depth, token[, rank]) read in blocks of tokens as they come into view, and texts of ids.

import { legible, legibleBytes } from "../text/legible.js";

const ARRAYS = ["lens_token", "lens_probability", "lens_entropy", "next_rank", "next_probability"];
const SMALL = 512;

/** One lens array, block by block. */
class Blocks {
  constructor(capture, name) {
    Object.assign(this, { capture, name });
    this.shape = capture.shape(name);
    this.nRank = this.shape[2] ?? 1;
    this.size = this.shape[1] <= SMALL ? Math.max(1, this.shape[1]) : Math.max(32, capture.chunk(name)[1]);
    this.blocks = new Map(); // number → data, or a promise of it
  }

  /** See that tokens start … stop-1 are here; null where they are, else a promise. */
  ensure(start, stop) {
    const waiting = [];
    for (let block = Math.floor(Math.max(0, start) / this.size); block * this.size < Math.min(stop, this.shape[1]); block++) {
      if (!this.blocks.has(block)) this.blocks.set(block, this.#read(block));
      const found = this.blocks.get(block);
      if (found instanceof Promise) waiting.push(found);
    }
    return waiting.length ? Promise.all(waiting) : null;
  }

  /** A value, or undefined while it is not here. */
  at(depth, token, rank = 0) {
    const block = Math.floor(token / this.size), data = this.blocks.get(block);
    if (!data || data instanceof Promise) return undefined;
    const width = Math.min(this.size, this.shape[1] - block * this.size);
    return data[(depth * width + token - block * this.size) * this.nRank + rank];
  }

  async #read(block) {
    const start = block * this.size, selection = [null, [start, start + this.size], null].slice(0, this.shape.length);
    try {
      const data = await this.capture.read(this.name, selection);
      this.blocks.set(block, data);
      return data;
    } catch (error) {
      this.blocks.delete(block);
      throw error;
    }
  }
}

/** Everything that a capture's lens says, and the texts of its tokens. */
export class Lens {
  #texts = null;
  #refined = null;

  /** `name` is that of a further lens, null for the first. */
  constructor(capture, name = null) {
    this.capture = capture;
    this.name = name ?? capture.about.lens?.name ?? null;
    this.nRow = capture.nRow;
    this.absent = capture.about.lens ? null : capture.about.lens_absent ?? "no reason given";
    this.arrays = {};
    for (const array of ARRAYS) {
      const stored = name ? `${array}_${name}` : array;
      if (!this.absent && capture.has(stored)) this.arrays[array] = new Blocks(capture, stored);
    }
    this.vocabulary = new Map();
    this.spelled = new Map([[-1, ""]]);
    this.tokens = [];
    this.ids = this.special = null;
  }

  get nRank() { return this.arrays.lens_token?.nRank ?? 0; }

  /** Texts of the timeline and of the vocabulary, read once. */
  get texts() {
    this.#texts ??= this.#open();
    return this.#texts;
  }

  async #open() {
    const { capture } = this;
    const words = this.absent ? null : Promise.all([capture.read("vocabulary_id"), capture.read("vocabulary_text")]);
    const [texts, found] = await Promise.all([capture.read("token_text"), words]);
    this.raw = texts;
    this.tokens = texts.map((text) => legible(text));
    if (found) found[0].forEach((id, place) => { if (id >= 0 && place < found[1].length) this.vocabulary.set(id, found[1][place]); });
  }

  /** The same promise for everyone. */
  get refined() {
    if (!this.#refined) {
      const names = ["token_id", "token_special", "token_bytes", "token_byte_offset"];
      const reading = Promise.all(names.map((name) => this.capture.read(name)));
      this.#refined = Promise.all([reading, this.texts]).then(() => this.#refine(reading)).then(() => this);
    }
    return this.#refined;
  }

  /** What of the tokens can come after the first picture: ids, which are special, and the exact bytes of pieces. */
  async #refine(reading) {
    const [ids, special, bytes, offset] = await reading;
    this.ids = ids;
    this.special = special;
    this.tokens = this.raw.map((text, token) => {
      if (ids[token] < 0) return "<redacted>";
      if (special[token]) return legible(text);
      return legibleBytes(bytes.subarray(offset[token], offset[token + 1]), text);
    });
    this.spelled = new Map([[-1, ""]]);
    ids.forEach((id, token) => { if (id >= 0) this.spelled.set(id, this.tokens[token]); });
  }

  /** Legible text of a token id. */
  spell(id) {
    let text = this.spelled.get(id);
    if (text === undefined) {
      text = this.vocabulary.has(id) ? legible(this.vocabulary.get(id)) : `<id ${id}>`;
      this.spelled.set(id, text);
    }
    return text;
  }

  /** See that these arrays are here for tokens start … stop-1; null where they are, else a promise. */
  ensure(names, start, stop) {
    const waiting = names.map((name) => this.arrays[name]?.ensure(start, Math.min(stop, this.nRow))).filter(Boolean);
    return waiting.length ? Promise.all(waiting) : null;
  }

  at(name, depth, token, rank) {
    return token < this.nRow ? this.arrays[name]?.at(depth, token, rank) : undefined;
  }
}
