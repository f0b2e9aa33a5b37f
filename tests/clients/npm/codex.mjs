// The Codex CLI, without a terminal.
import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { events, folder, packageOf, script, scripted, told } from "./agent.mjs";
import { base, imagePath, key, long, model, question, run } from "./tour.mjs";

const program = join(packageOf("@openai/codex"), "bin", "codex.js");

function home(url) {
  const path = join(folder, url === base ? "real" : "scripted");
  mkdirSync(path, { recursive: true });
  const config = `
model = "${model}"
model_provider = "vora"
[model_providers.vora]
name = "vora-serve"
base_url = "${url}/v1"
env_key = "VORA_KEY"
wire_api = "responses"
`;
  writeFileSync(join(path, "config.toml"), config);
  return path;
}

// The sandbox is left out: the commands are the script's own.
const HOW = ["--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"];

// What it always sends is twenty times what the demo's model has ever read at once.
const OFF = ["goals", "image_generation", "multi_agent", "shell_tool", "unified_exec"];
const small = () => {
  const instructions = join(folder, "small.md");
  writeFileSync(instructions, "Answer in one word.");
  const settings = [
    `model_instructions_file="${instructions}"`,
    'web_search="disabled"',
    "skills.include_instructions=false",
    ...["environment_context", "permissions_instructions", "apps_instructions"].map((name) => `include_${name}=false`),
    ...OFF.map((name) => `features.${name}=false`),
  ];
  return settings.flatMap((setting) => ["-c", setting]);
};

async function exec(url, ...args) {
  const env = { CODEX_HOME: home(url), VORA_KEY: key };
  const found = await events(process.execPath, [program, "exec", ...HOW, ...args], { env });
  const last = found.at(-1);
  assert.equal(last.type, "turn.completed", JSON.stringify(found.slice(-2)));
  assert.ok(last.usage.input_tokens > 0 && last.usage.output_tokens > 0, JSON.stringify(last));
  const items = found.filter((event) => event.type === "item.completed").map((event) => event.item);
  const said = items.filter((item) => item.type === "agent_message").map((item) => item.text);
  assert.equal(said.length, 1, JSON.stringify(items));
  return { said: said[0], items };
}

await run({
  image: async () => (await exec(base, ...small(), "--image", imagePath, "--", question)).said.slice(0, 60),
  // What it prints comes from the stream's events.
  stream: async () => (await exec(base, ...small(), "--", long)).said.slice(0, 60),
  tool: async () => {
    const command = ["exec_command", { cmd: "echo vora-$((40 + 2))" }];
    const look = ["view_image", { path: imagePath }];
    const agents = ["multi_agent_v1__close_agent", { target: "nobody" }];
    const { said, items } = await exec(scripted, "--", script(command, look, agents));
    const [ran] = items.filter((item) => item.type === "command_execution");
    assert.equal(ran.exit_code, 0);
    told(said, 1);
    assert.doesNotMatch(said, /unsupported/i);
    // The next turn sends all of it back: thoughts, calls, results.
    told((await exec(scripted, "resume", "--last", "And now?")).said, 1);
    return ran.command;
  },
});
