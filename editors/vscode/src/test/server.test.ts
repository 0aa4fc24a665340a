import assert from "node:assert/strict";
import { createServer } from "node:http";
import { AddressInfo } from "node:net";
import { test } from "node:test";

import { Client, ServerError } from "../client";
import { SharedServer } from "../server";

const BODY = { prompt: "", suffix: "", path: "", extras: [], max_tokens: 1, stop_at: "line", session: "" } as const;

test("a command that does not exist is one message that says what to install", async () => {
  const launch = { command: "no-such-starcoder", model: "", quantize: "", adapter: "" };
  const server = new SharedServer(launch, () => undefined);
  await assert.rejects(server.url(), /pip install 'starcoder-kit\[serve\]'/);
  server.dispose();
});

test("a command that ends is an error with its exit code", async () => {
  const server = new SharedServer({ command: "false", model: "", quantize: "", adapter: "" }, () => undefined);
  await assert.rejects(server.url(), /exit code 1/);
  server.dispose();
});

test("superseded requests are no errors, refusals carry the server's words", async () => {
  const answers = [
    [200, { choices: [{ text: "x" }] }],
    [409, { error: { message: "superseded" } }],
    [401, { error: { message: "no key" } }],
  ] as const;
  let number = 0;
  const http = createServer((_request, response) => {
    const [status, body] = answers[number++] ?? [500, {}];
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
  }).listen(0, "127.0.0.1");
  await new Promise((resolve) => http.once("listening", resolve));
  const client = new Client(`http://127.0.0.1:${(http.address() as AddressInfo).port}/`, "key");
  const ask = () => client.complete({ ...BODY, extras: [] }, AbortSignal.timeout(5000));
  assert.equal(await ask(), "x");
  assert.equal(await ask(), undefined);
  await assert.rejects(ask(), (error) => error instanceof ServerError && error.message === "no key");
  http.close();
  http.closeAllConnections();
});
