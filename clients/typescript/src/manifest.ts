/** What an export is, in words that the server has signed. */

import { bytesOf, plain } from "./bytes.js";
import { DataLoss } from "./errors.js";

export const MANIFEST = "model.manifest.json";
export const SIGNATURE = "model.manifest.sig";
const KIND = "everlearn export manifest 1";

export interface Expected {
  size_bytes: number;
  sha256: string;
}

export interface Manifest {
  kind: string;
  version: string;
  files: Record<string, Expected>;
}

/** Raises DataLoss for bytes that are no manifest. */
export function parsedManifest(bytes: Uint8Array): Manifest {
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

/** Raises DataLoss where `serverKey` has not signed it, or where that cannot be checked. */
export async function checkSignature(message: Uint8Array, signature: Uint8Array, serverKey: string): Promise<void> {
  if (!(await isSigned(message, signature, serverKey))) {
    throw new DataLoss(`${MANIFEST} is not signed by the server with the key ${serverKey}`);
  }
}

/** Raises DataLoss where that cannot be checked. */
export async function isSigned(message: Uint8Array, signature: Uint8Array, hex: string): Promise<boolean> {
  try {
    const key = await crypto.subtle.importKey("raw", plain(bytesOf(hex)), "Ed25519", false, ["verify"]);
    return await crypto.subtle.verify("Ed25519", key, plain(signature), plain(message));
  } catch (error) {
    throw new DataLoss(`the signature cannot be checked here, so nothing is taken: ${String(error)}`);
  }
}
