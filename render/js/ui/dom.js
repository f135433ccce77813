// Elements without markup: texts from a store only ever become text nodes.

/** An element. `given` are attributes, or with `on…` listeners; children are elements or texts. */
export function h(name, given = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "value") element.value = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** The same in SVG. */
export function svg(name, given = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(given)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** A token's text, kept apart from the text around it whatever its direction. */
export const token = (text) => h("bdi", { class: "token" }, text);

/** A choice with a label: `options` are [value, text]. */
export function choice(label, options, value, onchange, given = {}) {
  const select = h("select", { ...given, onchange: () => onchange(select.value) }, options.map(([key, text]) => h("option", { value: key }, text)));
  select.value = value;
  return h("label", { class: "field" }, h("span", {}, label), select);
}
