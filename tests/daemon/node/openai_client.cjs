// The public `openai` package for Node against a daemon: `node openai_client.cjs BASE_URL`.
// SEMIPD_NODE_MODULES: a folder whose node_modules holds the package. Ends with "ok" on standard output.

const assert = require("node:assert/strict");
const { createRequire } = require("node:module");
const path = require("node:path");

const load = createRequire(path.join(path.resolve(process.env.SEMIPD_NODE_MODULES), "from.cjs"));
const { OpenAI } = load("openai");
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });

const model = "bytes";
const messages = [{ role: "user", content: [{ type: "text", text: "hi" }] }];

async function completions() {
  const body = { model, prompt: ["x", "y"], n: 2, seed: 3, max_tokens: 7 };
  const whole = await client.completions.create(body);
  const wanted = whole.choices.map((choice) => choice.text);
  assert.deepEqual(whole.choices.map((choice) => choice.index), [0, 1, 2, 3]);
  assert.equal(new Set(wanted).size, 4);
  assert.equal(whole.usage.prompt_tokens, 4);
  const texts = ["", "", "", ""];
  let usage = null;
  const stream = await client.completions.create({ ...body, stream: true, stream_options: { include_usage: true } });
  for await (const chunk of stream) {
    for (const choice of chunk.choices) texts[choice.index] += choice.text;
    usage = chunk.usage ?? usage;
  }
  assert.deepEqual(texts, wanted);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  const again = await client.completions.create({ ...body, seed: 4 });
  assert.equal(again.choices[0].text, wanted[1]);
}

async function logprobs() {
  const answer = await client.completions.create({ model, prompt: [5, 6, 7], max_tokens: 1, logprobs: 2, echo: true });
  const shown = answer.choices[0].logprobs;
  assert.deepEqual(shown.token_logprobs, [null, -0.5, -0.5, -0.5]);
  assert.equal(shown.tokens.length, 4);
  const chat = await client.chat.completions.create({ model, messages, max_tokens: 3, logprobs: true, top_logprobs: 2 });
  assert.equal(chat.choices[0].logprobs.content[0].top_logprobs.length, 2);
}

async function chat() {
  const body = { model, messages, seed: 1, max_completion_tokens: 12 };
  const whole = await client.chat.completions.create({ ...body, n: 2 });
  assert.equal(whole.choices.length, 2);
  const text = whole.choices[0].message.content;
  let streamed = "";
  for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) {
    streamed += chunk.choices[0]?.delta?.content ?? "";
  }
  assert.equal(streamed, text);
  const stop = [...text].at(-1);
  const stopped = await client.chat.completions.create({ ...body, stop: [stop] });
  assert.equal(stopped.choices[0].finish_reason, "stop");
  assert.equal(stopped.choices[0].message.content, text.slice(0, text.indexOf(stop)));
}

async function aborts() {
  const body = { model, prompt: "x", max_tokens: 1000, stream: true, ignore_eos: true };
  const stream = await client.completions.create(body);
  for await (const chunk of stream) {
    if (chunk.choices[0].text) break;
  }
  const controller = new AbortController();
  const pending = client.completions.create({ ...body, stream: false }, { signal: controller.signal });
  setTimeout(() => controller.abort(), 20);
  await assert.rejects(pending, OpenAI.APIUserAbortError);
}

async function errors() {
  const ask = (body) => client.completions.create({ model, prompt: "a", ...body });
  await assert.rejects(ask({ model: "other" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
    return true;
  });
  await assert.rejects(ask({ suffix: "x" }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.deepEqual([error.code, error.param], ["unsupported_value", "suffix"]);
    return true;
  });
  await assert.rejects(ask({ max_tokens: -1 }), OpenAI.BadRequestError);
}

async function main() {
  const listed = [];
  for await (const card of client.models.list()) listed.push(card.id);
  assert.deepEqual(listed, [model]);
  for (const check of [completions, logprobs, chat, aborts, errors]) await check();
  console.log("ok");
}

main();
