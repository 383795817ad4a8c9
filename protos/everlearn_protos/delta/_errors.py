"""Why a delta was refused.

ValueError
+-- DeltaError             damaged, hostile, or no delta at all
    +-- WrongBaseError     sound, but for another file than the one at hand
"""


class DeltaError(ValueError):
    """The bytes are no delta that can be applied; the whole file has to be downloaded."""


class WrongBaseError(DeltaError):
    """The delta is for another base than the one given."""
