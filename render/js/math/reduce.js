// Reductions of the head axis and scores of heads: render/reduce.py in the browser, in float32 and in the same order of
// sums. Attention of one query is {data, nLayer, nHead, nKey}: float32 (layer, head, key). NaN is not there.

const f = Math.fround;

/** Sum of data[from … from + size - 1] in float32, in the order in which numpy adds neighbours. */
export function sum(data, from, size) {
  if (size < 8) {
    let total = size ? data[from] : 0;
    for (let i = 1; i < size; i++) total = f(total + data[from + i]);
    return total;
  }
  if (size > 128) {
    const half = (size >> 1) - ((size >> 1) % 8);
    return f(sum(data, from, half) + sum(data, from + half, size - half));
  }
  const part = Float32Array.from({ length: 8 }, (_, i) => data[from + i]);
  let i = 8;
  for (; i < size - (size % 8); i += 8) for (let k = 0; k < 8; k++) part[k] += data[from + i + k];
  let total = f(f(f(part[0] + part[1]) + f(part[2] + part[3])) + f(f(part[4] + part[5]) + f(part[6] + part[7])));
  for (; i < size; i++) total = f(total + data[from + i]);
  return total;
}

/** A reduction that keeps one number for each key: (best, next) → best. */
function folded(better) {
  return ({ data, nLayer, nHead, nKey }, chosen) => {
    const result = new Float32Array(nLayer * nKey).fill(NaN);
    for (let layer = 0; layer < nLayer; layer++)
      for (let head = 0; head < nHead; head++) {
        if (chosen && !chosen[layer * nHead + head]) continue;
        const from = (layer * nHead + head) * nKey, to = layer * nKey;
        for (let key = 0; key < nKey; key++) {
          const value = data[from + key];
          if (value === value && !(result[to + key] === result[to + key] && !better(value, result[to + key]))) result[to + key] = value;
        }
      }
    return result;
  };
}

function mean({ data, nLayer, nHead, nKey }, chosen) {
  const total = new Float32Array(nLayer * nKey), count = new Uint32Array(nLayer * nKey);
  for (let layer = 0; layer < nLayer; layer++)
    for (let head = 0; head < nHead; head++) {
      if (chosen && !chosen[layer * nHead + head]) continue;
      const from = (layer * nHead + head) * nKey, to = layer * nKey;
      for (let key = 0; key < nKey; key++) {
        const value = data[from + key];
        if (value === value) {
          total[to + key] += value;
          count[to + key]++;
        }
      }
    }
  return total.map((value, place) => (count[place] ? value / count[place] : NaN));
}

function median({ data, nLayer, nHead, nKey }, chosen) {
  const result = new Float32Array(nLayer * nKey);
  for (let layer = 0; layer < nLayer; layer++)
    for (let key = 0; key < nKey; key++) {
      const values = [];
      for (let head = 0; head < nHead; head++) {
        const value = data[(layer * nHead + head) * nKey + key];
        if (value === value && (!chosen || chosen[layer * nHead + head])) values.push(value);
      }
      values.sort((a, b) => a - b);
      const low = values[Math.max(0, values.length - 1) >> 1], high = values[values.length >> 1];
      result[layer * nKey + key] = values.length ? f(low + high) / 2 : NaN;
    }
  return result;
}

/** Reductions by name: (attention, chosen heads (layer, head) or null) → float32 (layer, key). */
export const REDUCE = { max: folded((a, b) => a > b), mean, min: folded((a, b) => a < b), median };

/** Scores of every head (layer, head) by name; NaN where there is none. `row` is {ids, sinks}. */
export const SCORES = {
  entropy: ({ data, nLayer, nHead, nKey }) => {
    const terms = new Float32Array(nKey);
    return Float32Array.from({ length: nLayer * nHead }, (_, place) => {
      for (let key = 0; key < nKey; key++) {
        const value = data[place * nKey + key];
        terms[key] = value === 0 ? 0 : value * f(Math.log(value));
      }
      return 0 - sum(terms, 0, nKey);
    });
  },
  sink: ({ data, nLayer, nHead, nKey }, { sinks }) => {
    const keys = sinks.flatMap((is, key) => (is && key < nKey ? [key] : []));
    return Float32Array.from({ length: nLayer * nHead }, (_, place) =>
      keys.reduce((total, key) => f(total + data[place * nKey + key]), 0));
  },
  induction: ({ data, nLayer, nHead, nKey }, { ids }) => {
    const own = ids[nKey - 1], keys = [];
    for (let key = 1; key < nKey; key++) if (own >= 0 && ids[key - 1] === own) keys.push(key);
    return Float32Array.from({ length: nLayer * nHead }, (_, place) =>
      keys.length ? keys.reduce((total, key) => f(total + data[place * nKey + key]), 0) : NaN);
  },
};

/** Which `count` heads of each layer have the smallest score (the largest, with `largest`); of equals the first. */
export function best(scores, nLayer, nHead, count, largest) {
  const mask = new Uint8Array(nLayer * nHead);
  for (let layer = 0; layer < nLayer; layer++) {
    const heads = Array.from({ length: nHead }, (_, head) => head).filter((head) => !Number.isNaN(scores[layer * nHead + head]));
    heads.sort((a, b) => (scores[layer * nHead + a] - scores[layer * nHead + b]) * (largest ? -1 : 1) || a - b);
    for (const head of heads.slice(0, count)) mask[layer * nHead + head] = 1;
  }
  return mask;
}
