// Answers one question of tests/e2e/test_typescript_client.py in Node: JSON in from stdin, JSON out.

import { readFileSync } from "node:fs";

import { urlSource } from "everlearn-client";
import { folderSource } from "everlearn-client/node";

import { answered } from "./answering.mjs";

const asked = JSON.parse(readFileSync(0, "utf-8"));
const ort = await import(asked.runtime);
if (asked.runtime === "onnxruntime-web") {
  ort.env.wasm.numThreads = 1;
}
const source = asked.url ? urlSource(asked.url) : folderSource(asked.folder);
console.log(JSON.stringify(await answered(ort, source, asked)));
