// openai for JavaScript: chat, stream, tools, structured output, responses, embeddings, errors.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { check, CITY, done, MODEL, QUESTION, URL } from "./seen.mjs";

const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: "none", maxRetries: 0 });
const ask = { model: MODEL, messages: [{ role: "user", content: QUESTION }], max_tokens: 24, temperature: 0 };
const tool = { type: "function", function: { name: "weather", description: "The weather in a city", parameters: CITY } };
let whole;

await check("models", async () => (await client.models.list()).data.map((model) => model.id));

await check("chat", async () => {
  whole = await client.chat.completions.create(ask);
  assert.ok(["stop", "length"].includes(whole.choices[0].finish_reason));
  assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);
  return whole.choices[0].message.content;
});

await check("stream says what the whole says", async () => {
  const stream = await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } });
  let text = "", usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  return usage.prompt_tokens_details;
});

await check("a required tool, gathered from a stream by the client", async () => {
  const runner = client.chat.completions.stream({ ...ask, max_tokens: 64, tools: [tool], tool_choice: "required" });
  const message = await runner.finalMessage();
  assert.equal(message.tool_calls[0].function.name, "weather");
  assert.deepEqual(Object.keys(JSON.parse(message.tool_calls[0].function.arguments)), ["city"]);
  return message.tool_calls[0].function;
});

await check("json_schema is obeyed", async () => {
  const json_schema = { name: "place", schema: CITY, strict: true };
  const answer = await client.chat.completions.create({
    ...ask, max_tokens: 64, response_format: { type: "json_schema", json_schema },
  });
  return Object.keys(JSON.parse(answer.choices[0].message.content)).map((key) => assert.equal(key, "city") ?? key);
});

await check("responses", async () => {
  const answer = await client.responses.create({ model: MODEL, input: QUESTION, max_output_tokens: 24, temperature: 0 });
  assert.ok(answer.output_text.length > 0);
  return answer.output_text;
});

await check("embeddings", async () => {
  const answer = await client.embeddings.create({ model: MODEL, input: ["cat", "dog"] });
  assert.equal(answer.data.length, 2);
  return answer.data[0].embedding.length;
});

await check("errors have their class", async () => {
  await assert.rejects(client.chat.completions.create({ ...ask, model: "nobody" }), OpenAI.NotFoundError);
  await assert.rejects(client.chat.completions.create({ ...ask, temperature: 9 }), OpenAI.BadRequestError);
});

done();
