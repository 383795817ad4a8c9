/**
 * Versions on a disk of Node's: one that runs, one for the version before it or the next, as everlearn's device runtime
 * keeps them.
 *
 * a/ b/ (model.onnx, probes.npz, slot.json)    active (the name of the one that runs)
 *
 * A slot counts once `active` names it, and that is written last, by a rename: what was half downloaded is never run.
 */

import { mkdir, open, readdir, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";

import type { InferenceSession } from "onnxruntime-common";

import { sha256Of } from "./bytes.js";
import { DataLoss, Unavailable } from "./errors.js";
import type { Expected } from "./manifest.js";
import { Model, type Runtime } from "./model.js";
import { pull, type Pulled, type PullOptions } from "./pull.js";
import type { Begun, Source } from "./source.js";

type SlotName = "a" | "b";

interface Slot {
  version: string;
  signed: boolean;
  /** The key that it was pulled with, and the one that this has given way to: there is no way back. */
  given: string;
  serverKey: string;
  files: Record<string, Expected>;
}

const [MODEL, PROBES] = ["model.onnx", "probes.npz"];

/** One model's folder; one program at a time. */
export class ModelFolder {
  #active: SlotName | undefined;
  #pulled: Pulled | undefined;
  #given = "";

  private constructor(readonly folder: string) {}

  /** Makes it where it is missing. Where the version that ran has rotted, the one before it is taken, if it is whole. */
  static async open(folder: string): Promise<ModelFolder> {
    const opened = new ModelFolder(folder);
    for (const slot of ["a", "b"]) {
      await mkdir(join(folder, slot), { recursive: true });
    }
    const told = (await readOr(join(folder, "active"), "")).trim();
    for (const slot of told === "b" ? (["b", "a"] as const) : told === "a" ? (["a", "b"] as const) : []) {
      if (await opened.#intact(slot)) {
        opened.#active = slot;
        break;
      }
    }
    return opened;
  }

  /** `models/{model}/versions/{number}` that lies here; empty where none does. */
  get version(): string {
    return this.#pulled?.version ?? "";
  }

  /** What lies here, tried with its probes; offline, too. Raises DataLoss, Unavailable where nothing lies here. */
  async load(runtime: Runtime, options: InferenceSession.SessionOptions = {}): Promise<Model> {
    if (!this.#pulled) {
      throw new Unavailable(`no version lies in ${this.folder} yet; update it from a source once`);
    }
    return await Model.load(runtime, this.#pulled, options);
  }

  /**
   * Takes the version that the source has, if it is another: differences where it has them, checked, tried, and only
   * then exchanged; the version before it stays beside it. What broke off goes on, also of an earlier program.
   *
   * Returns the model that runs from now on, undefined where nothing is new. Raises DataLoss, Unavailable: then what
   * lay here is what lies here.
   */
  async update(
    source: Source,
    runtime: Runtime,
    options: Pick<PullOptions, "serverKey"> & { session?: InferenceSession.SessionOptions } = {},
  ): Promise<Model | undefined> {
    const { session = {}, serverKey: given = "" } = options;
    const serverKey = given === this.#given ? (this.#pulled?.serverKey ?? given) : given;
    const spare: SlotName = this.#active === "a" ? "b" : "a";
    const into = join(this.folder, spare);
    const begunAt = (fileName: string, sha256: string): Begun =>
      onDisk(join(into, `${fileName}.${sha256.slice(0, 16)}.part`));
    const base = this.#pulled ? { base: this.#pulled } : {};
    const pulled = await pull(source, { serverKey, ...base, begunAt });
    if (this.#pulled && (await sha256Of(pulled.model)) === (await sha256Of(this.#pulled.model))) {
      return undefined;
    }
    const model = await Model.load(runtime, pulled, session);
    await this.#write(spare, pulled, given);
    [this.#active, this.#pulled, this.#given] = [spare, pulled, given];
    return model;
  }

  async #write(slot: SlotName, pulled: Pulled, given: string): Promise<void> {
    const into = join(this.folder, slot);
    for (const name of await readdir(into)) {
      await rm(join(into, name)); // `active` does not name it
    }
    const files: Record<string, Expected> = {};
    const named: [string, Uint8Array | undefined][] = [
      [MODEL as string, pulled.model],
      [PROBES as string, pulled.probes],
    ];
    for (const [name, bytes] of named) {
      if (bytes) {
        await writeWhole(join(into, name), bytes);
        files[name] = { size_bytes: bytes.length, sha256: await sha256Of(bytes) };
      }
    }
    const { version, signed, serverKey } = pulled;
    const told: Slot = { version, signed, given, serverKey, files };
    await writeWhole(join(into, "slot.json"), new TextEncoder().encode(JSON.stringify(told)));
    await flush(into);
    await writeWhole(join(this.folder, "active.new"), new TextEncoder().encode(slot));
    await rename(join(this.folder, "active.new"), join(this.folder, "active"));
    await flush(this.folder);
  }

  /** Whether a slot is whole; then that is what lies here. */
  async #intact(slot: SlotName): Promise<boolean> {
    try {
      const told = JSON.parse(await readFile(join(this.folder, slot, "slot.json"), "utf-8")) as Slot;
      const found = new Map<string, Uint8Array>();
      for (const [name, expected] of Object.entries(told.files)) {
        const bytes = new Uint8Array(await readFile(join(this.folder, slot, name)));
        if ((await sha256Of(bytes)) !== expected.sha256) {
          throw new DataLoss(`${name} is not what it was`);
        }
        found.set(name, bytes);
      }
      const [model, probes] = [found.get(MODEL as string), found.get(PROBES as string)];
      if (model) {
        const { version, signed, given, serverKey } = told;
        [this.#pulled, this.#given] = [{ model, ...(probes ? { probes } : {}), version, signed, serverKey }, given];
      }
      return model !== undefined;
    } catch {
      return false; // whatever is wrong with it, it is not whole
    }
  }
}

/** A `.part` that the next program finds. */
function onDisk(path: string): Begun {
  return {
    bytes: async () => new Uint8Array(await readOr(path, Buffer.alloc(0))),
    append: async (piece) => {
      const file = await open(path, "a");
      await file.writeFile(piece);
      await file.close();
    },
    clear: () => rm(path, { force: true }),
  };
}

async function readOr<Otherwise extends string | Buffer>(path: string, otherwise: Otherwise): Promise<Otherwise> {
  try {
    return (await readFile(path, typeof otherwise === "string" ? "utf-8" : null)) as Otherwise;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") {
      return otherwise;
    }
    throw error;
  }
}

async function writeWhole(path: string, bytes: Uint8Array): Promise<void> {
  const file = await open(path, "w");
  try {
    await file.writeFile(bytes);
    await file.sync();
  } finally {
    await file.close();
  }
}

/** What was made and renamed in a folder is there after a power cut, where the system can promise it. */
async function flush(folder: string): Promise<void> {
  try {
    const handle = await open(folder, "r");
    await handle.sync().finally(() => handle.close());
  } catch (error) {
    if (!["EPERM", "EISDIR", "EINVAL"].includes((error as NodeJS.ErrnoException).code ?? "")) {
      throw error; // Windows opens and syncs no folders
    }
  }
}
