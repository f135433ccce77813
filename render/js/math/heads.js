// What `--heads` names: render/heads.py in the browser.

import { REDUCE, SCORES, best } from "./reduce.js";
import { select, runs } from "../text/select.js";

const EXPECTED = `${Object.keys(REDUCE).join(", ")}, LIST:mean, kv-group:N, top:N:entropy, top:N:induction, rollout`;

/**
 * A choice of heads: {label, name (of the reduction), stored, rollout, choose(attention, row) → mask or null, list}.
 * Throws an error in words where `text` names nothing that this capture has.
 */
export function selectHeads(text, capture) {
  const { nHead, nLayer, layers } = capture;
  if (text === "rollout") return { label: "rollout of the mean over heads", name: "mean", rollout: true, choose: () => null };
  if (Object.hasOwn(REDUCE, text)) {
    const stored = text === "max" || text === "mean" ? text : null;
    return { label: `${text} over ${nHead} head${nHead === 1 ? "" : "s"}`, name: text, stored, choose: () => null };
  }
  const end = text.lastIndexOf(":");
  const named = end > 0 && Object.hasOwn(REDUCE, text.slice(end + 1));
  const what = named ? text.slice(0, end) : text, name = named ? text.slice(end + 1) : "max";
  const spread = (mask) => () => mask;
  if (what.startsWith("kv-group:")) {
    const number = whole(what.slice(9), `heads ${what}`);
    const mask = new Uint8Array(nLayer * nHead);
    layers.forEach((layer, index) => {
      if (number >= layer.n_kv_head) return;
      const size = Math.floor(layer.n_head / layer.n_kv_head);
      for (let head = number * size; head < (number + 1) * size; head++) mask[index * nHead + head] = 1;
    });
    if (!mask.includes(1)) throw new Error(`heads ${what}: there is no key/value head ${number} in this model`);
    const heads = Array.from({ length: nHead }, (_, head) => head).filter((head) => layers.some((_, layer) => mask[layer * nHead + head]));
    return { label: `${name} over heads ${runs(heads)} (key/value head ${number})`, name, choose: spread(mask), list: heads };
  }
  if (what.startsWith("top:")) {
    const [, number, score] = what.split(":");
    if (score !== "entropy" && score !== "induction") throw new Error(`heads ${what} is not understood: expected top:N:entropy or top:N:induction`);
    const count = whole(number, `heads ${what}`);
    if (count < 1 || count > nHead) throw new Error(`heads ${what}: expected 1 to ${nHead} heads a layer`);
    const which = count === 1 ? "the head" : `${name} over the ${count} heads`;
    return {
      label: `${which} of ${score === "entropy" ? "lowest entropy" : "highest induction score"} in each layer`,
      name,
      choose: (attention, row) => best(SCORES[score](attention, row), attention.nLayer, nHead, count, score === "induction"),
    };
  }
  let heads;
  try {
    heads = select(what, nHead, "head");
  } catch (error) {
    throw new Error(`heads ${text}: ${error.message}; or one of ${EXPECTED}`);
  }
  const mask = new Uint8Array(nLayer * nHead);
  for (let layer = 0; layer < nLayer; layer++) for (const head of heads) mask[layer * nHead + head] = 1;
  const label = heads.length === 1 ? `head ${heads[0]} of ${nHead}` : `${name} over heads ${runs(heads)}`;
  return { label, name, choose: spread(mask), list: heads };
}

function whole(text, where) {
  if (!/^\d{1,6}$/.test(text)) throw new Error(`${where}: expected a number`);
  return Number(text);
}
