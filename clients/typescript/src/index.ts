/** Pulls an export of everlearn, checks it, and predicts with it, offline. Runs in browsers and in Node. */

export { DataLoss, InvalidArgument, Unavailable } from "./errors.js";
export { Model } from "./model.js";
export type { Answer, Image, PredictOptions, ScoredLabel, Tensors, TokenIds } from "./model.js";
export { pull, urlSource } from "./pull.js";
export type { Pulled, PullOptions, Source } from "./pull.js";
