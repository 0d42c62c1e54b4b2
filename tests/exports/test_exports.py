"""Exports: what is in them, what was left out, and that their readers (our importers, `datasets`) read them."""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from minos_ray.errors import UserError
from minos_ray.exports import FORMATS, send
from minos_ray.imports import bring
from minos_ray.steps import encoding
from minos_ray.steps.encoding import critic_turns
from minos_ray.store.run import Run
from tests.imports.files import TAG, jsonl, shepherd_row, stored
from tests.runs import make_run, put, scores


def problem(name: str, split: str) -> dict[str, Any]:
    fields = {"dataset": "gsm8k", "question": f"How many is {name}?", "answer": "1", "solution": None}
    return {"problem_id": name, "split": split, **fields}


def label(problem: str, index: int, steps: list[str], labels: list[int], status: str = "correct") -> dict[str, Any]:
    return {
        "candidate_id": f"{problem}/{index}",
        "problem_id": problem,
        "answer": "1",
        "correct": status == "correct",
        "status": status,
        "steps": steps,
        "step_labels": labels,
        "step_scores": None,
        "step_source": "made",
        "error_types": [],
    }


def critique(candidate: str, status: str = "ok", agrees: bool = True) -> dict[str, Any]:
    verdicts = {"step_verdicts": [1], "final_verdict": True, "agrees": agrees, "status": status}
    cost = {"prompt_tokens": 1, "completion_tokens": 1, "cost_usd": 0.0}
    return {
        "candidate_id": candidate,
        "critic": "c",
        "prompt_version": "v",
        "text": f"On {candidate}.",
        **verdicts,
        **cost,
    }


def thinking(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "text": f"<think>\nIs it?\n</think>\n\n{row['text']}"}


STEPS = ["It is 1.", "The answer is: 1"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two train problems and a test problem, with every kind of label and critique."""
    made = Run(str(tmp_path / "run"))
    put(made, "problems", [problem("a", "train"), problem("b", "train"), problem("c", "test")])
    labels = [
        label("a", 0, STEPS, [1, 1]),
        label("a", 1, STEPS, [1, 0], "wrong"),
        label("a", 2, STEPS, [1, -1]),
        label("b", 0, STEPS, [-1, -1], "no_answer"),
        label("b", 1, STEPS, [-1, 0], "wrong"),
        label("b", 2, [f"See {TAG}", "1"], [1, 1]),
        label("c", 0, STEPS, [1, 1]),
    ]
    put(made, "labels", labels)
    critiques = [
        thinking(critique("a/0")),
        critique("a/1", agrees=False),
        critique("b/0", "truncated"),
        critique("c/0"),
    ]
    put(made, "critiques", critiques)
    return made


def lines(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def test_prompt_completion_is_what_stage_1_trains_on(run: Run, tmp_path: Path) -> None:
    made = send("trl-prompt-completion", run, str(tmp_path / "out.jsonl"))
    assert made.counts == {"rows": 1}
    assert made.dropped == {"critique_disagrees": 1, "critique_truncated": 1, "not of split train": 1}
    (row,) = lines(tmp_path / "out.jsonl")
    assert row == {
        "prompt": "Question: How many is a?\nAnswer:\nIt is 1.\nThe answer is: 1\nCritique:\n",
        "completion": "On a/0.",
    }
    assert encoding.question_text("q") in "Question: q\nAnswer:\n" and encoding.CRITIQUE == "Critique:\n"
    send("trl-prompt-completion", run, str(tmp_path / "chat.jsonl"), form="chat")
    (chat,) = lines(tmp_path / "chat.jsonl")
    assert chat == {
        "prompt": critic_turns("How many is a?", "It is 1.\nThe answer is: 1\n"),
        "completion": [{"role": "assistant", "content": "On a/0."}],
    }
    both = send("trl-prompt-completion", run, str(tmp_path / "all.jsonl"), split="all")
    assert both.counts == {"rows": 2}


def test_prompt_completion_of_inserted_errors(run: Run, tmp_path: Path) -> None:
    row = {"candidate_id": "i0", "problem_id": "a", "source_id": "a/0", "steps": ["1 + 1 = 3"], "step_labels": [0]}
    row |= {
        "correct": False,
        "error_types": ["calculation"],
        "error_step": 0,
        "error_type": "calculation",
        "text": "No.",
    }
    put(run, "inserted", [row, {**row, "candidate_id": "i1", "problem_id": "c"}])
    made = send("trl-prompt-completion", run, str(tmp_path / "out.jsonl"), source="inserted")
    assert made.counts == {"rows": 1} and made.dropped == {"not of split train": 1}
    assert lines(tmp_path / "out.jsonl")[0]["prompt"].endswith("1 + 1 = 3\nCritique:\n")


@pytest.mark.parametrize(
    ("unlabelled", "rows", "dropped"),
    [
        ("cut", [[True, True], [True, False], [True], [True, True]], {"no step labels": 1, "first step unlabelled": 1}),
        (
            "drop",
            [[True, True], [True, False], [True, True]],
            {"no step labels": 1, "first step unlabelled": 1, "an unlabelled step": 1},
        ),
    ],
)
def test_stepwise(run: Run, tmp_path: Path, unlabelled: str, rows: list[Any], dropped: dict[str, int]) -> None:
    made = send("trl-stepwise", run, str(tmp_path / "out.parquet"), unlabelled=unlabelled)
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["labels"] for row in found] == rows
    assert all(len(row["completions"]) == len(row["labels"]) for row in found)
    assert found[0] == {"prompt": "How many is a?", "completions": STEPS, "labels": [True, True]}
    assert made.dropped == {**dropped, "not of split train": 1}
    cut = {"cut at an unlabelled step": 1, "steps cut off": 1} if unlabelled == "cut" else {}
    assert made.counts == {"rows": len(rows), **cut}


def test_math_shepherd_comes_back_as_it_was(tmp_path: Path) -> None:
    first, second = Run(str(tmp_path / "first")), Run(str(tmp_path / "second"))
    rows = [shepherd_row("How many?", "++"), shepherd_row("How many?", "+-"), shepherd_row("Else?", "-+")]
    bring("math-shepherd", jsonl(tmp_path / "a.jsonl", *rows), first)
    made = send("math-shepherd", first, str(tmp_path / "b.jsonl.gz"))
    assert made.counts == {"rows": 3, "last label is not the outcome": 0} and not made.dropped
    assert lines(tmp_path / "b.jsonl.gz") == rows
    bring("math-shepherd", str(tmp_path / "b.jsonl.gz"), second)
    assert stored(second, "labels") == stored(first, "labels")
    assert stored(second, "problems") == stored(first, "problems")


def test_math_shepherd_numbers_steps_and_counts_what_cannot_be_said(run: Run, tmp_path: Path) -> None:
    made = send("math-shepherd", run, str(tmp_path / "out.jsonl"), unlabelled="cut")
    assert made.counts == {
        "rows": 3,
        "cut at an unlabelled step": 1,
        "steps cut off": 1,
        "steps numbered": 3,
        "last label is not the outcome": 0,
    }
    assert made.dropped["the step tag is in the text"] == 1
    row = lines(tmp_path / "out.jsonl")[1]
    assert row["input"] == f"How many is a? Step 1: It is 1. {TAG}\nStep 2: The answer is: 1 {TAG}"
    assert row["label"] == "How many is a? Step 1: It is 1. +\nStep 2: The answer is: 1 -" and row["task"] == "GSM8K"
    again = Run(str(tmp_path / "again"))
    bring("math-shepherd", str(tmp_path / "out.jsonl"), again)
    assert [r["step_labels"] for r in stored(again, "labels")] == [[1, 1], [1, 0], [1]]


def test_the_orm_set_comes_back_with_its_outcomes(run: Run, tmp_path: Path) -> None:
    made = send("orm", run, str(tmp_path / "orm.jsonl"))
    assert made.counts == {"rows": 5} and made.dropped == {"label_no_answer": 1, "not of split train": 1}
    assert lines(tmp_path / "orm.jsonl")[1] == {
        "text": "Human: How many is a?\nAssistant: It is 1.\nThe answer is: 1",
        "label": 0,
    }
    again = Run(str(tmp_path / "again"))
    bring("math-minos", str(tmp_path / "orm.jsonl"), again)
    found = stored(again, "labels")
    assert [(r["steps"], r["correct"]) for r in found[:2]] == [(STEPS, True), (STEPS, False)]


@pytest.mark.parametrize(
    ("form", "out", "options", "words"),
    [
        ("trl", "o.jsonl", {}, "'trl' is not known; there are huggingface, "),
        ("orm", "o.jsonl", {"splitt": "test"}, "unknown option 'splitt'; accepted: split; did you mean 'split'"),
        ("orm", "o.jsonl", {"split": "dev"}, "Input should be 'train', 'test' or 'all'"),
        ("orm", "o.txt", {}, "'.*o.txt' is of no known kind; accepted are .jsonl, .jsonl.gz, .parquet"),
        ("huggingface", "run", {}, "exists; remove it or name another folder"),
        ("huggingface", "s3://bucket/hub", {}, "is no local folder"),
        ("huggingface", "hub", {"shard_rows": 0}, "shard_rows = 0 is less than 1"),
    ],
)
def test_requests_that_are_refused(
    run: Run, tmp_path: Path, form: str, out: str, options: dict[str, Any], words: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=words):
        send(form, run, out if "://" in out else str(tmp_path / out), **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_written_when_no_row_is_left(tmp_path: Path) -> None:
    made = make_run(tmp_path / "run", [3])
    with pytest.raises(UserError, match=r"no row is left for '.*' \(not of split train 3\)"):
        send("trl-stepwise", made, str(tmp_path / "out.jsonl"))
    with pytest.raises(UserError, match="run2/problems is not complete"):
        send("trl-stepwise", Run(str(tmp_path / "run2")), str(tmp_path / "out.jsonl"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_export_that_fails_leaves_the_file_of_before(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "orm.jsonl"
    out.write_text("before\n")

    def torn(*_: object) -> Iterator[dict[str, Any]]:
        yield {"text": "x", "label": 1}
        raise OSError("disk full")

    monkeypatch.setattr("minos_ray.exports.training_sets.outcomes", torn)
    with pytest.raises(OSError, match="disk full"):
        send("orm", run, str(out))
    assert out.read_text() == "before\n" and sorted(p.name for p in tmp_path.iterdir()) == ["orm.jsonl", "run"]


def test_the_command_prints_what_was_left_out(run: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "minos_ray", "export", "orm", run.path, str(tmp_path / "o.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/o.parquet: rows 5; dropped: label no answer 1, not of split train 1\n"
    helped = subprocess.run([*command[:4], "--help"], capture_output=True, text=True, timeout=300).stdout
    assert all(form in "".join(helped.split()) for form in FORMATS)


def scored_run(path: Path) -> Run:
    """A run with problems of both splits and two sets of scores."""
    made = make_run(path, [4, 3])
    rows = [{**row, "split": "train" if row["problem_id"] == "p0" else "test"} for row in stored(made, "problems")]
    put(made, "problems", rows)
    scores(made, "orm-base", 0.3)
    scores(made, "prm-minos", 0.3)
    put(made, "critiques", [critique("p0/1"), critique("p1/0"), critique("gone/0")])
    return made


def test_the_dataset_folder(tmp_path: Path) -> None:
    import yaml

    made = scored_run(tmp_path / "run")
    done = send("huggingface", made, str(tmp_path / "hub"), shard_rows=3)
    per_artefact = {"candidates": 7, "labels": 7, "critiques": 2, "scores-orm-base": 7, "scores-prm-minos": 7}
    assert done.counts == {"problems": 2, **per_artefact}
    assert done.dropped == {"critiques: of no exported problem": 1}
    files = sorted(path.name for path in (tmp_path / "hub" / "labels").iterdir())
    assert files == [
        "test-00000-of-00001.parquet",
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    card = (tmp_path / "hub" / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert [config["config_name"] for config in head["configs"]] == list(done.counts)
    assert str(tmp_path) not in card and "| labels | train 4, test 3 | minos_ray |" in card
    one = send("huggingface", made, str(tmp_path / "one"), split="test")
    assert one.counts["labels"] == 3 and not (tmp_path / "one" / "labels" / "train-00000-of-00001.parquet").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "one", "run"]


def test_datasets_reads_every_configuration(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="`datasets` is not installed")
    made = scored_run(tmp_path / "run")
    done = send("huggingface", made, str(tmp_path / "hub"), shard_rows=3)
    for name, rows in done.counts.items():
        loaded = datasets.load_dataset(str(tmp_path / "hub"), name, cache_dir=str(tmp_path / "cache"))
        assert sum(len(part) for part in loaded.values()) == rows and set(loaded) == {"train", "test"}
    labels = datasets.load_dataset(str(tmp_path / "hub"), "labels", cache_dir=str(tmp_path / "cache"))
    found = sorted([*labels["train"], *labels["test"]], key=lambda row: row["candidate_id"])
    assert found == sorted(stored(made, "labels"), key=lambda row: row["candidate_id"])


@pytest.mark.parametrize(("form", "suffix"), [("trl-stepwise", "parquet"), ("trl-prompt-completion", "jsonl")])
def test_datasets_reads_the_training_files(run: Run, tmp_path: Path, form: str, suffix: str) -> None:
    datasets = pytest.importorskip("datasets", reason="`datasets` is not installed")
    out = str(tmp_path / f"out.{suffix}")
    made = send(form, run, out)
    kind = {"parquet": "parquet", "jsonl": "json"}[suffix]
    rows = datasets.load_dataset(kind, data_files=out, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == made.counts["rows"]
    features = {
        "trl-stepwise": {"prompt": "string", "completions": "string", "labels": "bool"},
        "trl-prompt-completion": {"prompt": "string", "completion": "string"},
    }[form]
    inner = {name: getattr(feature, "feature", feature).dtype for name, feature in rows.features.items()}
    assert inner == features
