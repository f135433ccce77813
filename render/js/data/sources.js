// Where bytes come from: a web server, or the page itself. A source answers a list of wishes, each
// {key, range}: range is null for all, [start, stop], or a negative number for so many bytes at the end.
// An answer is null (there is no such file) or {bytes, start, total}, which may be more than was wished for, or {error}.
// The server of lens view also tells the tag of the capture, of files that are not there as well: {missing, tag}.

const HEAD = 65536;
const TRIES = 3;
const MOST = 1024; // wishes in one request

class Refused extends Error {}

/** A store behind a URL that ends in "/". With `batch` the server answers many wishes in one request. */
export class Http {
  constructor(base, { batch = false } = {}) {
    this.base = base;
    this.batch = batch;
    this.proven = batch; // the server of lens view has compared what it sends
    this.sameOrigin = base.origin === globalThis.location?.origin;
    this.requests = 0;
    this.bytes = 0;
  }

  async fetch(wishes) {
    if (!this.batch) return Promise.all(wishes.map((wish) => this.#one(wish)));
    const lists = [];
    for (let from = 0; from < wishes.length; from += MOST) lists.push(this.#many(wishes.slice(from, from + MOST)));
    return (await Promise.all(lists)).flat();
  }

  async #one({ key, range }) {
    if (typeof range !== "number") return this.#read(key, range && `bytes=${range[0]}-${range[1] - 1}`, range?.[0] ?? 0);
    if (this.sameOrigin) return this.#read(key, `bytes=${range}`, null);
    // Of another origin a range from the end costs a preflight each: take the beginning, which often is all.
    const first = await this.#read(key, `bytes=0-${HEAD - 1}`, 0);
    if (!first || first.bytes.length === first.total) return first;
    const total = first.total ?? (await this.#size(key));
    return this.#read(key, `bytes=${Math.max(0, total + range)}-${total - 1}`, Math.max(0, total + range), total);
  }

  async #read(key, range, start, known = null) {
    const response = await this.#ask(key, { headers: range ? { Range: range } : {} });
    if (response.status === 404 || response.status === 403) return null;
    const bytes = new Uint8Array(await response.arrayBuffer());
    this.bytes += bytes.length;
    if (response.status !== 206) return { bytes, start: 0, total: bytes.length };
    const found = /bytes (\d+)-\d+\/(\d+)/.exec(response.headers.get("Content-Range") ?? "");
    if (found) return { bytes, start: Number(found[1]), total: Number(found[2]) };
    if (start === 0 && range && bytes.length < HEAD) return { bytes, start, total: bytes.length };
    return { bytes, start, total: known };
  }

  async #size(key) {
    const response = await this.#ask(key, { method: "HEAD" });
    return Number(response.headers.get("Content-Length"));
  }

  async #many(wishes) {
    const response = await this.#ask("", { method: "POST", body: JSON.stringify(wishes.map((w) => [w.key, w.range])) });
    const data = new Uint8Array(await response.arrayBuffer());
    this.bytes += data.length;
    const head = 4 + new DataView(data.buffer).getUint32(0, true);
    let at = head;
    return JSON.parse(new TextDecoder().decode(data.subarray(4, head))).map((answer) => {
      if (!answer) return null;
      if (answer.length === 1) return { missing: true, tag: answer[0] };
      const [size, start, total, tag] = answer;
      if (answer.length === 2) return { error: new Error(`${start} (${size})`) };
      return { bytes: data.slice(at, (at += size)), start, total, tag };
    });
  }

  async #ask(key, options) {
    const url = new URL(key.split("/").map(encodeURIComponent).join("/"), this.base);
    for (let attempt = 1; ; attempt++) {
      let why;
      try {
        this.requests++;
        const response = await fetch(url, { credentials: "same-origin", cache: "no-cache", ...options });
        if (response.ok || (!this.batch && [403, 404].includes(response.status))) return response;
        if (response.status === 416) return new Response(new Uint8Array());
        if (this.batch) { // our own server says in a line what is wrong
          const line = (await response.text()).trim().slice(0, 1000);
          throw new Refused(`${line || response.statusText} (${response.status})`);
        }
        why = `answered ${response.status} ${response.statusText}`;
        if (response.status < 500) attempt = TRIES;
      } catch (error) {
        if (error instanceof Refused) throw error;
        why = `could not be reached (${error.message})`;
      }
      if (attempt >= TRIES) {
        throw new Error(`${decodeURI(url.href)} ${why}. Is the server still running, and does it allow this page to read (CORS)?`);
      }
      await new Promise((done) => setTimeout(done, 200 * attempt));
    }
  }
}

/** A store inside the page: key → base64. */
export class Embedded {
  proven = true; // export has compared what it put in
  requests = 0;
  bytes = 0;
  constructor(files) { this.files = files; }

  async fetch(wishes) {
    return wishes.map(({ key }) => {
      if (!Object.hasOwn(this.files, key)) return null;
      const bytes = Uint8Array.from(atob(this.files[key]), (letter) => letter.charCodeAt(0));
      return { bytes, start: 0, total: bytes.length };
    });
  }
}
