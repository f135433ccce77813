// The view of one head: queries × keys.

import { pair } from "../ui/state.js";
import { mapScene } from "./map_scene.js";
import { place, placed } from "./query.js";

export class MapView {
  constructor(app) {
    this.app = app;
    this.board = placed(app, "map: queries downwards, keys to the right. Arrow keys choose a cell, plus and minus zoom, shift with arrows moves the view");
    this.host = this.board.host;
    this.made = "";
  }

  get boards() { return [this.board]; }
  early() { return null; }

  async show() {
    const { app, board } = this, { side, state, heads } = app, { capture, lens, attention } = side;
    if (attention.absent) throw new Error(`A map needs attention of every head, and there is none: ${attention.absent}.`);
    const [layer, head] = pair(state.map);
    const key = [side.key, state.map, state.scale, state.cmap, head === "reduced" ? state.heads : ""].join(" ");
    if (key !== this.made || board.scene?.lens !== lens) {
      this.made = key;
      const scene = mapScene({
        capture, lens, attention, heads, state, layer: Number(layer), head: head === "reduced" ? null : Number(head),
        repaint: () => { board.paint(); app.cell.again(); }, fail: app.fail,
        note: (step) => { app.note.textContent = step > 1 ? `Rows are large here: every ${step}th query is drawn. Zoom in for all of them.` : ""; },
      });
      scene.lens = lens;
      const fresh = state.cell === null;
      board.w = 1;
      place(fresh ? { ...state, cell: Math.max(3, Math.min(40, board.host.clientWidth / (capture.nRow + 4))), from: 0 } : { ...state, from: state.from ?? 0 }, board, scene);
    }
    board.scene.here = state.query;
    board.paint();
    if (!capture.attends(Number(layer))) app.note.textContent = `Layer ${layer} has no attention.`;
  }
}
