/** What an export says of itself: the metadata in its ONNX file, which ONNX Runtime's JavaScript does not give. */

import { DataLoss } from "./errors.js";

const PREFIX = "everlearn.";
const METADATA_PROPS = 14; // of onnx.ModelProto
const KEY = 1;
const VALUE = 2; // of onnx.StringStringEntryProto

/** Keys without their prefix. Raises DataLoss for bytes that are no ONNX file of everlearn. */
export function metadataOf(onnx: Uint8Array): Map<string, string> {
  const found = new Map<string, string>();
  for (const [field, bytes] of fieldsOf(onnx)) {
    if (field !== METADATA_PROPS) {
      continue;
    }
    const entry = new Map(fieldsOf(bytes));
    const [key, value] = [text(entry.get(KEY)), text(entry.get(VALUE))];
    if (key.startsWith(PREFIX)) {
      found.set(key.slice(PREFIX.length), value);
    }
  }
  if (!found.has("model") || !found.has("task")) {
    throw new DataLoss("this ONNX file is no export of everlearn: it does not say which model it is");
  }
  return found;
}

/** The length-delimited fields of a protobuf message, in their order. Views, no copies. */
function* fieldsOf(bytes: Uint8Array): Generator<[number, Uint8Array]> {
  let at = 0;
  const varint = (): number => {
    let value = 0;
    for (let factor = 1; factor < 2 ** 70; factor *= 128) {
      const byte = bytes[at++];
      if (byte === undefined) {
        break;
      }
      value += (byte & 127) * factor;
      if (byte < 128) {
        return value;
      }
    }
    throw new DataLoss("these bytes are no ONNX file");
  };
  while (at < bytes.length) {
    const tag = varint();
    const [field, wire] = [Math.floor(tag / 8), tag % 8];
    if (wire === 0) {
      varint();
    } else if (wire === 1 || wire === 5) {
      at += wire === 1 ? 8 : 4;
    } else if (wire === 2) {
      const size = varint();
      if (at + size > bytes.length) {
        throw new DataLoss("this ONNX file ends too early");
      }
      yield [field, bytes.subarray(at, at + size)];
      at += size;
    } else {
      throw new DataLoss("these bytes are no ONNX file");
    }
  }
}

function text(bytes: Uint8Array | undefined): string {
  return bytes === undefined ? "" : new TextDecoder().decode(bytes);
}
