// Cells, their texts and the names beside them, onto a canvas or anything that takes the same few calls (svg.js).
//
// A scene is {nRow, nColumn, level(row, column), text(row, column), rowName, columnName, columnMark, colours, …}: levels
// are 0 … 255, -1 for no value (hatched), -2 for what does not exist. A frame is {left, top, x, y, w, h, width, height}:
// where the cells are, the first column and row shown, and the size of a cell.

import { GRID } from "../contract.js";
import { css } from "./colours.js";

export const FONT = '"DejaVu Sans", system-ui, "Noto Sans", sans-serif';
const READABLE = 20;
const GAPS = 10;
const grid = css(GRID);

const fitted = new Map();

/** `text` cut so that it is no wider than `room` in the context's font. */
export function fit(context, text, room) {
  const key = `${context.font}|${room | 0}|${text}`;
  let found = fitted.get(key);
  if (found === undefined) {
    if (fitted.size > 60000) fitted.clear();
    found = text;
    if (context.measureText(text).width > room) {
      const letters = Array.from(text);
      let low = 0, high = letters.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (context.measureText(letters.slice(0, middle).join("") + "…").width <= room) low = middle;
        else high = middle - 1;
      }
      found = low ? letters.slice(0, low).join("") + "…" : "";
    }
    fitted.set(key, found);
  }
  return found;
}

/** Which rows and columns a frame shows, those cut at its edge included. */
export function shown(scene, frame) {
  const columns = [Math.max(0, Math.floor(frame.x)), Math.min(scene.nColumn, Math.ceil(frame.x + frame.width / frame.w))];
  const rows = [Math.max(0, Math.floor(frame.y)), Math.min(scene.nRow, Math.ceil(frame.y + frame.height / frame.h))];
  return { columns, rows };
}

/** Draw the cells of a frame, and what marks them. The caller clips. */
export function paintCells(context, scene, frame, theme) {
  const { columns, rows } = shown(scene, frame);
  const px = (column) => frame.left + (column - frame.x) * frame.w, py = (row) => frame.top + (row - frame.y) * frame.h;
  if (frame.w >= GAPS && frame.h >= 8) fills(context, scene, frame, rows, columns, px, py, theme);
  else image(context, scene, frame, rows, columns, px, py, theme);
  if (frame.w >= READABLE && frame.h >= 11) texts(context, scene, frame, rows, columns, px, py, theme);
  rules(context, scene, frame, px, py, theme);
  marks(context, scene, frame, rows, columns, px, py, theme);
}

function fills(context, scene, frame, [r0, r1], [c0, c1], px, py, theme) {
  const { fills: colours } = scene.colours;
  for (let row = r0; row < r1; row++) {
    const y = py(row);
    for (let column = c0; column < c1; column++) {
      const level = scene.level(row, column);
      if (level === -2) continue;
      const x = px(column);
      context.fillStyle = grid;
      context.fillRect(x, y, frame.w, frame.h);
      if (level >= 0) {
        context.fillStyle = colours[level];
        context.fillRect(x + 1, y + 1, frame.w - 1, frame.h - 1);
      } else hatch(context, x + 1, y + 1, frame.w - 1, frame.h - 1, theme);
    }
  }
}

function hatch(context, x, y, width, height, theme) {
  context.fillStyle = css(theme.hatch[0]);
  context.fillRect(x, y, width, height);
  context.fillStyle = css(theme.hatch[1]);
  for (let at = 0; at < width; at += 9) context.fillRect(x + at, y, Math.min(3, width - at), height);
}

/** Many small cells: one pixel each, the largest where several share a pixel. */
function image(context, scene, frame, [r0, r1], [c0, c1], px, py, theme) {
  if (c1 <= c0 || r1 <= r0) return;
  const many = Math.max(1, Math.floor(1 / frame.w)), tall = Math.max(1, Math.floor(1 / frame.h));
  c0 -= c0 % many; // groups stay the same while the board is panned
  r0 -= r0 % tall;
  const nColumn = Math.ceil((c1 - c0) / many), nRow = Math.ceil((r1 - r0) / tall);
  const { rgb } = scene.colours, hatched = theme.hatch[0];
  context.putCells(nColumn, nRow, px(c0), py(r0), nColumn * many * frame.w, nRow * tall * frame.h, (data) => {
    for (let at = 0, y = 0; y < nRow; y++)
      for (let x = 0; x < nColumn; x++, at += 4) {
        let best = -2;
        for (let row = r0 + y * tall; row < Math.min(r1, r0 + (y + 1) * tall); row++)
          for (let column = c0 + x * many; column < Math.min(c1, c0 + (x + 1) * many); column++) {
            const level = scene.level(row, column);
            if (level > best) best = level;
          }
        for (let part = 0; part < 3; part++) data[at + part] = best < 0 ? hatched[part] : rgb[3 * best + part];
        data[at + 3] = best === -2 ? 0 : 255;
      }
  });
}

function texts(context, scene, frame, [r0, r1], [c0, c1], px, py, theme) {
  const { inks } = scene.colours, ink = css(theme.ink);
  context.font = `${Math.min(13, Math.floor(frame.h * 0.6))}px ${FONT}`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  for (let row = r0; row < r1; row++)
    for (let column = c0; column < c1; column++) {
      const text = scene.text(row, column);
      if (!text) continue;
      const level = scene.level(row, column);
      context.fillStyle = level >= 0 ? inks[level] : ink;
      context.fillText(fit(context, text, frame.w - 5), px(column) + frame.w / 2 + 0.5, py(row) + frame.h / 2 + 1);
    }
}

/** The heavy lines where the prompt ends, as wide as they are in render's pictures. */
function rules(context, scene, frame, px, py, theme) {
  const line = (x, y, width, height) => {
    context.fillStyle = css(theme.paper);
    context.fillRect(x - 1, y - 1, width + 2, height + 2);
    context.fillStyle = css(theme.ink);
    context.fillRect(x, y, width, height);
  };
  const bottom = Math.min(frame.height, (scene.nRow - frame.y) * frame.h), right = Math.min(frame.width, (scene.nColumn - frame.x) * frame.w);
  const from = scene.rowBoundary ? Math.max(0, (scene.rowBoundary - frame.y) * frame.h) : 0; // a map has no cells above
  if (scene.boundary && frame.w > 3 && bottom > from) line(px(scene.boundary) - 1, frame.top + from, 2, bottom - from);
  if (scene.rowBoundary && frame.h > 3) line(frame.left, py(scene.rowBoundary) - 1, right, 2);
}

function marks(context, scene, frame, [r0, r1], [c0, c1], px, py, theme) {
  const ring = (row, column, outer, inner) => {
    const x = px(column), y = py(row), w = Math.max(3, frame.w), h = Math.max(3, frame.h);
    context.lineWidth = 3;
    context.strokeStyle = outer;
    context.strokeRect(x + 1, y + 1, w - 1, h - 1);
    context.lineWidth = 1.5;
    context.strokeStyle = inner;
    context.strokeRect(x + 1, y + 1, w - 1, h - 1);
  };
  if (scene.marked) for (let row = r0; row < r1; row++) for (let column = c0; column < c1; column++) if (scene.marked(row, column)) ring(row, column, "#000", "#ffd400");
  if (scene.selected) ring(...scene.selected, css(theme.paper), css(theme.ink));
}

/** Row names at the left, column numbers and names below. */
export function paintNames(context, scene, frame, theme) {
  const { columns: [c0, c1], rows: [r0, r1] } = shown(scene, frame);
  const small = `11px ${FONT}`, ink = css(theme.ink), faint = css(theme.faint);
  context.font = small;
  context.textBaseline = "middle";
  context.textAlign = "right";
  const thin = Math.max(1, Math.ceil(12 / frame.h));
  for (let row = r0; row < r1; row++) {
    if (row % thin && row !== scene.nRow - 1) continue;
    const y = frame.top + (row + 0.5 - frame.y) * frame.h;
    if (y < frame.top || y > frame.top + frame.height) continue;
    context.fillStyle = scene.selected?.[0] === row ? ink : faint;
    context.fillText(fit(context, scene.rowName(row), frame.left - 8), frame.left - 5, y + 1);
  }
  const sparse = Math.max(1, Math.ceil(34 / frame.w)), y = frame.top + Math.min(frame.height, (scene.nRow - frame.y) * frame.h);
  context.textAlign = "center";
  for (let column = c0; column < c1; column++) {
    const x = frame.left + (column + 0.5 - frame.x) * frame.w;
    if (x < frame.left || x > frame.left + frame.width || column % sparse) continue;
    const here = scene.here === column || scene.selected?.[1] === column;
    context.fillStyle = here ? ink : faint;
    context.fillText(`${scene.columnNumber(column)}${scene.columnMark?.(column) ?? ""}`, x, y + 10);
    if (scene.columnName && frame.w * sparse >= 30) context.fillText(fit(context, scene.columnName(column), frame.w * sparse - 4), x, y + 24);
  }
  strip(context, scene, frame, theme, [r0, r1]);
}

/** A value a row beside the cells: what a scale took away. */
function strip(context, scene, frame, theme, [r0, r1]) {
  if (!scene.strip) return;
  const x = frame.left + frame.width + 6;
  for (let row = r0; row < r1; row++) {
    const level = scene.strip.levels[row], y = frame.top + (row - frame.y) * frame.h;
    if (level === undefined || y < frame.top - 1 || y + frame.h > frame.top + frame.height + 1) continue;
    if (level < 0) hatch(context, x, y + 1, STRIP - 8, frame.h - 1, theme);
    else {
      context.fillStyle = scene.colours.fills[level];
      context.fillRect(x, y + 1, STRIP - 8, frame.h - 1);
      if (frame.h >= 11) {
        context.fillStyle = scene.colours.inks[level];
        context.font = `10px ${FONT}`;
        context.textAlign = "center";
        context.fillText(scene.strip.values[row].toFixed(2), x + (STRIP - 8) / 2, y + frame.h / 2 + 1);
      }
    }
  }
  context.fillStyle = css(theme.faint);
  context.font = `11px ${FONT}`;
  context.textAlign = "center";
  context.fillText(scene.strip.label, x + (STRIP - 8) / 2, frame.top + Math.min(frame.height, (scene.nRow - frame.y) * frame.h) + 10);
}

export const STRIP = 44;
