import assert from "node:assert/strict";
import { test } from "node:test";

import { bestWindow, choose, debounceMs, isMultiLine, isSecret, lineRight, namesIn, restOf, withLineEnds } from "../text";

test("several lines are completed on empty lines and where a block begins", () => {
  for (const [before, after, expected] of [
    ["", "", true],
    ["x = 1\n    ", "\ny", true],
    ["def f():", "\n", true],
    ["call(a", ")", false],
    ["x = foo", "\n", false],
    ["if x:", " pass\n", false],
  ] as const) {
    assert.equal(isMultiLine(before, after, "auto"), expected, before);
  }
  assert.equal(isMultiLine("x", "y", "always"), true);
  assert.equal(isMultiLine("", "", "never"), false);
});

test("the rest of a completion is what was not typed yet", () => {
  const shown = { before: "return ", after: "\n", text: "width * height" };
  assert.equal(restOf(shown, "return wid", "\n"), "th * height");
  assert.equal(restOf(shown, "return wix", "\n"), undefined);
  assert.equal(restOf(shown, "return wid", ")\n"), undefined);
  assert.equal(restOf(shown, "return width * height", "\n"), undefined);
  assert.equal(restOf(shown, "retur", "\n"), undefined);
});

test("files that often hold secrets are never sent", () => {
  const secret = [".env", "a/.env.local", "prod.env", "k/server.pem", "id_rsa", "id_ed25519.pub", ".aws/config"];
  for (const path of [...secret, "x/.ssh/known_hosts", "secrets.yaml", "my-credentials.json", "t.tfstate"]) {
    assert.equal(isSecret(path), true, path);
  }
  for (const path of ["environment.py", "key.py", "src/secret_rules.py", "pem.rs", "docs/env.md", "ssh/client.py"]) {
    assert.equal(isSecret(path), false, path);
  }
});

test("the pieces that share most names fit the budget, the best one last", () => {
  const names = namesIn("total_radius = circle_area(radius)");
  const far = bestWindow("far.py", "nothing = 1\n", names);
  const near = bestWindow("near.py", `${"x = 1\n".repeat(100)}def circle_area(radius):\n    return 3\n`, names);
  assert.equal(far, undefined);
  assert.ok(near?.text.includes("circle_area"));
  assert.ok(near);
  const pieces = [near, { path: "b.py", text: "radius", score: 0.1 }, { path: "c.py", text: "y".repeat(9999), score: 0.9 }];
  assert.deepEqual(choose(pieces, 1000).map((piece) => piece.path), ["b.py", "near.py"]);
});

test("line ends follow the document", () => {
  assert.equal(withLineEnds("a\nb\r\nc", true), "a\r\nb\r\nc");
  assert.equal(withLineEnds("a\r\nb", false), "a\nb");
  assert.equal(lineRight(") # x\r\ny"), ") # x");
});

test("the pause before a request follows the server's speed", () => {
  assert.equal(debounceMs(0), 10);
  assert.equal(debounceMs(500), 100);
  assert.equal(debounceMs(60_000), 300);
});
