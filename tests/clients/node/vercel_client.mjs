// Vercel AI SDK: text, stream, objects, tools through openai-compatible, and the responses API through its openai provider.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";
import { check, done, MODEL, QUESTION, URL } from "./seen.mjs";

const compatible = createOpenAICompatible({
  name: "radixlm", baseURL: `${URL}/v1`, apiKey: "none", includeUsage: true, supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL: `${URL}/v1`, apiKey: "none" });
const ask = { model: compatible(MODEL), prompt: QUESTION, maxOutputTokens: 24, temperature: 0, maxRetries: 0 };
const place = z.object({ city: z.string().max(12) });
let whole;

await check("generateText", async () => {
  whole = await generateText(ask);
  assert.ok(["stop", "length"].includes(whole.finishReason));
  assert.ok(whole.usage.outputTokens > 0);
  return whole.text;
});

await check("streamText says what the whole says", async () => {
  const stream = streamText(ask);
  let text = "";
  for await (const piece of stream.textStream) text += piece;
  assert.equal(text, whole.text);
  return (await stream.usage).outputTokens;
});

await check("generateObject obeys its schema", async () => {
  const { object } = await generateObject({ ...ask, maxOutputTokens: 64, schema: place });
  place.parse(object);
  return object;
});

await check("a required tool is called with arguments of its schema", async () => {
  const weather = tool({ description: "The weather in a city", inputSchema: place });
  const { toolCalls } = await generateText({ ...ask, maxOutputTokens: 64, tools: { weather }, toolChoice: "required" });
  assert.equal(toolCalls[0].toolName, "weather");
  place.parse(toolCalls[0].input);
  return toolCalls[0].input;
});

await check("the turn after a tool's result", async () => {
  const weather = tool({ description: "The weather in a city", inputSchema: place });
  const call = { toolCallId: "c1", toolName: "weather" };
  const messages = [
    { role: "user", content: QUESTION },
    { role: "assistant", content: [{ type: "tool-call", ...call, input: { city: "Paris" } }] },
    { role: "tool", content: [{ type: "tool-result", ...call, output: { type: "text", value: "sunny" } }] },
  ];
  const { prompt, ...rest } = ask;
  return (await generateText({ ...rest, messages, tools: { weather } })).finishReason;
});

await check("the openai provider speaks the responses API", async () => {
  const answer = await generateText({ ...ask, model: openai(MODEL) });
  assert.ok(answer.text.length > 0);
  return answer.text;
});

await check("embedMany", async () => {
  const model = compatible.textEmbeddingModel(MODEL);
  const { embeddings } = await embedMany({ model, values: ["cat", "dog"], maxRetries: 0 });
  assert.equal(embeddings.length, 2);
  return embeddings[0].length;
});

done();
