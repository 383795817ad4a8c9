/** An export on its way here: nothing is handed on that is not, byte for byte, what was exported. */

import { sha256Of } from "./bytes.js";
import { DataLoss, InvalidArgument, Unavailable } from "./errors.js";
import { KEYS, newest } from "./keys.js";
import { checkSignature, isSigned, MANIFEST, parsedManifest, SIGNATURE } from "./manifest.js";

/** Where an export lies. `read` gives a whole file, and raises Unavailable where it cannot. */
export interface Source {
  read(fileName: string): Promise<Uint8Array>;
}

export interface PullOptions {
  /**
   * 64 hexadecimal digits, as `everlearn info` shows them: only what this server has signed is taken, with this key or one
   * that this one gave way to.
   */
  serverKey?: string;
  /** Of model.onnx, where no manifest lies beside it. */
  sha256?: string;
}

/** A verified export. */
export interface Pulled {
  /** The ONNX file. */
  model: Uint8Array;
  /** `models/{model}/versions/{number}`; empty where no manifest lies beside it. */
  version: string;
  /** Whether the server with the key that was given has signed it. */
  signed: boolean;
  /** The key that signed it: to be given next time in place of an earlier one. Empty where none was given. */
  serverKey: string;
}

const MODEL = "model.onnx";

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
    await check(model, { sha256 });
    return { model, version: "", signed: false, serverKey: "" };
  }
  const told = await source.read(MANIFEST);
  const key = serverKey && (await newest(serverKey, await keysOf(source), isSigned));
  if (key) {
    await checkSignature(told, await source.read(SIGNATURE), key);
  }
  const { version, files } = parsedManifest(told);
  const expected = files[MODEL];
  if (expected === undefined || (sha256 && expected.sha256 !== sha256)) {
    throw new DataLoss(`${MANIFEST} is not of the file that is wanted`);
  }
  const model = await source.read(MODEL);
  await check(model, { sha256: expected.sha256, size: expected.size_bytes });
  return { model, version, signed: key !== "", serverKey: key };
}

/** Files below an address, through `fetch`: a folder on any web server. */
export function urlSource(address: string | URL, fetching: typeof fetch = fetch): Source {
  const base = String(address).replace(/\/*$/, "/");
  return {
    async read(fileName) {
      let response: Response;
      try {
        response = await fetching(new URL(fileName, base));
      } catch (error) {
        throw new Unavailable(`${fileName} cannot be reached: ${String(error)}`);
      }
      if (!response.ok) {
        throw new Unavailable(`${fileName} is not to be had (status ${response.status})`);
      }
      return new Uint8Array(await response.arrayBuffer());
    },
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

async function check(bytes: Uint8Array, expected: { sha256: string; size?: number }): Promise<void> {
  const digest = await sha256Of(bytes);
  if (digest !== expected.sha256 || (expected.size !== undefined && bytes.length !== expected.size)) {
    throw new DataLoss(`${MODEL} is not what was exported: its sha256 is ${digest}, not ${expected.sha256}`);
  }
}
