// The store as zarrita wants it, over a source. Wishes of the same moment go out together, neighbours as one range,
// and what was read is kept: small files whole, of large ones the end, where the index of a shard is.

const TAIL = 65536;
const GAP = 16384;
const KEPT = 64 * 2 ** 20;

/** The store is not the one any more that the page has opened. */
export class ChangedError extends Error {}

export class Bytes {
  #tags = new Map(); // capture → the tag that its files must have
  #proofs = new Map(); // capture → what its files are compared with
  #totals = new Map(); // key → size of the file
  #waiting = [];
  #kept = new Map(); // key → null (not there) or {bytes, start, total}
  #size = 0;

  constructor(source) {
    this.source = source;
    this.documents = new Map();
  }

  /** A whole file, or undefined. */
  async get(key) {
    const name = key.slice(1);
    return this.documents.get(name) ?? this.#checked(name, null);
  }

  /** Part of a file, {offset, length} or {suffixLength}, or undefined. */
  async getRange(key, { offset, length, suffixLength }) {
    return this.#checked(key.slice(1), suffixLength ? -suffixLength : [offset, offset + length]);
  }

  /** Compare what is read of a capture from now on. */
  prove(capture, proof) {
    this.#proofs.set(capture, proof);
  }

  async #checked(key, range) {
    const bytes = await this.#wish(key, range), proof = this.#proofs.get(key.split("/", 1)[0]);
    await proof?.check(key, range, bytes, { total: () => this.#totals.get(key) ?? null, whole: () => this.#wish(key, null) });
    return bytes;
  }

  /** See that files of a capture are those of this tag, where the source tells tags. */
  expect(capture, tag) {
    this.#tags.set(capture, tag);
  }

  /** Forget what was read, because the store has grown. */
  forget() {
    this.#kept.clear();
    this.#size = 0;
  }

  #wish(key, range) {
    const found = this.#look(key, range);
    if (found !== null) return found;
    return new Promise((resolve, reject) => {
      if (!this.#waiting.length) setTimeout(() => this.#send());
      this.#waiting.push({ key, range, resolve, reject });
    });
  }

  /** Bytes that are here already; undefined for a file that does not exist, null where it must be asked for. */
  #look(key, range) {
    if (!this.#kept.has(key)) return null;
    const kept = this.#kept.get(key);
    if (kept === null) return undefined;
    const { bytes, start, total } = kept;
    if (total === null && typeof range === "number") return null;
    const [from, to] = range === null ? [0, total] : Array.isArray(range) ? range : [Math.max(0, total + range), total];
    if (from < start || to > start + bytes.length) return to > total ? undefined : null;
    return bytes.slice(from - start, to - start);
  }

  async #send() {
    const waiting = this.#waiting;
    this.#waiting = [];
    const wishes = merged(waiting);
    try {
      const answers = await this.source.fetch(wishes.map(({ key, range }) => ({ key, range })));
      wishes.forEach((wish, place) => this.#answer(wish, answers[place]));
    } catch (error) {
      for (const { reject } of waiting) reject(error);
    }
  }

  #answer({ key, range, parts }, found) {
    const folder = key.split("/", 1)[0], tag = this.#tags.get(folder);
    let { error } = found ?? {};
    if (!error && this.source.batch && tag !== undefined && (found?.tag ?? null) !== tag) {
      error = new ChangedError("The store has changed since this page was opened: reload.");
    }
    if (error) {
      for (const part of parts) part.reject(error);
      return;
    }
    const answer = found?.missing ? null : found;
    if (answer?.total != null) this.#totals.set(key, answer.total);
    if (answer === null) this.#kept.set(key, null);
    else if (answer.bytes.length === answer.total || typeof range === "number") this.#keep(key, answer);
    for (const part of parts) {
      if (answer === null) part.resolve(undefined);
      else part.resolve(cut(answer, part.range));
    }
  }

  #keep(key, answer) {
    if (this.#size + answer.bytes.length > KEPT) this.forget();
    this.#size += answer.bytes.length;
    this.#kept.set(key, answer);
  }
}

/** Wishes without repetition: ranges of one file that nearly touch become one, ends are made long enough to be of use. */
function merged(waiting) {
  const files = new Map();
  for (const wish of waiting) files.set(wish.key, [...(files.get(wish.key) ?? []), wish]);
  const result = [];
  for (const [key, parts] of files) {
    if (parts.some(({ range }) => range === null)) {
      result.push({ key, range: null, parts });
      continue;
    }
    const ends = parts.filter(({ range }) => typeof range === "number");
    if (ends.length) result.push({ key, range: Math.min(-TAIL, ...ends.map(({ range }) => range)), parts: ends });
    const middle = parts.filter(({ range }) => Array.isArray(range)).sort((a, b) => a.range[0] - b.range[0]);
    let open = null;
    for (const part of middle) {
      if (open && part.range[0] <= open.range[1] + GAP) {
        open.range[1] = Math.max(open.range[1], part.range[1]);
        open.parts.push(part);
      } else result.push((open = { key, range: [...part.range], parts: [part] }));
    }
  }
  return result;
}

/** The bytes of a wish out of an answer that holds at least these. */
function cut({ bytes, start, total }, range) {
  if (range === null) return bytes;
  const [from, to] = Array.isArray(range) ? range : [Math.max(0, total + range), total];
  return bytes.slice(from - start, to - start);
}
