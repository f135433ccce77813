// Two captures: one above the other, moved together, or their difference.

import { byToken } from "../math/align.js";
import { whyNoText } from "../text/cells.js";
import { h } from "../ui/dom.js";
import { diffScene } from "./compare_scene.js";
import { keep, place, placed } from "./query.js";
import { queryScene } from "./query_scene.js";
import { selectHeads } from "../math/heads.js";

/** `B less A`, with the models' names where they differ. */
function less({ key, capture }, other, name) {
  const [ours, theirs] = capture.model === other.capture.model ? ["", ""] : [` (${capture.model})`, ` (${other.capture.model})`];
  return `${name}${theirs} less ${key}${ours}`;
}

export class Compare {
  constructor(app) {
    this.app = app;
    this.other = null;
    const label = "Arrow keys choose a cell, plus and minus zoom, shift with arrows moves the view";
    this.first = placed(app, `cells of the first capture. ${label}`, { onMove: (board) => this.#link(board, this.second) });
    this.second = placed(app, `cells of the second capture. ${label}`, {
      side: () => this.other, onMove: (board) => this.#link(board, this.first), onSelect: () => this.#back(),
    });
    this.names = [h("h3", {}), h("h3", {})];
    this.host = h("div", { class: "compare" }, this.names[0], this.first.host, this.names[1], this.second.host);
  }

  get boards() { return this.app.state.diff ? [this.first] : [this.first, this.second]; }
  early() { return null; }

  async show(serial, current) {
    const { app } = this, { side, state } = app;
    const choices = (await app.stores.list()).filter(([key]) => key !== side.key);
    app.controls.showOthers(choices);
    if (!state.with && choices.length) state.with = choices[0][0];
    if (!state.with) throw new Error("There is nothing to compare with: this is the only capture. Open two stores, lens view A.zarr B.zarr, or capture more into one.");
    const other = (this.other = await app.stores.side(state.with));
    await Promise.all([other.lens.texts, other.lens.refined, side.lens.refined]);
    const why = whyNoText(state.text, side.lens) ?? whyNoText(state.text, other.lens);
    if (why) throw new Error(why);
    this.partner = byToken(side.lens.ids, other.lens.ids);
    const query = this.#partner(state.query);
    if (query < 0) throw new Error(`Token ${state.query} and those before it have no partner in ${state.with}: the two texts share no token ids there. lens diff --align character compares by text.`);
    const shown = await Promise.all([side.attention.shown(state.query, app.heads, state.scale), other.attention.shown(query, selectHeads(state.heads, other.capture), state.scale)]);
    if (!current()) return;
    const repaint = () => { this.first.paint(); this.second.paint(); app.cell.again(); };
    const [a, b] = [{ ...side, shown: shown[0], query: state.query }, { ...other, shown: shown[1], query }];
    this.names[1].hidden = this.second.host.hidden = state.diff;
    this.names[0].textContent = state.diff ? less(side, other, state.with) : `${side.key}: ${side.capture.model}`;
    this.names[1].textContent = `${state.with}: ${other.capture.model}, query ${query}`;
    if (query !== this.partner[state.query]) app.note.textContent = `Token ${state.query} has no partner: the nearest one before it that has is shown.`;
    if (state.diff) {
      place(state, this.first, diffScene({ a, b, partner: this.partner, state, repaint, fail: app.fail }));
      return;
    }
    place(state, this.first, queryScene({ ...a, state, repaint, fail: app.fail }));
    this.second.scene = queryScene({ ...b, state, repaint, fail: app.fail });
    this.second.show(this.second.scene);
    this.#link(this.first, this.second);
  }

  /** B's query for one of A's: its partner, or that of the nearest token before it. */
  #partner(query) {
    const { nRow } = this.other.capture;
    for (let token = query; token >= 0; token--) if (this.partner[token] >= 0 && this.partner[token] < nRow) return this.partner[token];
    return -1;
  }

  /** Move `to` so that it shows what stands beside the first whole column of `from`. */
  #link(from, to) {
    if (this.app.state.diff || !to.scene || !from.scene) return;
    const column = Math.ceil(from.x), other = from === this.first ? this.partner[column] : this.partner.indexOf(column);
    to.w = from.w;
    to.y = from.y;
    to.x = other >= 0 ? other + from.x - column : from.x;
    to.show(to.scene);
    if (from === this.second) keep(this.app.state, this.first);
  }

  /** A cell of the second board was chosen: the state speaks of the first. */
  #back() {
    const { state } = this.app;
    if (!state.at) return;
    const token = this.partner.indexOf(state.at[1]);
    state.at = token < 0 ? null : [state.at[0], token];
    this.app.cell.show();
  }
}
