// A board as a picture to keep: the whole columns and rows in view, with title, names and colour bar.

import { css } from "./colours.js";
import { theme, withCells } from "./board.js";
import { fit, FONT, paintCells, paintNames, shown, STRIP } from "./paint.js";
import { SvgContext } from "./svg.js";

const TITLE = 44;
const BAR = 40;
const SCALE = 2;

/** Whole columns and rows that a board shows, [first, end). */
export function inView(board) {
  const { columns, rows } = shown(board.scene, board.frame), n = board.room.width / board.w, m = board.room.height / board.h;
  const whole = ([low, high], from, count) => {
    const first = Math.min(high - 1, Math.ceil(from - 0.02)), end = Math.max(first + 1, Math.min(high, Math.floor(from + count + 0.02)));
    return [Math.max(low, first), end];
  };
  return { columns: whole(columns, board.x, n), rows: whole(rows, board.y, m) };
}

/** Size of the picture and where its cells are, in units of which a PNG has two pixels each. */
export function layout(board) {
  const { columns, rows } = inView(board);
  const w = Math.max(1, Math.round(board.w)), h = Math.max(1, Math.round(board.h));
  const width = (columns[1] - columns[0]) * w, height = (rows[1] - rows[0]) * h;
  const frame = { left: board.left, top: TITLE, x: columns[0], y: rows[0], w, h, width, height };
  return { frame, width: Math.max(420, board.left + width + (board.scene.strip ? STRIP : 12)), height: TITLE + height + 34 + BAR };
}

function paint(context, board, { frame, width, height }, words) {
  const colours = theme(), { scene } = board;
  context.fillStyle = css(colours.paper);
  context.fillRect(0, 0, width, height);
  context.textAlign = "left";
  context.textBaseline = "middle";
  context.font = `bold 14px ${FONT}`;
  context.fillStyle = css(colours.ink);
  context.fillText(fit(context, words.title, width - 20), 10, 14);
  context.font = `11px ${FONT}`;
  context.fillStyle = css(colours.faint);
  context.fillText(fit(context, words.details, width - 20), 10, 32);
  paintCells(context, { ...scene, selected: null }, frame, colours);
  paintNames(context, { ...scene, selected: null }, frame, colours);
  const top = height - BAR + 6, long = Math.min(256, width - board.left - 60);
  for (let x = 0; x < long; x++) {
    context.fillStyle = scene.colours.fills[Math.floor((x / long) * 256)];
    context.fillRect(board.left + x, top, 1, 10);
  }
  context.fillStyle = css(colours.faint);
  context.textAlign = "center";
  context.font = `10px ${FONT}`;
  for (const [value, text] of words.ticks) {
    context.fillText(text, board.left + ((value - scene.range[0]) / (scene.range[1] - scene.range[0])) * long, top + 18);
  }
}

/** The picture as PNG. */
export async function png(board, words) {
  const size = layout(board), canvas = document.createElement("canvas");
  canvas.width = size.width * SCALE;
  canvas.height = size.height * SCALE;
  const context = withCells(canvas.getContext("2d", { alpha: false }));
  context.scale(SCALE, SCALE);
  paint(context, board, size, words);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** The picture as SVG. */
export function svg(board, words) {
  const size = layout(board), context = new SvgContext(size.width, size.height, document.createElement("canvas").getContext("2d"));
  paint(context, board, size, words);
  return new Blob([context.text()], { type: "image/svg+xml" });
}
