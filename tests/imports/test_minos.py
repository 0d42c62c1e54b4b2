"""Math-Minos' own files: critiques, judged solutions, the ORM set and the PRM set."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from minos_ray.config.training import Sft
from minos_ray.errors import UserError
from minos_ray.imports import bring
from minos_ray.imports.steps import numbered, sources, step_verdicts
from minos_ray.store.run import Run
from tests.imports.files import TAG, found_again, jsonl, shepherd_row, stored
from tests.tiny import tiny_tokenizer

SHORT_TAG = "\u0438"
QUERY = "Human: Tom has {0} apples and buys 4. How many?\n\nAssistant: Step 1: Tom has {0} + 4 = {1} apples.\n"
QUERY += "Step 2: From Step 1: he has {1}.\nThe answer is: {1}"
RIGHT = "Step1: The sum is right. So far so good.\nStep2: This follows.\nThe final answer is True."
WRONG = "Step 1: This is incorrect, 3 + 4 is 7.\nStep 2: It repeats the wrong sum.\nThe final answer is False."


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path / "run"))


def critique_rows() -> list[dict[str, Any]]:
    rows = [{"query": QUERY.format(n, n + 4 + n % 2), "response": WRONG if n % 2 else RIGHT} for n in range(8)]
    rows[0]["response"] = f"<think>\nStep 1: The final answer is false?\n</think>\n\n{RIGHT}"
    rows[1]["query"] = rows[1]["query"].replace("Step 1:", "<think>\nStep 1: maybe 9?\n</think>\n\nStep 1:", 1)
    return [*rows, {"query": QUERY.format(9, 13), "response": "Step 1: This is"}, {"query": "Hi", "response": RIGHT}]


def test_critiques_alone_train_stage_1(run: Run, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from minos_ray.config.load import Config
    from minos_ray.graph.state import status
    from minos_ray.training.sft import critique_data

    made = {m.artefact: m for m in bring("math-minos", jsonl(tmp_path / "a.jsonl", *critique_rows()), run)}
    assert made["critiques"].counts == {"rows": 8}
    assert made["labels"].dropped == {
        "neither a verdict in 'response' nor a 'label'": 1,
        "no question and solution in the text": 1,
    }
    first, second = stored(run, "critiques")[:2]
    assert (first["text"], first["final_verdict"], first["agrees"], first["status"]) == (RIGHT, True, True, "ok")
    assert (first["step_verdicts"], second["step_verdicts"]) == ([1, 1, 1], [0, 0, 0])
    label = stored(run, "labels")[1]
    assert label["steps"] == ["Step 1: Tom has 1 + 4 = 6 apples.", "Step 2: From Step 1: he has 6.", "The answer is: 6"]
    assert (label["step_labels"], label["correct"], label["answer"]) == ([-1, -1, -1], False, "6")
    states = status(Config(run=run.path, base={"model": "none"}), run)
    assert {s.artefact: (s.state, s.why) for s in states if s.artefact in made} == dict.fromkeys(
        made, ("done", "imported")
    )
    tiny_tokenizer(tmp_path / "tokenizer")
    data = critique_data(run, AutoTokenizer.from_pretrained(tmp_path / "tokenizer"), Sft(max_length=1024))
    assert len(data.train) + len(data.held_out) == 8 and not data.dropped


def test_judged_solutions_are_in_the_test_split(run: Run, tmp_path: Path) -> None:
    rows = [
        {"query": QUERY.format(1, 5), "label": {"y_pred": "5", "acc": "True"}},
        {"query": QUERY.format(2, 7), "label": {"y_pred": "[invalid]", "acc": "False"}},
        {"query": QUERY.format(3, 7), "label": {"y_pred": "7", "acc": "True"}, "response": WRONG},
        {"query": QUERY.format(4, 7), "label": "?"},
        {"query": QUERY.format(5, 7), "label": {"y_pred": None, "acc": "False"}},
    ]
    problems, _, labels, critiques = bring("math-minos", jsonl(tmp_path / "a.jsonl", *rows), run)
    assert problems.counts == {"rows": 4, "test": 4} and labels.dropped == {"'label' has no 'acc' True or False": 1}
    assert [(r["answer"], r["status"]) for r in stored(run, "labels")] == [
        ("5", "correct"),
        (None, "no_answer"),
        ("7", "correct"),
        (None, "no_answer"),
    ]
    assert critiques.counts == {"rows": 1} and not stored(run, "critiques")[0]["agrees"]


@pytest.mark.parametrize("tag", [TAG, SHORT_TAG])
def test_the_prm_set_with_either_tag(run: Run, tmp_path: Path, tag: str) -> None:
    row = shepherd_row("Human: How many? Assistant:", "+-", tag)
    _, _, labels = bring(
        "math-minos", jsonl(tmp_path / "a.jsonl", row, {"text": row["input"], "label": row["label"]}), run
    )
    assert labels.counts["rows"] == 2
    for label in stored(run, "labels"):
        assert (label["step_labels"], label["correct"], len(label["steps"])) == ([1, 0], False, 2)
    assert {row["question"] for row in stored(run, "problems")} == {"How many?"}
    assert found_again(run) == 1


def save_to_disk(path: Path, rows: list[dict[str, Any]]) -> None:
    """The files of `Dataset.save_to_disk`: an Arrow stream and descriptions."""
    path.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(path / "data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table)
    (path / "state.json").write_text("{}")
    (path / "dataset_info.json").write_text("{}")


def test_the_orm_set_as_datasets_saves_it(run: Run, tmp_path: Path) -> None:
    rows = [{"text": QUERY.format(n, n + 4 + n % 2), "label": 1 - n % 2} for n in range(4)]
    plain = {"text": "How many are 2? Step 1: 2 are.\nStep 2: The answer is: 2", "label": 1}
    save_to_disk(tmp_path / "set" / "train", [*rows, plain])
    save_to_disk(tmp_path / "set" / "eval", [rows[0], {"text": QUERY.format(8, 12), "label": 1}])
    problems, _, labels = bring("math-minos", str(tmp_path / "set"), run)
    assert problems.counts == {"rows": 6, "train": 5, "test": 1}
    assert labels.counts["rows"] == 6 and labels.dropped == {"test: question also in train": 1}
    assert [row["correct"] for row in stored(run, "labels")] == [True, False, True, False, True, True]
    assert found_again(run) == 1


def test_a_file_of_the_hub_is_one_split() -> None:
    hub = "hf://datasets/KbsdJames/MathMinos-Natural-language-feedback/Natural_language_feedback_30k.jsonl"
    assert list(sources(hub, "train")) == [(hub, "train")]


def test_the_tokenised_prm_set_is_refused_with_the_reason(run: Run, tmp_path: Path) -> None:
    save_to_disk(tmp_path / "train", [{"input_ids": [1, 2], "labels": [-100, 1], "attention_mask": [1, 1]}])
    with pytest.raises(UserError, match=r"tokenised: the row has no text \(1\)"):
        bring("math-minos", str(tmp_path / "train"), run)


def test_steps_are_numbered_in_sequence() -> None:
    assert numbered("First. Step 1: a Step 3: b Step 2: see Step 1: c") == [
        "First.",
        "Step 1: a Step 3: b",
        "Step 2: see Step 1: c",
    ]
    assert numbered("a\n\nb") == ["a", "b"]


def test_verdicts_are_read_as_in_the_papers_meta_evaluation() -> None:
    assert step_verdicts(RIGHT, 3) == [1, 1, 1]
    assert step_verdicts(RIGHT, 2) == [1, 1]
    assert step_verdicts(WRONG, 5) == []
    assert step_verdicts("Step 1: Fine. Not wrong.", 2) == []
