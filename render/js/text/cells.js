// `text`: what stands in the cells, by the names of lens render.

import { TEXTS } from "../contract.js";

/** Two decimals, ties to even as in Python; nothing for NaN. */
export function fraction(value) {
  if (value === undefined || value !== value) return "";
  const scaled = Math.abs(value) * 100, low = Math.floor(scaled), rest = scaled - low;
  const whole = rest > 0.5 || (rest === 0.5 && low % 2) ? low + 1 : low;
  const digits = String(whole).padStart(3, "0");
  return `${value < 0 ? "-" : ""}${digits.slice(0, -2)}.${digits.slice(-2)}`;
}

/** By name: the arrays it reads, and (lens, depth, token) → text. `weight` is the drawn value and reads nothing. */
export const CELL_TEXTS = {
  token: {
    arrays: ["lens_token"],
    line: (lens, depth, token) => (depth === 0 ? lens.tokens[token] : spelled(lens, lens.at("lens_token", depth, token, 0))),
  },
  probability: { arrays: ["lens_probability"], line: (lens, depth, token) => fraction(lens.at("lens_probability", depth, token, 0)) },
  "top-k": {
    arrays: ["lens_token"],
    line: (lens, depth, token) => {
      const found = [];
      for (let rank = 0; rank < lens.nRank; rank++) {
        const id = lens.at("lens_token", depth, token, rank);
        if (id === undefined) return "…";
        if (id >= 0) found.push(lens.spell(id));
      }
      return found.join(" | ");
    },
  },
  entropy: { arrays: ["lens_entropy"], line: (lens, depth, token) => fraction(lens.at("lens_entropy", depth, token)) },
  "next-rank": {
    arrays: ["next_rank"],
    line: (lens, depth, token) => {
      const rank = lens.at("next_rank", depth, token);
      return rank === undefined || rank < 0 ? "" : String(rank);
    },
  },
  weight: { arrays: [], line: null },
};

export const TEXT_NAMES = Object.keys(TEXTS).filter((name) => Object.hasOwn(CELL_TEXTS, name));

/** Why a text cannot be had, or null. Tokens go without a lens: cells stay empty. */
export function whyNoText(name, lens) {
  if (name === "token" || name === "weight") return null;
  const missing = CELL_TEXTS[name].arrays.find((array) => !lens.arrays[array]);
  return missing ? `The text ${name} needs ${missing}, and ${lens.absent ? `there is no lens (${lens.absent})` : "the store does not have it"}.` : null;
}

function spelled(lens, id) {
  return id === undefined ? (lens.absent ? "" : "…") : lens.spell(id);
}
