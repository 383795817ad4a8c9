// Applies differences for tests/e2e/test_typescript_delta.py: JSON in from stdin, JSON out.

import { readFileSync } from "node:fs";

import { applyDelta } from "everlearn-client";

const bytes = (base64) => new Uint8Array(Buffer.from(base64, "base64"));
const told = [];
for (const { base, delta, maxBytes } of JSON.parse(readFileSync(0, "utf-8"))) {
  try {
    told.push({ result: Buffer.from(await applyDelta(bytes(base), bytes(delta), maxBytes)).toString("base64") });
  } catch (error) {
    told.push({ error: error.name, message: error.message });
  }
}
console.log(JSON.stringify(told));
