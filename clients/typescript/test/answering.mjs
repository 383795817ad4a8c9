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

/** What a model says of itself, and of the samples that are asked about. */
export async function answersOf(model, asked, pixelsOf) {
  const told = {
    name: model.model,
    number: model.version,
    task: model.task,
    labels: model.labels,
    abstains: model.abstains,
  };
  const answers = [];
  for (const { topK, ...sample } of asked.samples ?? []) {
    answers.push(...(await model.predict(await given(sample, pixelsOf), topK ? { topK } : {})));
  }
  await model.release();
  return { ...told, answers };
}

async function pulledAnswers(ort, sources, asked, pixelsOf) {
  const base = sources.base && (await pull(sources.base, asked.options ?? {}));
  const pulled = await pull(sources.source, { ...asked.options, ...(base ? { base } : {}) });
  const model = await Model.load(ort, pulled);
  const off = pulled.probes && (await model.selfTest(pulled.probes));
  const { version, signed, serverKey } = pulled;
  return { version, signed, serverKey, off, ...(await answersOf(model, asked, pixelsOf)) };
}

/** Of `sources.source`, pulled on top of what `sources.base` has. `pixelsOf`: decodes a PNG, where that can be done. */
export async function answered(ort, sources, asked, pixelsOf) {
  try {
    return await pulledAnswers(ort, sources, asked, pixelsOf);
  } catch (error) {
    return { error: error.name, message: error.message };
  }
}
