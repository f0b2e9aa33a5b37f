// @langchain/openai: ChatOpenAI.
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool as asTool } from "@langchain/core/tools";
import { ChatOpenAI } from "@langchain/openai";
import { z } from "zod";
import { asScene, called, imageUrl, key, long, model, pdfBase64, pieces, question, right, run, v1 } from "./tour.mjs";

const chat = new ChatOpenAI({ model, apiKey: key, temperature: 0, maxTokens: 256, configuration: { baseURL: v1 } });
const shown = (text) => [
  new HumanMessage({ content: [{ type: "text", text }, { type: "image_url", image_url: { url: imageUrl } }] }),
];
const look = asTool(async ({ close }) => `a red circle, ${close}`, {
  name: "look", description: "Look at the image again.", schema: z.object({ close: z.boolean() }),
});
const Scene = z.object({ color: z.enum(["red", "green", "blue"]), count: z.number().int() });

async function* texts(stream) {
  for await (const chunk of stream) yield chunk.text;
}

await run({
  image: async () => right((await chat.invoke(shown(question))).text),
  stream: async () => pieces(texts(await chat.stream(shown(long)))),
  tool: async () => {
    const first = await chat.bindTools([look], { tool_choice: "required" }).invoke(shown(question));
    const call = first.tool_calls[0];
    const found = called(call.name, call.args);
    const result = new ToolMessage({ content: await look.invoke(call.args), tool_call_id: call.id });
    await chat.bindTools([look]).invoke([...shown(question), first, result]);
    return found;
  },
  structured: async () =>
    asScene(await chat.withStructuredOutput(Scene, { method: "jsonSchema" }).invoke(shown(question))),
  pdf: async () => {
    const file = { type: "file", mimeType: "application/pdf", data: pdfBase64, metadata: { filename: "circle.pdf" } };
    const message = new HumanMessage({ contentBlocks: [{ type: "text", text: question }, file] });
    return right((await chat.invoke([message])).text);
  },
});
