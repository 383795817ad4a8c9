/** From the server's key that a caller trusts to the one that signs now: each vouched for by the one before it. */

import { bytesOf } from "./bytes.js";
import { DataLoss } from "./errors.js";

/** Beside an export: how the key that signs came from the server's first one. */
export const KEYS = "model.keys.json";
const KIND = "everlearn signing key 1";
const LONGEST = 1000;

interface Rotation {
  kind: string;
  old: string;
  new: string;
  number: number;
}

/** Whether the holder of the key, 64 hexadecimal digits, signed exactly this. */
export type Verify = (message: Uint8Array, signature: Uint8Array, key: string) => Promise<boolean>;

/**
 * The key that signs now. `told`: what `everlearn export` wrote into model.keys.json.
 *
 * Raises DataLoss for a chain with a gap, a fork or a way back, and for a signature that is wrong.
 */
export async function newest(key: string, told: Uint8Array, verify: Verify): Promise<string> {
  const entries = parsed(told);
  const met = new Set<string>();
  let before = entries[0]?.rotation.old;
  let found = key;
  for (const [at, { statement, byOld, byNew, rotation }] of entries.entries()) {
    met.add(before as string);
    if (rotation.number !== at + 1 || rotation.old !== before || met.has(rotation.new)) {
      throw new DataLoss(`the server's keys are no chain: change ${at + 1} does not follow from the one before it`);
    }
    before = rotation.new;
    if (rotation.old !== found) {
      continue;
    }
    if (!(await verify(statement, byOld, rotation.old)) || !(await verify(statement, byNew, rotation.new))) {
      throw new DataLoss(`change ${rotation.number} of the server's key is not signed by both keys`);
    }
    found = rotation.new;
  }
  return found;
}

function parsed(bytes: Uint8Array): { statement: Uint8Array; byOld: Uint8Array; byNew: Uint8Array; rotation: Rotation }[] {
  try {
    const told = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes)) as Record<string, string>[];
    if (!Array.isArray(told) || told.length > LONGEST) {
      throw new TypeError();
    }
    return told.map((each) => {
      const statement = bytesOf(each["statement"] ?? "");
      const rotation = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(statement)) as Rotation;
      if (rotation.kind !== KIND || ![rotation.old, rotation.new].every((key) => /^[0-9a-f]{64}$/.test(key))) {
        throw new TypeError();
      }
      return { statement, byOld: bytesOf(each["by_old"] ?? ""), byNew: bytesOf(each["by_new"] ?? ""), rotation };
    });
  } catch {
    throw new DataLoss("what is told of changes of the server's key cannot be read");
  }
}
