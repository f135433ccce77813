// What vouches for a finished capture on any web server: the sha256 of its files and, of large ones, of their chunks
// (docs/format.md, "Proof of wholeness"). The server of lens view compares for itself.

import { sha256 } from "@noble/hashes/sha2.js";
import { WHOLE } from "../contract.js"; // a file of up to so many bytes is compared whole where its chunks have no digests

const TABLE = "chunk_sha256", DIGEST = 32;
const LISTS = ["manifest_file", "manifest_sha256"];
const OWN = new Set(["zarr.json", ...LISTS]); // the metadata vouch for the lists, and nothing for the metadata
const ENTRY = 16, CRC = 4, ABSENT = 2n ** 64n - 1n;

/** A digest as text. */
export const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
const product = (sizes) => sizes.reduce((a, b) => a * b, 1);

export class DamagedError extends Error {}

export class Proof {
  #files = null; // path in the capture → sha256
  #good = new Set(); // files that were compared whole
  #shards = new Map(); // file of chunks → [chunks as {offset, length}, their digests]

  constructor(capture) { this.capture = capture; }

  /** Ask for the manifest early, so that it comes with the first files. */
  begin() {
    this.#files ??= this.#list();
    this.#files.catch(() => {}); // told when a file is compared
  }

  /** See that what was read of a file is what was written; `bytes` is undefined where there is no such file. */
  async check(key, range, bytes, { total, whole }) {
    const inside = key.slice(this.capture.id.length + 1), array = inside.split("/", 1)[0];
    if (OWN.has(array) || this.#good.has(inside)) return;
    const wanted = (await (this.#files ??= this.#list())).get(inside);
    if (bytes === undefined) {
      if (wanted !== undefined) throw new DamagedError(`${key} is missing, the manifest lists it. Run lens verify.`);
      return;
    }
    if (wanted === undefined) throw new DamagedError(`${key} is not in the manifest. Run lens verify.`);
    if (range !== null) {
      const part = this.#part(array);
      if (part) return this.#chunk(key, inside, part, range, bytes);
      if (total() === null || total() > WHOLE) return; // as stores have it that were written before chunks had digests
    }
    const all = range === null ? bytes : await whole();
    if (!all || hex(sha256(all)) !== wanted) throw new DamagedError(`${key}: its bytes are not those that were written. Run lens verify, or fetch the store again.`);
    this.#good.add(inside);
  }

  /** The manifest, held against what the metadata say of it. */
  async #list() {
    const [names, hashes] = await Promise.all(LISTS.map((name) => this.capture.read(name)));
    const files = new Map(Array.from(names, (name, place) => [String(name), String(hashes[place])]));
    const lines = [...files].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, hash]) => `${name}\0${hash}\n`).join("");
    if (hex(sha256(new TextEncoder().encode(lines))) !== this.capture.about.manifest) {
      throw new DamagedError(`${this.capture.id}: its manifest is not the one that the metadata name. Run lens verify, or fetch the store again.`);
    }
    return files;
  }

  /** How the digests of an array's chunks follow each other, null where they have none. */
  #part(array) {
    const { documents } = this.capture;
    const said = documents.get(TABLE)?.attributes?.attnlens?.arrays?.[array], about = documents.get(array);
    if (!said || !about) return null;
    const shard = about.chunk_grid.configuration.chunk_shape, chunk = about.codecs[0].configuration?.chunk_shape ?? [];
    const inside = shard.map((size, axis) => size / chunk[axis]);
    const grid = shard.map((size, axis) => Math.ceil(about.shape[axis] / size) * inside[axis]);
    if (String(grid) !== String(said.grid) || String([...said.order].sort((a, b) => a - b)) !== String(grid.map((_, axis) => axis))) {
      throw new DamagedError(`${this.capture.id}/${TABLE}: what it tells of ${array} is not understood. Run lens verify.`);
    }
    return { ...said, grid, inside };
  }

  async #chunk(key, inside, part, range, bytes) {
    const wrong = (what) => new DamagedError(`${key}: ${what} is not the one that was written. Run lens verify, or fetch the store again.`);
    if (typeof range === "number") {
      const entries = index(bytes, product(part.inside));
      if (!entries) throw wrong("its index");
      const digests = await this.#digests(part, inside.split("/").slice(2).map(Number));
      if (digests.some((digest, place) => (digest.some((byte) => byte) ? entries[place] === null : entries[place] !== null))) throw wrong("its index");
      this.#shards.set(inside, [entries, digests]);
      return;
    }
    const [entries, digests] = this.#shards.get(inside) ?? [[], []], found = hex(sha256(bytes));
    const places = entries.flatMap((entry, place) => (entry && entry.offset === range[0] && entry.length === range[1] - range[0] ? [place] : []));
    if (!places.length || places.some((place) => hex(digests[place]) !== found)) throw wrong(`its chunk at ${range[0]}`);
  }

  /** Digests of the chunks of one shard, in the order of its index. */
  async #digests({ first, grid, inside, order }, shard) {
    const strides = [];
    let step = 1;
    for (const axis of [...order].reverse()) {
      strides[axis] = step;
      step *= grid[axis];
    }
    let numbers = [first];
    inside.forEach((count, axis) => {
      numbers = numbers.flatMap((number) => Array.from({ length: count }, (_, at) => number + (shard[axis] * count + at) * strides[axis]));
    });
    const low = numbers.reduce((a, b) => Math.min(a, b)), high = numbers.reduce((a, b) => Math.max(a, b)) + 1;
    const table = await this.capture.read(TABLE, [[low, high], null]);
    return numbers.map((number) => table.subarray((number - low) * DIGEST, (number - low + 1) * DIGEST));
  }
}

/** Where a shard has its chunks, null for those that it has not; null if these bytes are no index of so many. */
function index(bytes, count) {
  if (bytes.length !== count * ENTRY + CRC) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return Array.from({ length: count }, (_, place) => {
    const [offset, length] = [0, 8].map((at) => view.getBigUint64(ENTRY * place + at, true));
    return offset === ABSENT ? null : { offset: Number(offset), length: Number(length) };
  });
}
