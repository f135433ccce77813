// Numbers picked out of 0 … size-1 by a text such as `3`, `5-7`, `40:60`, `::2`: render/selection.py in the browser.

/** The numbers that `text` names, each once, upwards. */
export function select(text, size, thing) {
  const chosen = new Set();
  for (const item of text.split(",").map((part) => part.trim())) for (const number of picked(item, size, thing)) chosen.add(number);
  if (!chosen.size) throw new Error(`${text} selects no ${thing}, there are ${size}`);
  return [...chosen].sort((a, b) => a - b);
}

function picked(item, size, thing) {
  const check = (number) => {
    if (number < 0 || number >= size) throw new Error(`${item} is out of range, there are ${size} ${thing}s (0 … ${size - 1})`);
    return number;
  };
  if (/^-?\d{1,15}$/.test(item)) return [check(Number(item) < 0 ? Number(item) + size : Number(item))];
  let found = /^(\d{1,15})-(\d{1,15})$/.exec(item);
  if (found) {
    const [first, last] = [Number(found[1]), check(Number(found[2]))];
    if (last < first) throw new Error(`${item}: a range goes upwards`);
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  }
  found = /^(-?\d{1,15})?:(-?\d{1,15})?(?::(-?\d{1,15})?)?$/.exec(item);
  if (!found) throw new Error(`${item || "nothing"} is not understood: expected numbers (3), ranges (5-7) or slices (40:60)`);
  const step = found[3] === undefined ? 1 : Number(found[3]);
  if (step === 0) throw new Error(`${item}: the step of a slice cannot be 0`);
  const [low, high] = step > 0 ? [0, size] : [-1, size - 1];
  const bound = (part, otherwise) => {
    if (part === undefined) return otherwise;
    const number = Number(part);
    return Math.min(high, Math.max(low, number < 0 ? number + size : number));
  };
  const start = bound(found[1], step > 0 ? low : high), stop = bound(found[2], step > 0 ? high : low), result = [];
  for (let i = start; step > 0 ? i < stop : i > stop; i += step) result.push(i);
  return result;
}

/** Numbers as text, neighbours as ranges: 0–3, 7. */
export function runs(numbers, dash = "–", comma = ", ") {
  const parts = [];
  for (let i = 0; i < numbers.length; ) {
    let last = i;
    while (numbers[last + 1] === numbers[last] + 1) last++;
    parts.push(last === i ? `${numbers[i]}` : `${numbers[i]}${dash}${numbers[last]}`);
    i = last + 1;
  }
  return parts.join(comma);
}
