// bfloat16 → float32, of which it is the upper half. docs/format.md says in which orders its bits may be.

export const WHOLE = "whole-exponent";

/** float32 values of bits of bfloat16. */
export function bfloats(stored, encoding) {
  const bits = new Uint32Array(stored.length), whole = encoding === WHOLE;
  for (let i = 0; i < bits.length; i++) {
    const at = stored[i];
    bits[i] = (whole ? (at & 0x8000) | ((at >> 1) & 0x3fff) | (((at ^ (at >> 14)) & 1) << 14) : at) << 16;
  }
  return new Float32Array(bits.buffer);
}
