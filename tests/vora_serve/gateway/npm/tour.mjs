// A tour with the openai npm client: node tour.mjs BASE_URL MODEL IMAGE_DATA_URL. Exits 0 if all holds.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, model, image] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const ask = (content, more = {}) => ({
  model, max_tokens: 8, temperature: 0, messages: [{ role: "user", content }], ...more,
});
const question = [
  { type: "text", text: "what is it?" },
  { type: "image_url", image_url: { url: image } },
];

assert.deepEqual((await client.models.list()).data.map((card) => card.id), [model]);

const whole = await client.chat.completions.create(ask(question));
assert.ok(whole.usage.prompt_tokens_details.image_tokens > 0);

let text = "";
const stream = await client.chat.completions.create(
  ask(question, { stream: true, stream_options: { include_usage: true } }));
let usage = null;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);

const scored = await client.chat.completions.create(ask("hi", { logprobs: true, top_logprobs: 2 }));
assert.equal(scored.choices[0].logprobs.content[0].top_logprobs.length, 2);

const formed = await client.chat.completions.create(ask("hi", {
  max_tokens: 60,
  response_format: { type: "json_schema", json_schema: { name: "a", schema: {
    type: "object", properties: { yes: { type: "boolean" } }, required: ["yes"],
    additionalProperties: false } } },
}));
assert.equal(typeof JSON.parse(formed.choices[0].message.content).yes, "boolean");

const answer = await client.responses.create({ model, input: "hello", max_output_tokens: 4 });
assert.equal(answer.object, "response");

await assert.rejects(client.chat.completions.create(ask("x", { model: "no" })), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create(ask("x", { n: 99 })), OpenAI.BadRequestError);

const cut = new AbortController();
const long = await client.chat.completions.create(
  ask("x", { stream: true, max_tokens: 800, ignore_eos: true }), { signal: cut.signal });
for await (const _ of long) { cut.abort(); break; }
console.log("tour complete");
