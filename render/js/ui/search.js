// Where in depth does a token first appear? The lens's choices of every column, searched.

import { h, token } from "./dom.js";

/** Vocabulary ids whose text is what was typed: exactly (spaces at the ends aside), else beginning with it. */
function wanted(lens, text) {
  const plain = (raw) => raw.trim().toLowerCase(), typed = plain(text);
  const exact = new Set(), near = new Set();
  const consider = (id, raw) => {
    const word = plain(raw);
    if (word === typed || lens.spell(id) === text) exact.add(id);
    else if (typed && word.startsWith(typed)) near.add(id);
  };
  for (const [id, raw] of lens.vocabulary) consider(id, raw);
  return { ids: exact.size ? exact : near, exact: exact.size > 0 };
}

/**
 * Search columns 0 … last: [{column, first, rank, top}], where `first` is the lowest depth at which the token is among the
 * stored choices, with its rank there, and `top` the lowest depth at which it is the first choice (null: at none).
 */
export async function search(lens, text, last) {
  const { ids, exact } = wanted(lens, text), hits = [];
  if (!ids.size) return { ids, exact, hits };
  await lens.ensure(["lens_token"], 0, last + 1);
  for (let column = 0; column <= last; column++) {
    let first = null, top = null, rankThere = 0;
    for (let depth = 0; depth <= lens.capture.nLayer && top === null; depth++)
      for (let rank = 0; rank < lens.nRank; rank++) {
        if (!ids.has(lens.at("lens_token", depth, column, rank))) continue;
        if (first === null) [first, rankThere] = [depth, rank];
        if (rank === 0) top = depth;
      }
    if (first !== null) hits.push({ column, first, rank: rankThere, top });
  }
  return { ids, exact, hits };
}

/** The outcome as a list. `go` is called with [row, column]. */
export function results({ ids, exact, hits }, lens, text, go) {
  if (lens.absent) return h("p", {}, `There is no lens to search: ${lens.absent}.`);
  if (!ids.size) return h("p", {}, "No token that the lens names is spelled so. A part of a word may be a token of its own.");
  const words = [...ids].slice(0, 4).map((id) => token(lens.spell(id)));
  const head = h("p", {}, exact ? "" : "beginning with it: ", words.flatMap((word, place) => (place ? [", ", word] : [word])),
    ids.size > 4 ? ` and ${ids.size - 4} more` : "", hits.length ? `: in ${hits.length} columns` : ": among the choices of no column here");
  const rows = hits.slice(0, 200).map(({ column, first, rank, top }) => h("tr", {},
    h("td", {}, h("button", { type: "button", onclick: () => go([top ?? first, column]) }, `${column} `, token(lens.tokens[column]))),
    h("td", {}, `${first}${rank ? ` (rank ${rank})` : ""}`), h("td", {}, top === null ? "–" : String(top))));
  return h("div", {}, head, hits.length ? h("table", {}, h("thead", {}, h("tr", {},
    h("th", { scope: "col" }, "column"), h("th", { scope: "col" }, "first at depth"), h("th", { scope: "col" }, "first choice from"))),
  h("tbody", {}, rows)) : null);
}

/** The field, its outcome, and which cells it marks. */
export class Search {
  #serial = 0;
  marks = null;

  constructor(app) {
    this.app = app;
    this.field = h("input", { type: "search", placeholder: "a token, for example sister", autocomplete: "off", spellcheck: "false", value: app.state.find });
    this.field.addEventListener("input", () => {
      clearTimeout(this.waiting);
      this.waiting = setTimeout(() => {
        app.state.find = this.field.value;
        app.save();
        this.show();
      }, 200);
    });
    this.body = h("div", { role: "status" });
    this.host = h("section", { "aria-label": "search" }, h("h3", {}, "Where does a token appear?"),
      h("label", { class: "field" }, h("span", { class: "hidden" }, "token to look for in the lens"), this.field), this.body);
  }

  async show() {
    const { app } = this, { side, state } = app, serial = ++this.#serial;
    if (this.field.value !== state.find && document.activeElement !== this.field) this.field.value = state.find;
    const key = [side.key, side.lens.name, state.find, state.query].join(" ");
    if (key === this.key) return;
    this.key = key;
    this.marks = null;
    if (!state.find.trim() || !side.capture.nRow) {
      this.body.replaceChildren();
      return this.#repaint();
    }
    try {
      await side.lens.texts;
      const found = side.lens.absent ? { ids: new Set(), hits: [] } : await search(side.lens, state.find, state.query);
      if (serial !== this.#serial) return undefined;
      this.marks = new Map(found.hits.map((hit) => [hit.column, hit.top ?? hit.first]));
      this.body.replaceChildren(results(found, side.lens, state.find, (cell) => app.goTo(cell)));
    } catch (error) {
      this.body.replaceChildren(h("p", {}, error.message));
      this.key = null;
    }
    return this.#repaint();
  }

  #repaint() {
    for (const board of this.app.view.boards) board.paint();
  }
}
