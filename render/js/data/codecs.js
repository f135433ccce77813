// The codecs of the format that zarrita leaves to us or does loosely: zstd and blosc without wasm, crc32c that is
// checked, and texts that keep their byte order marks.

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

// Numbers byte by byte: store/planes.py says how. Of blosc's containers only those that are compressed by zstd.
class Blosc {
  kind = "bytes_to_bytes";
  static fromConfig = () => new Blosc();
  decode(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    if (bytes.length < 16) throw new Error("a blosc container is cut short");
    const flags = bytes[2], width = bytes[3], [size, block] = [4, 8].map((at) => view.getUint32(at, true));
    if (bytes[0] !== 2 || flags & 4 || !width) throw new Error("a blosc container is of a kind that is not read");
    if (size > LARGEST) throw new Error("a chunk says it is larger than 1 GiB");
    if (flags & 2) {
      if (bytes.length < 16 + size) throw new Error("a blosc container is cut short");
      return bytes.slice(16, 16 + size);
    }
    if (flags >> 5 !== 4 || (size && !(block > 0 && block <= size))) throw new Error("a blosc container is of a kind that is not read");
    if (size && 16 + 4 * Math.ceil(size / block) > bytes.length) throw new Error("a blosc container is cut short");
    const found = new Uint8Array(size);
    for (let from = 0, number = 0; from < size; from += block, number++) {
      const part = found.subarray(from, from + block);
      const apart = !(flags & 16) && width <= 16 && part.length === block && Math.floor(block / width) >= 128;
      blocked(bytes, view, view.getUint32(16 + 4 * number, true), part, flags & 1 ? width : 1, apart ? width : 1);
    }
    return found;
  }
}

/** One block of blosc: so many frames of equal size, which are planes of numbers of that width. */
function blocked(bytes, view, at, into, width, frames) {
  const size = into.length / frames, planes = new Uint8Array(into.length);
  if (!Number.isInteger(size)) throw new Error("a blosc block has planes of unequal size");
  for (let number = 0; number < frames; number++) {
    const length = at + 4 <= bytes.length ? view.getInt32(at, true) : -1, frame = bytes.subarray(at + 4, at + 4 + length);
    if (length < 0 || frame.length !== length) throw new Error("a blosc block is cut short");
    if (length !== size && contentSize(frame) > size) throw new Error("a blosc block holds more than it says");
    const plane = length === size ? frame : decompress(frame);
    if (plane.length !== size) throw new Error("a blosc block holds less than it says");
    planes.set(plane, number * size);
    at += 4 + length;
  }
  const count = Math.floor(into.length / width);
  for (let byte = 0; byte < width; byte++)
    for (let i = 0, from = byte * count, to = byte; i < count; i++, to += width) into[to] = planes[from + i];
  into.set(planes.subarray(count * width), count * width);
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
registry.set("zstd", () => Zstd).set("blosc", () => Blosc).set("crc32c", () => Crc32c).set("vlen-utf8", () => Texts);
