// Colours of cells and of the text on them: render/colour.py in the browser, tables from matplotlib (contract.js).

import { MAPS, ON_DARK, ON_LIGHT } from "../contract.js";

const f = Math.fround;
export const css = ([red, green, blue]) => `rgb(${red},${green},${blue})`;

/** A colour map: `rgb` (256 × 3), `fills` and `inks` as CSS, by level. */
class Colours {
  constructor(name) {
    this.rgb = Uint8Array.from(atob(MAPS[name]), (letter) => letter.charCodeAt(0));
    this.fills = [];
    this.inks = [];
    for (let level = 0; level < 256; level++) {
      const colour = this.rgb.subarray(3 * level, 3 * level + 3);
      this.fills.push(css(colour));
      this.inks.push(css(1.05 / (luminance(colour) + 0.05) >= 3 ? ON_DARK : ON_LIGHT));
    }
  }
}

const made = new Map();

/** The colour map of that name, made once. */
export function colours(name) {
  if (!made.has(name)) made.set(name, new Colours(Object.hasOwn(MAPS, name) ? name : "coolwarm"));
  return made.get(name);
}

/** Level 0 … 255 of a value between the ends of a scale, as matplotlib maps float32; -1 for NaN. */
export function level(value, [low, high]) {
  if (value !== value) return -1;
  return Math.max(0, Math.min(255, Math.floor(f(f(value - low) / f(high - low)) * 256)));
}

function luminance(colour) {
  const [red, green, blue] = Array.from(colour, (part) => (part / 255 <= 0.03928 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}
