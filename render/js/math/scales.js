// What a colour stands for: render/scales.py in the browser. Names, words and ranges come from there (contract.js).

import { FLOOR, LEFT_OVER } from "../contract.js";
import { sum } from "./reduce.js";

const f = Math.fround;

/** Transforms by name. before: of every head's row, (attention, {sinks, norms}) → attention; after: of (layer, key). */
export const TRANSFORMS = {
  raw: {},
  log: { after: (values) => values.map((value) => (value === value ? Math.log10(Math.max(value, f(FLOOR))) : NaN)) },
  rank: { after: rank },
  "drop-sink": { before: dropSink, strip: "sinks" },
  "value-norm": { before: valueNorm, norms: true },
};

function rank(values, nKey) {
  const result = new Float32Array(values.length).fill(NaN);
  for (let from = 0; from < values.length; from += nKey) {
    const row = values.subarray(from, from + nKey), ordered = row.filter((value) => value === value).sort();
    const first = new Map(), last = new Map();
    ordered.forEach((value, place) => {
      if (!first.has(value)) first.set(value, place);
      last.set(value, place + 1);
    });
    for (let key = 0; key < nKey; key++) {
      const value = row[key];
      if (value !== value) continue;
      result[from + key] = ordered.length === 1 ? 0.5 : (first.get(value) + last.get(value) - 1) / 2 / (ordered.length - 1);
    }
  }
  return result;
}

function dropSink(attention, { sinks }) {
  return shared(attention, (_, key) => (sinks[key] ? null : 1), (left) => left >= f(LEFT_OVER));
}

function valueNorm(attention, { norms }) {
  return shared(attention, (place, key) => norms.data[place * norms.nKey + key], (total) => total > 0);
}

/** Each key's part of its head's sum of weight × factor; a factor of null leaves the key out. */
function shared({ data, nLayer, nHead, nKey }, factor, enough) {
  const result = new Float32Array(data.length).fill(NaN), moved = new Float32Array(nKey);
  for (let place = 0; place < nLayer * nHead; place++) {
    for (let key = 0; key < nKey; key++) moved[key] = data[place * nKey + key] * (factor(place, key) ?? 0);
    const total = sum(moved, 0, nKey);
    if (!enough(total)) continue;
    for (let key = 0; key < nKey; key++) if (factor(place, key) !== null) result[place * nKey + key] = moved[key] / total;
  }
  return { data: result, nLayer, nHead, nKey };
}
