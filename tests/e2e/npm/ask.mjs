// Asks a server the two Paris questions with the official client, plain and streamed; prints what came as JSON.
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [
  { role: "system", content: "You are a helpful assistant." },
  { role: "user", content: "What is the capital of France?" },
];
const chat = { model, messages, temperature: 0, max_tokens: 24 };
const completion = { model, prompt: "The capital of France is", temperature: 0, max_tokens: 6 };
const results = {};

const whole = await client.chat.completions.create(chat);
results.chat = whole.choices[0].message.content;
results.finishReason = whole.choices[0].finish_reason;

results.chatStreamed = "";
const stream = await client.chat.completions.create({ ...chat, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  results.chatStreamed += chunk.choices[0]?.delta?.content ?? "";
  results.usage = chunk.usage ?? results.usage;
}

results.completion = (await client.completions.create(completion)).choices[0].text;

results.completionStreamed = "";
for await (const chunk of await client.completions.create({ ...completion, stream: true })) {
  results.completionStreamed += chunk.choices[0].text;
}

results.models = [];
for await (const entry of client.models.list()) results.models.push(entry.id);

try {
  await client.chat.completions.create({ ...chat, model: "none" });
} catch (error) {
  results.error = { name: error.constructor.name, status: error.status, code: error.code };
}
console.log(JSON.stringify(results));
