// The text itself, every token shaded by how much the query looks at it.

import { SCALES } from "../contract.js";
import { shortest } from "../data/half.js";
import { colours, css, level } from "../draw/colours.js";
import { theme } from "../draw/board.js";
import { legible } from "../text/legible.js";
import { h } from "../ui/dom.js";

const PLAIN = /^[\p{L}\p{M}\p{N}\p{P}\p{S} ]*$/u;

/** A token as it reads: spaces and line breaks are themselves, everything else that cannot be seen is spelled out. */
function readable(raw) {
  if (raw && raw.length < 97 && PLAIN.test(raw)) return raw;
  return /^\n+$/.test(raw) && raw.length < 9 ? raw.replaceAll("\n", "\\n\n") : legible(raw);
}

export class Reading {
  constructor(host, { onQuery, onPoint }) {
    this.host = host;
    host.tabIndex = 0;
    host.setAttribute("role", "group");
    host.setAttribute("aria-label", "text, shaded by attention");
    const at = (event) => event.target.closest?.("[data-token]");
    host.addEventListener("click", (event) => { if (at(event)) onQuery(Number(at(event).dataset.token)); });
    host.addEventListener("pointermove", (event) => onPoint(at(event) ? Number(at(event).dataset.token) : null, event));
    host.addEventListener("pointerleave", () => onPoint(null));
  }

  /** Show a query: `shown.values` is (layer, key), `layer` a number or null for the largest of all. */
  show(lens, query, shown, layer, state) {
    if (this.lens !== lens || this.special !== lens.special) this.#fill(lens);
    const nKey = query + 1, nLayer = shown.values.length / nKey, range = SCALES[state.scale].range;
    const { fills, inks } = colours(state.cmap), hatch = css(theme().hatch[1]);
    this.values = new Float32Array(nKey).fill(NaN);
    for (let row = layer ?? 0; row < (layer === null ? nLayer : layer + 1); row++)
      for (let key = 0; key < nKey; key++) {
        const value = shown.values[row * nKey + key];
        if (value === value && !(this.values[key] >= value)) this.values[key] = value;
      }
    this.spans.forEach((span, token) => {
      const at = token < nKey ? level(this.values[token], range) : null;
      span.style.background = at === null ? "" : at < 0 ? hatch : fills[at];
      span.style.color = at === null || at < 0 ? "" : inks[at];
      span.classList.toggle("after", token > query);
      span.classList.toggle("query", token === query);
    });
  }

  /** What stands over a token when it is pointed at. */
  about(token) {
    const value = this.values?.[token];
    return value === undefined ? "comes later" : Number.isNaN(value) ? "no value" : shortest(value);
  }

  #fill(lens) {
    this.lens = lens;
    this.special = lens.special;
    this.spans = lens.raw.map((raw, token) => h("bdi", {
      "data-token": token, class: token < lens.capture.nPrompt ? "prompt" : "made",
    }, lens.ids && lens.ids[token] < 0 ? "<redacted>" : readable(raw)));
    this.host.replaceChildren(...this.spans);
  }
}
