/** Pulls an export of everlearn, checks it, and predicts with it, offline. Runs in browsers and in Node. */

export { apply as applyDelta } from "./delta.js";
export { DataLoss, InvalidArgument, Unavailable, WrongBase } from "./errors.js";
export { Model } from "./model.js";
export type { Answer, Image, PredictOptions, ScoredLabel, Tensors, TokenIds } from "./model.js";
export { pull } from "./pull.js";
export type { Pulled, PullOptions } from "./pull.js";
export { urlSource } from "./source.js";
export type { Begun, Source } from "./source.js";
