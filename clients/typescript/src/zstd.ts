/** zstd frames whose size is known before they are opened, also those that were compressed with a dictionary. */

import { decompress } from "fzstd";

import { DataLoss } from "./errors.js";

const MAGIC = 0xfd2fb528;
const MAX_BLOCK = 2 ** 17;
const MAX_BYTES = 2 ** 30;
const LEAST_DICTIONARY = 8; // zstd takes no notice of a smaller one
const RAW = 0;
const RUN = 1; // of one byte, repeated

/**
 * Exactly `size` bytes. Raises DataLoss where the frame holds anything else.
 *
 * What is decompressed is a frame made of this one, with the dictionary in front as blocks that are not compressed: to
 * what follows it is the same as a dictionary, which decoders in JavaScript do not know.
 */
export function decompressed(frame: Uint8Array, size: number, dictionary: Uint8Array = new Uint8Array()): Uint8Array {
  const { content, blocks } = parts(frame);
  const known = dictionary.length < LEAST_DICTIONARY ? new Uint8Array() : dictionary;
  const total = known.length + size;
  if (content !== size || total > MAX_BYTES) {
    throw new DataLoss(`a stream does not hold the ${size} bytes that belong there`);
  }
  const header = new DataView(new ArrayBuffer(9));
  header.setUint32(0, MAGIC, true);
  header.setUint8(4, 0b10100000); // the size in 4 bytes; the window is the whole
  header.setUint32(5, total, true);
  let data: Uint8Array;
  try {
    data = decompress(joined([new Uint8Array(header.buffer), ...rawBlocks(known, total), blocks]));
  } catch (error) {
    throw new DataLoss(`a stream is damaged: ${String(error)}`);
  }
  if (data.length !== total) {
    throw new DataLoss(`a stream ends after ${data.length - known.length} bytes of ${size}`);
  }
  return data.subarray(known.length);
}

/** What the frame says that it holds, and its blocks: one frame, with nothing behind it. */
function parts(frame: Uint8Array): { content: number; blocks: Uint8Array } {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
  const flags = frame[4] ?? 0;
  const single = (flags >> 5) & 1;
  const sizeBytes = [single, 2, 4, 8][flags >> 6] ?? 0;
  const at = 5 + (1 - single);
  const begin = at + sizeBytes;
  // Neither checksums, dictionaries with a number, nor sizes left out: everlearn's frames have none of them.
  if (frame.length < begin + 3 || view.getUint32(0, true) !== MAGIC || flags & 0b1111 || sizeBytes === 0) {
    throw new DataLoss("a stream is no zstd frame that tells its size");
  }
  const sizes = [
    () => view.getUint8(at),
    () => view.getUint16(at, true) + 256,
    () => view.getUint32(at, true),
    () => Number(view.getBigUint64(at, true)),
  ];
  checkBlocks(frame, begin);
  return { content: sizes[flags >> 6]?.() ?? 0, blocks: frame.subarray(begin) };
}

function checkBlocks(frame: Uint8Array, begin: number): void {
  let at = begin;
  for (let last = false; !last;) {
    const header = (frame[at] ?? 0) | ((frame[at + 1] ?? 0) << 8) | ((frame[at + 2] ?? 0) << 16);
    const size = header >> 3;
    last = (header & 1) === 1;
    at += 3 + (((header >> 1) & 3) === RUN ? 1 : size);
    if (at > frame.length || size > MAX_BLOCK) {
      throw new DataLoss("a stream is cut off");
    }
  }
  if (at !== frame.length) {
    throw new DataLoss(`${frame.length - at} bytes follow a stream`);
  }
}

function rawBlocks(data: Uint8Array, window: number): Uint8Array[] {
  const blocks: Uint8Array[] = [];
  const most = Math.min(MAX_BLOCK, window);
  for (let at = 0; at < data.length; at += most) {
    const piece = data.subarray(at, at + most);
    const header = (piece.length << 3) | (RAW << 1);
    blocks.push(Uint8Array.of(header & 255, (header >> 8) & 255, header >> 16), piece);
  }
  return blocks;
}

/** One behind the other. */
export function joined(pieces: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}
