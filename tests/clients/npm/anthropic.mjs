// @anthropic-ai/sdk.
import Anthropic from "@anthropic-ai/sdk";
import { asScene, base, called, imageBase64, key, long, look, model, pdfBase64, pieces, question, right, run, scene } from "./tour.mjs";

const client = new Anthropic({ baseURL: base, apiKey: key });
const source = { type: "base64", media_type: "image/png", data: imageBase64 };
const shown = (text) => [{ role: "user", content: [{ type: "image", source }, { type: "text", text }] }];
const tools = [{ name: "look", description: look.description, input_schema: look.parameters }];
const ask = (messages, more = {}) => client.messages.create({ model, messages, max_tokens: 256, ...more });
const text = (answer) => answer.content.filter((block) => block.type === "text").map((block) => block.text).join("");

async function* texts(stream) {
  for await (const event of stream) if (event.type === "content_block_delta") yield event.delta.text;
}

await run({
  image: async () => right(text(await ask(shown(question), { temperature: 0 }))),
  stream: async () => pieces(texts(client.messages.stream({ model, messages: shown(long), max_tokens: 256 }))),
  tool: async () => {
    const first = await ask(shown(question), { tools, tool_choice: { type: "any" } });
    const call = first.content.find((block) => block.type === "tool_use");
    const found = called(call.name, call.input);
    const result = { type: "tool_result", tool_use_id: call.id, content: "a red circle" };
    await ask(
      [...shown(question), { role: "assistant", content: first.content }, { role: "user", content: [result] }],
      { tools });
    return found;
  },
  structured: async () => {
    const output_config = { format: { type: "json_schema", schema: scene } };
    return asScene(text(await ask(shown(question), { output_config })));
  },
  pdf: async () => {
    const pdf = { type: "base64", media_type: "application/pdf", data: pdfBase64 };
    const content = [{ type: "document", source: pdf }, { type: "text", text: question }];
    return right(text(await ask([{ role: "user", content }], { temperature: 0 })));
  },
});
