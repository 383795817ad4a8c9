"""`erase` and `verify-receipt`: takes a client, or a class, out of a model, and checks what was signed about it."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from everlearn_client import _ed25519
from everlearn_client.cli import exit_codes
from everlearn_client.cli.connection import DEFAULT_SERVER, ModelArgument, ServerOption, connect
from everlearn_client.cli.output import Output, OutputOption, ask, plain, put_data, put_fields, say
from everlearn_client.client import Client
from everlearn_client.errors import FailedPrecondition, InvalidArgument
from everlearn_protos.v1 import erasure_pb2

_MOST = 8
"""Numbers, or holders of copies, that are listed; the receipt has all of them."""
_NAMELESS = "some that gave no name"


def erase(
    ctx: typer.Context,
    model: ModelArgument,
    client: Annotated[str, typer.Option("--client", metavar="ID", help="Take out this learner.")] = "",
    label: Annotated[
        str,
        typer.Option("--class", metavar="LABEL", help="Take out this class; needs memory.kind: per_class_statistics."),
    ] = "",
    receipts: Annotated[
        Path | None,
        typer.Option("--receipts", metavar="FILE", help="What `everlearn learn --receipts` kept for this learner."),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Take out what the receipts cover, even if that is not all.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be taken out.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the signed receipt here; named if left out.")
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Take out of MODEL what a client contributed, or a class: exactly, with a receipt that the server signs.

    Shows first what would go. Where the model keeps each client's own sums (privacy.client_sums), and for latents, no
    receipts are needed. The versions that contained it are withdrawn: no longer served, exported or rolled back
    to. Exit code 6 where the receipts are not all that was learned, or the model cannot be taken apart.
    """
    if bool(client) == bool(label):
        raise InvalidArgument("name a learner with --client or a class with --class, one of the two", field="--client")
    with connect(ctx, server) as connected:
        asked: dict[str, Any] = {"client_id": client, "label": label, "receipts": receipts, "partial": partial}
        plan = connected.erase(model, **asked, dry_run=True)
        if not plan.receipts and plan.erased_before and client:  # said again, with its receipt
            report = connected.erase(model, **asked)
            say(f"client {client} was taken out of {model} before")
        else:
            if output is Output.TABLE or not dry_run:
                _put_plan(plan, show=output is Output.TABLE)
            _refuse_incomplete(plan, partial=partial, has_receipts=receipts is not None)
            if dry_run:
                if output is not Output.TABLE:
                    put_data(plain(plan), output)
                raise typer.Exit(exit_codes.OK)
            if not yes:
                ask(f"Take this out of {model}? It cannot be undone.", consent="--yes")
            report = connected.erase(model, **asked)
        path = _write(connected, report, out)
    if output is not Output.TABLE:
        put_data(plain(report), output)
    else:
        _put_done(report, path)


def verify_receipt(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `everlearn erase` wrote.")],
    key: Annotated[
        str, typer.Option("--key", metavar="HEX", help="The server's public key, as you know it from elsewhere.")
    ] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Check the signature of an erasure receipt, and show what it says. Needs no server.

    Exit code 8 where it was changed, 6 where it is signed with another key than --key.
    """
    receipt, signature, public_key = _read(file)
    if not _ed25519.is_signed(receipt.encode(), signature, public_key):
        say(f"error: {file} was changed: its signature is not of what it says", style="red")
        raise typer.Exit(exit_codes.FAULT)
    if key and key.lower() != public_key.hex():
        say(f"error: {file} is signed with {public_key.hex()}, not with {key.lower()}", style="red")
        raise typer.Exit(exit_codes.REFUSED)
    told = json.loads(receipt)
    if output is not Output.TABLE:
        put_data({**told, "public_key": public_key.hex()}, output)
        return
    whom = f"client {told['client']}" if "client" in told else f"class {told['class']}"
    put_fields(
        {
            "signature": f"good, by {public_key.hex()}",
            "key": "is the one given" if key else "compare it with `everlearn info`, or give --key",
            "taken out": f"{whom}, {told['samples']:,} samples, of model {told['model']}",
            "how": f"{told['how']}: {told['statement']}",
            **_rewound(told),
            "when": f"{told['time']}, commit {told['commit']}",
            "state before": told["state_before"],
            "state after": told["state_after"],
            "versions withdrawn": _numbers(told["withdrawn_versions"]),
            "exports deleted": _numbers(told["withdrawn_exports"]),
            "who has copies": _holders(told),
            **({"of copies": told["copies"]} if "copies" in told else {}),
            "backups": told["backups"],
        }
    )


def _put_plan(plan: erasure_pb2.EraseReport, *, show: bool) -> None:
    if not show:
        return
    fields: dict[str, object] = {}
    if plan.client:
        covered = f"{plan.samples:,} of {plan.samples_learned:,} samples learned of client {plan.client}"
        by_receipts = plan.how.startswith("subtracted")
        is_known = by_receipts or plan.how == "own sums subtracted"
        fields["to take out"] = covered if is_known else f"what is kept of client {plan.client}"
        if by_receipts:
            fields["receipts"] = f"{plan.receipts:,} count, for {plan.durable_sequence:,} batches; {_left_out(plan)}"
            fields["complete"] = plan.incomplete_because or "yes, proved by their sum"
    else:
        fields["to take out"] = f"{plan.samples:,} samples of class {plan.label}"
    fields["exact"] = f"{'yes' if plan.exact else 'no'}: {plan.statement}"
    if plan.HasField("rewound"):
        fields["weights go back to"] = _gone_back(plan.rewound.commit, plan.rewound.because)
    fields["versions to withdraw"] = _numbers(plan.versions)
    fields["exports to delete"] = _numbers(plan.exports)
    fields["who has copies"] = _listed([f"{each.client or _NAMELESS} (version {each.version})" for each in plan.copies])
    put_fields(fields)


def _put_done(report: erasure_pb2.EraseReport, path: Path) -> None:
    told = json.loads(report.erasure.receipt)
    put_fields(
        {
            "taken out": f"{told['samples']:,} samples, {report.how}",
            **_rewound(told),
            "state": f"{told['state_before'][:12]} before, {told['state_after'][:12]} after, commit {told['commit']}",
            "withdrawn": f"versions {_numbers(told['withdrawn_versions'])}",
            "serves now": f"version {report.stable}" if report.stable else "nothing: no version is left that may",
            "copies elsewhere": _holders(told),
            "signed receipt": f"{path}, to be checked with `everlearn verify-receipt`",
        }
    )


def _refuse_incomplete(plan: erasure_pb2.EraseReport, *, partial: bool, has_receipts: bool) -> None:
    if plan.incomplete_because and not has_receipts:
        raise FailedPrecondition(
            f"what {plan.client} contributed is known to it alone: give --receipts with the file that its `everlearn "
            "learn --receipts` kept. Who kept none gets them by learning the same data again with --resume --receipts, "
            "which counts nothing twice",
            field="--receipts",
            reason="RECEIPTS_INCOMPLETE",
        )
    if plan.incomplete_because and not partial:
        raise FailedPrecondition(
            f"the receipts are not all that was learned: {plan.incomplete_because}. Nothing was changed; --partial "
            "takes out what they cover",
            field="--receipts",
            reason="RECEIPTS_INCOMPLETE",
        )


def _left_out(plan: erasure_pb2.EraseReport) -> str:
    counts = {
        "erased before": plan.erased_before,
        "not durable": plan.not_durable,
        "not of this model": plan.foreign,
        "given when sent again": plan.unwitnessed,
    }
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "none left out"


def _rewound(told: dict[str, Any]) -> dict[str, object]:
    """Of a receipt: where weights were set back."""
    if "rewound" not in told:
        return {}
    rewound = told["rewound"]
    return {
        "weights went back to": _gone_back(rewound.get("to_commit", 0), rewound.get("to_pretrained_because", "")),
        "learned again": f"{rewound['samples_learned_again']:,} samples of others",
        "in the model": f"{rewound['samples_in_model_before']:,} samples before, "
        f"{rewound['samples_in_model_after']:,} after",
    }


def _gone_back(commit: int, because: str) -> str:
    return f"the state of commit {commit}" if commit else f"the pretrained ones ({because})"


def _holders(told: dict[str, Any]) -> str:
    """Of a receipt."""
    holders = told["clients_last_seen_with_them"]
    if isinstance(holders, str):  # of a release that did not ask for names
        return holders
    return _listed([f"{each.get('client', _NAMELESS)} (version {each['version']}, {each['time']})" for each in holders])


def _numbers(numbers: Any) -> str:
    return _listed([str(number) for number in numbers])


def _listed(listed: list[str]) -> str:
    return ", ".join(listed[:_MOST]) + (f" and {len(listed) - _MOST} more" if len(listed) > _MOST else "") or "none"


def _write(client: Client, report: erasure_pb2.EraseReport, out: Path | None) -> Path:
    erasure = report.erasure
    path = out or Path(f"erasure-{report.name.removeprefix('models/')}-{erasure.id}.json")
    document = {
        "receipt": erasure.receipt,
        "signature": base64.b64encode(erasure.signature).decode(),
        "public_key": base64.b64encode(erasure.public_key).decode(),
        "algorithm": "Ed25519 over the UTF-8 bytes of receipt",
    }
    try:
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidArgument(
            f"it was taken out, but {path} cannot be written: {error.strerror}; run the same again with another --out",
            field="--out",
        ) from None
    return path


def _read(path: Path) -> tuple[str, bytes, bytes]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        signature = base64.b64decode(document["signature"], validate=True)
        public_key = base64.b64decode(document["public_key"], validate=True)
        receipt = document["receipt"]
        if not isinstance(receipt, str):
            raise TypeError
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}", field="FILE") from None
    except (ValueError, KeyError, TypeError, binascii.Error):
        raise InvalidArgument(f"{path} is no erasure receipt", field="FILE") from None
    return receipt, signature, public_key
