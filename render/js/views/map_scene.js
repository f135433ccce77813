// Queries × keys of one head (or of a layer's heads reduced). Rows are read as they come into view; where that would be
// too much, every n-th, and the page says so.

import { SCALES } from "../contract.js";
import { shortest } from "../data/half.js";
import { colours, level } from "../draw/colours.js";
import { fraction } from "../text/cells.js";

const BUDGET = 48 * 2 ** 20;
const AT_ONCE = 16;

/** A scene for `Board`. `note` is called with how many rows are left out between two that are drawn. */
export function mapScene({ capture, lens, attention, heads, layer, head, state, repaint, fail, note }) {
  const { nRow } = capture, range = SCALES[state.scale].range;
  const rows = new Map(); // query → {levels, values}, or null while it comes
  let told = 1;

  async function read(queries) {
    for (const query of queries) rows.set(query, null);
    try {
      const found = await attention.mapped(layer, head, heads, state.scale, queries);
      found.forEach((values, place) => rows.set(queries[place], { values, levels: values.map((value) => level(value, range)) }));
      repaint();
    } catch (error) {
      for (const query of queries) rows.delete(query);
      fail(error);
    }
  }

  return {
    kind: "map", nRow, nColumn: nRow, square: true, left: 96, colours: colours(state.cmap), range, here: null,
    exact: (value) => shortest(value, state.scale === "raw" && head !== null),
    value: (row, column) => rows.get(row)?.values[column] ?? NaN,
    level: (row, column) => (column > row ? -2 : rows.get(row)?.levels[column] ?? -2),
    text: (row, column) => (column > row ? "" : fraction(rows.get(row)?.values[column])),
    rowName: (row) => `${row} ${lens.tokens[row]}`,
    columnNumber: (column) => String(column),
    columnName: (column) => lens.tokens[column],
    columnMark: (column) => (lens.special?.[column] ? "*" : ""),
    boundary: capture.nPrompt < nRow ? capture.nPrompt : null,
    rowBoundary: capture.nPrompt < nRow ? capture.nPrompt : null,
    has: (row) => Boolean(rows.get(row)),
    need(_, __, first, last) {
      const step = Math.max(1, Math.ceil(((last - first) * attention.cost) / BUDGET));
      if (step !== told) note((told = step));
      const missing = [];
      for (let query = Math.ceil(first / step) * step; query < last; query += step) if (!rows.has(query)) missing.push(query);
      for (let at = 0; at < missing.length; at += AT_ONCE) read(missing.slice(at, at + AT_ONCE));
    },
  };
}
