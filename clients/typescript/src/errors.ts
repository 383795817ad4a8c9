/** What this client raises. Messages say what was wrong, then what would be right. */

/** An argument that cannot be. */
export class InvalidArgument extends Error {
  override readonly name = "InvalidArgument";
}

/** Bytes that are not what was exported, or that nobody trusted has signed. Nothing of them is used. */
export class DataLoss extends Error {
  override readonly name: string = "DataLoss";
}

/** A difference, sound maybe, but to another file than the one at hand. */
export class WrongBase extends DataLoss {
  override readonly name = "WrongBase";
}

/** A file could not be read now; asking again may help. */
export class Unavailable extends Error {
  override readonly name = "Unavailable";

  /** `passing`: whether asking again soon may help; not where there is no such file. */
  constructor(
    message: string,
    readonly passing = true,
  ) {
    super(message);
  }
}
