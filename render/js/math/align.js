// Which tokens of two captures belong together: the same ids, from both ends and then as Python's difflib matches them
// (render/diff/align.py, by token).

/** For each token of A its partner in B, -1 for none. Redacted tokens (-1) match nothing. */
export function byToken(a, b) {
  const partner = new Int32Array(a.length).fill(-1);
  const same = (i, j) => a[i] === b[j] && a[i] >= 0;
  const most = Math.min(a.length, b.length);
  let head = 0, tail = 0;
  while (head < most && same(head, head)) head++;
  while (tail < most - head && same(a.length - 1 - tail, b.length - 1 - tail)) tail++;
  for (let i = 0; i < head; i++) partner[i] = i;
  for (let i = 1; i <= tail; i++) partner[a.length - i] = b.length - i;
  const places = new Map();
  for (let j = head; j < b.length - tail; j++) if (b[j] >= 0) places.set(b[j], [...(places.get(b[j]) ?? []), j]);
  const waiting = [[head, a.length - tail, head, b.length - tail]];
  while (waiting.length) {
    const [lowA, highA, lowB, highB] = waiting.pop();
    const [i, j, size] = longest(a, places, lowA, highA, lowB, highB);
    if (!size) continue;
    for (let k = 0; k < size; k++) partner[i + k] = j + k;
    waiting.push([lowA, i, lowB, j], [i + size, highA, j + size, highB]);
  }
  return partner;
}

/** The longest equal run within bounds, of equals the first in A, then in B. */
function longest(a, places, lowA, highA, lowB, highB) {
  let best = [lowA, lowB, 0], lengths = new Map();
  for (let i = lowA; i < highA; i++) {
    const next = new Map();
    for (const j of places.get(a[i]) ?? []) {
      if (j < lowB) continue;
      if (j >= highB) break;
      const size = (lengths.get(j - 1) ?? 0) + 1;
      next.set(j, size);
      if (size > best[2]) best = [i - size + 1, j - size + 1, size];
    }
    lengths = next;
  }
  return best;
}
