// The main view: layers × tokens of one query.

import { Board } from "../draw/board.js";
import { CELL_TEXTS, whyNoText } from "../text/cells.js";
import { h } from "../ui/dom.js";
import { queryScene } from "./query_scene.js";

const START = 64;
const NARROW = 46;

/** A board whose place in the text is part of the state. */
export function placed(app, label, extra = {}) {
  const board = new Board(h("div", { class: "board" }), label, {
    onPoint: (cell, event) => app.cell.point(board.scene, cell, event, extra.side?.() ?? app.side),
    onSelect: (cell) => {
      app.state.at = cell && [cell[0], token(board.scene, cell[1])];
      app.save();
      app.cell.show();
      app.cell.say();
      extra.onSelect?.();
    },
    onMove: () => {
      keep(app.state, board);
      app.save();
      extra.onMove?.(board);
    },
  });
  return board;
}

export const token = (scene, column) => scene.columns?.[column] ?? column;
export const column = (scene, wanted) => (scene.columns ? scene.columns.indexOf(wanted) : wanted);

/** Remember where a board is. */
export function keep(state, board) {
  state.from = Math.round(board.x * 100) / 100;
  state.cell = Math.round(board.w * 100) / 100;
  state.row = board.scene?.square || board.y > 0 ? Math.round(board.y * 100) / 100 : null;
}

/** Put a board where the state says; where it says nothing, so that the query's own column is seen. */
export function place(state, board, scene, wanted = scene.nColumn - 1) {
  board.scene = scene;
  board.left = scene.left ?? 40;
  board.w = state.cell ?? (board.host.clientWidth < 500 ? NARROW : START);
  board.x = state.from ?? 1e9;
  board.y = state.row ?? 0;
  board.show(scene);
  if (state.from !== null && wanted >= 0 && (wanted < board.x || wanted + 1 > board.x + board.room.width / board.w)) {
    if (state.follow) board.reveal(null, wanted);
  }
}

export class QueryView {
  constructor(app) {
    this.app = app;
    this.board = placed(app, "cells: layers downwards, tokens to the right. Arrow keys choose a cell, plus and minus zoom, shift with arrows moves the view");
    this.host = this.board.host;
  }

  get boards() { return [this.board]; }

  /** Ask for what the first picture needs, together with everything else that is asked for now. */
  early({ capture, lens, attention }, state) {
    const { query } = state;
    if (!capture.nRow) return null;
    const waiting = [lens.ensure(CELL_TEXTS[state.text].arrays, query - 48, query + 1)];
    if (lens.capture.store.bytes.source.batch) waiting.push(lens.ensure(["lens_probability"], query, query + 1));
    if (state.scale === "raw" && (state.heads === "max" || state.heads === "mean")) {
      waiting.push(attention.shown(query, { stored: state.heads, name: state.heads, choose: () => null }, "raw").catch(() => null));
    }
    return Promise.all(waiting).catch(() => null);
  }

  async show(serial, current) {
    const { app, board } = this, { side, state, heads } = app, { capture, lens, attention } = side;
    const why = whyNoText(state.text, lens);
    if (why) throw new Error(why);
    const { query } = state, absent = !capture.about.attention;
    const shown = absent ? { values: new Float32Array(capture.nLayer * (query + 1)).fill(NaN), strip: null } : await attention.shown(query, heads, state.scale);
    if (!current()) return;
    const scene = queryScene({ capture, lens, query, shown, state, repaint: () => { board.paint(); app.cell.again(); }, fail: app.fail, marks: () => app.search.marks });
    scene.half = state.scale === "raw" && (Boolean(heads.stored) || heads.name === "max" || heads.list?.length === 1) && !heads.rollout;
    this.follow(scene);
    if (!absent) this.#ahead(query, heads, state.scale);
  }

  follow(scene) {
    const { app, board } = this, { state } = app;
    const moved = board.scene && board.scene.nColumn !== scene.nColumn && board.scene.x !== null;
    const atEnd = board.scene && board.x + board.room.width / board.w >= board.scene.nColumn - 0.5;
    place(state, board, scene);
    if (moved && (atEnd || board.x > scene.nColumn)) board.reveal(null, scene.nColumn - 1);
    if (state.from !== null) keep(state, board);
  }

  /** Read the neighbours of a query while nobody waits. */
  #ahead(query, heads, scale) {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => {
      for (const next of [query + 1, query - 1]) {
        if (next >= 0 && next < this.app.side.capture.nRow) this.app.side.attention.shown(next, heads, scale).catch(() => {});
      }
    }, 300);
  }
}
