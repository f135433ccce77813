// Builds the page's script and style into ../viewer/: `make viewer`. The same input gives the same bytes.

import { build } from "esbuild";

const shared = { bundle: true, minify: true, charset: "utf8", legalComments: "none", target: "es2022", logLevel: "warning" };
// Codecs that the format does not have: zarrita would load them when asked, and is never asked.
const absent = { name: "absent", setup(on) {
  on.onResolve({ filter: /^numcodecs\// }, ({ path }) => ({ path, namespace: "absent" }));
  on.onLoad({ filter: /./, namespace: "absent" }, () => ({ contents: "export default null" }));
} };

await build({ ...shared, entryPoints: ["main.js"], outfile: "../viewer/app.js", format: "iife", plugins: [absent] });
await build({ ...shared, entryPoints: ["viewer.css"], outfile: "../viewer/app.css" });
