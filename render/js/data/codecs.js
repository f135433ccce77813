// The three codecs of the format that zarrita leaves to us or does loosely: zstd without wasm, crc32c that is checked,
// and texts that keep their byte order marks.

import { decompress } from "fzstd";
import { registry } from "zarrita";

const LARGEST = 2 ** 30;

const TABLE = new Uint32Array(256).map((_, i) => {
  let value = i;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0x82f63b78 : value >>> 1;
  return value;
});

/** CRC-32C (Castagnoli) of bytes. */
export function crc32c(bytes) {
  let crc = ~0;
  for (let i = 0; i < bytes.length; i++) crc = TABLE[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

class Crc32c {
  kind = "bytes_to_bytes";
  static fromConfig = () => new Crc32c();
  computeEncodedSize = (size) => size + 4;
  decode(bytes) {
    const body = bytes.subarray(0, bytes.length - 4);
    const stored = new DataView(bytes.buffer, bytes.byteOffset + body.length, 4).getUint32(0, true);
    if (bytes.length < 4 || crc32c(body) !== stored) throw new Error("checksum differs, the chunk is damaged");
    return body;
  }
}

class Zstd {
  kind = "bytes_to_bytes";
  static fromConfig = () => new Zstd();
  decode(bytes) {
    if (contentSize(bytes) > LARGEST) throw new Error("a chunk says it is larger than 1 GiB");
    return decompress(bytes).slice(); // a buffer of its own: zarrita looks at .buffer
  }
}

/** Size that a zstd frame announces, 0 where it announces none. */
function contentSize(bytes) {
  const flags = bytes[4], view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const at = 5 + (flags & 32 ? 0 : 1) + [0, 1, 2, 4][flags & 3];
  switch (flags >> 6) {
    case 0: return flags & 32 ? bytes[at] : 0;
    case 1: return view.getUint16(at, true) + 256;
    case 2: return view.getUint32(at, true);
    default: return Number(view.getBigUint64(at, true));
  }
}

class Texts {
  kind = "array_to_bytes";
  constructor(shape) { this.shape = shape; }
  static fromConfig = (_, meta) => new Texts(meta.shape);
  decode(bytes) {
    const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const count = view.getUint32(0, true);
    if (count !== this.shape.reduce((a, b) => a * b, 1)) throw new Error(`${count} texts in a chunk of ${this.shape}`);
    const data = [];
    for (let i = 0, at = 4; i < count; i++) {
      const size = view.getUint32(at, true);
      if (at + 4 + size > bytes.length) throw new Error("a text is longer than its chunk");
      data.push(utf8.decode(bytes.subarray(at + 4, at + 4 + size)));
      at += 4 + size;
    }
    return { data, shape: this.shape, stride: [1] };
  }
}

for (const name of [...registry.keys()]) if (!["bytes", "transpose"].includes(name)) registry.delete(name);
registry.set("zstd", () => Zstd).set("crc32c", () => Crc32c).set("vlen-utf8", () => Texts);
