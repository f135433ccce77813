// The strip of all tokens, prompt and generated: what is chosen here is the query. A slider to the keyboard.

import { css } from "../draw/colours.js";
import { theme } from "../draw/board.js";
import { fit, FONT } from "../draw/paint.js";

const TALL = 30;
const WIDE = 110;

export class Timeline {
  #due = 0;
  #drag = null;

  constructor(host, onQuery) {
    Object.assign(this, { host, onQuery, lens: null, query: 0, x: 0 });
    this.canvas = document.createElement("canvas");
    this.context = this.canvas.getContext("2d", { alpha: false });
    host.append(this.canvas);
    host.tabIndex = 0;
    host.setAttribute("role", "slider");
    host.setAttribute("aria-label", "query: the token that looks");
    new ResizeObserver(() => this.#resize()).observe(host);
    host.addEventListener("keydown", (event) => this.#key(event));
    host.addEventListener("wheel", (event) => {
      this.x += event.deltaX || event.deltaY;
      event.preventDefault();
      this.#paint();
    }, { passive: false });
    host.addEventListener("pointerdown", (event) => { if (!event.button) this.#drag = { at: event.clientX, x: this.x, far: false }; });
    host.addEventListener("pointermove", (event) => {
      if (!this.#drag) return;
      const moved = event.clientX - this.#drag.at;
      if (!this.#drag.far && Math.abs(moved) < 5) return;
      if (!this.#drag.far) host.setPointerCapture(event.pointerId);
      this.#drag.far = true;
      this.x = this.#drag.x - moved;
      this.#paint();
    });
    host.addEventListener("pointerup", (event) => {
      const drag = this.#drag;
      this.#drag = null;
      if (drag && !drag.far) this.#choose(this.#at(event.clientX - host.getBoundingClientRect().left));
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#paint());
  }

  /** Show the tokens of a capture and mark one. */
  show(lens, query) {
    if (this.lens !== lens || this.texts !== lens.tokens) {
      this.lens = lens;
      this.texts = lens.tokens;
      this.#measure();
    }
    this.query = query;
    const from = this.edges[query], to = this.edges[query + 1], width = this.host.clientWidth;
    if (from < this.x + 40) this.x = from - width / 3;
    if (to > this.x + width - 40) this.x = to - (width * 2) / 3;
    const { host } = this;
    host.setAttribute("aria-valuemin", "0");
    host.setAttribute("aria-valuemax", String(Math.max(0, lens.nRow - 1)));
    host.setAttribute("aria-valuenow", String(query));
    host.setAttribute("aria-valuetext", `token ${query}: ${this.texts[query]}`);
    this.#paint();
  }

  #measure() {
    this.context.font = `13px ${FONT}`;
    this.edges = new Float64Array(this.texts.length + 1);
    this.texts.forEach((text, token) => {
      this.edges[token + 1] = this.edges[token] + Math.min(WIDE, Math.max(14, this.context.measureText(text).width + 9));
    });
  }

  #at(px) {
    const wanted = px + this.x;
    let low = 0, high = this.texts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.edges[middle] <= wanted) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  #choose(token) {
    const last = this.lens.nRow - 1;
    if (last >= 0) this.onQuery(Math.max(0, Math.min(last, token)));
  }

  #key(event) {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: 10, PageDown: -10 }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey || !this.lens) return;
    if (step) this.#choose(this.query + step);
    else if (event.key === "Home") this.#choose(0);
    else if (event.key === "End") this.#choose(this.lens.nRow - 1);
    else return;
    event.preventDefault();
  }

  #resize() {
    this.canvas.width = Math.round(this.host.clientWidth * devicePixelRatio);
    this.canvas.height = Math.round(TALL * devicePixelRatio);
    cancelAnimationFrame(this.#due);
    this.#draw();
  }

  #paint() {
    if (!this.#due) this.#due = requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#due = 0;
    const { context, lens } = this, colours = theme(), width = this.host.clientWidth;
    context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    context.fillStyle = css(colours.paper);
    context.fillRect(0, 0, width, TALL);
    if (!lens) return;
    this.x = Math.max(0, Math.min(this.x, this.edges[this.texts.length] - width));
    context.font = `13px ${FONT}`;
    context.textBaseline = "middle";
    context.textAlign = "center";
    const { nPrompt } = lens.capture;
    for (let token = this.#at(0); token < this.texts.length && this.edges[token] < this.x + width; token++) {
      const x = this.edges[token] - this.x, w = this.edges[token + 1] - this.edges[token], here = token === this.query;
      context.fillStyle = css(here ? colours.ink : token < nPrompt ? colours.hatch[0] : colours.paper);
      context.fillRect(x + 1, 3, w - 2, TALL - 6);
      if (token >= nPrompt) {
        context.fillStyle = css(colours.faint);
        context.fillRect(x + 1, TALL - 4, w - 2, 1);
      }
      context.fillStyle = css(here ? colours.paper : token < lens.nRow ? colours.ink : colours.faint);
      context.fillText(fit(context, this.texts[token], w - 4), x + w / 2, TALL / 2 + 1);
    }
  }
}
