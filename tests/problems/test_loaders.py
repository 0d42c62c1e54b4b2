"""Loaders of GSM8K, MATH and any table: real files, faithful small ones, and every mistake."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.errors import UserError
from minos_ray.problems import loaders
from minos_ray.problems.loaders import draw
from minos_ray.store import columns as schema

NATALIA = {
    "question": "Natalia sold clips to 48 of her friends in April, and half as many in May. How many in all?",
    "answer": "In May: 48/2 = <<48/2=24>>24 clips.\n\nTogether 48+24 = <<48+24=1072>>1,072 clips.\n#### 1,072",
}
CIRCLE = {"problem": "What is $x$?", "solution": "First $\\boxed{0}$, no:\n\n$x = \\boxed{\\frac{1}{\\sqrt{2}}}$."}


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_gsm8k_row(tmp_path: Path) -> None:
    rows = list(loaders.gsm8k(jsonl(tmp_path / "a.jsonl", NATALIA), "train", None, 0))
    solution = "In May: 48/2 = 24 clips.\nTogether 48+24 = 1,072 clips.\nThe answer is: 1072"
    expected = {"problem_id": "gsm8k-train-0", "dataset": "gsm8k", "split": "train", "question": NATALIA["question"]}
    assert rows == [{**expected, "answer": "1072", "solution": solution}]
    kept = list(loaders.gsm8k(jsonl(tmp_path / "a.jsonl", NATALIA), "train", None, 0, calculations=True))
    assert "48/2 = <<48/2=24>>24 clips." in kept[0]["solution"]


def test_gsm8k_of_the_hub_is_the_same(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([NATALIA]), tmp_path / "train-00000-of-00001.parquet")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(NATALIA).encode()))
    plain = list(loaders.gsm8k(jsonl(tmp_path / "a.jsonl", NATALIA), "train", None, 0))
    for other in ("train-00000-of-00001.parquet", "a.jsonl.gz"):
        assert list(loaders.gsm8k(str(tmp_path / other), "train", None, 0)) == plain


def test_math_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", CIRCLE, {**CIRCLE, "answer": "\\frac{\\sqrt{2}}{2}"})
    boxed, given_ = list(loaders.math(path, "test", None, 0))
    assert boxed["answer"] == "\\frac{1}{\\sqrt{2}}" and boxed["problem_id"] == "math-test-0"
    assert boxed["solution"].splitlines()[-1] == "The answer is: \\frac{1}{\\sqrt{2}}"
    assert given_["answer"] == "\\frac{\\sqrt{2}}{2}"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"level": 5, "subject": "Algebra"}, {"level": "5", "subject": "Algebra"}),
        ({"level": "Level 3", "type": "Counting & Probability"}, {"level": "3", "subject": "Counting & Probability"}),
        ({"level": "Level ?", "type": ""}, {}),
        ({"level": None, "subject": ["Algebra"]}, {}),
    ],
)
def test_levels_and_subjects_of_math(tmp_path: Path, columns: dict[str, Any], expected: dict[str, str]) -> None:
    (row,) = loaders.math(jsonl(tmp_path / "a.jsonl", {**CIRCLE, **columns}), "test", None, 0)
    assert {name: row[name] for name in ("level", "subject") if name in row} == expected


def test_table_with_categories(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"question": "1+1?", "answer": 2, "grade": 1, "topic": None})
    (row,) = loaders.table(path, "test", None, 0, categories=["grade", "topic"])
    assert (row["grade"], row["topic"]) == ("1", None)
    for categories, words in (
        (["age"], "no column 'age'"),
        (["answer"], "column of every problem"),
        ("grade", "no list"),
    ):
        with pytest.raises(UserError, match=words):
            list(loaders.table(path, "test", None, 0, categories=categories))


def test_table_with_a_column_map(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "mine.jsonl", {"q": "1+1?", "a": 2, "key": "x7", "why": "count"})
    columns = {"question": "q", "answer": "a", "id": "key", "solution": "why"}
    rows = list(loaders.table(path, "test", None, 0, columns=columns))
    fields = {"problem_id": "x7", "dataset": "mine", "split": "test"}
    assert rows == [{**fields, "question": "1+1?", "answer": "2", "solution": "count"}]


def test_table_of_csv_with_the_usual_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('question,answer\n"1+1, in words?",two\n')
    rows = list(loaders.table(str(tmp_path / "a.csv"), "test", None, 0, dataset="words"))
    fields = {"problem_id": "words-test-0", "dataset": "words", "split": "test", "solution": None}
    assert rows == [{**fields, "question": "1+1, in words?", "answer": "two"}]


def test_bad_rows_are_set_aside_with_reasons(tmp_path: Path) -> None:
    bad = [
        '{"question": "torn',
        "[1, 2]",
        {"question": "", "answer": "#### 1"},
        {"question": "x", "answer": "no gold"},
        {"answer": "#### 1"},
        {"question": ["x"], "answer": "#### 1"},
        {"question": "x", "answer": None},
    ]
    rows = list(loaders.gsm8k(jsonl(tmp_path / "a.jsonl", bad[0], NATALIA, *bad[1:]), "train", None, 0))
    assert [row["problem_id"] for row in rows if "error" not in row] == ["gsm8k-train-1"]
    assert [(row["row"], row["error"]) for row in rows if "error" in row] == [
        (1, "not valid JSON"),
        (3, "not a JSON object"),
        (4, "empty 'question'"),
        (5, "no '#### gold' in 'answer'"),
        (6, "no column 'question'"),
        (7, "'question' is not a text"),
        (8, "empty 'answer'"),
    ]


Load = Callable[..., Iterator[dict[str, Any]]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ('{"question": "x", "gold": "1"}\n', "no column 'answer'; columns there: question, gold"),
        ("not json\n", "none of its 1 rows can be used: not valid JSON"),
    ],
)
@pytest.mark.parametrize("load", [loaders.gsm8k, loaders.table])
def test_files_that_are_refused(tmp_path: Path, load: Load, content: str, words: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=words):
        list(load(str(tmp_path / "a.jsonl"), "train", None, 0))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.jsonl", "does not exist"),
        ("a.txt", "no known kind"),
        ("torn.parquet", "no Parquet file"),
        ("torn.json", "not valid JSON"),
        ("object.json", "no list"),
        ("folder", "holds no file"),
    ],
)
def test_paths_that_are_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "torn.json").write_text("[1,")
    (tmp_path / "object.json").write_text("{}")
    with pytest.raises(UserError, match=words):
        list(loaders.gsm8k(str(tmp_path / name), "train", None, 0))


def test_a_path_is_needed() -> None:
    with pytest.raises(UserError, match=r"problems\.train\.path is missing"):
        list(loaders.gsm8k(None, "train", None, 0))


def test_an_unknown_field_in_the_column_map(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'gold' is none of question, answer, solution, id"):
        list(loaders.table(jsonl(tmp_path / "a.jsonl", {}), "train", None, 0, columns={"gold": "a"}))


@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 5))
def test_a_draw_is_a_seeded_subset_in_order(rows: int, limit: int, seed: int) -> None:
    found = draw([{"n": n} for n in range(rows)], limit, seed)
    numbers = [row["n"] for row in found]
    assert len(numbers) == min(limit, rows) and numbers == sorted(set(numbers))
    assert found == draw([{"n": n} for n in range(rows)], limit, seed)


def test_a_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        jsonl(tmp_path / name, {"question": name, "answer": "1"})
    assert [row["question"] for row in loaders.table(str(tmp_path), "train", None, 0)] == ["a.jsonl", "b.jsonl"]


def test_real_gsm8k(shared_data: Path) -> None:
    for split, count in {"train": 7473, "test": 1319}.items():
        rows = list(loaders.gsm8k(str(shared_data / "gsm8k" / f"{split}.jsonl"), split, None, 0))
        assert len(rows) == count
        schema.validate("problems", schema.table("problems", rows))
        assert not any("<<" in row["solution"] or "####" in row["solution"] for row in rows)
        assert all(row["answer"].replace(".", "").lstrip("-").isdigit() for row in rows)
    assert len(list(loaders.gsm8k(str(shared_data / "gsm8k" / "test.jsonl"), "test", 100, 7))) == 100


def test_real_math500(shared_data: Path) -> None:
    rows = list(loaders.math(str(shared_data / "math500" / "test.jsonl"), "test", None, 0))
    assert len(rows) == 500 and not any("error" in row for row in rows)
    schema.validate("problems", schema.table("problems", rows))
