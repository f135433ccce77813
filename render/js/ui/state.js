// The whole state of the page in the fragment of its URL. Names are those of the options of lens render.

const DEFAULTS = {
  view: "cells", capture: null, query: null, heads: "max", scale: "raw", text: "token", cmap: "coolwarm", lens: null,
  at: null, from: null, cell: null, row: null, find: "", map: "0.0", layer: "all", sort: null, with: null, diff: false,
};
const NUMBERS = new Set(["query", "from", "cell", "row"]);

/** Layer and head of a map, as texts: "17.4", or "17:4" as addresses had it before; "17.reduced" is all heads as one. */
export function pair(map) {
  return map.split(/[.:]/);
}

/** State of a fragment such as #query=41&heads=mean. What cannot be used is left out. */
export function read(fragment) {
  const state = { ...DEFAULTS };
  for (const [key, value] of new URLSearchParams(fragment.replace(/^#/, ""))) {
    if (!Object.hasOwn(DEFAULTS, key)) continue;
    if (NUMBERS.has(key)) {
      if (Number.isFinite(Number(value)) && value !== "") state[key] = Number(value);
    } else if (key === "at") {
      const cell = /^(\d{1,9}),(\d{1,9})$/.exec(value);
      if (cell) state.at = [Number(cell[1]), Number(cell[2])];
    } else state[key] = key === "diff" ? value === "true" : value;
  }
  return state;
}

/** Fragment of a state: only what is not as it is by default. */
export function write(state) {
  const parts = new URLSearchParams();
  for (const [key, value] of Object.entries(state)) {
    if (!Object.hasOwn(DEFAULTS, key) || value === null || String(value) === String(DEFAULTS[key])) continue;
    parts.set(key, typeof value === "number" && !Number.isInteger(value) ? value.toFixed(2) : String(value));
  }
  const text = parts.toString().replaceAll("%2C", ",").replaceAll("%3A", ":");
  return text ? `#${text}` : "";
}
