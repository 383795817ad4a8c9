// Answers one question of tests/e2e/test_typescript_client.py: JSON in from stdin, JSON out. Nothing here is the
// client's own work: it only calls it.

import { readFileSync } from "node:fs";

import { Model, pull, urlSource } from "everlearn-client";
import { folderSource } from "everlearn-client/node";

const asked = JSON.parse(readFileSync(0, "utf-8"));
const bytes = (base64) => new Uint8Array(Buffer.from(base64, "base64"));

async function runtimeOf(name) {
  const ort = await import(name);
  if (name === "onnxruntime-web") {
    ort.env.wasm.numThreads = 1;
  }
  return ort;
}

async function answered() {
  const source = asked.url ? urlSource(asked.url) : folderSource(asked.folder);
  const pulled = await pull(source, asked.options ?? {});
  const model = await Model.load(await runtimeOf(asked.runtime), pulled.model);
  const told = {
    version: pulled.version,
    signed: pulled.signed,
    name: model.model,
    number: model.version,
    task: model.task,
    labels: model.labels,
    abstains: model.abstains,
  };
  const answers = [];
  for (const { image, values, shape, topK } of asked.samples ?? []) {
    const given = image
      ? { data: bytes(image.data), width: image.width, height: image.height }
      : { values: new Float32Array(bytes(values).buffer), shape };
    answers.push(...(await model.predict(given, topK ? { topK } : {})));
  }
  await model.release();
  return { ...told, answers };
}

try {
  console.log(JSON.stringify(await answered()));
} catch (error) {
  console.log(JSON.stringify({ error: error.name, message: error.message }));
}
