// Claude Code, without a terminal.
import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { events, folder, packageOf, pdfPath, script, scripted, told } from "./agent.mjs";
import { asScene, base, imageBase64, imagePath, key, long, model, question, right, run, scene } from "./tour.mjs";

const program = join(packageOf(`@anthropic-ai/claude-code-${process.platform}-${process.arch}`), "claude");
const home = join(folder, "home");
mkdirSync(home);

// Its own instructions and tools take more than the context of the demo's model.
const SMALL = ["--system-prompt", "Answer in one word.", "--tools", ""];
const HOW = ["--print", "--model", model, "--verbose", "--output-format", "stream-json", "--include-partial-messages"];

async function ask(url, content, ...args) {
  const env = {
    HOME: home,
    ANTHROPIC_BASE_URL: url,
    ANTHROPIC_AUTH_TOKEN: key,
    CLAUDE_CODE_MAX_OUTPUT_TOKENS: "256",
    CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: "1",
  };
  const input = `${JSON.stringify({ type: "user", message: { role: "user", content } })}\n`;
  const until = (event) => event.type === "result";
  const found = await events(program, [...HOW, "--input-format", "stream-json", ...args], { env, input, until });
  const result = found.find(until);
  assert.ok(result && !result.is_error, JSON.stringify(result));
  const deltas = found.filter((event) => event.event?.delta?.type === "text_delta");
  return { said: result.result, result, pieces: deltas.length };
}

const source = { type: "base64", media_type: "image/png", data: imageBase64 };
const shown = (text) => [{ type: "image", source }, { type: "text", text }];
const tools = (...names) => ["--allowedTools", names.join(",")];

await run({
  image: async () => right((await ask(base, shown(question), ...SMALL)).said),
  stream: async () => {
    const { pieces } = await ask(base, shown(long), ...SMALL);
    assert.ok(pieces >= 2, `${pieces} pieces`);
    return `${pieces} pieces`;
  },
  tool: async () => {
    const command = ["Bash", { command: "echo vora-$((40 + 2))", description: "say it" }];
    const look = ["Read", { file_path: imagePath }];
    const { said, result } = await ask(scripted, script(command, look), ...tools("Bash", "Read"));
    told(said, 1);
    // The next turn sends all of it back.
    told((await ask(scripted, "And now?", "--resume", result.session_id)).said, 1);
    return said;
  },
  structured: async () => {
    const call = ["StructuredOutput", { color: "red", count: 1 }];
    const { result } = await ask(scripted, script(call), "--json-schema", JSON.stringify(scene));
    return asScene(result.structured_output);
  },
  pdf: async () => {
    const command = ["Bash", { command: "echo vora-$((40 + 2))", description: "say it" }];
    const read = ["Read", { file_path: pdfPath }];
    const { said } = await ask(scripted, script(command, read), ...tools("Bash", "Read"));
    told(said, 1);
    return said;
  },
});
