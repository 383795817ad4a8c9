"""From a server's key that somebody trusts to the one that signs now: each vouched for by the one before it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from everlearn_client import _ed25519
from everlearn_client.errors import DataLoss
from everlearn_client.results import KeyRotation

KIND: Final = "everlearn signing key 1"
LONGEST: Final = 1000
"""Rotations; a check of one takes two signatures' milliseconds."""


def descendants(key: bytes, rotations: Sequence[KeyRotation]) -> list[bytes]:
    """The keys that came after `key`, in order, the last of which signs now; empty where it does, or is not among them.

    Raises DataLoss for a chain with a gap, a fork or a way back, and for a signature, by either key, that is wrong.
    """
    if len(rotations) > LONGEST:
        raise DataLoss(f"the server tells {len(rotations)} changes of its key; at most {LONGEST} are followed")
    told = [_told(each) for each in rotations]
    met: set[str] = set()
    for at, each in enumerate(told):
        before = told[at - 1]["new"] if at else each["old"]
        met.add(before)
        if each["number"] != at + 1 or each["old"] != before or each["new"] in met:
            raise DataLoss(f"the server's keys are no chain: change {at + 1} does not follow from the one before it")
    first = next((at for at, each in enumerate(told) if each["old"] == key.hex()), len(told))
    found = []
    for rotation, each in zip(rotations[first:], told[first:], strict=True):
        old, new = bytes.fromhex(each["old"]), bytes.fromhex(each["new"])
        for signature, signer in ((rotation.by_old, old), (rotation.by_new, new)):
            if not _ed25519.is_signed(rotation.statement, signature, signer):
                raise DataLoss(f"change {each['number']} of the server's key is not signed by {signer.hex()}")
        found.append(new)
    return found


def _told(rotation: KeyRotation) -> dict[str, Any]:
    try:
        told = json.loads(rotation.statement)
        whole = told["kind"] == KIND and isinstance(told["number"], int)
        whole = whole and all(len(bytes.fromhex(told[name])) == 32 for name in ("old", "new"))
        whole = whole and all(told[name] == told[name].lower() for name in ("old", "new"))
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise DataLoss("the server tells of a change of its key in words that are none")
    return dict(told)
