// The Vercel AI SDK over one of its providers: node ai-sdk.mjs BASE MODEL IMAGE KEY PROVIDER.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { asScene, called, imageBytes, key, long, model as name, pdfBytes, pieces, question, right, run, v1 } from "./tour.mjs";

const providers = {
  openai: () => createOpenAI({ baseURL: v1, apiKey: key })(name),
  "openai-chat": () => createOpenAI({ baseURL: v1, apiKey: key }).chat(name),
  "openai-compatible": () =>
    createOpenAICompatible({ name: "vora", baseURL: v1, apiKey: key, supportsStructuredOutputs: true })(name),
  anthropic: () => createAnthropic({ baseURL: v1, apiKey: key })(name),
};
const model = providers[process.argv[6]]();
const shown = (text) => [
  { role: "user", content: [{ type: "text", text }, { type: "image", image: imageBytes, mediaType: "image/png" }] },
];
const ask = (text, more = {}) =>
  generateText({ model, messages: shown(text), temperature: 0, maxOutputTokens: 256, maxRetries: 0, ...more });

await run({
  image: async () => right((await ask(question)).text),
  stream: async () => {
    let failure;
    const result = streamText({
      model, messages: shown(long), maxOutputTokens: 256, maxRetries: 0,
      onError: ({ error }) => { failure = error; },
    });
    try {
      return await pieces(result.textStream);
    } catch (error) {
      throw failure ?? error;
    }
  },
  tool: async () => {
    const calls = [];
    const look = tool({
      description: "Look at the image again.",
      inputSchema: z.object({ close: z.boolean() }),
      execute: async (values) => { calls.push(values); return "a red circle"; },
    });
    // The second step sends the call and its result back: the loop that every agent runs.
    await ask(question, {
      tools: { look }, stopWhen: stepCountIs(2),
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "auto" }),
    });
    return called("look", calls[0]);
  },
  structured: async () => {
    const schema = z.object({ color: z.enum(["red", "green", "blue"]), count: z.number().int() });
    return asScene((await ask(question, { output: Output.object({ schema }) })).output);
  },
  pdf: async () => {
    const file = { type: "file", data: pdfBytes, mediaType: "application/pdf", filename: "circle.pdf" };
    const messages = [{ role: "user", content: [{ type: "text", text: question }, file] }];
    return right((await ask(question, { messages })).text);
  },
});
