// What a capture's model is called: store/naming.py.

const LABEL = 200, NAMES = 3, WORD = 40;
const SPACES = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/u; // Python's
const UNSEEN = /(?![ \u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\p{Zs}]/gu;

/** `NAME (label)`, or `NAME + adapter A, hooked`, or `NAME`. */
export function modelName(about) {
  const model = about.model ?? {}, id = String(model.id ?? "unknown model"), label = shortened(about.label ?? "", LABEL).trim();
  return label ? `${id} (${label})` : `${id}${changes(model)}`;
}

function changes(model) {
  const adapters = list(model.adapters).filter((one) => (one?.active ?? true) || one?.merged).map((one) => shortened(one?.name, WORD));
  const more = adapters.length > NAMES ? ` and ${adapters.length - NAMES} more` : "";
  const added = adapters.length ? ` + adapter${adapters.length > 1 ? "s" : ""} ${adapters.slice(0, NAMES).join(", ")}${more}` : "";
  return added + (list(model.hooks).length ? ", hooked" : "");
}

function list(value) {
  return Array.isArray(value) ? value : [];
}

/** One printable line of at most `limit` characters. */
function shortened(value, limit) {
  const text = Array.from(String(value).slice(0, 8 * limit + 8)), line = Array.from(oneLine(text.slice(0, 4 * limit).join("")));
  return line.length <= limit && text.length <= 4 * limit ? line.join("") : `${line.slice(0, limit - 1).join("")}…`;
}

function oneLine(text) {
  return text.split(SPACES).filter(Boolean).join(" ").replace(UNSEEN, (character) => {
    const code = character.codePointAt(0), [letter, digits] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
    return `\\${letter}${code.toString(16).padStart(digits, "0")}`;
  });
}
