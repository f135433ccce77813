// A store and its captures, as docs/format.md tells. Nothing here believes the file: names, types and axes are checked.

import { sha256 } from "@noble/hashes/sha2.js";
import * as zarr from "zarrita";
import { ARRAYS, FORMAT, VERSION } from "../contract.js";
import { bfloats, WHOLE } from "./bfloat.js";
import { Bytes, ChangedError } from "./bytes.js";
import "./codecs.js";
import { floats } from "./half.js";
import { modelName } from "./naming.js";
import { DamagedError, hex, Proof } from "./proof.js";

const ID = /^\d{4,12}$/;
const INDEX = /^index-[0-9a-f]{16}$/; // the group of an index that is too long for the store's own metadata
const MODEL = ["float32", "float16", "uint16"]; // of queries and keys; uint16 are the bits of bfloat16
const LANES = ["layer", "head", "kv_head"]; // a writer leaves out those that the model does not have
const EARLY = ["token_id", "token_text", "token_special"]; // known of every token, fed or not
const STORED = { float16: ["uint16", 0x7e00], bool: ["uint8", 0] };

/** Something a person is told: what was found, and what to do. */
export class StoreError extends Error {}

export class Store {
  /** Open the store that `source` leads to. */
  static async open(source, name) {
    const bytes = new Bytes(source);
    const root = parse(await bytes.get("/zarr.json"), `${name}/zarr.json`);
    if (!root) throw new StoreError(`There is no store at ${name}: it has no zarr.json. Give the folder of a store, such as run.zarr.`);
    const about = root.attributes?.attnlens;
    if (about?.format !== FORMAT) throw new StoreError(`${name} is a Zarr group, but no store of attnlens.`);
    if (about.version !== VERSION) {
      throw new StoreError(`${name} has format version ${about.version}, this viewer reads ${VERSION}: use a newer attnlens.`);
    }
    return new Store(bytes, name, about, root.consolidated_metadata?.metadata ?? {});
  }

  constructor(bytes, name, about, documents) {
    Object.assign(this, { bytes, name, about, documents });
    this.ids = (Array.isArray(about.planned) ? about.planned : []).filter((id) => ID.test(id));
    this.captures = new Map();
    this.entries = new Map((Array.isArray(about.index) ? about.index : []).map((entry) => [entry?.id, entry]));
  }

  /** What the index says of the captures, for lists: a Map by id. */
  async index() {
    const folder = this.about.lists?.index?.folder;
    if (this.about.index || folder === undefined) return this.entries;
    this.listed ??= this.#listed(`${folder}`);
    return this.listed;
  }

  /** The same from arrays, which are longer than anybody wants to read for the sake of one capture. */
  async #listed(folder) {
    if (!INDEX.test(folder)) throw new StoreError(`${this.name}: its index has no such name, ${folder.slice(0, 40)}. Run lens verify.`);
    try {
      const [ids, prompts, completions] = await Promise.all(["id", "prompt", "completion"].map(async (name) => {
        const array = await zarr.open.v3(zarr.root(this.bytes).resolve(`${folder}/${name}`), { kind: "array" });
        if (!array.is("string") || array.shape.length !== 1 || array.shape[0] > this.ids.length) throw new Error(`${name} is no list of texts`);
        const chunks = Array.from({ length: Math.ceil(array.shape[0] / array.chunks[0]) }, (_, place) => `${name}/c/${place}`);
        await Promise.all([`${name}/zarr.json`, ...chunks].map((file) => this.#compare(folder, file)));
        return (await zarr.get(array)).data;
      }));
      return new Map(Array.from(ids, (id, place) => [id, { id, prompt: prompts[place], completion: completions[place] }]));
    } catch (error) {
      throw new StoreError(`${this.name}: its index cannot be read. ${error.message}. Run lens verify.`);
    }
  }

  /** See that a file of the index is the one that the store's metadata name. */
  async #compare(folder, file) {
    const bytes = await this.bytes.get(`/${folder}/${file}`);
    if (!bytes || hex(sha256(bytes)) !== this.about.lists.index.files?.[file]) throw new Error(`${file} is not the file that was written`);
  }

  /** The copy of a capture's metadata in the store's own, undefined where there is none or the index tells of another. */
  copy(id) {
    const found = this.documents[id], digest = this.entries.get(id)?.digest;
    return digest && found?.attributes?.attnlens?.digest !== digest ? undefined : found;
  }

  async capture(id) {
    if (!this.ids.includes(id)) {
      const { ids } = this, some = ids.length > 12 ? `${ids.length}, ${ids[0]} … ${ids.at(-1)}` : ids.join(", ");
      throw new StoreError(`${this.name} has no capture ${id}; it has ${some || "none"}.`);
    }
    if (!this.captures.has(id)) this.captures.set(id, await Capture.open(this, id));
    return this.captures.get(id);
  }
}

export class Capture {
  static async open(store, id) {
    const document = store.copy(id) ?? parse(await store.bytes.get(`/${id}/zarr.json`), `${id}/zarr.json`);
    const about = document?.attributes?.attnlens;
    const copied = Boolean(store.copy(id));
    if (!about) throw new StoreError(`Capture ${id} has not begun yet. Reload when it has, or choose another.`);
    store.bytes.expect(id, (about.status === "complete" ? about.digest : about.created) ?? null);
    const documents = new Map();
    const inline = document.consolidated_metadata?.metadata;
    const further = (about.lenses ?? []).flatMap((lens) => Object.keys(ARRAYS).map((name) => `${name}_${lens?.name}`));
    await Promise.all([...Object.keys(ARRAYS), ...further].map(async (name) => {
      const found = (copied && store.documents[`${id}/${name}`]) || (inline && Object.hasOwn(inline, name) ? inline[name] : null);
      if (found) documents.set(name, found);
      else if (!inline && !copied) {
        const text = await store.bytes.get(`/${id}/${name}/zarr.json`);
        if (text) documents.set(name, parse(text, `${id}/${name}/zarr.json`));
      }
    }));
    const capture = new Capture(store, id, about, documents);
    const proof = store.bytes.source.proven || about.status !== "complete" ? null : new Proof(capture);
    store.bytes.prove(id, proof);
    proof?.begin();
    return capture;
  }

  constructor(store, id, about, documents) {
    Object.assign(this, { store, id, about });
    const count = (name) => {
      if (!Number.isInteger(about[name]) || about[name] < 0) throw new StoreError(`Capture ${id}: ${name} is ${about[name]}, expected a number. Run lens verify.`);
      return about[name];
    };
    this.nPrompt = count("n_prompt");
    this.nToken = count("n_token");
    this.nRow = Math.min(count("committed"), count("n_fed"));
    this.layers = about.model?.layers ?? [];
    this.nLayer = this.layers.length;
    this.nHead = about.model?.n_head ?? 0;
    this.model = modelName(about);
    this.documents = documents;
    this.arrays = new Map();
  }

  has(name) { return this.documents.has(name); }

  /** Which layers have attention. */
  attends(layer) { return this.layers[layer]?.kind !== "none"; }

  /** Why an array is not there. */
  whyAbsent(name) {
    const { about } = this;
    const { presence } = this.#spec(name);
    if (presence === "lens" && !about.lens) return `captured without a lens (${about.lens_absent ?? "no reason given"})`;
    if (/attention/.test(name) && !about.attention) return `captured without attention (${about.attention_absent ?? "no reason given"})`;
    if (presence === "evidence") return String(about.absent?.[name] ?? "it was not captured");
    return `the capture is ${about.status}`;
  }

  /** Shape of an array, cut to the timeline. */
  shape(name) {
    const { shape, dimension_names: axes } = this.#document(name);
    return shape.map((size, place) => {
      switch (axes[place]) {
        case "token": case "query": case "key": return Math.min(size, this.nToken);
        case "generated": return Math.min(size, Math.max(0, this.nToken - this.nPrompt + 1));
        case "edge": return Math.min(size, this.nToken + 1);
        default: return size;
      }
    });
  }

  /** Inner chunk of an array. */
  chunk(name) {
    const { chunk_grid: grid, codecs } = this.#document(name);
    return codecs[0].configuration?.chunk_shape ?? grid.configuration.chunk_shape;
  }

  /** Part of an array, in order: one [start, stop], number or null (all) an axis. float16 and bfloat16 come as stored. */
  async read(name, selection = this.shape(name).map(() => null)) {
    const shape = this.shape(name);
    const parts = selection.map((part, place) => {
      const [start, stop] = part === null ? [0, shape[place]] : Array.isArray(part) ? part : [part, part + 1];
      return zarr.slice(Math.max(0, start), Math.min(stop, shape[place]));
    });
    try {
      const array = await this.#open(name);
      const found = inOrder(await zarr.get(array, parts));
      await this.#there(name, parts);
      return found;
    } catch (error) {
      const changed = error instanceof ChangedError ? error : error.cause;
      if (changed instanceof ChangedError) throw changed;
      const damaged = error instanceof DamagedError ? error : error.cause;
      if (damaged instanceof DamagedError) throw new StoreError(damaged.message);
      if (error instanceof StoreError) throw error;
      const cause = error.cause?.message ? `: ${error.cause.message}` : "";
      throw new StoreError(`${this.id}/${name} cannot be read. ${error.message}${cause}`);
    }
  }

  /** The same as float32. */
  async readFloats(name, selection) {
    const data = await this.read(name, selection);
    if (!(data instanceof Uint16Array)) return data;
    const document = this.#document(name);
    return document.data_type === "uint16" ? bfloats(data, encoding(document)) : floats(data);
  }

  /**
   * Of a capture that is not finished no manifest tells its files. Its writer stores every one of what it committed, so
   * one that is missing is absent: no fill value stands for it. As store/presence.py.
   */
  async #there(name, parts) {
    const { about } = this, { dimension_names: axes, shape, chunk_grid: { configuration: { chunk_shape: step } } } = this.#document(name);
    const sealed = about.status === "complete" || (about.digest && about.manifest);
    if (sealed || about.crop || !this.nRow || name === "model_probability") return;
    if (axes.length > 1 && axes.some((axis) => LANES.includes(axis))) return; // looked at where they are read
    const wanted = axes[0] === "entry" ? await this.#entries(name, Math.ceil(shape[0] / step[0])) : await Promise.all(parts.map(async ({ start, stop }, place) => {
      if (axes[place] === "token" && !EARLY.includes(name)) stop = Math.min(stop, this.nRow);
      if (axes[place] === "byte") stop = Math.min(stop, (await this.read("token_byte_offset", [this.nToken]))[0]);
      const first = Math.floor(start / step[place]);
      return Array.from({ length: Math.max(0, Math.ceil(stop / step[place]) - first) }, (_, index) => first + index);
    }));
    const keys = wanted.reduce((found, numbers) => found.flatMap((key) => numbers.map((number) => `${key}/${number}`)), ["c"]);
    const missing = (await Promise.all(keys.map(async (key) => [key, await this.#exists(name, key)]))).find(([, there]) => !there);
    if (missing) throw new StoreError(`${this.id}/${name}/${missing[0]} is missing, though it was committed. Run lens verify.`);
  }

  /** Numbers of the files that a list of the vocabulary must have: it grows, and texts are written before ids. */
  async #entries(name, count) {
    const there = (array) => Promise.all(Array.from({ length: count }, (_, number) => this.#exists(array, `c/${number}`)));
    const ids = name === "vocabulary_text" && this.has("vocabulary_id") ? (await there("vocabulary_id")).filter(Boolean).length : 1;
    return [Array.from({ length: Math.max(1, ids, (await there(name)).lastIndexOf(true) + 1) }, (_, number) => number)];
  }

  async #exists(name, key) {
    return (await this.store.bytes.getRange(`/${this.id}/${name}/${key}`, { suffixLength: 1 })) !== undefined;
  }

  /** What the format says of an array; further lenses have the names of the first with their own behind. */
  #spec(name) {
    const lens = (this.about.lenses ?? []).find((one) => name.endsWith(`_${one?.name}`));
    return ARRAYS[name] ?? ARRAYS[lens ? name.slice(0, -lens.name.length - 1) : ""] ?? { axes: [], presence: "always" };
  }

  #document(name) {
    const found = this.documents.get(name);
    if (!found) throw new StoreError(`Capture ${this.id} has no ${name}: ${this.whyAbsent(name)}.`);
    const wanted = this.#spec(name);
    const axes = found.dimension_names;
    if (!Array.isArray(found.shape) || !Array.isArray(axes) || !Array.isArray(found.codecs)
      || axes.join() !== wanted.axes.join() || found.shape.length !== axes.length || !(wanted.dtype === "model" ? MODEL : [wanted.dtype]).includes(found.data_type)
      || !found.shape.every((size) => Number.isSafeInteger(size) && size >= 0)) {
      throw new StoreError(`${this.id}/${name}: expected ${wanted.dtype} over (${wanted.axes.join(", ")}), found ${found.data_type} over (${axes}). Run lens verify.`);
    }
    const known = found.data_type === "uint16" ? [undefined, WHOLE] : [undefined];
    if (!known.includes(encoding(found))) throw new StoreError(`${this.id}/${name}: its encoding ${encoding(found)} is not one that this viewer reads: use a newer attnlens.`);
    return found;
  }

  #open(name) {
    if (!this.arrays.has(name)) {
      const { bytes } = this.store, key = `${this.id}/${name}/zarr.json`;
      const document = { ...this.#document(name), attributes: {} };
      const [type, fill] = STORED[document.data_type] ?? [document.data_type, document.fill_value];
      bytes.documents.set(key, new TextEncoder().encode(JSON.stringify({ ...document, data_type: type, fill_value: fill })));
      this.arrays.set(name, zarr.open.v3(zarr.root(bytes).resolve(`${this.id}/${name}`), { kind: "array" }));
    }
    return this.arrays.get(name);
  }
}

/** How the numbers of an array are encoded, undefined where they are as they are. */
function encoding({ attributes }) {
  return attributes?.attnlens?.encoding ?? undefined;
}

/** Numbers in the order of the axes: zarrita hands them over as their chunks hold them, which may be another. */
function inOrder({ data, shape, stride }) {
  const count = shape.reduce((a, b) => a * b, 1), plain = shape.map((_, axis) => shape.slice(axis + 1).reduce((a, b) => a * b, 1));
  if (shape.every((size, axis) => size <= 1 || stride[axis] === plain[axis])) return data;
  const found = new data.constructor(count), last = shape.length - 1, index = shape.map(() => 0);
  for (let to = 0, from = 0; to < count; ) {
    for (let i = 0, at = from; i < shape[last]; i++, at += stride[last]) found[to++] = data[at];
    let axis = last - 1;
    for (; axis >= 0 && ++index[axis] === shape[axis]; axis--) {
      from -= stride[axis] * (shape[axis] - 1);
      index[axis] = 0;
    }
    if (axis < 0) break;
    from += stride[axis];
  }
  return found;
}

function parse(bytes, where) {
  if (!bytes) return null;
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch (error) {
    throw new StoreError(`${where} is damaged (${error.message}). Run lens verify.`);
  }
}
