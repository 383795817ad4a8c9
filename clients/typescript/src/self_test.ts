/** A version is tried with the samples that lie beside it before it is used, as everlearn's device runtime does. */

import { DataLoss } from "./errors.js";
import { arraysOf, type NumpyArray } from "./npz.js";

/** Scores or values of one sample, and its novelty where the model tells it. */
export interface Found {
  scores: Float32Array;
  novelty: number | undefined;
}

/**
 * The largest difference of a score, relative to max(1, the largest score), or of the novelty, relative to max(1,
 * novelty). Raises DataLoss where it is above what the file allows, or the file is none.
 */
export async function selfTest(
  probes: Uint8Array,
  run: (sample: NumpyArray) => Promise<Found>,
  tellsNovelty: boolean,
): Promise<number> {
  const arrays = await arraysOf(probes);
  const [expected, tolerance] = [arrays.get("expected"), Number(arrays.get("tolerance")?.values[0])];
  const novelties = arrays.get("novelty")?.values as Float32Array | undefined;
  const [count = 0, columns = 0] = expected?.shape ?? [];
  if (
    !(expected?.values instanceof Float32Array) ||
    count === 0 ||
    Number.isNaN(tolerance) ||
    (tellsNovelty && !novelties)
  ) {
    throw new DataLoss("the probes do not say what they must get");
  }
  let worst = 0;
  for (let row = 0; row < count; row++) {
    const sample = arrays.get(`sample_${row}`);
    if (!sample) {
      throw new DataLoss(`the probes lack sample_${row}`);
    }
    const right = expected.values.subarray(row * columns, (row + 1) * columns);
    const apart = distance(await run(sample), right, tellsNovelty ? novelties?.[row] : undefined);
    // Not `>`: a score that is not a number differs from everything.
    if (!(apart <= tolerance)) {
      throw new DataLoss(`scores of a probe differ by ${apart.toPrecision(3)} of their size; ${tolerance} is allowed`);
    }
    worst = Math.max(worst, apart);
  }
  return worst;
}

function distance({ scores, novelty }: Found, right: Float32Array, expected: number | undefined): number {
  if (scores.length !== right.length) {
    throw new DataLoss(`the model gives ${scores.length} scores where ${right.length} were expected`);
  }
  const size = right.reduce((most, each) => Math.max(most, Math.abs(each)), 1);
  let apart =
    scores.reduce((most, each, index) => Math.max(most, Math.abs(each - (right[index] ?? Number.NaN))), 0) / size;
  if (expected !== undefined) {
    // A squared length: twice as far off as what it is of. Math.max keeps what is no number.
    apart = Math.max(apart, Math.abs((novelty ?? Number.NaN) - expected) / (2 * Math.max(1, expected)));
  }
  return apart;
}
