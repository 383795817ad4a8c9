/** Where an export lies, and how its files come here: over a line that breaks, too. */

import { DataLoss, Unavailable } from "./errors.js";
import { joined } from "./zstd.js";

/** Both raise Unavailable where they cannot. */
export interface Source {
  /** A whole file. */
  read(fileName: string): Promise<Uint8Array>;
  /** A file from byte `offset` on, in pieces; where it is left out, a download that breaks begins again. */
  stream?(fileName: string, offset: number): AsyncIterable<Uint8Array>;
}

/** What has arrived of a file: in memory, or on a disk, so that the next program can go on with it. */
export interface Begun {
  bytes(): Promise<Uint8Array>;
  append(piece: Uint8Array): Promise<void>;
  clear(): Promise<void>;
}

const TRIES = 4; // in a row, of which none brings a byte
const PAUSE_MS = 250; // before the second; twice as long before each that follows

/**
 * Exactly `size` bytes, or as many as come. What breaks goes on behind the last byte that came. Raises Unavailable,
 * DataLoss where there is less.
 */
export async function received(source: Source, fileName: string, size: number, begun: Begun): Promise<Uint8Array> {
  if (!source.stream) {
    return await source.read(fileName);
  }
  let offset = (await begun.bytes()).length;
  for (let failed = 0; offset < size;) {
    const before = offset;
    try {
      for await (const piece of source.stream(fileName, offset)) {
        await begun.append(piece);
        offset += piece.length;
        if (offset > size) {
          return await begun.bytes(); // longer than it is to be, so another file; no need to see its end
        }
      }
      if (offset === before) {
        throw new DataLoss(`${fileName} has no more than ${offset} of ${size} bytes`);
      }
      if (offset < size) {
        throw new Unavailable(`${fileName} ended at byte ${offset} of ${size}`);
      }
    } catch (error) {
      failed = offset > before ? 1 : failed + 1;
      if (!(error instanceof Unavailable) || !error.passing || failed === TRIES) {
        throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS * 2 ** (failed - 1)));
    }
  }
  return await begun.bytes();
}

/** For as long as the program runs. */
export function inMemory(): Begun {
  const pieces: Uint8Array[] = [];
  return {
    bytes: () => Promise.resolve(joined(pieces)),
    append: (piece) => Promise.resolve(void pieces.push(piece)),
    clear: () => Promise.resolve(void pieces.splice(0)),
  };
}

/** Files below an address, through `fetch`: a folder on any web server. One that knows ranges resumes. */
export function urlSource(address: string | URL, fetching: typeof fetch = fetch): Source {
  const base = String(address).replace(/\/*$/, "/");
  const asked = async (fileName: string, headers: Record<string, string>): Promise<Response> => {
    let response: Response;
    try {
      response = await fetching(new URL(fileName, base), { headers });
    } catch (error) {
      throw new Unavailable(`${fileName} cannot be reached: ${String(error)}`);
    }
    if (!response.ok) {
      const passing = response.status >= 500 || response.status === 408 || response.status === 429;
      throw new Unavailable(`${fileName} is not to be had (status ${response.status})`, passing);
    }
    return response;
  };
  return {
    async read(fileName) {
      const response = await asked(fileName, {});
      try {
        return new Uint8Array(await response.arrayBuffer());
      } catch (error) {
        throw new Unavailable(`${fileName} broke off: ${String(error)}`);
      }
    },
    async *stream(fileName, offset) {
      const response = await asked(fileName, offset ? { Range: `bytes=${offset}-` } : {});
      let skipped = response.status === 206 ? 0 : offset; // a server that knows no ranges begins at the beginning
      const reader = response.body?.getReader();
      try {
        for (let read = await reader?.read(); read && !read.done; read = await reader?.read()) {
          const piece = read.value.subarray(Math.min(skipped, read.value.length));
          skipped -= read.value.length - piece.length;
          if (piece.length) {
            yield piece;
          }
        }
      } catch (error) {
        throw new Unavailable(`${fileName} broke off: ${String(error)}`);
      } finally {
        await reader?.cancel().catch(() => undefined);
      }
    },
  };
}
