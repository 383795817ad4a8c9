"""Files of models made wrong: each is refused in our words, or taken; a child may die of one, the server may not."""

from __future__ import annotations

import pytest
from tests.faults.mutated_files import run

SEED = 20261121


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "files"), [("onnx", 100), ("safetensors", 60), ("tokenizer", 60)])
def test_two_hundred_wrong_files_are_refused_or_taken(kind: str, files: int) -> None:
    found = run(kind, files, SEED)
    assert found["violations"] == []
    assert sum(found["counts"].values()) == files
    assert found["counts"]["refused"] > 0.6 * files


@pytest.mark.slow
def test_a_server_that_takes_tokenizers_unread_is_caught() -> None:
    violations = run("tokenizer", 40, SEED, unchecked=True)["violations"]
    assert any(violation.startswith("the server itself: ") for violation in violations)
