/** One exported version, ready to answer. */

import type { InferenceSession, InferenceSessionFactory, Tensor, TensorConstructor } from "onnxruntime-common";

import { DataLoss, InvalidArgument } from "./errors.js";
import { metadataOf } from "./metadata.js";
import type { NumpyArray } from "./npz.js";
import type { Pulled } from "./pull.js";
import { type Found, selfTest } from "./self_test.js";

/** onnxruntime-node or onnxruntime-web, whichever the caller has: `import * as ort from "onnxruntime-node"`. */
export interface Runtime {
  InferenceSession: InferenceSessionFactory;
  Tensor: TensorConstructor;
}

/** Pixels of one image, row by row, red, green, blue; or with an alpha channel, as a canvas gives them (ImageData). */
export interface Image {
  data: Uint8Array | Uint8ClampedArray;
  width: number;
  height: number;
}

/** Plain numbers, in the unit of the data that the model learned from; `shape` begins with the number of samples. */
export interface Tensors {
  values: Float32Array;
  shape: number[];
}

/** From the tokenizer.json beside the export; shorter rows filled up with -1. */
export interface TokenIds {
  ids: BigInt64Array;
  shape: [number, number];
}

export interface ScoredLabel {
  label: string;
  index: number;
  score: number;
}

/** Of one sample. */
export interface Answer {
  /** Of one label a sample; null where the model abstains, or its task has none. */
  label: string | null;
  /** Best first: as many as were asked for, or of several labels a sample those that it has. A guess where it abstains. */
  top: ScoredLabel[];
  /** How unlike all learned classes the sample is; beyond 1 the model abstains. Where it declares `unknown: abstain`. */
  novelty?: number;
  /** Whether the model knows nothing like it. */
  abstained: boolean;
  /** Of a regression, by output. */
  values?: Record<string, number>;
}

export interface PredictOptions {
  /** Best classes to tell; 1 by default. Of several labels, all that the sample has. */
  topK?: number;
}

/** A version that answers, here and offline. */
export class Model {
  /** Its name. */
  readonly model: string;
  readonly version: number;
  readonly task: "classification" | "multilabel" | "regression";
  /** Or outputs, of a regression. */
  readonly labels: readonly string[];
  /** What it takes, for people. */
  readonly input: string;
  readonly #session: InferenceSession;
  readonly #runtime: Runtime;

  private constructor(runtime: Runtime, session: InferenceSession, told: Map<string, string>) {
    this.#runtime = runtime;
    this.#session = session;
    this.model = told.get("model") ?? "";
    this.version = Number(told.get("version"));
    this.task = told.get("task") as Model["task"];
    this.labels = JSON.parse(told.get(this.task === "regression" ? "outputs" : "labels") ?? "[]") as string[];
    this.input = told.get("input") ?? "";
  }

  /**
   * What `pull` gave is tried with its probes first; an ONNX file alone is not. Raises DataLoss for bytes that are no
   * export, that ONNX Runtime does not take, or that give other scores here. `options`: ONNX Runtime's.
   */
  static async load(
    runtime: Runtime,
    exported: Uint8Array | Pick<Pulled, "model" | "probes">,
    options: InferenceSession.SessionOptions = {},
  ): Promise<Model> {
    const { model: onnx, probes } = exported instanceof Uint8Array ? { model: exported } : exported;
    const told = metadataOf(onnx);
    let session: InferenceSession;
    try {
      session = await runtime.InferenceSession.create(onnx, options);
    } catch (error) {
      throw new DataLoss(`ONNX Runtime does not take this file: ${String(error)}`);
    }
    const model = new Model(runtime, session, told);
    try {
      await (probes && model.selfTest(probes));
    } catch (error) {
      await model.release();
      throw error;
    }
    return model;
  }

  /** Runs the probes beside an export; returns the largest difference, as everlearn measures it. Raises DataLoss. */
  async selfTest(probes: Uint8Array): Promise<number> {
    return await selfTest(probes, (sample) => this.#tried(sample), this.abstains);
  }

  /** Whether it abstains from what is unlike all that it has learned. */
  get abstains(): boolean {
    return this.#session.outputNames.includes("novelty");
  }

  /**
   * One answer a sample; images of one call may differ in size. Raises InvalidArgument for what the model does not take.
   */
  async predict(samples: Image | Image[] | Tensors | TokenIds, options: PredictOptions = {}): Promise<Answer[]> {
    const answers: Answer[] = [];
    for (const given of this.#given(samples)) {
      answers.push(...(await this.#answers(given, options.topK ?? 0)));
    }
    return answers;
  }

  /** Frees what ONNX Runtime holds. */
  async release(): Promise<void> {
    await this.#session.release();
  }

  #given(samples: Image | Image[] | Tensors | TokenIds): Tensor[] {
    const name = this.#session.inputNames[0];
    if (name === "image" && (Array.isArray(samples) || "data" in samples)) {
      return (Array.isArray(samples) ? samples : [samples]).map((image) => this.#pixels(image));
    }
    if (name === "tensor" && !Array.isArray(samples) && "values" in samples) {
      return [new this.#runtime.Tensor("float32", samples.values, samples.shape)];
    }
    if (name === "input_ids" && !Array.isArray(samples) && "ids" in samples) {
      return [new this.#runtime.Tensor("int64", samples.ids, samples.shape)];
    }
    throw new InvalidArgument(`the model takes ${this.input}`);
  }

  #pixels({ data, width, height }: Image): Tensor {
    const channels = data.length / (width * height);
    if (channels !== 3 && channels !== 4) {
      throw new InvalidArgument(`${data.length} bytes are no image of ${width} x ${height} with 3 or 4 channels`);
    }
    let rgb = new Uint8Array(data.buffer, data.byteOffset, data.length);
    if (channels === 4) {
      rgb = new Uint8Array(3 * width * height);
      for (let pixel = 0; pixel < width * height; pixel++) {
        for (let channel = 0; channel < 3; channel++) {
          rgb[3 * pixel + channel] = data[4 * pixel + channel] ?? 0;
        }
      }
    }
    return new this.#runtime.Tensor("uint8", rgb, [1, height, width, 3]);
  }

  async #tried({ values, shape }: NumpyArray): Promise<Found> {
    if (values instanceof Float64Array) {
      throw new DataLoss("a probe has numbers of 64 bits, which no model takes");
    }
    const kind = values instanceof Uint8Array ? "uint8" : values instanceof BigInt64Array ? "int64" : "float32";
    try {
      const { rows, novelty } = await this.#run(new this.#runtime.Tensor(kind, values as Uint8Array, shape));
      return { scores: rows, novelty: novelty?.[0] };
    } catch (error) {
      throw error instanceof InvalidArgument ? new DataLoss(`a probe does not fit: ${error.message}`) : error;
    }
  }

  async #answers(given: Tensor, topK: number): Promise<Answer[]> {
    const { rows, novelty } = await this.#run(given);
    const columns = this.labels.length;
    return Array.from({ length: rows.length / columns }, (_, row) =>
      this.#answer(rows.subarray(row * columns, (row + 1) * columns), novelty?.[row], topK),
    );
  }

  async #run(given: Tensor): Promise<{ rows: Float32Array; novelty: Float32Array | undefined }> {
    const scores = this.task === "regression" ? "values" : "scores";
    const wanted = this.abstains ? [scores, "novelty"] : [scores];
    let found: InferenceSession.OnnxValueMapType;
    try {
      found = await this.#session.run({ [this.#session.inputNames[0] as string]: given }, wanted);
    } catch (error) {
      throw new InvalidArgument(`the model does not take [${given.dims.join(", ")}]: ${String(error)}`);
    }
    return { rows: numbersOf(found[scores]), novelty: this.abstains ? numbersOf(found["novelty"]) : undefined };
  }

  #answer(scores: Float32Array, novelty: number | undefined, topK: number): Answer {
    if (this.task === "regression") {
      const values = Object.fromEntries(this.labels.map((output, index) => [output, scores[index] ?? Number.NaN]));
      return { label: null, top: [], abstained: false, values };
    }
    const ranked = this.labels
      .map((label, index) => ({ label, index, score: scores[index] ?? Number.NaN }))
      .sort((one, other) => other.score - one.score); // stable: of equal scores the first wins, as in the file
    const present = this.task === "multilabel" && topK === 0;
    const top = present ? ranked.filter(({ score }) => score >= 0.5) : ranked.slice(0, Math.max(1, topK));
    const abstained = novelty !== undefined && !(novelty <= 1); // what is no number is unknown
    const label = this.task === "classification" && !abstained ? (top[0]?.label ?? null) : null;
    return { label, top, abstained, ...(novelty === undefined ? {} : { novelty }) };
  }
}

function numbersOf(value: InferenceSession.OnnxValueMapType[string] | undefined): Float32Array {
  if (value === undefined || !(value.data instanceof Float32Array)) {
    throw new DataLoss("the file gives no numbers where an export does");
  }
  return value.data;
}
