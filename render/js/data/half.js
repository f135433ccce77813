// float16 ↔ float32. zarrita reads float16 as its bits: a table is faster than a Float16Array, and works everywhere.

const FROM = new Float32Array(65536);
for (let bits = 0; bits < 65536; bits++) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  FROM[bits] = exponent === 31 ? (fraction ? NaN : sign * Infinity)
    : exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -14 * (fraction / 1024);
}

/** float32 values of float16 bits. */
export function floats(bits) {
  const values = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) values[i] = FROM[bits[i]];
  return values;
}

/** One float16 as a number. */
export const toFloat = (bits) => FROM[bits];

/** The nearest float16 of a number in 0 … 65504, ties to even, as a number. */
export function rounded(value) {
  if (!(value > 0)) return value;
  const step = 2 ** (Math.max(Math.floor(Math.log2(value)), -14) - 10);
  const scaled = value / step, low = Math.floor(scaled), rest = scaled - low;
  return step * (rest > 0.5 || (rest === 0.5 && low % 2) ? low + 1 : low);
}

/** The shortest decimal that means this float32, or with `half` this float16: what numpy prints. */
export function shortest(value, half = false) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "–" : String(value);
  for (let digits = 1; digits < 10; digits++) {
    const text = value.toPrecision(digits), number = Number(text);
    if ((half ? rounded(number) : Math.fround(number)) === value) return String(number);
  }
  return String(value);
}
