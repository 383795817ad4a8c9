/** Arrays of NumPy's .npz: a zip of .npy files, by DecompressionStream, which Node and browsers share. */

import { DataLoss } from "./errors.js";

export interface NumpyArray {
  values: Uint8Array | Float32Array | Float64Array | BigInt64Array;
  shape: number[];
}

const MAX_BYTES = 2 ** 26; // of one array
const [END, ENTRY] = [0x06054b50, 0x02014b50]; // signatures of zip
const [STORED, DEFLATED] = [0, 8];
const KINDS = { "|u1": Uint8Array, "<f4": Float32Array, "<f8": Float64Array, "<i8": BigInt64Array } as const;

/** By name. Raises DataLoss for what is no .npz, or holds anything but uint8, float32, float64 and int64. */
export async function arraysOf(npz: Uint8Array): Promise<Map<string, NumpyArray>> {
  try {
    const found = new Map<string, NumpyArray>();
    for (const [name, bytes] of await filesOf(npz)) {
      found.set(name.replace(/\.npy$/, ""), arrayOf(bytes));
    }
    return found;
  } catch (error) {
    throw error instanceof DataLoss ? error : new DataLoss(`these bytes are no .npz: ${String(error)}`);
  }
}

async function filesOf(zip: Uint8Array): Promise<[string, Uint8Array][]> {
  const view = new DataView(zip.buffer, zip.byteOffset, zip.length);
  const end = zip.length - 22; // NumPy writes no comment behind it
  if (end < 0 || view.getUint32(end, true) !== END) {
    throw new DataLoss("these bytes are no .npz");
  }
  const files: [string, Uint8Array][] = [];
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    if (view.getUint32(at, true) !== ENTRY) {
      throw new DataLoss("these bytes are no .npz");
    }
    const [packed, size, offset] = [20, 24, 42].map((field) => view.getUint32(at + field, true)) as [
      number,
      number,
      number,
    ];
    const [nameLength, extra, comment] = [28, 30, 32].map((field) => view.getUint16(at + field, true)) as [
      number,
      number,
      number,
    ];
    const name = new TextDecoder().decode(zip.subarray(at + 46, at + 46 + nameLength));
    // The same lengths stand before the file itself, where they may differ.
    const begin = offset + 30 + view.getUint16(offset + 26, true) + view.getUint16(offset + 28, true);
    files.push([name, await inflated(zip.subarray(begin, begin + packed), view.getUint16(at + 10, true), size)]);
    at += 46 + nameLength + extra + comment;
  }
  return files;
}

async function inflated(packed: Uint8Array, method: number, size: number): Promise<Uint8Array> {
  if ((method !== STORED && method !== DEFLATED) || size > MAX_BYTES) {
    throw new DataLoss(`a file of ${size} bytes, packed by method ${method}, does not belong into an .npz of probes`);
  }
  const whole = new Uint8Array(size);
  let at = 0;
  const stream = new Blob([packed as Uint8Array<ArrayBuffer>]).stream();
  const reader = (method === STORED ? stream : stream.pipeThrough(new DecompressionStream("deflate-raw"))).getReader();
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    if (at + read.value.length > size) {
      await reader.cancel();
      throw new DataLoss("a file in the .npz is longer than it says");
    }
    whole.set(read.value, at);
    at += read.value.length;
  }
  if (at !== size) {
    throw new DataLoss("a file in the .npz is cut off");
  }
  return whole;
}

function arrayOf(npy: Uint8Array): NumpyArray {
  const view = new DataView(npy.buffer, npy.byteOffset, npy.length);
  const [version, begin] = [npy[6] ?? 0, (npy[6] ?? 0) > 1 ? 12 : 10];
  const length = version > 1 ? view.getUint32(8, true) : view.getUint16(8, true);
  const header = new TextDecoder().decode(npy.subarray(begin, begin + length));
  const kind = /'descr': '([^']+)'/.exec(header)?.[1] ?? "";
  const shape = /'shape': \(([^)]*)\)/.exec(header)?.[1]?.match(/\d+/g)?.map(Number) ?? [];
  const Kind = KINDS[kind as keyof typeof KINDS];
  if (
    npy[0] !== 0x93 ||
    new TextDecoder().decode(npy.subarray(1, 6)) !== "NUMPY" ||
    !Kind ||
    !header.includes("'fortran_order': False")
  ) {
    throw new DataLoss(`an array is of the kind ${kind || "?"}, which does not belong into probes`);
  }
  const bytes = npy.slice(begin + length); // a copy, at an address that any kind takes
  const count = shape.reduce((product, each) => product * each, 1);
  if (bytes.length !== count * Kind.BYTES_PER_ELEMENT) {
    throw new DataLoss(`an array of the shape [${shape.join(", ")}] has ${bytes.length} bytes`);
  }
  return { values: new Kind(bytes.buffer), shape };
}
