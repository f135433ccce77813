// The page: its state, its parts, and what happens between them.

import { selectHeads } from "../math/heads.js";
import { SCALES } from "../contract.js";
import { Cell } from "./cell.js";
import { ChangedError } from "../data/bytes.js";
import { Compare } from "../views/compare.js";
import { Controls } from "./controls.js";
import { h } from "./dom.js";
import { Heads } from "./overview.js";
import { MapView } from "../views/map.js";
import { QueryView } from "../views/query.js";
import { TextView } from "../views/text.js";
import { Search } from "./search.js";
import { pair, read, write } from "./state.js";
import { Timeline } from "./timeline.js";
import { headline, missing } from "./words.js";
import { legible, legibleBytes } from "../text/legible.js";
import { TEXT_NAMES } from "../text/cells.js";

export const VIEWS = { cells: "Cells", map: "Map", text: "Text", compare: "Compare" };

export class App {
  legible = legible;
  legibleBytes = legibleBytes;
  #serial = 0;
  #saving = 0;

  /** Builds the page into `root`. `ready` is fulfilled when the first picture is there, or has failed. */
  constructor(root, stores) {
    const begin = document.querySelector("meta[name=attnlens-state]");
    Object.assign(this, { root, stores, state: read(location.hash || begin?.content || ""), side: null, heads: null });
    this.framed = location.protocol === "about:"; // in a notebook: the page has no address of its own
    this.controls = new Controls(this);
    this.timeline = new Timeline(h("div", { class: "timeline" }), (query) => this.set({ query }));
    this.headline = h("h2", { class: "headline", "aria-live": "polite" });
    this.notice = h("div", { class: "notice", role: "alert" });
    this.notes = h("ul", { class: "notes" });
    this.note = h("p", { class: "note", role: "status" });
    this.stage = h("div", { class: "stage" });
    this.cell = new Cell(this);
    this.overview = new Heads(this);
    this.search = new Search(this);
    this.views = { cells: new QueryView(this), map: new MapView(this), text: new TextView(this), compare: new Compare(this) };
    for (const view of Object.values(this.views)) this.stage.append(view.host);
    root.replaceChildren(
      this.controls.header,
      h("main", {}, this.timeline.host, this.headline, this.notice, this.notes,
        h("div", { class: "columns" },
          h("div", { class: "picture" }, this.stage, this.controls.legend, this.note),
          h("aside", { "aria-label": "details" }, this.cell.host, this.search.host, this.overview.host))),
      this.cell.tip, this.cell.said);
    addEventListener("hashchange", () => {
      if (location.hash === this.written) return;
      this.state = read(location.hash);
      this.#load();
    });
    this.ready = this.#load();
  }

  get view() { return this.views[this.state.view]; }

  /** Change the state; what depends on it is drawn again. The promise is fulfilled when it is. */
  set(changes) {
    const before = { ...this.state };
    Object.assign(this.state, changes);
    if (this.state.view !== before.view) this.state.at = null;
    this.save();
    if (this.state.capture !== before.capture || this.state.lens !== before.lens) return (this.ready = this.#load());
    return (this.ready = this.refresh());
  }

  /** Put the state into the URL, soon: browsers forbid doing so all the time. */
  save() {
    if (this.framed) return;
    clearTimeout(this.#saving);
    this.#saving = setTimeout(() => {
      this.written = write(this.state);
      if (this.written !== location.hash) history.replaceState(null, "", this.written || location.pathname + location.search);
    }, 120);
  }

  /** The URL of what is shown now. */
  get link() {
    return new URL(write(this.state) || "#", location.href).href;
  }

  /** Say what went wrong, and what to do. */
  fail = (error) => {
    const changed = error instanceof ChangedError;
    const again = changed ? h("button", { type: "button", onclick: () => { this.stores.forget(); this.reload(); } }, "Reload") : null;
    this.notice.replaceChildren(h("p", {}, h("bdi", {}, error.message), " ", again));
    if (changed) return;
    if (!(error.constructor.name === "Error" || /Store/.test(error.constructor.name))) console.warn(error);
  };

  /** Open the store and the capture of the state, then draw. */
  async #load() {
    const serial = ++this.#serial, { state } = this;
    this.notice.replaceChildren();
    try {
      const side = await this.stores.side(state.capture, state.lens);
      if (serial !== this.#serial) return;
      this.side = side;
      this.#correct();
      const early = this.view.early(side, state);
      const texts = side.lens.texts;
      if (side.store.bytes.source.batch) side.lens.refined.catch(() => {});
      await texts;
      if (serial !== this.#serial) return;
      document.title = `${side.capture.model} · ${side.store.name} · attnlens`;
      await Promise.all([this.refresh(), early]);
      await this.controls.sync();
      side.lens.refined.then(() => serial === this.#serial && this.refresh(), (error) => {
        side.lens.broken = error; // said again whenever something is drawn without it
        this.fail(error);
      });
    } catch (error) {
      if (serial === this.#serial) this.fail(error);
    }
  }

  /** Draw what the state says. */
  async refresh() {
    const serial = ++this.#serial, { side, state } = this;
    if (!side) return;
    this.#correct();
    const { lens, capture } = side;
    for (const [name, view] of Object.entries(this.views)) view.host.hidden = name !== state.view;
    this.notes.replaceChildren(...missing(side).map((text) => h("li", {}, text)));
    this.timeline.show(lens, Math.max(0, state.query));
    this.controls.show();
    this.note.textContent = "";
    this.search.show();
    try {
      this.notice.replaceChildren();
      if (!capture.nRow) throw new Error(`Capture ${capture.id} holds no finished row yet, there is nothing to draw. Look again when it does.`);
      this.heads = selectHeads(state.heads, capture);
      this.headline.textContent = headline(side, state.query);
      this.stage.setAttribute("aria-busy", "true");
      await this.view.show(serial, () => serial === this.#serial);
      if (serial !== this.#serial) return;
      const title = lens.ensure(["lens_probability", "lens_token"], state.query, state.query + 1);
      if (title) title.then(() => serial === this.#serial && this.retitle(), this.fail);
      else this.retitle();
      if (lens.broken) this.fail(lens.broken);
      this.controls.drawLegend();
      this.cell.show();
      this.overview.show();
      performance.mark("attnlens:drawn");
    } catch (error) {
      if (serial === this.#serial) this.fail(error);
    } finally {
      if (serial === this.#serial) this.stage.removeAttribute("aria-busy");
    }
  }

  /** Read everything anew: the store has grown. */
  reload() {
    return (this.ready = this.#load());
  }

  /** Bring a cell into view and choose it. */
  goTo([row, column]) {
    this.state.at = [row, column];
    if (this.state.view !== "cells") return this.set({ view: "cells" }).then(() => this.goTo([row, column]));
    this.save();
    this.views.cells.board.reveal(row, column);
    this.cell.show();
    return this.cell.say();
  }

  /** The headline again, when the lens has come. */
  retitle() {
    this.headline.textContent = headline(this.side, this.state.query);
  }

  /** Make the state one that this capture has: numbers in bounds, names known. */
  #correct() {
    const { state, side } = this, { nRow, nHead } = side.capture;
    const last = Math.max(0, nRow - 1);
    state.query = Math.round(Math.max(0, Math.min(last, state.query ?? last)));
    if (!Object.hasOwn(VIEWS, state.view)) state.view = "cells";
    if (!Object.hasOwn(SCALES, state.scale)) state.scale = "raw";
    if (!TEXT_NAMES.includes(state.text)) state.text = "token";
    if (!/^\d+[.:](\d+|reduced)$/.test(state.map)) state.map = "0.0";
    const [layer, head] = pair(state.map);
    const within = Math.min(Number(layer), Math.max(0, side.capture.nLayer - 1));
    state.map = `${within}.${head === "reduced" ? head : Math.min(Number(head), Math.max(0, nHead - 1))}`;
    if (state.layer !== "all" && !(Number(state.layer) < side.capture.nLayer)) state.layer = "all";
  }
}

