// openai for node: chat completions.
import OpenAI from "openai";
import { asScene, called, imageUrl, key, long, look, model, pdfUrl, pieces, question, right, run, scene, v1 } from "./tour.mjs";

const client = new OpenAI({ baseURL: v1, apiKey: key });
const shown = (text) => [
  { role: "user", content: [{ type: "text", text }, { type: "image_url", image_url: { url: imageUrl } }] },
];
const ask = (messages, more = {}) =>
  client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 256, ...more });

async function* texts(stream) {
  for await (const chunk of stream) yield chunk.choices[0]?.delta?.content;
}

await run({
  image: async () => right((await ask(shown(question))).choices[0].message.content),
  stream: async () => pieces(texts(await ask(shown(long), { stream: true }))),
  tool: async () => {
    const tools = [{ type: "function", function: look }];
    const { message } = (await ask(shown(question), { tools, tool_choice: "required" })).choices[0];
    const call = message.tool_calls[0];
    const found = called(call.function.name, call.function.arguments);
    const result = { role: "tool", tool_call_id: call.id, content: "a red circle" };
    await ask([...shown(question), message, result], { tools });
    return found;
  },
  structured: async () => {
    const json_schema = { name: "scene", schema: scene, strict: true };
    const answer = await client.chat.completions.parse({
      model, messages: shown(question), response_format: { type: "json_schema", json_schema },
    });
    return asScene(answer.choices[0].message.parsed ?? answer.choices[0].message.content);
  },
  pdf: async () => {
    const file = { type: "file", file: { filename: "circle.pdf", file_data: pdfUrl } };
    const content = [{ type: "text", text: question }, file];
    return right((await ask([{ role: "user", content }])).choices[0].message.content);
  },
});
