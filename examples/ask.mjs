// Ask about an image with OpenAI's JavaScript client, streamed.
//   node ask.mjs scene.png "How many shapes are there?"
import { readFile } from "node:fs/promises";
import OpenAI from "openai";

const [image, question = "What do you see?"] = process.argv.slice(2);
if (!image) {
  console.error("usage: node ask.mjs IMAGE [QUESTION]");
  process.exit(2);
}
const url = /^https?:/.test(image)
  ? image
  : `data:image/${/\.jpe?g$/.test(image) ? "jpeg" : "png"};base64,${(await readFile(image)).toString("base64")}`;

const client = new OpenAI({
  baseURL: `${process.env.VORA_BASE_URL ?? "http://127.0.0.1:8000"}/v1`,
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
