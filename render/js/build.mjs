// Builds the page's script and style into ../viewer/: `make viewer`. The same input gives the same bytes.

import { join } from "node:path";
import { build } from "esbuild";

const shared = { bundle: true, minify: true, charset: "ascii", legalComments: "none", target: "es2022", logLevel: "warning" };
// Codecs that the format does not have: zarrita would load them when asked, and is never asked.
const absent = { name: "absent", setup(on) {
  on.onResolve({ filter: /^numcodecs\// }, ({ path }) => ({ path, namespace: "absent" }));
  on.onLoad({ filter: /./, namespace: "absent" }, () => ({ contents: "export default null" }));
} };

// A worker travels inside the script, as text: one file less to fetch, and a single file stays single.
const worker = { name: "worker", setup(on) {
  on.onResolve({ filter: /^worker:/ }, ({ path, resolveDir }) => ({ path: join(resolveDir, path.slice(7)), namespace: "worker" }));
  on.onLoad({ filter: /./, namespace: "worker" }, async ({ path }) => {
    const built = await build({ ...shared, entryPoints: [path], format: "iife", write: false });
    return { contents: built.outputFiles[0].text, loader: "text" };
  });
} };

await build({ ...shared, entryPoints: ["main.js"], outfile: "../viewer/app.js", format: "iife", plugins: [absent, worker] });
await build({ ...shared, entryPoints: ["viewer.css"], outfile: "../viewer/app.css" });
