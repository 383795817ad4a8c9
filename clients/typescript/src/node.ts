/** What Node has and browsers have not: files. */

import { readFile } from "node:fs/promises";
import { join } from "node:path";

import { Unavailable } from "./errors.js";
import type { Source } from "./source.js";

export { ModelFolder } from "./folder.js";

/** The folder that `everlearn export -d FOLDER` wrote. */
export function folderSource(folder: string): Source {
  return {
    async read(fileName) {
      try {
        return new Uint8Array(await readFile(join(folder, fileName)));
      } catch (error) {
        throw new Unavailable(`${fileName} cannot be read: ${String(error)}`, false);
      }
    },
  };
}
