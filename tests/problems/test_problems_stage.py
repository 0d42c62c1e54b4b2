"""The stage: disjoint splits, counted rows, nothing half-written."""

import json
from pathlib import Path
from typing import Any

import pytest

from minos_ray.config.load import Config
from minos_ray.errors import UserError
from minos_ray.problems.loaders import key, problems
from minos_ray.store.columns import SCHEMAS
from minos_ray.store.run import Run

TABLE = "minos_ray.problems.loaders:table"


def rows(*questions: str) -> list[dict[str, str]]:
    return [{"question": question, "answer": str(n)} for n, question in enumerate(questions)]


def config(folder: Path, train: list[Any], test: list[Any], **options: Any) -> Config:
    """A config over two files with these rows; a text stands for a raw line."""
    sources = {}
    for split, content in {"train": train, "test": test}.items():
        path = folder / f"{split}.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in content))
        sources[split] = {"loader": TABLE, "path": str(path), "options": options}
    return Config(run=str(folder / "run"), base={"model": "none"}, problems=sources)


def test_both_splits_with_counts(tmp_path: Path) -> None:
    made = config(tmp_path, [*rows("a?", "b?", "c?"), "{torn"], [*rows("d?", "B ?"), {"question": "x"}])
    run = Run(made.run)
    manifest = problems(made, run)
    assert manifest.counts == {"rows": 4, "train": 2, "test": 2}
    assert manifest.dropped == {"train: not valid JSON": 1, "test: no column 'answer'": 1, "train: also in test": 1}
    assert {"split": "train", "error": "not valid JSON", "row": 4} in manifest.details["set_aside"]
    stored = run.artefact("problems").read().to_pylist()
    assert sorted((row["split"], row["question"]) for row in stored) == [
        ("test", "B ?"),
        ("test", "d?"),
        ("train", "a?"),
        ("train", "c?"),
    ]
    assert problems(made, run) == manifest


def test_categories_of_one_split_are_a_column_of_both(tmp_path: Path) -> None:
    made = config(tmp_path, rows("a?"), [{**row, "grade": k} for k, row in enumerate(rows("b?", "c?"))])
    made.problems.test.options["categories"] = ["grade"]
    problems(made, Run(made.run))
    stored = Run(made.run).artefact("problems").read()
    assert stored.column_names == [*SCHEMAS["problems"].names, "grade"]
    assert {row["question"]: row["grade"] for row in stored.to_pylist()} == {"a?": None, "b?": "0", "c?": "1"}


def test_questions_are_the_same_up_to_case_and_punctuation_but_not_numbers() -> None:
    assert key("Ann has 3 pens.  How many?") == key("ann has 3 pens; HOW many")
    assert key("1.5 pens") != key("15 pens")
    assert key("3+4") != key("3*4")


def test_ids_must_be_unique_over_both_splits(tmp_path: Path) -> None:
    train, test = [{"key": 1, **row} for row in rows("a?")], [{"key": 1, **row} for row in rows("b?")]
    made = config(tmp_path, train, test, columns={"id": "key"})
    with pytest.raises(UserError, match="problem_id '1' occurs 2 times"):
        problems(made, Run(made.run))
    assert Run(made.run).artefact("problems").manifest() is None


def test_a_bad_file_leaves_the_old_problems_alone(tmp_path: Path) -> None:
    made = config(tmp_path, rows("a?"), rows("b?"))
    run = Run(made.run)
    before = problems(made, run)
    worse = made.model_copy(update={"problems": made.problems.model_copy(update={"test": made.problems.train})})
    with pytest.raises(UserError, match=r"problems\.train: no problem is left"):
        problems(worse, run)
    assert run.artefact("problems").manifest() == before


def test_an_unknown_option_is_named(tmp_path: Path) -> None:
    made = config(tmp_path, rows("a?"), rows("b?"), colunms={"id": "key"})
    with pytest.raises(UserError, match=r"problems\.train\.options: .*'colunms'; accepted: columns, dataset"):
        problems(made, Run(made.run))


def test_no_section_and_nothing_imported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="minos import"):
        problems(Config(run=str(tmp_path), base={"model": "none"}), Run(str(tmp_path)))


def test_the_seed_draws_and_the_limit_counts(tmp_path: Path) -> None:
    made = config(tmp_path, rows(*(f"train {n}?" for n in range(50))), rows(*(f"test {n}?" for n in range(50))))
    limited = made.problems.train.model_copy(update={"limit": 10})
    chosen = []
    for seed in (0, 1):
        sources = made.problems.model_copy(update={"train": limited})
        run = Run(str(tmp_path / f"run{seed}"))
        manifest = problems(made.model_copy(update={"problems": sources, "seed": seed}), run)
        assert manifest.counts == {"rows": 60, "train": 10, "test": 50}
        stored = run.artefact("problems").read(["problem_id", "split"]).to_pylist()
        chosen.append({row["problem_id"] for row in stored if row["split"] == "train"})
    assert chosen[0] != chosen[1]
