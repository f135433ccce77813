// The picture of one query: layers × tokens up to the query. What render calls a scene, for all columns at once.

import { SCALES } from "../contract.js";
import { colours, level } from "../draw/colours.js";
import { CELL_TEXTS, fraction } from "../text/cells.js";

/** Levels of values (row-major), as colours. */
export function levels(values, range) {
  const result = new Int16Array(values.length);
  for (let i = 0; i < values.length; i++) result[i] = level(values[i], range);
  return result;
}

/**
 * A scene for `Board` of what `Attention.shown` found.
 *
 * @param repaint called when texts that were missing have come.
 */
export function queryScene({ capture, lens, query, shown, state, repaint, fail, marks = () => null }) {
  const { nLayer } = capture, nColumn = query + 1, range = SCALES[state.scale].range;
  const found = levels(shown.values, range), text = CELL_TEXTS[state.text];
  const value = (row, column) => (row < nLayer ? shown.values[row * nColumn + column] : NaN);
  return {
    kind: "query", query, nRow: nLayer + 1, nColumn, colours: colours(state.cmap), range, here: query, value,
    level: (row, column) => (row < nLayer ? found[row * nColumn + column] : 0),
    text: (row, column) => (text.line ? text.line(lens, row, column) : row < nLayer ? fraction(value(row, column)) : ""),
    rowName: (row) => (row < nLayer ? String(row) : "out"),
    columnNumber: (column) => String(column),
    columnName: (column) => lens.tokens[column],
    columnMark: (column) => (lens.special?.[column] ? "*" : ""),
    marked: (row, column) => marks()?.get(column) === row,
    boundary: capture.nPrompt < nColumn ? capture.nPrompt : null,
    strip: shown.strip && { label: "sinks", values: shown.strip, levels: levels(shown.strip, [0, 1]) },
    need(start, stop) {
      lens.ensure(text.arrays, start, stop)?.then(repaint, fail);
    },
  };
}
