/** What this client raises. Messages say what was wrong, then what would be right. */

/** An argument that cannot be. */
export class InvalidArgument extends Error {
  override readonly name = "InvalidArgument";
}

/** Bytes that are not what was exported, or that nobody trusted has signed. Nothing of them is used. */
export class DataLoss extends Error {
  override readonly name = "DataLoss";
}

/** A file could not be read now; asking again may help. */
export class Unavailable extends Error {
  override readonly name = "Unavailable";
}
