/** A file from an earlier one: the receiving half of everlearn_protos/delta, which says what the format is. */

import { hexOf, sha256Of } from "./bytes.js";
import { DataLoss, WrongBase } from "./errors.js";
import { newsOf } from "./numbers.js";
import { decompressed, joined } from "./zstd.js";

const MAGIC = "EL-delta";
const FORMAT = 1;
const MAX_PLAN = 2 ** 20;
const MAX_DICTIONARY = 2 ** 23;
const START = 16;
const FIELDS = 88;
const ITEM_SIZES = [1, 2, 4, 8] as const;
const [COPY, LITERAL, DIFFERENCE, PLANES] = [0, 1, 2, 3];

interface Segment {
  kind: number;
  item: number;
  order: number;
  columns: number;
  base: number;
  length: number;
}

interface Plan {
  segments: Segment[];
  dictionary: [number, number][];
  frameLengths: number[];
}

interface Sizes {
  base: number;
  target: number;
}

/**
 * The new file, whose sha256 is the one that the delta names; a signed manifest has to say that it is the right one.
 *
 * `maxBytes`: refused where it would be larger, before memory is taken. Raises WrongBase where the delta is for another
 * base, DataLoss where it is damaged or none.
 */
export async function apply(base: Uint8Array, delta: Uint8Array, maxBytes: number): Promise<Uint8Array> {
  const view = checkedView(delta);
  const sizes = { base: size64(view, START + 64), target: size64(view, START + 72) };
  if (sizes.target > maxBytes) {
    throw new DataLoss(`the result would have ${sizes.target} bytes; at most ${maxBytes} are allowed`);
  }
  const [baseSha256, targetSha256] = [0, 32].map((at) => hexOf(delta.subarray(START + at, START + at + 32)));
  if (base.length !== sizes.base || (await sha256Of(base)) !== baseSha256) {
    throw new WrongBase(
      `the delta is for the base with sha256 ${baseSha256} and ${sizes.base} bytes, not for this one`,
    );
  }
  const [planSize, frameSize] = [view.getUint32(START + 80, true), view.getUint32(START + 84, true)];
  const rest = delta.subarray(START + FIELDS);
  if (planSize > MAX_PLAN || frameSize > rest.length) {
    throw new DataLoss(`a plan of ${planSize} bytes, ${frameSize} compressed, cannot be in ${rest.length} bytes`);
  }
  const plan = unpacked(decompressed(rest.subarray(0, frameSize), planSize), sizes);
  const target = assembled(base, plan, rest.subarray(frameSize), sizes.target);
  if ((await sha256Of(target)) !== targetSha256) {
    throw new DataLoss("the result does not have the sha256 that the delta names");
  }
  return target;
}

function checkedView(delta: Uint8Array): DataView {
  const view = new DataView(delta.buffer, delta.byteOffset, delta.length);
  if (delta.length < START + FIELDS || new TextDecoder().decode(delta.subarray(0, 8)) !== MAGIC) {
    throw new DataLoss(`${delta.length} bytes that are not a delta; one begins with ${MAGIC}`);
  }
  if (view.getUint32(8, true) !== FORMAT) {
    throw new DataLoss(`the delta has format ${view.getUint32(8, true)}; this release reads format ${FORMAT}`);
  }
  if (crc32(delta.subarray(START)) !== view.getUint32(12, true)) {
    throw new DataLoss("the delta arrived damaged or is cut off: its checksum is another");
  }
  return view;
}

function unpacked(data: Uint8Array, sizes: Sizes): Plan {
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const [count, ranges, frames] =
    data.length < 12 ? [0, 0, 0] : ([0, 4, 8].map((at) => view.getUint32(at, true)) as [number, number, number]);
  if (data.length !== 12 + count * 21 + ranges * 16 + frames * 8) {
    throw new DataLoss(`a plan of ${data.length} bytes does not hold what it says it does`);
  }
  const lengths = 12 + count * 13; // of the segments: fields lie one column behind the other
  const segments = Array.from({ length: count }, (_, row) => ({
    kind: view.getUint8(12 + row),
    item: view.getUint8(12 + count + row),
    order: view.getUint8(12 + 2 * count + row),
    columns: view.getUint16(12 + 3 * count + 2 * row, true),
    base: size64(view, 12 + 5 * count + 8 * row),
    length: size64(view, lengths + 8 * row),
  }));
  const after = lengths + 8 * count;
  const dictionary = Array.from({ length: ranges }, (_, row): [number, number] => [
    size64(view, after + 16 * row),
    size64(view, after + 16 * row + 8),
  ]);
  const frameLengths = Array.from({ length: frames }, (_, row) => size64(view, after + 16 * ranges + 8 * row));
  segments.forEach(checkSegment);
  checkTogether(segments, dictionary, sizes);
  return { segments, dictionary, frameLengths };
}

function checkSegment({ kind, item, order, columns, base, length }: Segment): void {
  const [numbers, differs] = [kind === DIFFERENCE || kind === PLANES, kind === DIFFERENCE];
  const wrong =
    kind > 3 ||
    !ITEM_SIZES.includes(item as 1) ||
    length === 0 ||
    length % item !== 0 ||
    (base !== 0 && kind !== COPY && !differs) ||
    (item !== 1 && !numbers) ||
    ((order !== 0 || columns !== 0) && !differs) ||
    order > Math.min(15, 8 * item - 1) ||
    (columns !== 0 && (item !== 4 || columns < 2 || length % (4 * columns) !== 0));
  if (wrong) {
    throw new DataLoss(`no segment has the fields ${[kind, item, order, columns, base, length].join(", ")}`);
  }
}

function checkTogether(segments: Segment[], dictionary: [number, number][], sizes: Sizes): void {
  const sum = segments.reduce((total, { length }) => total + length, 0);
  if (sum !== sizes.target) {
    throw new DataLoss(`the segments have ${sum} bytes together, the result ${sizes.target}`);
  }
  const ranges = segments
    .filter(({ kind }) => kind === COPY || kind === DIFFERENCE)
    .map(({ base, length }) => [base, length]);
  for (const [begin = 0, length = 0] of [...ranges, ...dictionary]) {
    if (begin + length > sizes.base) {
      throw new DataLoss(`a segment reaches to byte ${begin + length} of a base that has ${sizes.base}`);
    }
  }
  if (dictionary.reduce((total, [, length]) => total + length, 0) > MAX_DICTIONARY) {
    throw new DataLoss(`the dictionary is larger than ${MAX_DICTIONARY} bytes`);
  }
}

function assembled(base: Uint8Array, plan: Plan, streams: Uint8Array, size: number): Uint8Array {
  const { literals, planes } = opened(base, plan, streams);
  const target = new Uint8Array(size);
  const begins = new Map<number, number>(ITEM_SIZES.map((item) => [item, 0]));
  let [at, literalAt] = [0, 0];
  for (const { kind, item, length, base: begin, ...order } of plan.segments) {
    if (kind === COPY) {
      target.set(base.subarray(begin, begin + length), at);
    } else if (kind === LITERAL) {
      target.set(literals.subarray(literalAt, literalAt + length), at);
      literalAt += length;
    } else {
      const given = { planes: planes.get(item) ?? [], begin: begins.get(item) ?? 0, count: length / item };
      const olds = kind === DIFFERENCE ? base.slice(begin, begin + length) : undefined;
      target.set(newsOf(given, olds, order), at);
      begins.set(item, given.begin + given.count);
    }
    at += length;
  }
  return target;
}

/** What the literals are, and for each item size its planes. */
function opened(
  base: Uint8Array,
  plan: Plan,
  streams: Uint8Array,
): { literals: Uint8Array; planes: Map<number, Uint8Array[]> } {
  const bytesIn = (wanted: (segment: Segment) => boolean) =>
    plan.segments.filter(wanted).reduce((total, { length }) => total + length, 0);
  const literalBytes = bytesIn(({ kind }) => kind === LITERAL);
  const counts = ITEM_SIZES.map(
    (size) => bytesIn(({ kind, item }) => (kind === DIFFERENCE || kind === PLANES) && item === size) / size,
  );
  const needed = ITEM_SIZES.reduce<number>(
    (total, size, index) => total + (counts[index] ? size : 0),
    literalBytes ? 1 : 0,
  );
  const told = plan.frameLengths.reduce((total, length) => total + length, 0);
  if (plan.frameLengths.length !== needed || told !== streams.length) {
    throw new DataLoss(`${plan.frameLengths.length} streams of ${told} bytes; the plan needs ${needed}`);
  }
  let [at, next] = [0, 0];
  const frame = (): Uint8Array => {
    const begin = at;
    at += plan.frameLengths[next++] ?? 0;
    return streams.subarray(begin, at);
  };
  const dictionary = joined(plan.dictionary.map(([begin, length]) => base.subarray(begin, begin + length)));
  const literals = literalBytes ? decompressed(frame(), literalBytes, dictionary) : new Uint8Array();
  const planes = new Map<number, Uint8Array[]>();
  ITEM_SIZES.forEach((size, index) => {
    const count = counts[index] ?? 0;
    planes.set(size, count ? Array.from({ length: size }, () => decompressed(frame(), count)) : []);
  });
  return { literals, planes };
}

function size64(view: DataView, at: number): number {
  return Number(view.getBigUint64(at, true));
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) {
    value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  }
  return value;
});

function crc32(bytes: Uint8Array): number {
  let value = 0xffffffff;
  for (const byte of bytes) {
    value = (value >>> 8) ^ (CRC_TABLE[(value ^ byte) & 255] ?? 0);
  }
  return (value ^ 0xffffffff) >>> 0;
}
