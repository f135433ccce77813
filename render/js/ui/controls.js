// The bar above: what is shown and how, and what to take away.

import { SCALES } from "../contract.js";
import { inView, layout, png, svg } from "../draw/picture.js";
import { TEXT_NAMES } from "../text/cells.js";
import { VIEWS } from "./app.js";
import { command } from "./command.js";
import { choice, h } from "./dom.js";
import { pair } from "./state.js";
import { details, headline, ticks } from "./words.js";

const COLOURS = [["coolwarm", "coolwarm"], ["cividis", "cividis (safe for all eyes)"], ["viridis", "viridis"], ["magma", "magma"]];
const HEADS = ["max", "mean", "min", "median", "top:1:entropy", "top:3:entropy", "top:1:induction", "kv-group:0", "rollout"];

export class Controls {
  constructor(app) {
    this.app = app;
    const set = (key) => (value) => app.set({ [key]: value });
    this.capture = choice("capture", [], "", set("capture"));
    this.lens = choice("lens", [], "", set("lens"));
    this.views = h("div", { class: "tabs", role: "group", "aria-label": "view" }, Object.entries(VIEWS).map(([key, text]) =>
      h("button", { type: "button", "data-view": key, onclick: () => app.set({ view: key }) }, text)));
    this.heads = h("input", { list: "heads", value: app.state.heads, spellcheck: "false", autocomplete: "off", size: 11 });
    this.heads.addEventListener("change", () => app.set({ heads: this.heads.value.trim() || "max" }));
    this.suggestions = h("datalist", { id: "heads" });
    this.headsField = h("label", { class: "field" }, h("span", {}, "heads"), this.heads, this.suggestions);
    this.scale = choice("scale", Object.keys(SCALES).map((name) => [name, name]), "raw", set("scale"), { title: "what a colour stands for" });
    this.text = choice("text", TEXT_NAMES.map((name) => [name, name]), "token", set("text"), { title: "what stands in the cells" });
    this.colour = choice("colours", COLOURS, "coolwarm", set("cmap"));
    this.mapLayer = choice("layer", [], "0", (value) => app.set({ map: `${value}.${pair(app.state.map)[1]}`, at: null }));
    this.mapHead = choice("head", [], "0", (value) => app.set({ map: `${pair(app.state.map)[0]}.${value}`, at: null }));
    this.layer = choice("layer", [], "all", set("layer"));
    this.others = choice("with", [], "", set("with"));
    const box = h("input", { type: "checkbox", onchange: () => app.set({ diff: box.checked, at: null }) });
    this.box = box;
    this.difference = h("label", { class: "field check" }, box, h("span", {}, "difference"));
    this.said = h("span", { class: "said", role: "status" });
    this.fallback = h("input", { class: "copy", readonly: true, "aria-label": "text to copy", hidden: true });
    const action = (text, title, run) => h("button", { type: "button", title, onclick: () => run().catch(app.fail) }, text);
    this.actions = h("div", { class: "actions", role: "group", "aria-label": "take away" },
      app.framed ? null : action("Copy link", "the address of exactly this view", () => this.#copy(app.link)),
      action("Save PNG", "this view as a picture", () => this.#save("png")),
      action("Save SVG", "this view as a drawing, its texts as text", () => this.#save("svg")),
      action("Copy command", "the lens render command that draws this", () => this.#copy(this.command())),
      this.fallback, this.said);
    const fields = [this.headsField, this.scale, this.text, this.colour, this.mapLayer, this.mapHead, this.layer, this.others, this.difference];
    this.again = h("button", { type: "button", onclick: () => { app.stores.forget(); app.reload(); } }, "Look again");
    this.model = h("span", { class: "model" });
    this.header = h("header", {}, h("h1", {}, "attnlens"), this.model, this.capture, this.lens, this.again, this.views,
      h("div", { class: "fields", role: "group", "aria-label": "what is shown" }, fields), this.actions);
    this.bar = h("canvas", { width: 256, height: 1, class: "bar", "aria-hidden": "true" });
    this.ticks = h("div", { class: "ticks" });
    this.legendText = h("span", {});
    this.legend = h("div", { class: "legend" }, this.legendText, h("div", { class: "scale" }, this.bar, this.ticks));
  }

  /** Lists that need the store: captures, lenses, heads. */
  async sync() {
    const { app } = this, captures = await app.stores.list();
    fill(this.capture, captures, app.side.key);
    this.capture.hidden = captures.length < 2;
  }

  /** Fields as the state has them, those of other views away. */
  show() {
    const { app } = this, { state, side } = app, { capture } = side;
    this.model.textContent = capture.model;
    const lenses = [capture.about.lens, ...(capture.about.lenses ?? [])].filter(Boolean).map(({ name }) => [String(name), String(name)]);
    fill(this.lens, lenses, state.lens ?? lenses[0]?.[0] ?? "");
    this.lens.hidden = lenses.length < 2;
    this.again.hidden = capture.about.status === "complete";
    for (const tab of this.views.children) tab.setAttribute("aria-pressed", String(tab.dataset.view === state.view));
    const { view } = state, layers = capture.layers.map((layer, index) => [String(index), `${index}${layer.kind === "full" || !layer.kind ? "" : ` (${layer.kind})`}`]);
    const heads = Array.from({ length: capture.nHead }, (_, head) => [String(head), String(head)]);
    if (this.suggestions.childElementCount !== HEADS.length + heads.length) {
      this.suggestions.replaceChildren(...[...HEADS, ...heads.map(([head]) => head)].map((value) => h("option", { value })));
    }
    if (document.activeElement !== this.heads) this.heads.value = state.heads;
    const [layer, head] = pair(state.map);
    fill(this.mapLayer, layers, layer);
    fill(this.mapHead, [...heads, ["reduced", "as under heads"]], head);
    fill(this.layer, [["all", "all, the largest"], ...layers], state.layer);
    for (const [field, value] of [[this.scale, state.scale], [this.text, state.text], [this.colour, state.cmap]]) field.querySelector("select").value = value;
    this.scale.querySelector("[value=value-norm]").disabled = !capture.has("value_norm");
    this.box.checked = state.diff;
    this.headsField.hidden = view === "map" && head !== "reduced";
    this.text.hidden = view === "map" || view === "text";
    this.colour.hidden = view === "compare" && state.diff;
    this.mapLayer.hidden = this.mapHead.hidden = view !== "map";
    this.layer.hidden = view !== "text";
    this.others.hidden = this.difference.hidden = view !== "compare";
  }

  showOthers(choices) {
    fill(this.others, choices, this.app.state.with ?? choices[0]?.[0] ?? "");
  }

  /** The colour bar of what is shown. */
  drawLegend() {
    const { app } = this, { state } = app, scene = this.#scene();
    const context = this.bar.getContext("2d"), image = new ImageData(256, 1);
    for (let level = 0; level < 256; level++) image.data.set([...scene.colours.rgb.subarray(3 * level, 3 * level + 3), 255], 4 * level);
    context.putImageData(image, 0, 0);
    this.ticks.replaceChildren(...ticks(scene, state.scale).map(([, text]) => h("span", {}, text)));
    const heads = state.view === "map" && !state.map.endsWith("reduced") ? `head ${pair(state.map)[1]} of ${app.side.capture.nHead}` : app.heads.label;
    this.legendText.textContent = `${scene.kind === "diff" ? "difference of attention" : SCALES[state.scale].bar}: ${heads}`;
  }

  /** The command that draws what is in view. */
  command() {
    const { app } = this, board = app.view.boards[0];
    const columns = board ? inView(board) : { columns: [0, app.state.query + 1], rows: [0, 1] };
    return command(app.state, { store: app.side.store.name, capture: app.side.capture, columns, nColumn: board?.scene.nColumn ?? app.state.query + 1, other: app.view.other });
  }

  /** Where the cells of a saved picture are, in units of which a PNG has two pixels each. */
  frame() {
    return layout(this.app.view.boards[0]).frame;
  }

  #scene() {
    const { app } = this;
    return app.view.boards[0]?.scene ?? app.view.scene;
  }

  async #copy(text) {
    this.fallback.hidden = true;
    try {
      await navigator.clipboard.writeText(text);
      this.#say("copied");
    } catch {
      this.fallback.hidden = false;
      this.fallback.value = text;
      this.fallback.select();
      this.#say("press Ctrl+C");
    }
  }

  async #save(kind) {
    const { app } = this, { state, side } = app, board = app.view.boards[0];
    if (!board) throw new Error("The text cannot be saved as a picture: print the page, or save the cells or the map.");
    const { columns } = inView(board), scene = board.scene;
    const words = {
      title: state.view === "map" ? `layer ${pair(state.map)[0]}, ${this.legendText.textContent}` : headline(side, state.query),
      details: details(side, state, app.heads, `${scene.columnNumber(columns[0])}–${scene.columnNumber(columns[1] - 1)}`),
      ticks: ticks(scene, state.scale),
    };
    const blob = kind === "png" ? await png(board, words) : svg(board, words);
    const name = state.view === "map" ? `map_${pair(state.map).join("_")}` : `${state.view === "compare" ? "diff" : "attn"}_${state.query}`;
    const link = h("a", { href: URL.createObjectURL(blob), download: `${name}.${kind}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    this.#say(`${name}.${kind} saved`);
  }

  #say(text) {
    this.said.textContent = text;
    clearTimeout(this.saying);
    this.saying = setTimeout(() => { this.said.textContent = ""; }, 4000);
  }
}

/** Options of a choice, only touched where they differ. */
function fill(field, options, value) {
  const select = field.querySelector("select"), key = JSON.stringify(options);
  if (field.options !== key) {
    field.options = key;
    select.replaceChildren(...options.map(([name, text]) => h("option", { value: name }, text)));
  }
  select.value = value;
}
