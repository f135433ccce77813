// Two captures against each other: B less A, on the columns that both have. Words and rules are those of lens diff.

import { colours, level } from "../draw/colours.js";
import { CELL_TEXTS, fraction } from "../text/cells.js";

/** The largest difference, rounded up to 1, 2 or 5 · 10ⁿ. */
function rounded(most) {
  if (!(most > 0)) return 1;
  const ten = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 5, 10].map((step) => step * ten).find((step) => step >= most * (1 - 1e-9));
}

/** Layer of B beside layer `layer` of A. */
export const beside = (layer, nA, nB) => (nA === nB ? layer : Math.round((layer * (nB - 1)) / Math.max(1, nA - 1)));

/**
 * A scene of the difference. `a` and `b` are {capture, lens, shown, query}; `partner` is B's token for each of A's, -1
 * for none. Columns are those with a partner.
 */
export function diffScene({ a, b, partner, state, repaint, fail }) {
  const columns = [], nA = a.capture.nLayer, nB = b.capture.nLayer, text = CELL_TEXTS[state.text];
  for (let token = 0; token <= a.query; token++) if (partner[token] >= 0 && partner[token] <= b.query) columns.push(token);
  const values = new Float32Array(nA * columns.length);
  let most = 0;
  for (let row = 0; row < nA; row++)
    columns.forEach((token, column) => {
      const before = a.shown.values[row * (a.query + 1) + token];
      const after = b.shown.values[beside(row, nA, nB) * (b.query + 1) + partner[token]];
      const value = (values[row * columns.length + column] = after - before);
      if (Math.abs(value) > most) most = Math.abs(value);
    });
  const limit = rounded(most), range = [-limit, limit];
  const words = (one, depth, token) => (text.line ? text.line(one.lens, depth, token) : "");
  return {
    kind: "diff", query: a.query, nRow: nA + 1, nColumn: columns.length, colours: colours("RdBu_r"), range, here: null, columns,
    value: (row, column) => (row < nA ? values[row * columns.length + column] : NaN),
    level: (row, column) => level(row < nA ? values[row * columns.length + column] : 0, range),
    text(row, column) {
      if (!text.line) return row < nA ? fraction(values[row * columns.length + column]) : "";
      const token = columns[column], before = words(a, row, token);
      const after = words(b, row < nA ? beside(row, nA, nB) : nB, partner[token]);
      return before === after ? before : `${before} → ${after}`;
    },
    rowName: (row) => (row === nA ? "out" : nA === nB ? String(row) : `${row} | ${beside(row, nA, nB)}`),
    left: nA === nB ? 40 : 56,
    columnNumber: (column) => String(columns[column]),
    columnName: (column) => a.lens.tokens[columns[column]],
    columnMark: (column) => (a.lens.special?.[columns[column]] ? "*" : ""),
    boundary: boundary(columns, a.capture.nPrompt),
    need(start, stop) {
      const here = columns.slice(start, stop);
      if (!here.length) return;
      const there = here.map((token) => partner[token]);
      a.lens.ensure(text.arrays, here[0], here[here.length - 1] + 1)?.then(repaint, fail);
      b.lens.ensure(text.arrays, Math.min(...there), Math.max(...there) + 1)?.then(repaint, fail);
    },
  };
}

function boundary(columns, nPrompt) {
  const count = columns.filter((column) => column < nPrompt).length;
  return count > 0 && count < columns.length ? count : null;
}
