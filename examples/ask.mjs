// Ask about an image with OpenAI's JavaScript client, streamed.
//   node ask.mjs scene.png "How many shapes are there?"
import { readFile } from "node:fs/promises";

const base = process.env.VORA_BASE_URL ?? "http://127.0.0.1:8000";
process.on("uncaughtException", (error) => {
  console.error({
    APIConnectionError: `No server answers at ${base}. Start one with: make demo`,
    Error: error.code === "ERR_MODULE_NOT_FOUND" ? "The package openai is not installed. Run: npm install openai" : error.message,
  }[error.constructor.name] ?? error.message);
  process.exit(1);
});
const { default: OpenAI } = await import("openai");
const [image, question = "What do you see?"] = process.argv.slice(2);
if (!image) {
  console.error("usage: node ask.mjs IMAGE [QUESTION]");
  process.exit(2);
}
const url = /^https?:/.test(image)
  ? image
  : `data:image/${/\.jpe?g$/.test(image) ? "jpeg" : "png"};base64,${(await readFile(image)).toString("base64")}`;

const client = new OpenAI({
  baseURL: `${base}/v1`,
  apiKey: process.env.VORA_API_KEY ?? "unused",
});
const stream = await client.chat.completions.create({
  model: process.env.VORA_MODEL ?? "vora-demo",
  temperature: 0,
  stream: true,
  stream_options: { include_usage: true },
  messages: [{ role: "user", content: [
    { type: "image_url", image_url: { url } },
    { type: "text", text: question },
  ] }],
});
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
  if (chunk.usage) {
    const { prompt_tokens: prompt, prompt_tokens_details: details } = chunk.usage;
    console.log(`\n[${prompt} tokens in, ${details.image_tokens} of images]`);
  }
}
