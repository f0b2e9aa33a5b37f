// What the tours of coding agents share: a home and a folder of their own, and the calls that the
// scripted engine behind process.env.VORA_SCRIPTED makes.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { imagePath } from "./tour.mjs";

export const scripted = process.env.VORA_SCRIPTED;
export const pdfPath = imagePath.replace(/\.png$/, ".pdf");
export const folder = mkdtempSync(join(tmpdir(), "agent-"));
const require = createRequire(import.meta.url);

export const packageOf = (name) => dirname(require.resolve(`${name}/package.json`));

// The prompt of a scripted engine: it makes these calls, then says what came of them.
export const script = (...calls) =>
  `Make these calls: ${JSON.stringify(calls.map(([name, values]) => ({ name, arguments: values })))}`;

// Run an agent that prints a line of JSON for each event; its events. It is given `input`, and
// `until` says which event lets its input end.
export async function events(program, args, { env = {}, input, until } = {}) {
  const child = spawn(program, args, { cwd: folder, env: { ...process.env, ...env } });
  const found = [];
  let rest = "";
  let errors = "";
  child.stderr.setEncoding("utf8").on("data", (text) => (errors += text));
  child.stdout.setEncoding("utf8").on("data", (text) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("{")) found.push(JSON.parse(line));
    if (input && found.some(until)) child.stdin.end();
  });
  if (input) child.stdin.write(input);
  else child.stdin.end();
  const code = await new Promise((done) => child.on("close", done));
  assert.equal(code, 0, `it ended with ${code}: ${errors.slice(-300)} ${JSON.stringify(found.slice(-2))}`);
  return found;
}

// The agent ran the command, and its output reached the model; with it as many images.
export function told(answer, images) {
  assert.match(answer, /vora-42/, `the answer is ${JSON.stringify(answer)}`);
  assert.match(answer, new RegExp(`Images: ${images}\\.`), `the answer is ${JSON.stringify(answer)}`);
}
