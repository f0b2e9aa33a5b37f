// Parses the page's modules and links their imports, as a browser does before it runs any of them.
//   node --experimental-vm-modules link.mjs MODULE...
import { readFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { SourceTextModule } from "node:vm";

const known = new Map();

function load(path) {
  if (!known.has(path)) known.set(path, new SourceTextModule(readFileSync(path, "utf8"), { identifier: path }));
  return known.get(path);
}

for (const path of process.argv.slice(2)) {
  const module = load(resolve(path));
  if (module.status === "unlinked") {
    await module.link((name, from) => load(resolve(dirname(from.identifier), name)));
  }
}
