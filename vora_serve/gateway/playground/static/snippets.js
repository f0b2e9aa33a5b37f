// The same request for somebody's own code.

const NAMES = /[^\w.-]+/g;

function plain(name, type) {
  const clean = name.replace(NAMES, "_").replace(/^[-.]+/, "") || "image";
  return /\.\w+$/.test(clean) ? clean : `${clean}.${(type ?? "image/png").split("/")[1]}`;
}

/** Files that the snippets read: name by image id, no two alike. */
export function fileNames(images) {
  const names = new Map();
  const taken = new Set();
  for (const image of images) {
    if (image.source === "url") continue;
    let name = plain(image.name, image.type);
    while (taken.has(name)) name = `again-${name}`;
    taken.add(name);
    names.set(image.id, name);
  }
  return names;
}

class Verbatim { constructor(code) { this.code = code; } }

function print(value, words, indent = 0) {
  if (value instanceof Verbatim) return value.code;
  if (value === null || typeof value === "boolean") return words[String(value)];
  if (typeof value !== "object") return JSON.stringify(value);
  const pad = words.step.repeat(indent + 1), end = words.step.repeat(indent);
  const items = Array.isArray(value)
    ? value.map((item) => print(item, words, indent + 1))
    : Object.entries(value).map(([k, v]) => `${words.key(k)}: ${print(v, words, indent + 1)}`);
  const [open, close] = Array.isArray(value) ? ["[", "]"] : ["{", "}"];
  if (!items.length) return open + close;
  return `${open}\n${items.map((item) => pad + item).join(",\n")}${words.comma}\n${end}${close}`;
}

const JSON_WORDS = { true: "true", false: "false", null: "null", comma: "", step: "  ", key: JSON.stringify };
const PYTHON = { true: "True", false: "False", null: "None", comma: ",", step: "    ",
  key: JSON.stringify };
const SCRIPT = { ...JSON_WORDS, comma: ",",
  key: (k) => (/^[a-z_]\w*$/i.test(k) ? k : JSON.stringify(k)) };

function withImages(body, names, code) {
  const content = (part) => (part.image
    ? { type: "image_url", image_url: { url: names.has(part.image.id)
      ? code(names.get(part.image.id), part.image.type ?? "image/png") : part.image.url } }
    : part);
  return { ...body, messages: body.messages.map((message) => ({ ...message,
    content: Array.isArray(message.content) ? message.content.map(content) : message.content })) };
}

/**
 * @param {object} body the request, with `{image}` parts in place of image_url
 * @param {Array} images all images in it
 */
export function snippets(body, images, origin, keysNeeded) {
  const names = fileNames(images);
  return { curl: curl(body, names, origin, keysNeeded), python: python(body, names, origin),
    javascript: javascript(body, names, origin) };
}

function curl(body, names, origin, keysNeeded) {
  // In a here-document the shell still reads \, $ and `.
  const hidden = [];
  // Nothing that a prompt could hold; randomUUID is not there on plain http from elsewhere.
  const mark = [...crypto.getRandomValues(new Uint32Array(4))].map((part) => part.toString(36)).join("");
  const tree = withImages(body, names, (name, type) => {
    hidden.push(`"data:${type};base64,$(base64 < '${name}' | tr -d '\\n')"`);
    return new Verbatim(`${mark}:${hidden.length - 1};`);
  });
  const text = print({ ...tree, stream: true, stream_options: { include_usage: true } }, JSON_WORDS)
    .replace(/[\\$`]/g, (sign) => `\\${sign}`)
    .replace(new RegExp(`${mark}:(\\d+);`, "g"), (_, index) => hidden[Number(index)]);
  const key = keysNeeded ? `  -H "Authorization: Bearer $VORA_API_KEY" \\\n` : "";
  return `curl -sN ${origin}/v1/chat/completions \\\n  -H "Content-Type: application/json" \\\n${key}` +
    `  --data-binary @- <<EOF\n${text}\nEOF\n`;
}

function python(body, names, origin) {
  const tree = withImages(body, names, (name, type) =>
    new Verbatim(`image(${JSON.stringify(name)}, ${JSON.stringify(type)})`));
  const { model, messages, repetition_penalty: penalty, ...more } = tree;
  if (penalty !== undefined) more.extra_body = { repetition_penalty: penalty };
  const options = Object.entries(more).map(([k, v]) => `    ${k}=${print(v, PYTHON, 1)},\n`).join("");
  const reader = names.size ? `
def image(path, kind):
    with open(path, "rb") as file:
        return f"data:{kind};base64,{base64.b64encode(file.read()).decode()}"

` : "";
  return `${names.size ? "import base64\n" : ""}import os

from openai import OpenAI

client = OpenAI(
    base_url="${origin}/v1",
    api_key=os.environ.get("VORA_API_KEY", "unused"),
)
${reader}
stream = client.chat.completions.create(
    model=${JSON.stringify(model)},
    messages=${print(messages, PYTHON, 1)},
${options}    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
`;
}

function javascript(body, names, origin) {
  const tree = withImages(body, names, (name, type) =>
    new Verbatim(`await image(${JSON.stringify(name)}, ${JSON.stringify(type)})`));
  const reader = names.size ? `
const image = async (path, kind) =>
  \`data:\${kind};base64,\${(await readFile(path)).toString("base64")}\`;
` : "";
  return `${names.size ? 'import { readFile } from "node:fs/promises";\n' : ""}import OpenAI from "openai";

const client = new OpenAI({
  baseURL: "${origin}/v1",
  apiKey: process.env.VORA_API_KEY ?? "unused",
});
${reader}
const stream = await client.chat.completions.create(${print({ ...tree, stream: true }, SCRIPT)});
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
console.log();
`;
}
