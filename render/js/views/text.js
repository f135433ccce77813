// The view of the text, shaded.

import { SCALES } from "../contract.js";
import { colours } from "../draw/colours.js";
import { h } from "../ui/dom.js";
import { Reading } from "./reading.js";

export class TextView {
  constructor(app) {
    this.app = app;
    this.host = h("div", { class: "reading" });
    this.reading = new Reading(this.host, {
      onQuery: (query) => app.set({ query: Math.min(query, app.side.capture.nRow - 1) }),
      onPoint: (key, event) => app.cell.pointText(key, event, () => this.reading.about(key)),
    });
    this.host.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      app.set({ query: app.state.query + step });
    });
  }

  get boards() { return []; }
  early() { return null; }

  async show(serial, current) {
    const { side, state, heads } = this.app;
    const shown = await side.attention.shown(state.query, heads, state.scale);
    if (!current()) return;
    this.scene = { kind: "text", colours: colours(state.cmap), range: SCALES[state.scale].range };
    this.reading.show(side.lens, state.query, shown, state.layer === "all" ? null : Number(state.layer), state);
  }
}
