// Where the page starts: it finds its stores, in the page itself (a single file), beside it (lens view), or at ?store=URL.

import { Embedded, Http } from "./data/sources.js";
import { App } from "./ui/app.js";
import { h } from "./ui/dom.js";
import { Stores } from "./ui/stores.js";

function sources() {
  const inside = document.getElementById("attnlens-files");
  if (inside) return Object.entries(JSON.parse(inside.textContent)).map(([name, files]) => [name, new Embedded(files)]);
  const served = document.querySelector("meta[name=attnlens-stores]");
  if (served) return JSON.parse(served.content).map(({ name, url }) => [name, new Http(new URL(url, location.href), { batch: true })]);
  return new URLSearchParams(location.search).getAll("store").map((address) => {
    const url = new URL(address.replace(/\/*$/, "/"), location.href);
    if (url.protocol !== "http:" && url.protocol !== "https:") throw new Error(`A store has an http or https address, ${url.protocol}// cannot be read by a page.`);
    return [url.origin === location.origin ? url.pathname.replace(/^\/|\/$/g, "") : url.href.replace(/\/$/, ""), new Http(url)];
  });
}

function ask(message) {
  const field = h("input", { type: "url", name: "store", required: true, size: 60, placeholder: "https://example.org/run.zarr" });
  const form = h("form", { class: "ask" }, h("h1", {}, "attnlens"), message ? h("p", { role: "alert" }, message) : null,
    h("p", {}, "Which store? Its server has to allow this page to read it (CORS)."),
    h("label", { class: "field" }, h("span", {}, "address"), field), h("button", { type: "submit" }, "Open"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    location.search = new URLSearchParams({ store: field.value }).toString();
  });
  document.body.append(h("main", {}, form));
}

const root = h("div", { class: "app" });
try {
  const found = sources();
  if (found.length) {
    document.body.append(root);
    globalThis.attnlens = new App(root, new Stores(found));
  } else ask(null);
} catch (error) {
  ask(error.message);
}
