"""`minos import steps` and `pairs`: the shapes of TRL and axolotl, soft labels, chats, and what is counted."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from minos_ray.errors import UserError
from minos_ray.exports import send
from minos_ray.imports import bring
from minos_ray.store.run import Run
from tests.imports.files import found_again, jsonl, stored

STEPS = ["Step 1: 3 + 4 = 7", "Step 2: 7 * 2 = 15", "The answer is: 15"]
ROW = {"prompt": "Tom has 3 pens and buys 4. Twice that?", "completions": STEPS, "labels": [True, False, False]}
RIGHT = {**ROW, "completions": ["Step 1: 7 * 2 = 14", "The answer is: 14"], "labels": [True, True]}


def labels_of(run: Run) -> list[tuple[Any, ...]]:
    """What matters of the labels."""
    names = ("correct", "status", "answer", "steps", "step_labels", "step_scores")
    return [tuple(row[name] for name in names) for row in stored(run, "labels")]


def test_the_shape_of_trl_and_axolotl(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"))
    bring("steps", jsonl(tmp_path / "in.jsonl", ROW, RIGHT), run)
    assert labels_of(run) == [
        (False, "wrong", "15", STEPS, [1, 0, 0], None),
        (True, "correct", "14", RIGHT["completions"], [1, 1], None),
    ]
    (problem,) = stored(run, "problems")
    assert (problem["question"], problem["answer"], problem["split"]) == (ROW["prompt"], "14", "train")
    assert found_again(run) == 1.0


def test_what_is_exported_for_trl_comes_back_the_same(tmp_path: Path) -> None:
    first, second = Run(str(tmp_path / "first")), Run(str(tmp_path / "second"))
    bring("steps", jsonl(tmp_path / "in.jsonl", ROW, RIGHT), first)
    send("trl-stepwise", first, str(tmp_path / "out.parquet"))
    bring("steps", str(tmp_path / "out.parquet"), second)
    assert labels_of(first) == labels_of(second)
    send("trl-stepwise", second, str(tmp_path / "again.parquet"))
    assert pq.read_table(tmp_path / "again.parquet").equals(pq.read_table(tmp_path / "out.parquet"))


def test_soft_and_missing_labels_and_columns_by_name(tmp_path: Path) -> None:
    row = {"q": [{"role": "system", "content": "s"}, {"role": "user", "content": " How many? "}], "parts": STEPS}
    source = jsonl(tmp_path / "in.jsonl", {**row, "ratings": [0.875, 0.25, None], "ok": False})
    run = Run(str(tmp_path / "run"))
    manifests = bring("steps", source, run, question="q", steps="parts", labels="ratings", correct="ok")
    assert labels_of(run) == [(False, "wrong", "15", STEPS, [1, 0, -1], [0.875, 0.25, None])]
    assert stored(run, "problems")[0]["question"] == "How many?"
    assert manifests[-1].counts["soft labels"] == 1
    masked = Run(str(tmp_path / "masked"))
    soft = {**row, "ratings": [0.875, 0.25, 0.75], "ok": False}
    names = {"question": "q", "steps": "parts", "labels": "ratings", "correct": "ok"}
    bring("steps", jsonl(tmp_path / "soft.jsonl", soft), masked, after_first_error="mask", threshold=0.5, **names)
    assert labels_of(masked)[0][4:] == ([1, 0, -1], [0.875, 0.25, None])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": [True]}, "as many labels as steps are needed"),
        ({"labels": [True, False, None]}, "the last step has no label"),
        ({"labels": [True, 2, False]}, "a label is not true, false or a number from 0 to 1"),
        ({"labels": [True, "+", False]}, "a label is not true, false or a number from 0 to 1"),
        ({"labels": [True, float("nan"), False]}, "a label is not true, false or a number from 0 to 1"),
        ({"completions": "3 + 4 = 7"}, "'steps' is not a list of texts"),
        ({"completions": ["a", " ", "b"]}, "'steps' is not a list of texts"),
        ({"completions": None}, "no 'steps'"),
        ({"prompt": None}, "no 'question'"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "the question is no text"),
    ],
)
def test_rows_that_cannot_be_read_are_counted(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    run = Run(str(tmp_path / "run"))
    manifests = bring("steps", jsonl(tmp_path / "in.jsonl", RIGHT, {**ROW, **change}), run)
    assert manifests[-1].dropped == {reason: 1} and len(stored(run, "labels")) == 1
    with pytest.raises(UserError, match="no row of"):
        bring("steps", jsonl(tmp_path / "bad.jsonl", {**ROW, **change}), Run(str(tmp_path / "other")))


def test_pairs_of_texts_lists_and_chats_are_the_same_solutions(tmp_path: Path) -> None:
    right, wrong = "7 * 2 = 14\nThe answer is: 14", "7 * 2 = 15\nSo it must be that."
    shapes = [
        {"chosen": right, "rejected": wrong},
        {"chosen": right.split("\n"), "rejected": wrong.split("\n")},
        {"chosen": [{"role": "assistant", "content": right}], "rejected": [{"role": "assistant", "content": wrong}]},
    ]
    results = []
    for number, shape in enumerate(shapes):
        run = Run(str(tmp_path / str(number)))
        bring("pairs", jsonl(tmp_path / f"{number}.jsonl", {"question": "Twice 7?", **shape}), run)
        results.append(labels_of(run))
    assert results[0] == results[1] == results[2]
    # A rejected solution is wrong, whether or not an answer can be read in it: an ORM learns from both.
    assert [(row[0], row[1], row[4]) for row in results[0]] == [(True, "correct", [-1, -1]), (False, "wrong", [-1, -1])]
    run = Run(str(tmp_path / "same"))
    rows = [{"question": "Twice 7?", **shapes[0]}, {"question": "Once 7?", "chosen": right, "rejected": right}]
    assert bring("pairs", jsonl(tmp_path / "same.jsonl", *rows), run)[-1].dropped == {"chosen is rejected": 1}
