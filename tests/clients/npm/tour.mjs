// What the tours of all npm clients share: node CLIENT.mjs BASE MODEL IMAGE KEY prints a line of
// JSON for each check, {"check": NAME, "ok": true, "detail": TEXT}.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

export const [base, model, imagePath, key] = process.argv.slice(2);
export const v1 = `${base}/v1`;
export const imageBytes = readFileSync(imagePath);
export const imageBase64 = imageBytes.toString("base64");
export const imageUrl = `data:image/png;base64,${imageBase64}`;
export const pdfBytes = readFileSync(imagePath.replace(/\.png$/, ".pdf"));
export const pdfBase64 = pdfBytes.toString("base64");
export const pdfUrl = `data:application/pdf;base64,${pdfBase64}`;
export const question = "What color is the circle?";
export const long = "Describe the image.";

export const look = {
  name: "look",
  description: "Look at the image again.",
  parameters: {
    type: "object",
    properties: { close: { type: "boolean", description: "from close by" } },
    required: ["close"],
    additionalProperties: false,
  },
};
export const scene = {
  type: "object",
  properties: { color: { enum: ["red", "green", "blue"] }, count: { type: "integer" } },
  required: ["color", "count"],
  additionalProperties: false,
};

export function right(text) {
  assert.ok(text?.toLowerCase().includes("red"), `the answer is ${JSON.stringify(text)}`);
  return text.trim();
}

export async function pieces(stream) {
  const found = [];
  for await (const text of stream) if (text) found.push(text);
  assert.ok(found.length >= 2, `${found.length} pieces: ${JSON.stringify(found)}`);
  return `${found.length} pieces`;
}

export function called(name, values) {
  assert.equal(name, "look");
  const read = typeof values === "string" ? JSON.parse(values) : values;
  assert.equal(typeof read.close, "boolean", `called with ${JSON.stringify(values)}`);
  return `look(${JSON.stringify(read)})`;
}

export function asScene(value) {
  const read = typeof value === "string" ? JSON.parse(value) : value;
  assert.ok(["red", "green", "blue"].includes(read.color), JSON.stringify(value));
  assert.ok(Number.isInteger(read.count));
  return JSON.stringify(read);
}

export async function run(checks) {
  for (const [check, step] of Object.entries(checks)) {
    let told;
    try {
      told = { check, ok: true, detail: String(await step()) };
    } catch (error) {
      const text = `${error?.name ?? "Error"}: ${error?.message ?? error}`.replace(/\s+/g, " ");
      told = { check, ok: false, detail: text.slice(0, 400) };
    }
    console.log(JSON.stringify(told));
  }
}
