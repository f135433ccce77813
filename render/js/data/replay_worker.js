// In a worker: attention weights from queries and keys, as docs/format.md says under "Queries and keys".

const parts = new Map(); // name → {blocks: [{from, data}], nLayer}

/** One query's weights in one layer and head: keys 0 … query, zero where the token does not look. */
function row(result, at, { q, keys, size, stride, offset, query, info, head }) {
  const { scaling, softcap, kind, window } = info;
  const first = kind === "sliding" ? Math.max(0, query - window + 1) : kind === "chunked" ? Math.floor(query / window) * window : 0;
  const scores = new Float64Array(query + 1 - first);
  let most = info.sink_values ? info.sink_values[head] : -Infinity;
  for (const { from, count, data } of keys) {
    for (let key = Math.max(first, from); key <= query && key < from + count; key++) {
      let total = 0;
      const place = (key - from) * stride + offset;
      for (let i = 0; i < size; i++) total += q[i] * data[place + i];
      let score = total * scaling;
      if (softcap) score = softcap * Math.tanh(score / softcap);
      scores[key - first] = score;
      if (score > most || score !== score) most = score;
    }
  }
  let total = info.sink_values ? Math.exp(info.sink_values[head] - most) : 0;
  for (let i = 0; i < scores.length; i++) total += scores[i] = Math.exp(scores[i] - most);
  for (let i = 0; i < scores.length; i++) result[at + first + i] = rounded(Math.fround(scores[i] / total));
}

/** The nearest float16, as a store of weights would hold. */
function rounded(value) {
  if (!(value > 0)) return value;
  const step = 2 ** (Math.max(Math.floor(Math.log2(value)), -14) - 10), scaled = value / step, low = Math.floor(scaled), rest = scaled - low;
  return step * (rest > 0.5 || (rest === 0.5 && low % 2) ? low + 1 : low);
}

/** Weights (layer, head, query, key) of a request; see `Replay.block`. */
function weights({ part, layers, heads, queries, keys, data, infos, nHead, nKv, size, first }) {
  const { blocks, nLayer } = parts.get(part);
  const nQuery = queries[1] - queries[0], nKey = keys[1] - keys[0], nHeads = heads[1] - heads[0];
  const result = new Float32Array((layers[1] - layers[0]) * nHeads * nQuery * nKey);
  const stride = nLayer * nKv * size, full = new Float32Array(queries[1]);
  for (let layer = layers[0]; layer < layers[1]; layer++) {
    const info = infos[layer], source = (info.key_source ?? layer) - first;
    for (let head = heads[0]; head < heads[1]; head++)
      for (let query = queries[0]; query < queries[1]; query++) {
        const to = (((layer - layers[0]) * nHeads + head - heads[0]) * nQuery + query - queries[0]) * nKey;
        if (info.kind === "none") {
          result.fill(NaN, to, to + nKey);
          continue;
        }
        const from = (((query - queries[0]) * (layers[1] - layers[0]) + layer - layers[0]) * nHead + head) * size;
        full.fill(0);
        row(full, 0, {
          q: data.subarray(from, from + size), keys: blocks, size, stride, query, info, head,
          offset: (source * nKv + Math.floor((head * nKv) / nHead)) * size,
        });
        result.set(full.subarray(keys[0], Math.min(keys[1], queries[1])), to);
      }
  }
  return result;
}

onmessage = ({ data: asked }) => {
  if (asked.keys && asked.count !== undefined) {
    if (!parts.has(asked.part)) parts.set(asked.part, { blocks: [], nLayer: asked.nLayer });
    parts.get(asked.part).blocks.push({ from: asked.from, count: asked.count, data: asked.keys });
    return;
  }
  try {
    const found = weights(asked);
    postMessage({ id: asked.id, found }, [found.buffer]);
  } catch (error) {
    postMessage({ id: asked.id, error: error.message });
  }
};
