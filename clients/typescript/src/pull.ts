/** An export on its way here: nothing is handed on that is not, byte for byte, what was exported. */

import { sha256Of } from "./bytes.js";
import { DataLoss, InvalidArgument, Unavailable } from "./errors.js";
import { KEYS, newest } from "./keys.js";
import {
  checkSignature,
  type Expected,
  isSigned,
  MANIFEST,
  type Manifest,
  parsedManifest,
  SIGNATURE,
} from "./manifest.js";
import { type Begun, inMemory, received, type Source } from "./source.js";
import { differencesAt, updated } from "./updates.js";

export interface PullOptions {
  /**
   * 64 hexadecimal digits, as `everlearn info` shows them: only what this server has signed is taken, with this key or one
   * that this one gave way to.
   */
  serverKey?: string;
  /** Of model.onnx, where no manifest lies beside it. */
  sha256?: string;
  /** What is here already, of an earlier version: where the source has the difference, only that is downloaded. */
  base?: Pick<Pulled, "model" | "probes">;
  /** Keeps what has arrived, for a pull that goes on later; in memory, where it is left out. */
  begunAt?: (fileName: string, sha256: string) => Begun;
}

/** A verified export. */
export interface Pulled {
  /** The ONNX file. */
  model: Uint8Array;
  /** Samples with the scores they must get, for `Model.load`; where the export has them. */
  probes?: Uint8Array;
  /** `models/{model}/versions/{number}`; empty where no manifest lies beside it. */
  version: string;
  /** Whether the server with the key that was given has signed it. */
  signed: boolean;
  /** The key that signed it: to be given next time in place of an earlier one. Empty where none was given. */
  serverKey: string;
}

const MODEL = "model.onnx";
const PROBES = "probes.npz";

/**
 * Reads an export that `everlearn export` wrote: model.onnx, and beside it model.manifest.json and model.manifest.sig.
 *
 * Raises InvalidArgument where nothing says what the file must be, DataLoss where it is not that, Unavailable.
 */
export async function pull(source: Source, options: PullOptions = {}): Promise<Pulled> {
  const { serverKey = "", sha256 = "" } = options;
  if (serverKey && !/^[0-9a-f]{64}$/.test(serverKey)) {
    throw new InvalidArgument("serverKey has 64 hexadecimal digits, as `everlearn info` shows them");
  }
  if (sha256 && !/^[0-9a-f]{64}$/.test(sha256)) {
    throw new InvalidArgument("sha256 has 64 hexadecimal digits, lower case");
  }
  if (sha256 && !serverKey) {
    const model = await source.read(MODEL);
    await check(MODEL, model, { sha256 });
    return { model, version: "", signed: false, serverKey: "" };
  }
  const told = await source.read(MANIFEST);
  const key = serverKey && (await newest(serverKey, await keysOf(source), isSigned));
  if (key) {
    await checkSignature(told, await source.read(SIGNATURE), key);
  }
  const manifest = parsedManifest(told);
  const expected = manifest.files[MODEL];
  if (expected === undefined || (sha256 && expected.sha256 !== sha256)) {
    throw new DataLoss(`${MANIFEST} is not of the file that is wanted`);
  }
  return { ...(await filesOf(source, manifest, expected, options)), signed: key !== "", serverKey: key };
}

async function filesOf(
  source: Source,
  { version, files }: Manifest,
  model: Expected,
  options: PullOptions,
): Promise<Omit<Pulled, "signed" | "serverKey">> {
  const { base, begunAt = inMemory } = options;
  const differences = base ? await differencesAt(source) : [];
  const fetched = async (fileName: string, expected: Expected, have?: Uint8Array): Promise<Uint8Array> => {
    if (have && (await sha256Of(have)) === expected.sha256) {
      return have;
    }
    const made = have && (await updated(source, fileName, expected, have, differences, begunAt));
    if (made) {
      return made;
    }
    const begun = begunAt(fileName, expected.sha256);
    const whole = await received(source, fileName, expected.size_bytes, begun);
    await begun.clear();
    await check(fileName, whole, { sha256: expected.sha256, size: expected.size_bytes });
    return whole;
  };
  const probes = files[PROBES];
  return {
    version,
    model: await fetched(MODEL, model, base?.model),
    ...(probes ? { probes: await fetched(PROBES, probes, base?.probes) } : {}),
  };
}

/** Where none are told, only the key that was given counts. */
async function keysOf(source: Source): Promise<Uint8Array> {
  try {
    return await source.read(KEYS);
  } catch (error) {
    if (error instanceof Unavailable) {
      return new TextEncoder().encode("[]");
    }
    throw error;
  }
}

async function check(name: string, bytes: Uint8Array, expected: { sha256: string; size?: number }): Promise<void> {
  const digest = await sha256Of(bytes);
  if (digest !== expected.sha256 || (expected.size !== undefined && bytes.length !== expected.size)) {
    throw new DataLoss(`${name} is not what was exported: its sha256 is ${digest}, not ${expected.sha256}`);
  }
}
