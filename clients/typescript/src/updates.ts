/** Differences that lie beside an export, by `everlearn export --difference-from`. */

import { sha256Of } from "./bytes.js";
import { apply } from "./delta.js";
import { DataLoss, Unavailable } from "./errors.js";
import type { Expected } from "./manifest.js";
import { type Begun, received, type Source } from "./source.js";

const UPDATES = "model.updates.json";
const KIND = "everlearn export updates 1";

interface Difference extends Expected {
  /** Of the export's files. */
  of: string;
  base_sha256: string;
  target_sha256: string;
  file: string;
}

/**
 * What can be had. Nobody signs this list: whatever it names, what comes of it has to be what the manifest says.
 * Empty where there is none.
 */
export async function differencesAt(source: Source): Promise<Difference[]> {
  try {
    const told = JSON.parse(new TextDecoder().decode(await source.read(UPDATES))) as Record<string, unknown>;
    return told["kind"] === KIND && Array.isArray(told["differences"]) ? told["differences"].filter(isPlain) : [];
  } catch (error) {
    if (error instanceof Unavailable || error instanceof SyntaxError) {
      return [];
    }
    throw error;
  }
}

function isPlain(told: Partial<Difference> | null): told is Difference {
  // A name, and no address of another place.
  return typeof told?.file === "string" && /^[\w-][\w.-]*$/.test(told.file) && Number.isSafeInteger(told.size_bytes);
}

/** The file that is expected, made from `base`; undefined where it has to be downloaded whole. Raises Unavailable. */
export async function updated(
  source: Source,
  fileName: string,
  expected: Expected,
  base: Uint8Array,
  differences: readonly Difference[],
  begunAt: (fileName: string, sha256: string) => Begun,
): Promise<Uint8Array | undefined> {
  const have = await sha256Of(base);
  const found = differences.find(
    (each) => each.of === fileName && each.base_sha256 === have && each.target_sha256 === expected.sha256,
  );
  if (!found || found.size_bytes >= expected.size_bytes) {
    return undefined;
  }
  const begun = begunAt(found.file, found.sha256);
  try {
    const delta = await received(source, found.file, found.size_bytes, begun);
    if ((await sha256Of(delta)) !== found.sha256) {
      throw new DataLoss(`${found.file} is not what the list says`);
    }
    return await apply(base, delta, expected.size_bytes);
  } catch (error) {
    // A difference that is not there, or is no good, costs a download of the whole, and nothing else.
    if (error instanceof DataLoss || (error instanceof Unavailable && !error.passing)) {
      return undefined;
    }
    throw error;
  } finally {
    await begun.clear();
  }
}
