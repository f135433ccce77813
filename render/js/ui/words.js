// Words about a capture and a picture: render/look/caption.py, and what is missing.

import { SCALES, TEXTS } from "../contract.js";

/** `token 41 “·Bob” (generated 3)   predicts “'s” (0.930)`. */
export function headline({ capture, lens }, query) {
  const generated = query - capture.nPrompt, place = generated >= 0 ? `generated ${generated}` : "prompt";
  const parts = [`token ${query} “${lens.tokens[query]}” (${place})`];
  const id = lens.at("lens_token", capture.nLayer, query, 0), chance = lens.at("lens_probability", capture.nLayer, query, 0);
  if (id !== undefined) parts.push(`predicts “${lens.spell(id)}”${chance === undefined ? "" : ` (${chance.toFixed(3)})`}`);
  if (query + 1 < capture.nToken && lens.ids && lens.ids[query + 1] !== id) parts.push(`next came “${lens.tokens[query + 1]}”`);
  return parts.join("   ");
}

/** Where a picture comes from, in one line. */
export function details({ capture }, state, heads, columns) {
  const { status } = capture.about;
  return [
    capture.model, `capture ${capture.id}${status === "complete" ? "" : ` (${status})`}`, `attention: ${heads.label}`,
    `tokens ${columns}`, `scale: ${SCALES[state.scale].label}`, `text: ${TEXTS[state.text]}`,
  ].join(" · ");
}

/** What a capture lacks, a sentence each. */
export function missing({ capture, lens }) {
  const { about, nRow, nToken, nLayer } = capture, found = [];
  if (about.status !== "complete") {
    found.push(`This capture is ${about.status}: ${nRow} of ${nToken} tokens have rows so far${about.error ? ` (${about.error})` : ""}.`);
  }
  if (!about.attention) found.push(`There is no attention: ${about.attention_absent ?? "no reason given"}.`);
  if (lens.absent) found.push(`There is no lens: ${lens.absent}. Cells are empty below the first row.`);
  const without = capture.layers.filter((_, layer) => !capture.attends(layer)).length;
  if (without && about.attention) found.push(`${without} of ${nLayer} layers have no attention (hatched).`);
  return found;
}

/** Ticks of the colour bar: [value, text]. */
export function ticks(scene, scale) {
  const { range } = scene;
  if (scene.kind !== "diff" && SCALES[scale].ticks.length) return SCALES[scale].ticks;
  return [0, 0.25, 0.5, 0.75, 1].map((part) => {
    const value = range[0] + part * (range[1] - range[0]);
    return [value, String(Number(value.toPrecision(3)))];
  });
}
