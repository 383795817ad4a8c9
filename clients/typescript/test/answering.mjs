// What tests ask of the client, in Node and in a page alike: JSON in, JSON out. Nothing here is the client's own work:
// it only calls it.

import { Model, pull } from "everlearn-client";

const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

async function given({ image, values, shape, png }, pixelsOf) {
  if (png) {
    return pixelsOf(bytes(png));
  }
  return image
    ? { data: bytes(image.data), width: image.width, height: image.height }
    : { values: new Float32Array(bytes(values).buffer), shape };
}

async function answers(ort, source, asked, pixelsOf) {
  const pulled = await pull(source, asked.options ?? {});
  const model = await Model.load(ort, pulled.model);
  const told = {
    version: pulled.version,
    signed: pulled.signed,
    serverKey: pulled.serverKey,
    name: model.model,
    number: model.version,
    task: model.task,
    labels: model.labels,
    abstains: model.abstains,
  };
  const found = [];
  for (const { topK, ...sample } of asked.samples ?? []) {
    found.push(...(await model.predict(await given(sample, pixelsOf), topK ? { topK } : {})));
  }
  await model.release();
  return { ...told, answers: found };
}

/** `pixelsOf`: decodes a PNG, where that can be done. */
export async function answered(ort, source, asked, pixelsOf) {
  try {
    return await answers(ort, source, asked, pixelsOf);
  } catch (error) {
    return { error: error.name, message: error.message };
  }
}
