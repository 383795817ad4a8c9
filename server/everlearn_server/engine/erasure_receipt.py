"""What is asked of an erasure, what is told of it, and the receipt that is signed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from everlearn_server.engine.removal import Ranges
from everlearn_server.engine.rewinding import Rewound
from everlearn_server.store.rows import DownloadRow, ErasureRow, ModelRow

RECEIPT_KIND: Final = "everlearn erasure receipt 1"
SAID: Final = {
    "subtracted": "The sums that the model is solved from are, bit for bit, those of a server that never met it.",
    "subtracted in part": "What the receipts cover was subtracted. Nothing proves that it is all there was, nor "
    "that it is what was learned: other samples of the client may be left.",
    "own sums subtracted": "The sums that the model is solved from are, bit for bit, those of a server that never met "
    "it. What it contributed was known from its own sums, which the server kept sealed; they and their key are gone.",
    "dropped": "Single features that were kept were dropped, and the head is solved from what is left. Which of the "
    "others were kept may still be owed to it.",
    "rewound": "Weights, optimizer, schedule and random state were set back to those of an earlier commit, the last "
    "that is kept from before it contributed, and learned again from the features of other clients that came since and "
    "are kept. What was not kept of those is gone as well. Nothing that it sent is in a weight. This is not the model "
    "that never met it: which of the others were kept may still be owed to it.",
    "relearned": "Weights were set back to the pretrained ones, because no state from before it contributed is kept, "
    "and learned again from the features of other clients that are kept. What was not kept of those is gone as well. "
    "Nothing that it sent is in a weight. This is not the model that never met it: which of the others were kept may "
    "still be owed to it.",
    "class subtracted": "The sums that the model is solved from are, bit for bit, those of a server that never met a "
    "sample of the class. Its label keeps its place.",
}
COPIES: Final = (
    "Each client is listed with the version that it downloaded last, by the name that it gave; without a client, all "
    "that gave none, with the last one of these. Whoever holds a file of a withdrawn version has it still; each file "
    "names its version in its metadata."
)
"""How to read who was last seen with versions that contained it."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An erasure as it is asked for: of a client or of a class."""

    client: str = ""
    label: str = ""
    partial: bool = False
    """Take out what the receipts cover, even if that is not all."""
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class Told:
    """What would be taken out, or was."""

    how: str
    """A key of what is said of it: `subtracted`, ..."""
    statement: str
    exact: bool
    samples: int
    """Taken out, as far as that is known."""
    samples_learned: int
    """Of the client, in the ledger."""
    durable_sequence: int = 0
    receipts: int = 0
    unwitnessed: int = 0
    erased_before: int = 0
    not_durable: int = 0
    foreign: int = 0
    why_foreign: str = ""
    missing: Ranges = field(default_factory=list)
    incomplete_because: str = ""
    versions: Sequence[int] = ()
    """That contained it, and go."""
    exports: Sequence[int] = ()
    copies: Sequence[DownloadRow] = ()
    """Who last downloaded a version that contained it."""
    stable: int = 0
    """What serves afterwards; 0: nothing."""
    rewound: Rewound | None = None
    """Where weights had to be set back."""
    row: ErasureRow | None = None
    """The signed receipt, unless it was a dry run."""


def receipt_of(told: Told, row: ModelRow, timeline: str, about: Mapping[str, Any]) -> str:
    """The text that is signed. `about`: what is known of the commit alone."""
    rewound = told.rewound
    receipt = {
        "kind": RECEIPT_KIND,
        "model": row.name,
        "model_uid": row.uid,
        "lineage": row.lineage,
        "timeline": timeline,
        **about,
        "samples": told.samples,
        "how": told.how,
        "exact": told.exact,
        "statement": told.statement,
        **({} if rewound is None else {"rewound": _rewound(rewound)}),
        "withdrawn_versions": list(told.versions),
        "withdrawn_exports": list(told.exports),
        "clients_last_seen_with_them": list(map(_copy, told.copies)),
        "copies": COPIES,
        "backups": "Backups made before this commit contain it until they expire; restored, erase again.",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return json.dumps(receipt, ensure_ascii=False)


def told_by(receipt_json: str) -> dict[str, Any]:
    """Fields of Told that a receipt has."""
    receipt = json.loads(receipt_json)
    rewound, copies = receipt.get("rewound"), receipt.get("clients_last_seen_with_them")
    return {
        "how": receipt["how"],
        "statement": receipt["statement"],
        "exact": receipt["exact"],
        "samples": receipt["samples"],
        "versions": receipt["withdrawn_versions"],
        "exports": receipt["withdrawn_exports"],
        "copies": tuple(map(_download, copies)) if isinstance(copies, list) else (),
        "rewound": None if rewound is None else _rewound_of(rewound),
    }


def _copy(row: DownloadRow) -> dict[str, object]:
    time = datetime.fromtimestamp(row.update_time_s, UTC).isoformat(timespec="seconds")
    return {**({"client": row.client} if row.client else {}), "version": row.version_number, "time": time}


def _download(copy: Mapping[str, Any]) -> DownloadRow:
    at_s = datetime.fromisoformat(copy["time"]).timestamp()
    return DownloadRow(client=copy.get("client", ""), version_number=copy["version"], update_time_s=at_s)


def _rewound(rewound: Rewound) -> dict[str, object]:
    to = {"to_commit": rewound.commit_id} if rewound.commit_id else {"to_pretrained_because": rewound.because}
    return {
        **to,
        "samples_in_model_before": rewound.samples_before,
        "samples_in_model_after": rewound.samples_after,
        "samples_learned_again": rewound.learned_again,
    }


def _rewound_of(told: Mapping[str, Any]) -> Rewound:
    return Rewound(
        commit_id=told.get("to_commit", 0),
        because=told.get("to_pretrained_because", ""),
        samples_before=told["samples_in_model_before"],
        samples_after=told["samples_in_model_after"],
        learned_again=told["samples_learned_again"],
    )
