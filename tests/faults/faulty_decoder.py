"""The decoding processes, broken on purpose: `python -m tests.faults.faulty_decoder` in place of the real module.

EVERLEARN_DECODER_FAULT: keeps (the last file stays in memory) or writes (each file goes where no file may go).
"""

from __future__ import annotations

import mmap
import os
from typing import Any

from everlearn.inputs import decoding_child

KEPT: list[bytes] = []
NOWHERE = 0
"""/dev/null: the one thing that a confined decoder can write to."""


def main() -> None:
    """Builds the fault in and becomes the nursery."""
    carry_out, fault = decoding_child._carry_out, os.environ["EVERLEARN_DECODER_FAULT"]

    def faulty(told: dict[str, Any], shared: mmap.mmap, size: int, limits: dict[str, Any]) -> dict[str, Any]:
        if fault == "keeps":
            KEPT[:] = [shared[:size]]
        else:
            os.write(NOWHERE, shared[:size])
        return carry_out(told, shared, size, limits)

    decoding_child._carry_out = faulty
    decoding_child.main()


if __name__ == "__main__":
    main()
