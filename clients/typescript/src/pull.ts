/** An export on its way here: nothing is handed on that is not, byte for byte, what was exported. */

import { DataLoss, InvalidArgument, Unavailable } from "./errors.js";

/** Where an export lies. `read` gives a whole file, and raises Unavailable where it cannot. */
export interface Source {
  read(fileName: string): Promise<Uint8Array>;
}

export interface PullOptions {
  /** 64 hexadecimal digits, as `everlearn info` shows them: only what this server has signed is taken. */
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
}

const KIND = "everlearn export manifest 1";
const MODEL = "model.onnx";
const MANIFEST = "model.manifest.json";
const SIGNATURE = "model.manifest.sig";

interface Manifest {
  kind: string;
  version: string;
  files: Record<string, { size_bytes: number; sha256: string }>;
}

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
    return { model, version: "", signed: false };
  }
  const told = await source.read(MANIFEST);
  if (serverKey) {
    await checkSignature(told, await source.read(SIGNATURE), serverKey);
  }
  const { version, files } = parsed(told);
  const expected = files[MODEL];
  if (expected === undefined || (sha256 && expected.sha256 !== sha256)) {
    throw new DataLoss(`${MANIFEST} is not of the file that is wanted`);
  }
  const model = await source.read(MODEL);
  await check(model, { sha256: expected.sha256, size: expected.size_bytes });
  return { model, version, signed: serverKey !== "" };
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

function parsed(bytes: Uint8Array): Manifest {
  let told: Partial<Manifest> | null;
  try {
    told = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes)) as Partial<Manifest> | null;
  } catch {
    throw new DataLoss(`${MANIFEST} is no JSON`);
  }
  if (told?.kind !== KIND || typeof told.version !== "string" || typeof told.files !== "object") {
    throw new DataLoss(`${MANIFEST} is no manifest of an export`);
  }
  return told as Manifest;
}

async function check(bytes: Uint8Array, expected: { sha256: string; size?: number }): Promise<void> {
  const digest = hexOf(new Uint8Array(await crypto.subtle.digest("SHA-256", plain(bytes))));
  if (digest !== expected.sha256 || (expected.size !== undefined && bytes.length !== expected.size)) {
    throw new DataLoss(`${MODEL} is not what was exported: its sha256 is ${digest}, not ${expected.sha256}`);
  }
}

async function checkSignature(message: Uint8Array, signature: Uint8Array, serverKey: string): Promise<void> {
  let isSigned: boolean;
  try {
    const key = await crypto.subtle.importKey("raw", plain(bytesOf(serverKey)), "Ed25519", false, ["verify"]);
    isSigned = await crypto.subtle.verify("Ed25519", key, plain(signature), plain(message));
  } catch (error) {
    throw new DataLoss(`the signature cannot be checked here, so nothing is taken: ${String(error)}`);
  }
  if (!isSigned) {
    throw new DataLoss(`${MANIFEST} is not signed by the server with the key ${serverKey}`);
  }
}

function bytesOf(hex: string): Uint8Array {
  return Uint8Array.from(hex.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
}

function hexOf(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Web Crypto takes no view of shared memory. */
function plain(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  return bytes.buffer instanceof ArrayBuffer ? (bytes as Uint8Array<ArrayBuffer>) : new Uint8Array(bytes);
}
