"""Imports of step-labelled sets: ProcessBench, PRMBench, Math-Shepherd, PRM800K."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.imports import bring
from minos_ray.imports.steps import pieces
from minos_ray.store.run import Run
from tests.imports.files import TAG, found_again, jsonl, shepherd_row, stored


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path / "run"))


def test_real_processbench(run: Run, shared_data: Path) -> None:
    made = {m.artefact: m for m in bring("processbench", str(shared_data / "processbench"), run)}
    assert made["labels"].counts == {"rows": 1400, "right answer, wrong step": 7 + 94} and not made["labels"].dropped
    assert made["problems"].counts["rows"] < 1400
    labels = stored(run, "labels")
    assert found_again(run) > 0.97
    assert Counter(0 in row["step_labels"] for row in labels) == {True: 207 + 594, False: 193 + 406}
    assert Counter(row["correct"] for row in labels) == {True: 700, False: 700}
    for row in labels:
        known = [label for label in row["step_labels"] if label != -1]
        assert 0 not in known[:-1] and len(row["step_labels"]) == len(row["steps"])
    problems = {row["problem_id"]: row["dataset"] for row in stored(run, "problems")}
    assert Counter(problems[row["problem_id"]] for row in labels) == {
        "processbench-gsm8k": 400,
        "processbench-math": 1000,
    }


def test_processbench_rows_that_do_not_fit(run: Run, tmp_path: Path) -> None:
    good = {"id": "gsm8k-0", "generator": "g", "problem": "p", "steps": ["a", "b", "c"], "label": 1}
    good["final_answer_correct"] = False
    bad = [{**good, "label": 3}, {**good, "steps": []}, {**good, "final_answer_correct": None}]
    bad += [{**good, "label": True}, {**good, "generator": ["g"]}]
    mr_gsm8k = {**good, "id": 7, "generator": "", "label": -1, "final_answer_correct": True}
    (tmp_path / "a.json").write_text(json.dumps([good, *bad, mr_gsm8k]))
    problems, _, labels = bring("processbench", str(tmp_path / "a.json"), run)
    assert labels.counts["rows"] == 2 and sum(labels.dropped.values()) == 5
    assert [row["step_labels"] for row in stored(run, "labels")] == [[1, 0, -1], [1, 1, 1]]
    assert [row["dataset"] for row in stored(run, "problems")] == ["processbench-gsm8k", "processbench"]
    assert problems.counts == {"rows": 2, "test": 2}


@pytest.mark.parametrize(("policy", "expected"), [("keep", [0, 1, 0]), ("mask", [0, -1, -1]), ("inherited", [0, 0, 0])])
def test_steps_after_the_first_error(run: Run, tmp_path: Path, policy: str, expected: list[int]) -> None:
    steps = [f"Step {k}: so it is {k}. " for k in (1, 2, 3)]
    row = {"input": "Q? " + "".join(f"{s}{TAG}\n" for s in steps), "task": "MATH"}
    row["label"] = "Q? " + "".join(f"{s}{sign}\n" for s, sign in zip(steps, "-+-", strict=True))
    bring("math-shepherd", jsonl(tmp_path / "a.jsonl", row), run, after_first_error=policy)
    (label,) = stored(run, "labels")
    assert label["step_labels"] == expected and label["correct"] is False
    assert run.artefact("labels").manifest().inputs["import"]["options"]["after_first_error"] == policy


def test_math_shepherd(run: Run, tmp_path: Path) -> None:
    rows = [shepherd_row("How many?", "++"), shepherd_row("How many?", "+-"), shepherd_row("Else?", "--")]
    torn = [{**rows[0], "label": rows[0]["label"].replace("Step 2", "Step 3")}, {**rows[0], "input": "no tags"}]
    other = {**rows[0], "label": rows[0]["label"].replace("+\n", "*\n")}
    problems, _, labels = bring("math-shepherd", jsonl(tmp_path / "a.jsonl", *rows, *torn, other), run)
    assert problems.counts == {"rows": 2, "train": 2} and problems.details["gold_unknown"] == 1
    assert labels.dropped == {
        "'label' does not follow 'input'": 1,
        "no step tag in 'input'": 1,
        "'label' has another tag than + or -": 1,
    }
    found = stored(run, "labels")
    assert [row["step_labels"] for row in found] == [[1, 1], [1, 0], [0, 0]]
    assert [row["correct"] for row in found] == [True, False, False]
    assert found[0]["steps"] == ["Step 1: 2 - 1 = <<2-1=1>>1 + 0", "Step 2: 1 + 1 = 2. The answer is: 2"]
    assert {row["question"]: row["answer"] for row in stored(run, "problems")} == {"How many?": "2", "Else?": ""}
    assert found_again(run) == 1


def test_odd_rows_of_math_shepherd(run: Run, tmp_path: Path) -> None:
    def row(text: str, signs: str) -> dict[str, str]:
        return {"input": text.format(*[TAG] * len(signs)), "label": text.format(*signs), "task": "MATH"}

    rows = [
        row("Mr. Rocky {} has 2. How many? Step 1: 2 {}\nStep 2: The answer is: 2 {}", "-++"),
        row("How many? He has 2. {}\nThe answer is: 2 {}", "+-"),
        row("Find it. step 1: It is 2. {}\nstep 2: The answer is: 2 {}", "++"),
        row("No question here. {}", "+"),
    ]
    _, _, labels = bring("math-shepherd", jsonl(tmp_path / "a.jsonl", *rows), run)
    assert labels.counts["tag inside the question"] == 1
    assert labels.counts["no 'Step 1:', divided at the question mark"] == 1
    assert labels.dropped == {"no 'Step 1:' and no question mark": 1}
    assert [row["question"] for row in stored(run, "problems")] == [
        "Mr. Rocky has 2. How many?",
        "How many?",
        "Find it.",
    ]
    assert [(row["steps"][0], row["step_labels"]) for row in stored(run, "labels")] == [
        ("Step 1: 2", [1, 1]),
        ("He has 2.", [1, 0]),
        ("step 1: It is 2.", [1, 1]),
    ]


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b ", "\u0441\u043a\u0438\u0434\u043a\u0430", "+ -"]), st.sampled_from("+-")),
        min_size=1,
    )
)
def test_letters_of_the_tag_inside_a_word_are_text(parts: list[tuple[str, str]]) -> None:
    tagged = "".join(f"{text} {TAG}" for text, _ in parts)
    signed = "".join(f"{text} {sign}" for text, sign in parts)
    assert list(pieces(tagged, signed, TAG)) == [(f"{text} ", int(sign == "+")) for text, sign in parts]


def prmbench_row(kind: str, idx: str, errors: list[int], **changes: Any) -> dict[str, Any]:
    return {
        "original_question": "What is $2 + 3$?",
        "modified_question": "What is $2 + 3$?",
        "original_process": ["1. Add.", "2. It is 5.", "# Answer\n\n5"],
        "modified_process": ["1. Add.", "2. It is 6.", "3. So 6.", "# Answer\n\n6"],
        "modified_steps": [2],
        "error_steps": errors,
        "reason": "wrong",
        "idx": idx,
        "question": "What is $2 + 3$?",
        "classification": kind,
        **changes,
    }


def test_prmbench(run: Run, tmp_path: Path) -> None:
    rows = [
        prmbench_row("redundency", "prm_test_p1_0", [2, 3]),
        prmbench_row("circular", "prm_test_p1_0", [2, 9]),
        prmbench_row("circular", "prm_test_p1_0", [1]),
        prmbench_row("circular", "prm_test_p1_1", [9]),
        prmbench_row("circular", "prm_test_p1_2", [0]),
        prmbench_row("multi_solutions", "prm_test_p1_0", []),
    ]
    problems, _, labels = bring("prmbench", jsonl(tmp_path / "a.jsonl", *rows), run)
    assert labels.dropped == {
        "repeated idx in its class": 1,
        "no error step is a step of the solution": 1,
        "'error_steps' is not a list of step numbers": 1,
    }
    assert labels.counts == {"rows": 4, "error steps beyond the last step": 1}
    datasets = {row["problem_id"]: row["dataset"] for row in stored(run, "problems")}
    found = {datasets[row["problem_id"]]: (row["step_labels"], row["correct"]) for row in stored(run, "labels")}
    assert found == {
        "prmbench-redundency": ([1, 0, 0, 1], False),
        "prmbench-correct": ([1, 1, 1], True),
        "prmbench-circular": ([1, 0, 1, 1], False),
        "prmbench-multi_solutions": ([1, 1, 1, 1], True),
    }
    assert problems.counts == {"rows": 4, "test": 4}
    assert found_again(run) == 1


def prm_step(*ratings: int | None, chosen: int | None = 0, human: str | None = None) -> dict[str, Any]:
    completions = [{"text": f"step rated {rating}", "rating": rating, "flagged": False} for rating in ratings]
    written = {"text": human, "rating": None, "source": "human", "flagged": False} if human else None
    return {"completions": completions, "human_completion": written, "chosen_completion": chosen}


def prm_answer(answer: str, rating: int = 1) -> dict[str, Any]:
    completion = {"text": f"So it is.\n\n# Answer\n\n{answer}", "rating": rating, "flagged": False}
    return {"completions": [completion], "human_completion": None, "chosen_completion": 0}


def prm_row(reason: str, *steps: Any, written: list[str] | None = None, **served: bool) -> dict[str, Any]:
    question = {"problem": "What is $x$?", "ground_truth_answer": "\\frac{1}{2}", "pre_generated_steps": written}
    served = {"is_quality_control_question": False, "is_initial_screening_question": False, **served}
    return {**served, "question": question, "label": {"steps": list(steps), "finish_reason": reason}}


def prm_rows() -> list[dict[str, Any]]:
    """Phase 1, phase 2 up to the first error, and what the paper leaves out."""
    written = ["step rated 1", "step rated -1", "So it is.\n\n# Answer\n\n\\frac{1}{3}"]
    nothing = {"completions": None, "human_completion": None, "chosen_completion": None}
    return [
        prm_row("solution", prm_step(-1, 0, chosen=1), prm_step(-1, chosen=None, human="mine"), prm_answer("\\frac12")),
        prm_row("found_error", prm_step(1), prm_step(0, -1, 1, chosen=None), written=written),
        prm_row("solution", prm_step(None), nothing),
        prm_row("give_up", prm_step(1)),
        prm_row("bad_problem", prm_step(1)),
        prm_row("solution", prm_answer("1"), is_quality_control_question=True),
        prm_row("solution", prm_answer("1"), is_initial_screening_question=True),
        {"question": {"problem": "x"}},
    ]


def test_prm800k(run: Run, tmp_path: Path) -> None:
    problems, _, labels = bring("prm800k", jsonl(tmp_path / "a.jsonl", *prm_rows()), run)
    assert problems.counts == {"rows": 1, "train": 1}
    assert labels.dropped == {
        "finished as 'give_up'": 1,
        "finished as 'bad_problem'": 1,
        "quality control question": 1,
        "initial screening question": 1,
        "not the shape of PRM800K": 1,
    }
    assert labels.counts == {"rows": 3, "alternatives left out": 4}
    right, wrong, open_ended = stored(run, "labels")
    assert right["steps"][:2] == ["step rated 0", "mine"] and right["step_labels"] == [1, 1, 1]
    assert (right["answer"], right["status"]) == ("\\frac12", "correct")
    assert wrong["steps"][:2] == ["step rated 1", "step rated -1"] and wrong["step_labels"] == [1, 0, -1]
    assert (wrong["answer"], wrong["status"]) == ("\\frac{1}{3}", "wrong")
    assert (open_ended["step_labels"], open_ended["status"]) == ([-1], "no_answer")
    assert found_again(run) == 1


def test_the_other_readings_of_prm800k(run: Run, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *prm_rows())
    options = {"neutral": "wrong", "alternatives": True, "quality_control": True}
    _, _, labels = bring("prm800k", path, run, **options)
    assert "quality control question" not in labels.dropped and labels.counts["alternatives"] == 4
    found = stored(run, "labels")
    assert len(found) == 3 + 4 + 2
    assert found[0]["step_labels"] == [0, 1, 1]
    assert [(row["steps"], row["step_labels"]) for row in found[1:3]] == [
        (["step rated -1"], [0]),
        (["step rated 0", "step rated -1"], [0, 0]),
    ]
    assert [row["step_labels"] for row in found[4:6]] == [[1, 0], [1, 1]]
    assert found[4]["status"] == "no_answer"
