// Attention rollout (Abnar & Zuidema 2020): row `query` of Â_l · … · Â_0, where Â is the mean over heads plus the
// identity, rows divided by their sums. render/rollout.py keeps all rows; for one query a vector through the layers does.

/** float32 (layer, key), keys 0 … query. `means` is float32 (layer, query, key) of nRow × nRow. */
export function rollout(means, nLayer, nRow, query) {
  const result = new Float32Array(nLayer * (query + 1));
  const sums = new Float64Array(nLayer * nRow);
  for (let place = 0; place < nLayer * nRow; place++) {
    let total = 1;
    for (let key = 0; key < nRow; key++) total += means[place * nRow + key] || 0;
    sums[place] = total;
  }
  for (let top = 0; top < nLayer; top++) {
    let vector = new Float64Array(query + 1);
    vector[query] = 1;
    for (let layer = top; layer >= 0; layer--) {
      const next = new Float64Array(query + 1);
      for (let row = 0; row <= query; row++) {
        if (!vector[row]) continue;
        const share = vector[row] / sums[layer * nRow + row], from = (layer * nRow + row) * nRow;
        for (let key = 0; key <= row; key++) next[key] += share * (means[from + key] || 0);
        next[row] += share;
      }
      vector = next;
    }
    result.set(vector, top * (query + 1));
  }
  return result;
}
