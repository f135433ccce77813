// Legible text for any token: render/text.py, letter for letter.

import { EMOJI, LIMIT } from "../contract.js";

const SEQUENCE = new RegExp(EMOJI, "gu");
const NAMED = { "\n": "\\n", "\t": "\\t", "\r": "\\r" };
const MARK = /^[\p{Mn}\p{Me}]$/u;
const WITHOUT_INK = /^[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zs}\p{Zl}\p{Zp}]$/u;
const FILLERS = new Set([0x034f, 0x115f, 0x1160, 0x17b4, 0x17b5, 0x2800, 0x3164, 0xffa0]);
const between = (code, low, high) => code >= low && code <= high;
const isInvisible = (code) => FILLERS.has(code) || between(code, 0x180b, 0x180f) || between(code, 0xfe00, 0xfe0f) || between(code, 0xe0100, 0xe01ef);
const hex = (code, digits) => code.toString(16).toUpperCase().padStart(digits, "0");

/** One line of visible characters for a token's text. */
export function legible(text) {
  return line(Array.from(text.slice(0, 2 * LIMIT + 2), (letter) => letter.codePointAt(0)), false);
}

/** The same for a token whose exact bytes are known; `text` stands in where there are none. */
export function legibleBytes(bytes, text) {
  return bytes.length ? line(decoded(bytes.subarray(0, 4 * LIMIT + 4)), true) : legible(text);
}

/** Code points of UTF-8; bytes that are none become 0xDC00 + byte, as Python's surrogateescape has it. */
function decoded(bytes) {
  const result = [];
  for (let i = 0; i < bytes.length; ) {
    const first = bytes[i];
    const size = first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
    let code = size === 1 ? first : first & (0xff >> (size + 1)), good = size > 0 && i + size <= bytes.length;
    for (let k = 1; good && k < size; k++) {
      good = (bytes[i + k] & 0xc0) === 0x80;
      code = (code << 6) | (bytes[i + k] & 0x3f);
    }
    if (good && size === 3) good = code >= 0x800 && !between(code, 0xd800, 0xdfff);
    if (good && size === 4) good = between(code, 0x10000, 0x10ffff);
    result.push(good ? code : 0xdc00 + first);
    i += good ? size : 1;
  }
  return result;
}

function line(codes, escaped) {
  if (!codes.length) return "<empty>";
  if (codes.every((code) => code === 32)) return codes.length === 1 ? "<space>" : `<space×${codes.length}>`;
  const parts = [];
  let marks = 2;
  for (const letter of clusters(codes.slice(0, LIMIT).map((code) => String.fromCodePoint(code)).join(""))) {
    const code = letter.codePointAt(0);
    if (String.fromCodePoint(code) !== letter) {
      parts.push(letter);
      marks = 2;
      continue;
    }
    if (MARK.test(letter) && !isInvisible(code)) {
      if (!parts.length) {
        parts.push("◌");
        marks = 0;
      }
      parts.push(++marks <= 2 ? letter : `<U+${hex(code, 4)}>`);
      continue;
    }
    const shown = visible(code, letter, escaped);
    marks = shown === letter && letter !== " " ? 0 : 2;
    parts.push(shown);
  }
  return parts.join("").replace(/^ +| +$| {2,}/g, dots) + (codes.length > LIMIT ? "…" : "");
}

/** Characters of a text, emoji of several characters whole. */
function clusters(text) {
  const found = [];
  let at = 0;
  for (const sequence of text.matchAll(SEQUENCE)) {
    found.push(...text.slice(at, sequence.index), sequence[0]);
    at = sequence.index + sequence[0].length;
  }
  return [...found, ...text.slice(at)];
}

function visible(code, letter, escaped) {
  if (code >= 0x20 && code < 0x7f) return letter;
  if (NAMED[letter]) return NAMED[letter];
  if (code < 0x20 || code === 0x7f) return `<${hex(code, 2)}>`;
  if (escaped && between(code, 0xdc80, 0xdcff)) return `<${hex(code - 0xdc00, 2)}>`;
  return WITHOUT_INK.test(letter) || isInvisible(code) ? `<U+${hex(code, 4)}>` : letter;
}

const dots = (spaces) => (spaces.length <= 4 ? "·".repeat(spaces.length) : `<space×${spaces.length}>`);
