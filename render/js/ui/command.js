// The `lens render` command that draws what the page shows.

import { select, runs } from "../text/select.js";
import { pair } from "./state.js";

const quoted = (text) => (/^[A-Za-z0-9_.,:/@%+=#-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** Command for a state; `columns` and `rows` are what is in view, [first, end). */
export function command(state, { store, capture, columns, nColumn }) {
  const options = [], add = (name, value) => options.push(name, quoted(String(value)));
  if (state.view === "compare" && state.with) {
    const other = state.with.includes("#") ? state.with : `${store}#${state.with}`;
    options.push(quoted(`${store}#${capture.id}`), quoted(other));
    add("--queries", state.query);
    shared(state, add, "max");
    return `lens diff ${options.join(" ")}`;
  }
  add("--capture", capture.id);
  if (state.view === "map") {
    const [layer, head] = pair(state.map);
    const rows = runs(select(`${columns.rows[0]}:${columns.rows[1]}`, capture.nRow, "query"), "-", ",");
    add("--queries", rows);
    add("--map", head === "reduced" ? layer : state.map);
    add("--window", Math.max(columns.rows[1] - columns.rows[0], columns.columns[1] - columns.columns[0]));
    shared(state, add, head === "reduced" ? "max" : state.heads);
    return `lens render ${quoted(store)} ${options.join(" ")}`;
  }
  add("--queries", state.query);
  const [first, end] = columns.columns, count = end - first;
  if (count < nColumn) add("--tokens", `${first}:${end}`);
  if (count !== 32) add("--window", count);
  shared(state, add, "max");
  return `lens render ${quoted(store)} ${options.join(" ")}`;
}

function shared(state, add, heads) {
  if (state.heads !== heads) add("--heads", state.heads);
  if (state.scale !== "raw") add("--scale", state.scale);
  if (state.text !== "token" && state.view !== "map") add("--text", state.text);
  if (state.cmap !== "coolwarm" && state.view !== "compare") add("--cmap", state.cmap);
  if (matchMedia("(prefers-color-scheme: dark)").matches) add("--theme", "dark");
}
