"""`index.html` beside the pictures: one page, no network, keys to walk through tokens and windows.

Without its script it is a list of links. Texts are escaped, and the page forbids itself everything but its own script,
its own style and pictures from its own folder.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from attnlens import __version__
from attnlens.render.formats.xml import escape

NAME = "index.html"
SHOWN = frozenset({".png", ".svg", ".webp", ".gif"})
"""Endings of files that a browser shows as a picture; others become links."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one step to the left or right leads to: a token's label, and the names of its pictures with ending."""

    label: str
    files: tuple[str, ...]


def page(title: str, entries: Sequence[Entry], others: Sequence[str] = ()) -> bytes:
    """The page over the pictures of one capture; `others` are further files that it links to (an animation)."""
    items = "".join(
        f"<li><span>{escape(entry.label)}</span>{''.join(map(_link, entry.files, range(len(entry.files))))}</li>"
        for entry in entries
    )
    more = "".join(f' <a href="{quote(file)}">{escape(file)}</a>' for file in others)
    body = (
        f"<header><h1>{escape(title)}</h1><p id=where role=status></p>"
        "<p id=keys hidden><kbd>←</kbd> <kbd>→</kbd> token, <kbd>↑</kbd> <kbd>↓</kbd> window, "
        f"<kbd>Home</kbd> <kbd>End</kbd> first and last</p>{f'<p>{more}</p>' if more else ''}</header>"
        "<main hidden><button id=back aria-label='token before'>‹</button><figure><img id=picture alt=''>"
        "<a id=open hidden></a></figure><button id=on aria-label='next token'>›</button></main>"
        f"<nav><ol>{items}</ol></nav>"
    )
    return _document(title, body, _SCRIPT)


def contents(title: str, folders: Sequence[tuple[str, str]]) -> bytes:
    """The page over the folders of several captures: (folder, label)."""
    items = "".join(f'<li><a href="{quote(name)}/{NAME}">{escape(label)}</a></li>' for name, label in folders)
    return _document(title, f"<header><h1>{escape(title)}</h1></header><nav><ol>{items}</ol></nav>", "")


def _link(file: str, number: int) -> str:
    shown = " data-shown" if "." + file.rpartition(".")[2] in SHOWN else ""
    return f' <a href="{quote(file)}"{shown}>{number}</a>'


def _document(title: str, body: str, script: str) -> bytes:
    allowed = [
        "default-src 'none'",
        "img-src 'self' file:",
        f"style-src {_hash(_STYLE)}",
        f"script-src {_hash(script)}" if script else "script-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{"; ".join(allowed)}">'
        '<meta name="viewport" content="width=device-width"><meta name="referrer" content="no-referrer">'
        f'<meta name="generator" content="attnlens {__version__}"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>{body}{f'<script>{script}</script>' if script else ''}</body></html>\n"
    ).encode()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_STYLE = """
:root{color-scheme:light dark;font:15px/1.45 system-ui,sans-serif}
body{margin:0 1rem 1rem}
h1{font-size:1.1rem;margin:.8rem 0 .2rem}
header p{margin:.2rem 0}
#where{font-weight:600;min-height:1.4em}
#keys{opacity:.7}
kbd{border:1px solid;border-radius:3px;padding:0 .3em;opacity:.8}
main{display:flex;align-items:center;gap:.4rem}
main[hidden]{display:none}
figure{flex:1;min-width:0;margin:0;text-align:center}
img{max-width:100%;max-height:78vh;cursor:zoom-in}
img[hidden]{display:none}
img.full{max-width:none;max-height:none;cursor:zoom-out}
figure:has(.full){overflow:auto;max-height:86vh;text-align:left}
button{font-size:1.6rem;padding:.6rem .5rem;border:1px solid;border-radius:6px;background:none;color:inherit}
button{cursor:pointer}
ol{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.2rem .4rem}
li{border:1px solid color-mix(in srgb,currentColor 25%,transparent);border-radius:5px;padding:.1rem .45rem}
li span{unicode-bidi:isolate;white-space:pre-wrap;overflow-wrap:anywhere;margin-right:.2rem}
li.here{outline:2px solid #d26b1e}
a.here{font-weight:700}
"""

_SCRIPT = """
"use strict";
const tokens = [...document.querySelectorAll("li")].map(item => ({item, links: [...item.querySelectorAll("a")]}));
const byId = id => document.getElementById(id);
const picture = byId("picture"), open = byId("open"), where = byId("where");
let token = 0, window_ = 0;
const name = link => link.getAttribute("href");
const clamp = (value, size) => Math.max(0, Math.min(size - 1, value));
function show(keep) {
  for (const old of document.querySelectorAll(".here")) old.classList.remove("here");
  const {item, links} = tokens[token], link = links[window_];
  item.classList.add("here");
  link.classList.add("here");
  item.scrollIntoView({block: "nearest"});
  const label = item.querySelector("span").textContent + ", window " + (window_ + 1) + " of " + links.length;
  where.textContent = label;
  const shown = "shown" in link.dataset;
  picture.hidden = !shown;
  open.hidden = shown;
  if (shown) { picture.src = link.href; picture.alt = label; }
  else { open.href = link.href; open.textContent = "open " + name(link); }
  if (!keep) history.replaceState(null, "", "#" + name(link));
  for (const near of [tokens[token + 1]?.links, links]) {
    const next = near && near[clamp(near === links ? window_ + 1 : window_, near.length)];
    if (next && "shown" in next.dataset) new Image().src = next.href;
  }
}
function step(by) {
  const last = window_ === tokens[token].links.length - 1;
  token = clamp(token + by, tokens.length);
  const size = tokens[token].links.length;
  window_ = last ? size - 1 : clamp(window_, size);
  show();
}
function slide(by) {
  window_ = clamp(window_ + by, tokens[token].links.length);
  show();
}
function go() {
  const wanted = location.hash.slice(1);
  tokens.forEach(({links}, index) => links.forEach((link, number) => {
    if (name(link) === wanted) { token = index; window_ = number; }
  }));
  show(true);
}
const keys = {
  ArrowLeft: event => event.shiftKey ? slide(-1) : step(-1),
  ArrowRight: event => event.shiftKey ? slide(1) : step(1),
  ArrowUp: () => slide(-1),
  ArrowDown: () => slide(1),
  Home: () => step(-tokens.length),
  End: () => step(tokens.length),
};
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
  event.preventDefault();
  keys[event.key](event);
});
byId("back").addEventListener("click", () => step(-1));
byId("on").addEventListener("click", () => step(1));
picture.addEventListener("click", () => picture.classList.toggle("full"));
document.querySelector("nav").addEventListener("click", event => {
  const link = event.target.closest("a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  token = tokens.findIndex(({item}) => item.contains(link));
  window_ = tokens[token].links.indexOf(link);
  show();
});
addEventListener("hashchange", go);
if (tokens.length) {
  document.querySelector("main").hidden = false;
  byId("keys").hidden = false;
  go();
}
"""
