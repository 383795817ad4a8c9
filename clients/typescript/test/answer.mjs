// Answers one question of tests/e2e/test_typescript_*.py in Node: JSON in from stdin, JSON out.

import { readFileSync } from "node:fs";

import { urlSource } from "everlearn-client";
import { folderSource, ModelFolder } from "everlearn-client/node";

import { answered, answersOf } from "./answering.mjs";

const asked = JSON.parse(readFileSync(0, "utf-8"));
const ort = await import(asked.runtime);
if (asked.runtime === "onnxruntime-web") {
  ort.env.wasm.numThreads = 1;
}
const sourceAt = (place) => (/^https?:/.test(place) ? urlSource(place) : folderSource(place));

/** Of a folder that is kept: brought up to date where a place to pull from is told, and asked whatever came of that. */
async function kept() {
  const folder = await ModelFolder.open(asked.kept);
  const found = { before: folder.version };
  if (asked.url || asked.folder) {
    try {
      const model = await folder.update(sourceAt(asked.url ?? asked.folder), ort, asked.options ?? {});
      found.updated = model !== undefined;
      await model?.release();
    } catch (error) {
      [found.error, found.message] = [error.name, error.message];
    }
  }
  return { ...found, version: folder.version, ...(await answersOf(await folder.load(ort), asked)) };
}

const told = asked.kept
  ? await kept()
  : await answered(
      ort,
      { source: sourceAt(asked.url ?? asked.folder), ...(asked.base ? { base: sourceAt(asked.base) } : {}) },
      asked,
    );
console.log(JSON.stringify(told));
