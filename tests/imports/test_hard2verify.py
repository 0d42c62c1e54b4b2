"""`minos import hard2verify`: rows encrypted as published, decrypted ones, and what is counted."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from minos_ray.errors import UserError
from minos_ray.imports import bring
from minos_ray.store.run import Run
from tests.imports.files import found_again, jsonl, stored

COLUMNS = ("question", "model_response_by_step", "human_labels", "human_labels_first_error_idx")
STEPS = ["Let $n = 2k$.", "Then $n^2 = 2k^2$.", "So $n^2$ is even."]
ROW = {
    "unique_id": "imo-1",
    "question": "Prove that the square of an even \u2115 number is even.",
    "model_response_by_step": STEPS,
    "human_labels": [1, 0, 0],
    "human_labels_first_error_idx": 1,
}
RIGHT = {**ROW, "unique_id": "imo-2", "human_labels": [1, 1, 1], "human_labels_first_error_idx": -1}


def published(row: dict[str, Any], canary: str) -> dict[str, Any]:
    """The row as its authors publish it: a column's text, or its JSON, xor the repeated digest of the canary."""
    digest, secret = hashlib.sha256(canary.encode()).digest(), {**row, "canary": canary}
    for name in COLUMNS:
        data = (row[name] if isinstance(row[name], str) else json.dumps(row[name])).encode()
        stream = (digest * (len(data) // 32 + 1))[: len(data)]
        number = int.from_bytes(data) ^ int.from_bytes(stream)
        secret[name] = base64.b64encode(number.to_bytes(len(data))).decode()
    return secret


def labels_of(run: Run) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in ("correct", "status", "steps", "step_labels")) for row in stored(run, "labels")]


def test_encrypted_and_plain_rows_are_the_same(tmp_path: Path) -> None:
    secret, plain = Run(str(tmp_path / "secret")), Run(str(tmp_path / "plain"))
    rows = [published(ROW, "hard2verify-1"), published(RIGHT, "another canary")]
    assert not any(step in json.dumps(rows) for step in STEPS)
    problems, _, labels = bring("hard2verify", jsonl(tmp_path / "a.jsonl", *rows), secret)
    bring("hard2verify", jsonl(tmp_path / "b.jsonl", ROW, RIGHT), plain)
    assert labels_of(secret) == labels_of(plain) == [
        (False, "wrong", STEPS, [1, 0, 0]), (True, "correct", STEPS, [1, 1, 1]),
    ]  # fmt: skip
    assert problems.counts == {"rows": 1, "test": 1} and not labels.dropped
    assert labels.counts == {"rows": 2, "first error elsewhere than 'human_labels_first_error_idx'": 0}
    (problem,) = stored(secret, "problems")
    assert (problem["question"], problem["dataset"], problem["answer"]) == (ROW["question"], "hard2verify", "")
    assert found_again(secret) == 1
    masked = Run(str(tmp_path / "masked"))
    bring("hard2verify", jsonl(tmp_path / "c.jsonl", ROW), masked, after_first_error="mask")
    assert labels_of(masked)[0][3] == [1, 0, -1]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({**published(ROW, "one"), "canary": "other"}, "a column cannot be decrypted with the row's canary"),
        ({**published(ROW, "one"), "human_labels": "?"}, "a column cannot be decrypted with the row's canary"),
        ({**ROW, "human_labels": [1, 0]}, "'human_labels' has not 0 or 1 for each step"),
        ({**ROW, "human_labels": [1, 0, None]}, "'human_labels' has not 0 or 1 for each step"),
        ({**ROW, "model_response_by_step": []}, "'model_response_by_step' is not a list of texts"),
    ],
)
def test_rows_that_cannot_be_read_are_counted(tmp_path: Path, bad: dict[str, Any], reason: str) -> None:
    run = Run(str(tmp_path / "run"))
    off = {**RIGHT, "human_labels_first_error_idx": 2}
    *_, labels = bring("hard2verify", jsonl(tmp_path / "a.jsonl", off, bad), run)
    assert labels.dropped == {reason: 1}
    assert labels.counts["first error elsewhere than 'human_labels_first_error_idx'"] == 1
    with pytest.raises(UserError, match="no row of"):
        bring("hard2verify", jsonl(tmp_path / "b.jsonl", bad), Run(str(tmp_path / "other")))


def test_a_row_without_its_canary_is_counted(tmp_path: Path) -> None:
    row = {name: value for name, value in published(ROW, "one").items() if name != "canary"}
    *_, labels = bring("hard2verify", jsonl(tmp_path / "a.jsonl", RIGHT, row), Run(str(tmp_path / "run")))
    assert sum(labels.dropped.values()) == 1 and "canary" in next(iter(labels.dropped))
