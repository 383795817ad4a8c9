/** Numbers from a base and their differences, as everlearn_protos/delta/_items.py makes them: bit for bit. */

/** Of the bytes in `planes` (of each number the lowest byte first), from item `begin` on. */
export interface Differences {
  planes: readonly Uint8Array[];
  begin: number;
  count: number;
}

export interface Order {
  /** Planes are ordered by these many bits below the sign of the base's numbers; 0: as in the file. */
  order: number;
  /** Where it is not 0: float32 rows of that many, the last of each near minus the sum of the others. */
  columns: number;
}

const ITEMS = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array } as const;

/** The numbers' bytes. `olds`: those of the base, a copy that may be written to; undefined: zeros. */
export function newsOf(
  given: Differences,
  olds: Uint8Array<ArrayBuffer> | undefined,
  { order, columns }: Order,
): Uint8Array {
  const item = given.planes.length;
  const news = olds ?? new Uint8Array(given.count * item);
  const places = order ? ordered(news, item, order, columns) : undefined;
  if (item === 8) {
    addWide(given, new BigUint64Array(news.buffer, 0, given.count), places);
    return news;
  }
  const numbers = new ITEMS[item as 1 | 2 | 4](news.buffer, 0, given.count);
  if (columns) {
    // What is in the last column of the base is not what it is predicted from.
    for (let at = columns - 1; at < given.count; at += columns) {
      numbers[at] = 0;
    }
  }
  for (let index = 0; index < given.count; index++) {
    let apart = 0;
    for (let byte = 0; byte < item; byte++) {
      apart |= (given.planes[byte]?.[given.begin + index] ?? 0) << (8 * byte);
    }
    const at = places ? (places[index] ?? 0) : index;
    numbers[at] = (numbers[at] ?? 0) + ((apart >>> 1) ^ -(apart & 1)); // modulo the item's size, as it is stored
  }
  if (columns) {
    addSums(numbers as Uint32Array, columns);
  }
  return news;
}

function addWide(given: Differences, numbers: BigUint64Array, places: Uint32Array | undefined): void {
  for (let index = 0; index < given.count; index++) {
    let apart = 0n;
    for (let byte = 7; byte >= 0; byte--) {
      apart = (apart << 8n) | BigInt(given.planes[byte]?.[given.begin + index] ?? 0);
    }
    const at = places ? (places[index] ?? 0) : index;
    numbers[at] = (numbers[at] ?? 0n) + ((apart >> 1n) ^ -(apart & 1n));
  }
}

/** To the last of each row minus the sum of the others: one addition after the other, in 64 bits. */
function addSums(numbers: Uint32Array, columns: number): void {
  const floats = new Float32Array(numbers.buffer, 0, numbers.length);
  const rounded = new Float32Array(1);
  const bits = new Uint32Array(rounded.buffer);
  for (let row = 0; row < numbers.length; row += columns) {
    let total = 0;
    for (let column = 0; column < columns - 1; column++) {
      total -= floats[row + column] ?? 0;
    }
    rounded[0] = total;
    const last = row + columns - 1;
    numbers[last] = (numbers[last] ?? 0) + (bits[0] ?? 0);
  }
}

/** Where the first, second, ... difference belongs: by the bits below the sign, of equal ones as in the file. */
function ordered(olds: Uint8Array<ArrayBuffer>, item: number, order: number, columns: number): Uint32Array {
  const count = olds.length / item;
  const view = new DataView(olds.buffer);
  const keys = new Uint16Array(count);
  // The uppermost 16 bits hold all that counts: at most 15 bits below the sign. Numbers of one byte have 8.
  for (let index = 0; index < count; index++) {
    const [upper, bits] = item === 1 ? [view.getUint8(index), 8] : [view.getUint16((index + 1) * item - 2, true), 16];
    const last = columns !== 0 && index % columns === columns - 1; // differences to a sum come last
    keys[index] = last ? 2 ** order : (upper & (2 ** (bits - 1) - 1)) >> (bits - 1 - order);
  }
  const begins = new Uint32Array(2 ** order + 2);
  for (const key of keys) {
    begins[key + 1] = (begins[key + 1] ?? 0) + 1;
  }
  for (let key = 1; key < begins.length; key++) {
    begins[key] = (begins[key] ?? 0) + (begins[key - 1] ?? 0);
  }
  const places = new Uint32Array(count);
  for (let index = 0; index < count; index++) {
    const key = keys[index] ?? 0;
    places[begins[key] ?? 0] = index;
    begins[key] = (begins[key] ?? 0) + 1;
  }
  return places;
}
