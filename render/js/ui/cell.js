// One cell: what hovers over it, what the panel tells of it, and what a screen reader says.

import { h, token } from "./dom.js";
import { attenders, facts, list, need, trajectory } from "./panel.js";

const BUDGET = 64 * 2 ** 20;

export class Cell {
  #serial = 0;
  #hover = null;

  constructor(app) {
    this.app = app;
    this.tip = h("div", { class: "tip", role: "tooltip", hidden: true });
    this.said = h("p", { class: "hidden", "aria-live": "polite" });
    this.host = h("section", { class: "cell", "aria-label": "cell" });
    this.lookers = h("div", {});
  }

  /** The pointer is over a cell, or (null) over none. */
  point(scene, cell, event, side) {
    this.#hover = cell && scene ? { scene, cell, side, x: event.clientX, y: event.clientY } : null;
    this.#float();
  }

  /** The pointer is over a token of the text. */
  pointText(key, event, words) {
    this.tip.hidden = key === null;
    if (key === null) return;
    this.tip.replaceChildren(list([["token", h("span", {}, `${key} `, token(this.app.side.lens.tokens[key]))], ["attention", words()]]));
    this.#move(event.clientX, event.clientY);
  }

  /** Data has come: say everything again. */
  again() {
    if (this.#hover) this.#float();
    this.#waiting();
  }

  /** Tell of the chosen cell. */
  show() {
    const { app } = this, { at } = app.state;
    for (const board of app.view.boards) {
      if (!board.scene) continue;
      const column = at && (board.scene.columns ? board.scene.columns.indexOf(at[1]) : at[1]);
      board.scene.selected = at && column >= 0 && at[0] < board.scene.nRow && column < board.scene.nColumn ? [at[0], column] : null;
      board.paint();
    }
    this.#tell();
  }

  /** Say it aloud. */
  say() {
    const lines = this.#lines(this.app.view.boards[0]?.scene, this.app.state.at);
    this.said.textContent = lines ? lines.map(([name, value]) => `${name}: ${value.textContent ?? value}`).join(". ") : "";
  }

  #lines(scene, at, side = this.app.side) {
    if (!scene || !at) return null;
    const column = scene.columns ? scene.columns.indexOf(at[1]) : at[1];
    if (at[0] >= scene.nRow || column < 0 || column >= scene.nColumn) return null;
    if (scene.kind === "map") return mapFacts(scene, side.lens, at);
    return facts(side, scene, [at[0], at[1]], column);
  }

  #float() {
    const found = this.#hover;
    this.tip.hidden = !found;
    if (!found) return;
    const { scene, cell, side } = found, at = [cell[0], scene.columns?.[cell[1]] ?? cell[1]];
    const lines = this.#lines(scene, at, side);
    if (!lines) return void (this.tip.hidden = true);
    this.tip.replaceChildren(list(lines));
    this.#move(found.x, found.y);
    if (scene.kind !== "map") need(side.lens, at[1])?.then(() => this.#hover === found && this.#float(), this.app.fail);
  }

  #move(x, y) {
    const { tip } = this, width = tip.offsetWidth, height = tip.offsetHeight;
    const left = x + 16 + width > innerWidth ? Math.max(4, x - width - 12) : x + 16;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - height - 4)) + scrollY}px`;
  }

  async #tell() {
    const { app } = this, { side, state } = app, { at } = state, serial = ++this.#serial;
    const scene = app.view.boards[0]?.scene;
    if (!at || !this.#lines(scene, at)) {
      this.host.replaceChildren(h("h3", {}, "Cell"), h("p", { class: "note" }, "Choose a cell with the pointer, or with the arrow keys when the picture has the focus."));
      return;
    }
    this.#waiting = () => {
      if (serial !== this.#serial) return;
      this.host.replaceChildren(h("h3", {}, "Cell"), list(this.#lines(scene, at)),
        ...(scene.kind === "map" ? [] : [h("h3", {}, `Token ${at[1]} through depth`),
          side.lens.absent ? h("p", {}, `No lens: ${side.lens.absent}.`) : trajectory(side, at[1], at[0]),
          ...(at[0] < side.capture.nLayer ? [h("h3", {}, `Who looks at token ${at[1]} in layer ${at[0]}`), this.lookers] : [])]));
    };
    this.lookers.textContent = "reading …";
    this.#waiting();
    if (scene.kind === "map") return;
    need(side.lens, at[1])?.then(() => {
      this.#waiting();
      if (serial === this.#serial) this.say();
    }, app.fail);
    side.lens.refined.then(() => this.#waiting());
    if (at[0] >= side.capture.nLayer) return;
    try {
      const found = await side.attention.column(at[0], at[1], app.heads, BUDGET);
      if (serial === this.#serial) this.lookers.replaceChildren(attenders(found, side.lens, at[1], (query) => app.set({ query, at: [at[0], at[1]] })));
    } catch (error) {
      if (serial === this.#serial) this.lookers.textContent = error.message;
    }
  }

  #waiting = () => {};
}

function mapFacts(scene, lens, [query, key]) {
  const value = scene.value(query, key);
  return [
    ["query", h("span", {}, `${query} `, token(lens.tokens[query]))], ["key", h("span", {}, `${key} `, token(lens.tokens[key]))],
    ["attention", key > query ? "the key comes later" : Number.isNaN(value) ? "none" : scene.exact(value)],
  ];
}
