"""A client is taken out of weights that a real server learned by steps: back to before it came, and stated as such."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.e2e.test_cli_erasure import run_cli
from tests.erasure_scene import DIM, KINDS, Scene, batches
from tests.real_server import RealServer

from everlearn_protos.v1 import erasure_pb2
from everlearn_server.store.store import Store


def declare(scene: Scene, *, checkpoints: int) -> None:
    """All that is streamed here is kept, and no more than so many states from before a client came."""
    spec = {
        **KINDS["steps"],
        "backbone": {"source": "identity"},
        "input": {"modality": "tensor", "shape": [DIM], "range": [-4.0, 4.0]},
        "memory": {"kind": "latents", "capacity": 2000},
        "retention": {"features": "latents", "checkpoints": checkpoints},
    }
    scene.server.declare(json.dumps({"metadata": {"name": "m"}, "spec": spec}))


def learn(scene: Scene, client: str, seed: int) -> None:
    """Twenty samples."""
    scene.learn("m", client, batches(seed, 4), receipts=False)


def erase(scene: Scene, client: str, *, dry_run: bool = False) -> erasure_pb2.EraseReport:
    return scene.erase("m", client, None, dry_run=dry_run)


def moments(folder: Path) -> list[int]:
    with Store.open(folder) as store:
        return list(asyncio.run(store.moments.commits("m")))


def at_rest_of_earlier(scene: Scene) -> int:
    with scene.server.client() as client:
        return client.models.get("m").status.bytes_at_rest["earlier"]


def test_a_client_is_taken_out_of_weights_by_going_back_to_before_it_came(tmp_path: Path) -> None:
    with RealServer(tmp_path / "data") as server:
        scene = Scene(server, tmp_path)
        declare(scene, checkpoints=3)
        learn(scene, "bob", 1)
        before = scene.digest("m")
        learn(scene, "ann", 2)
        with server.client(client_id="phone") as client:
            client.download(client.export("m"), tmp_path / "phone")
        _goes_back_to_the_bit_where_nobody_came_after(scene, before)
        _is_told_again_and_takes_out_nothing_twice(scene, tmp_path)
        _learns_again_what_others_sent_since(scene)
        _costs_the_way_from_the_pretrained_weights_for_who_came_first(scene, tmp_path)
        for turn, client_id in enumerate("defgh"):
            learn(scene, client_id, 10 + turn)
        assert server.terminate() == 0
        kept = moments(tmp_path / "data")
        assert len(kept) == 3
        server.start()
        assert [erase(scene, each, dry_run=True).rewound.commit for each in "dh"] == [kept[0], kept[-1]]
        assert at_rest_of_earlier(scene) > 0
        declare(scene, checkpoints=0)
        assert erase(scene, "h", dry_run=True).rewound.commit == 0
        assert at_rest_of_earlier(scene) == 0
    assert moments(tmp_path / "data") == []


def _goes_back_to_the_bit_where_nobody_came_after(scene: Scene, before: str) -> None:
    plan = erase(scene, "ann", dry_run=True)
    report = erase(scene, "ann")
    assert (plan.how, plan.rewound.commit) == ("rewound", report.rewound.commit)
    assert (report.how, report.exact, report.samples, report.rewound.learned_again) == ("rewound", False, 20, 0)
    told = json.loads(report.erasure.receipt)
    assert told["rewound"] == {
        "to_commit": report.rewound.commit,
        "samples_in_model_before": 40,
        "samples_in_model_after": 20,
        "samples_learned_again": 0,
    }
    assert "earlier commit" in told["statement"]
    assert told["state_after"] == scene.digest("m") == before
    assert [each["client"] for each in told["clients_last_seen_with_them"]] == ["phone"]
    assert scene.predictions("m")


def _is_told_again_and_takes_out_nothing_twice(scene: Scene, folder: Path) -> None:
    (receipt,) = scene.erasures("m")
    shown = run_cli(scene, "erase", "m", "--client", "ann", "--out", "again.json", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert "taken out of m before" in shown.stderr
    assert json.loads((folder / "again.json").read_text())["receipt"] == receipt
    commit = json.loads(receipt)["rewound"]["to_commit"]
    for text in (shown.stdout, run_cli(scene, "verify-receipt", "again.json", cwd=folder).stdout):
        assert f"the state of commit {commit}" in text
        assert "40 samples before, 20 after" in text
    assert scene.erasures("m") == [receipt]


def _learns_again_what_others_sent_since(scene: Scene) -> None:
    for seed, client in enumerate(("ann", "bob", "carl"), start=3):  # she may come back, and go again
        learn(scene, client, seed)
    report = erase(scene, "ann")
    assert (report.how, report.samples, report.rewound.learned_again) == ("rewound", 20, 40)
    assert (report.rewound.samples_before, report.rewound.samples_after) == (80, 60)
    assert scene.predictions("m")


def _costs_the_way_from_the_pretrained_weights_for_who_came_first(scene: Scene, folder: Path) -> None:
    plan = run_cli(scene, "erase", "m", "--client", "bob", "--dry-run", cwd=folder)
    assert "the pretrained ones (no state from before it contributed is kept: it was the first" in plan.stdout
    report = erase(scene, "bob")
    assert (report.how, report.rewound.commit, report.rewound.learned_again) == ("relearned", 0, 20)
    assert "pretrained" in report.statement
    assert "it was the first" in json.loads(report.erasure.receipt)["rewound"]["to_pretrained_because"]
    # All states that were kept knew him: they are gone, too.
    assert erase(scene, "carl", dry_run=True).how == "relearned"
