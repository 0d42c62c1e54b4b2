"""The whole artefact: exact on the miniature by its own oracle, the same for the same seed, small ones within large."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minos_ray.config.load import Config
from minos_ray.config.schema import Inserted
from minos_ray.errors import UserError
from minos_ray.labels.inserted import Rows, inserted, read_solutions
from minos_ray.miniature import load
from minos_ray.miniature.step_labels import labels_of
from minos_ray.problems.loaders import gsm8k as load_gsm8k
from minos_ray.steps.critique_text import agrees, parse_critique
from minos_ray.store.columns import validate
from minos_ray.store.run import Run
from tests.labels.gsm8k_cases import SAMPLES
from tests.runs import config, put

TYPES = ("calculation", "logical", "unrelated", "accumulation")


def made_run(path: Path, problems: list[dict[str, Any]]) -> Run:
    run = Run(str(path))
    put(run, "problems", problems)
    return run


def miniature(
    seed: int, count: int, size: int = 60, **section: Any
) -> tuple[dict[str, str], list[dict[str, Any]], Rows]:
    """Questions by problem, rows, and what drew them."""
    problems = list(load("train", size, seed))
    solutions, dropped = read_solutions([(p["problem_id"], p, p["solution"].split("\n")) for p in problems])
    assert not dropped and len(solutions) == size
    rows = Rows(solutions, Inserted(count=count, **section), seed)
    return {p["problem_id"]: p["question"] for p in problems}, rows.take(count), rows


@given(st.integers(0, 10_000), st.sampled_from(TYPES))
@settings(max_examples=30)
def test_labels_and_types_are_those_of_the_miniatures_oracle(seed: int, kind: str) -> None:
    questions, rows, _ = miniature(seed, 20, types=(kind,), wrong_share=1.0)
    for row in rows:
        assert (row["step_labels"], row["error_types"]) == labels_of(questions[row["problem_id"]], row["steps"])


def test_shares_and_types_are_equal_and_every_text_comes_once() -> None:
    _, rows, _ = miniature(0, 80)
    assert Counter(row["error_type"] for row in rows) == {"": 40, **dict.fromkeys(TYPES, 10)}
    assert len({(row["problem_id"], *row["steps"]) for row in rows}) == 80
    assert len({row["error_step"] for row in rows if not row["correct"]}) >= 4, "errors are spread over the steps"


def test_a_smaller_count_is_the_beginning_of_a_larger_one() -> None:
    many = miniature(1, 150)[1]
    assert miniature(1, 70)[1] == many[:70] and miniature(1, 150)[1] == many
    assert miniature(2, 70)[1] != many[:70]


def test_when_right_ones_run_out_wrong_ones_fill_up_and_what_lacks_is_counted() -> None:
    _, rows, _ = miniature(3, 200, wrong_share=0.5)
    assert Counter(row["correct"] for row in rows) == {True: 60, False: 140}
    _, few, drawn = miniature(3, 10**5, 2, types=("calculation",), wrong_share=1.0)
    assert drawn.short == {"too_few": 10**5 - len(few)} and not any(row["correct"] for row in few)


def gsm8k_run(path: Path, calculations: bool) -> Run:
    """The cases as problems, with annotations or as the loader gives them by default."""
    rows = []
    for name, (question, gold, steps) in SAMPLES.items():
        steps = steps if calculations else [re.sub("<<[^<>]*>>", "", step) for step in steps]
        problem = {"problem_id": name, "dataset": "own", "split": "train", "question": question, "answer": gold}
        rows.append(problem | {"solution": "\n".join(steps)})
    rows.append({**rows[0], "problem_id": "t", "split": "test"})
    rows.append({**rows[0], "problem_id": "none", "solution": None})
    rows.append({**rows[0], "problem_id": "words", "solution": "It is eight.\nThe answer is: 8"})
    return made_run(path, rows)


@pytest.mark.parametrize("calculations", [True, False])
def test_the_stage_writes_valid_rows_and_counts_what_it_cannot_use(tmp_path: Path, calculations: bool) -> None:
    run = gsm8k_run(tmp_path, calculations)
    manifest = inserted(config(run, inserted={"count": 8}), run)
    found = run.artefact("inserted").read()
    validate("inserted", found)
    assert manifest.dropped == {"no steps": 1, "no readable calculation": 1} and manifest.counts["solutions"] == 4
    assert (manifest.counts["rows"], manifest.counts["wrong"], manifest.counts["right"]) == (8, 4, 4)
    for row in found.to_pylist():
        assert row["problem_id"] in SAMPLES and row["source_id"] == row["problem_id"]
        assert row["candidate_id"].rpartition("/")[0] == row["problem_id"] and "<<" not in "".join(row["steps"])
        assert agrees(parse_critique(row["text"], len(row["steps"])), row["step_labels"], row["correct"])
    again = inserted(config(run, inserted={"count": 8}), run)
    assert again == manifest and inserted(config(run), run) is None


def test_right_candidates_can_be_the_source(tmp_path: Path) -> None:
    run = gsm8k_run(tmp_path, True)
    texts = {name: [re.sub("<<[^<>]*>>", "", step) for step in case[2]] for name, case in SAMPLES.items()}
    labels = [label(f"{name}/{k}", name, texts[name], k) for name in texts for k in range(3)]
    put(run, "labels", labels)
    manifest = inserted(config(run, inserted={"count": 6, "source": "candidates"}), run)
    rows = run.artefact("inserted").read().to_pylist()
    assert manifest.counts["solutions"] == 4 and manifest.dropped == {"no steps": 4}
    assert {row["source_id"] for row in rows} <= {f"{name}/0" for name in texts}


@pytest.mark.parametrize("source", ["solutions", "candidates"])
def test_of_too_many_right_solutions_those_of_some_problems_are_taken_whatever_the_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    problems = [{**problem, "split": "train"} for problem in load("train", 40, 0)]
    run = made_run(tmp_path, problems)
    texts = {problem["problem_id"]: problem["solution"].split("\n") for problem in problems}
    put(run, "labels", [label(f"{name}/{k}", name, texts[name], 2 if k else 0) for name in texts for k in range(9)])
    monkeypatch.setattr("minos_ray.labels.inserted.MOST", 40)
    assert inserted(config(run, inserted={"count": 1, "source": source}), run).dropped == {}, "wrong ones do not count"
    monkeypatch.setattr("minos_ray.labels.inserted.MOST", 20)
    made = {}
    for count in (4, 90):
        made[count] = inserted(config(run, inserted={"count": count, "source": source}), run)
        made[count, "rows"] = run.artefact("inserted").read().to_pylist()
    assert made[90, "rows"][:4] == made[4, "rows"]
    assert 0 < made[90].counts["solutions"] <= 20
    assert made[90].dropped["problem_not_drawn"] == 40 - made[90].counts["solutions"]


def label(identity: str, problem: str, steps: list[str], kind: int) -> dict[str, Any]:
    """A right candidate (0), a right answer by a wrong step (1), a wrong one (2)."""
    labels = [1] * len(steps)
    return {
        "candidate_id": identity,
        "problem_id": problem,
        "answer": "1",
        "correct": kind != 2,
        "status": "correct",
        "steps": steps,
        "step_labels": labels if kind != 1 else [0, *labels[1:]],
        "step_scores": None,
        "step_source": "test",
        "error_types": [],
    }


def test_nothing_usable_is_said_plainly(tmp_path: Path) -> None:
    problem = {"problem_id": "p", "dataset": "own", "split": "train", "question": "Why?", "answer": "1"}
    run = made_run(tmp_path, [problem | {"solution": None}])
    with pytest.raises(UserError, match=r"no right solution \(solutions\) can be used; dropped: \{'no steps': 1\}"):
        inserted(config(run, inserted={"count": 5}), run)


def test_types_that_cannot_be_inserted_are_refused() -> None:
    with pytest.raises(ValueError, match="types"):
        Config(run="r", base={"model": "m"}, inserted={"types": ["other"]})
    with pytest.raises(ValueError, match=r"inserted\.count is 0"):
        Config(run="r", base={"model": "m"}, sft={"source": "inserted"})


def test_on_real_gsm8k_nearly_every_solution_can_be_used(shared_data: Path) -> None:
    path = str(shared_data / "gsm8k" / "train.jsonl")
    problems = list(load_gsm8k(path, "train", 400, 0, calculations=True))
    found = [(p["problem_id"], p, p["solution"].split("\n")) for p in problems]
    solutions, _ = read_solutions(found)
    assert len(solutions) > 0.92 * len(problems)
    rows = Rows(solutions, Inserted(count=300, wrong_share=1.0), 0).take(300)
    assert Counter(row["error_type"] for row in rows) == dict.fromkeys(TYPES, 75)
    answers = {p["problem_id"]: p["answer"] for p in problems}
    assert all(row["steps"][-1] != f"The answer is: {answers[row['problem_id']]}" for row in rows)
