"""What all imports share, and imports of problems, from real files and from small ones of the same shape."""

import copy
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minos_ray.errors import UserError
from minos_ray.files import BadRow
from minos_ray.imports import FORMATS, bring
from minos_ray.imports.labelled_sets import parse as parse_prm
from minos_ray.imports.labelled_sets import parse_processbench as parse_bench
from minos_ray.imports.labelled_sets import solutions_of
from minos_ray.imports.steps import read as read_minos
from minos_ray.imports.steps import read_shepherd
from minos_ray.store.run import Run
from tests.imports.files import jsonl, shepherd_row, stored


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path / "run"))


def test_every_format_names_a_function() -> None:
    from minos_ray.config.load import resolve

    assert all(callable(resolve(function)) for function in FORMATS.values())


@pytest.mark.parametrize(
    ("form", "options", "words"),
    [
        ("genrn", {}, "'genrn' is not known; there are genrm, .*; did you mean 'genrm'"),
        ("gsm8k", {"splitt": "test"}, "unknown option 'splitt'; accepted: split, .*; did you mean 'split'"),
        ("gsm8k", {"src": "other"}, "unknown option 'src'"),
        ("gsm8k", {"split": "dev"}, "split = 'dev': Input should be 'train' or 'test'"),
        ("gsm8k", {"limit": "few"}, "limit = 'few': Input should be a valid integer"),
        ("gsm8k", {"limit": -1}, "limit = -1: Input should be greater than or equal to 1"),
        ("genrm", {"questions": -3}, "questions = -3: Input should be greater"),
        ("prm800k", {"after_first_error": "masked"}, "Input should be 'keep', 'mask' or 'inherited'"),
    ],
)
def test_requests_that_are_refused(run: Run, tmp_path: Path, form: str, options: dict[str, Any], words: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"question": "1+1?", "answer": "#### 2"})
    with pytest.raises(UserError, match=words):
        bring(form, path, run, **options)
    assert not Path(run.root).exists()


@pytest.mark.parametrize("form", ["math-minos", "math-shepherd", "prm800k", "prmbench", "processbench"])
def test_a_wrong_file_gives_one_line_with_its_columns(run: Run, tmp_path: Path, form: str) -> None:
    with pytest.raises(UserError, match=r"no row of '.*' can be used: .* \(2\); columns there: a, b$"):
        bring(form, jsonl(tmp_path / "a.jsonl", {"a": 1}, {"b": 2}), run)
    pointer = jsonl(tmp_path / "b.jsonl", "version https://git-lfs.github.com/spec/v1", "oid sha256:1")
    with pytest.raises(UserError, match="it is a Git LFS pointer"):
        bring(form, pointer, run)
    assert not Path(run.root).exists()


def test_real_gsm8k_by_command(tmp_path: Path, shared_data: Path) -> None:
    command = ["import", "gsm8k", str(shared_data / "gsm8k"), str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-m", "minos_ray", *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "problems: rows 8,792, train 7,473, test 1,319\n"


def test_gsm8k_of_one_file(run: Run, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"question": "1+1?", "answer": "#### 2"}, "torn")
    (manifest,) = bring("gsm8k", path, run, split="test")
    assert manifest.counts == {"rows": 1, "test": 1} and manifest.dropped == {"test: not valid JSON": 1}
    with pytest.raises(UserError, match="say split=train or split=test"):
        bring("gsm8k", path, Run(run.path + "2"))


def test_real_math500(run: Run, shared_data: Path) -> None:
    (manifest,) = bring("math", str(shared_data / "math500"), run)
    assert manifest.counts == {"rows": 500, "test": 500}
    levels = Counter(row["level"] for row in stored(run, "problems"))
    assert levels == {"1": 43, "2": 90, "3": 105, "4": 128, "5": 134}
    assert len({row["subject"] for row in stored(run, "problems")} - {None}) == 7


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_any_table_with_candidates(run: Run, tmp_path: Path, kind: str) -> None:
    rows = [{"q": f"{n // 3}?", "a": n // 3, "out": f"The answer is: {n}"} for n in range(6)]
    rows.append({"q": "0?", "a": 0, "out": ""})
    path = str(tmp_path / f"mine.{kind}")
    if kind == "jsonl":
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    problems, candidates = bring("jsonl", path, run, columns={"question": "q", "answer": "a"}, text="out", model="m")
    assert problems.counts == {"rows": 2, "test": 2}
    assert candidates.counts == {"rows": 6} and candidates.dropped == {"empty 'out'": 1}
    assert [row["candidate_id"] for row in stored(run, "candidates")] == [
        f"mine-test-{n}/{i}" for n in range(2) for i in range(3)
    ]
    for text in ("out", None):
        with pytest.raises(UserError, match=r"rows? .*can be used.*no column 'nobody'"):
            bring("jsonl", path, run, columns={"question": "nobody", "answer": "a"}, text=text)
    assert len(stored(run, "problems")) == 2, "what was there stays"


@pytest.mark.parametrize("by_id", [False, True])
def test_rows_of_one_problem_agree_on_it(run: Run, tmp_path: Path, by_id: bool) -> None:
    one = {"id": "1", "question": "What is 2?", "answer": "2", "text": "It is 2"}
    path = jsonl(
        tmp_path / "two.jsonl", one, {**one, "answer": "3"}, {**one, "text": "Two"}, {**one, "question": "Why?"}
    )
    problems, candidates = bring("jsonl", path, run, text="text", columns={"id": "id"} if by_id else None)
    other = {"another gold answer for the same question": 1}
    assert candidates.dropped == (other | {"another question for the same id": 1} if by_id else other)
    assert (problems.counts["rows"], candidates.counts["rows"]) == ((1, 2) if by_id else (2, 3))


def test_a_comma_that_nobody_quoted_moves_no_text_into_the_gold(run: Run, tmp_path: Path) -> None:
    rows = "How many, all in all?,5,1\nAnd then, how many?,6,2\nHow many?,7,3\n"
    (tmp_path / "a.csv").write_text("question,answer,id\n" + rows)
    (made,) = bring("jsonl", str(tmp_path / "a.csv"), run)
    assert made.dropped == {"test: more fields than the header names": 2}
    assert [(row["question"], row["answer"]) for row in stored(run, "problems")] == [("How many?", "7")]
    (tmp_path / "b.csv").write_text("q,a,id\n" + rows)
    for form in ("jsonl", "processbench"):
        with pytest.raises(UserError, match=r"can be used: (no column|more fields).*; columns there: q, a, id"):
            bring(form, str(tmp_path / "b.csv"), run)


def test_other_golds_of_a_question_are_counted(run: Run, tmp_path: Path) -> None:
    row = {"question": {"problem": "x?", "ground_truth_answer": "1"}, "label": {"finish_reason": "solution"}}
    row["label"]["steps"] = [{"completions": [{"text": "# Answer\n\n1", "rating": 1}], "chosen_completion": 0}]
    other = {**row, "question": {"problem": "x?", "ground_truth_answer": "2"}}
    made = bring("prm800k", jsonl(tmp_path / "a.jsonl", row, other), run)[2]
    assert made.counts["another gold answer for the same question"] == 1


ODD = [None, float("nan"), 10**400, True, 0, 2.5, "", [], [None], ["a", None], {}, {"a": 1}]
PRM800K = {
    "question": {"problem": "x?", "ground_truth_answer": "1"},
    "label": {
        "finish_reason": "solution",
        "steps": [
            {"completions": [{"text": "a", "rating": 1}, {"text": "b", "rating": 0}], "chosen_completion": 0},
            {"completions": [{"text": "# Answer\n\n1", "rating": 1}], "chosen_completion": 0},
        ],
    },
}
GENRM = {
    "question_id": 1, "question": "x?", "target": "1", "model_output_id": 0, "model_output": "1", "correctness": True,
    "verifier_output": "Yes", "verifier_prompt": "p",
}  # fmt: skip
BENCH = {"id": "a-1", "generator": "g", "problem": "p", "steps": ["a"], "final_answer_correct": True, "label": -1}
QUERY = {"query": "Human: x?\n\nAssistant: Step 1: 1.\n", "label": {"y_pred": "1", "acc": "True"}, "response": "True."}


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in a row."""
    if place:
        yield place
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*place, key))


def texts_of_prm800k(row: dict[str, Any]) -> list[str]:
    """What the grader is given."""
    rated = parse_prm(row, True)
    solutions = solutions_of(rated, "train")
    return ["\n".join([solution.gold or "", *solution.steps]) for solution in solutions]


@pytest.mark.parametrize(
    ("parse", "row"),
    [
        (texts_of_prm800k, PRM800K),
        (parse_bench, BENCH),
        (lambda row: read_minos(row, "train"), QUERY),
        (lambda row: read_shepherd(row, "train"), shepherd_row("x?", "++")),
    ],
)  # fmt: skip
def test_odd_values_are_the_rows_fault(parse: Callable[[Any], Any], row: dict[str, Any]) -> None:
    for place in leaves(row):
        for odd in ODD:
            changed = target = copy.deepcopy(row)
            for key in place[:-1]:
                target = target[key]
            target[place[-1]] = odd
            with suppress(BadRow):
                parse(changed)


def test_odd_values_of_genrm_are_counted(run: Run, tmp_path: Path) -> None:
    odd = [{**GENRM, "question_id": 2, name: value} for name in GENRM for value in ODD]
    right = [{**GENRM, "question_id": name} for name in (1, 3, "c")]
    made = bring("genrm", jsonl(tmp_path / "a.jsonl", *right, *odd), run, test_fraction=0.5)
    assert made[1].counts["rows"] + sum(made[1].dropped.values()) == len(odd) + 3
    reasons = {"another type of question", "candidate_id is no index", "empty critique", "empty correct"}
    assert reasons | {"correct is neither 0 nor 1"} <= made[1].dropped.keys()
    with pytest.raises(UserError, match=r"no row of .* can be used; dropped: {'empty critique': 1}"):
        bring("genrm", jsonl(tmp_path / "b.jsonl", {**GENRM, "verifier_output": None}), run)
