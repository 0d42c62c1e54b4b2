"""Step labels of a candidate from stored rollouts, the second opinion, and the policy after the first error."""

from pathlib import Path
from typing import Any

import pytest

from minos_ray.config.schema import Label
from minos_ray.grading.graders import graded
from minos_ray.labels.rollouts import prefix_id
from minos_ray.labels.stage import StepLabeller
from minos_ray.store.run import Run
from tests.runs import put

TEXT = "a\nb\nc\nThe answer is: 1"
STEPS = ["a", "b", "c", "The answer is: 1"]
RIGHT, WRONG, LATE = graded("1", True), graded("2", False), graded("1", None)
# (label, completions, correct) of the prefixes of TEXT: the second goes wrong, the third was never completed.
STORED = {"a\n": (1, 8, 2), "a\nb\n": (0, 8, 0), "a\nb\nc\n": (-1, 0, 0)}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(str(tmp_path))
    rest = {"problem_id": "p", "no_answer": 0, "timeout": 0, "tokens": 0}
    put(
        run,
        "rollouts",
        [
            {"prefix_id": prefix_id("p", text), "label": label, "completions": made, "correct": right, **rest}
            for text, (label, made, right) in STORED.items()
        ],
    )
    return run


def problem(split: str = "train") -> dict[str, Any]:
    return {"problem_id": "p", "split": split, "question": "q", "solution": None}


def second_right(question: str, solution: str | None, steps: list[str]) -> tuple[list[int], list[str]]:
    """An opinion: only the first step is wrong."""
    return [0, *[1] * (len(steps) - 1)], ["logical", *[""] * (len(steps) - 1)]


def second_wrong(question: str, solution: str | None, steps: list[str]) -> tuple[list[int], list[str]]:
    """An opinion with the same first error as the rollouts, and another one later."""
    return [1, 0, 1, 0], ["", "calculation", "", "logical"]


def labeller(run: Run, soft: bool = False, **label: Any) -> StepLabeller:
    return StepLabeller(run, Label(rollouts={"soft": soft}, **label))


def test_labels_are_those_of_the_prefixes_and_the_outcome(run: Run) -> None:
    labels = labeller(run)
    wrong = labels(problem(), TEXT, WRONG)
    assert wrong == {
        "steps": STEPS,
        "step_labels": [1, 0, -1, 0],
        "step_scores": None,
        "step_source": "rollouts",
        "error_types": [],
    }
    assert labels(problem(), TEXT, RIGHT)["step_labels"][-1] == 1
    assert labels.counts == {"rollouts": 2}


def test_soft_labels_are_shares(run: Run) -> None:
    assert labeller(run, soft=True)(problem(), TEXT, WRONG)["step_scores"] == [0.25, 0.0, None, 0.0]
    assert labeller(run, soft=True)(problem(), TEXT, RIGHT)["step_scores"][-1] == 1.0


@pytest.mark.parametrize("text", ["a\nx\nThe answer is: 1", "z\nThe answer is: 1", ""])
def test_a_candidate_with_a_prefix_that_was_not_completed_is_unlabelled(run: Run, text: str) -> None:
    labels = labeller(run, soft=True)
    made = labels(problem(), text, WRONG)
    assert set(made["step_labels"]) <= {-1} and len(made["step_labels"]) == len(made["steps"])
    assert (made["step_source"], made["step_scores"], labels.counts) == ("none", None, {})


def test_without_a_sure_outcome_nothing_is_labelled(run: Run) -> None:
    for grade in (LATE, graded(None, None)):
        assert labeller(run)(problem(), TEXT, grade)["step_labels"] == [-1] * 4


def test_only_rows_with_the_same_first_error_keep_their_labels(run: Run) -> None:
    other = labeller(run, soft=True, steps="tests.labels.test_step_labels:second_right")
    lost = other(problem(), TEXT, WRONG)
    assert (lost["step_labels"], lost["step_scores"], lost["step_source"]) == ([-1] * 4, None, "no_consensus")
    assert other.counts == {"rollouts": 1, "no_consensus": 1}
    same = labeller(run, steps="tests.labels.test_step_labels:second_wrong")
    assert same(problem(), TEXT, WRONG)["step_labels"] == [1, 0, -1, 0]
    assert same.counts == {"rollouts": 1, "consensus": 1}


def test_test_candidates_keep_the_labels_of_the_function(run: Run) -> None:
    made = labeller(run, steps="tests.labels.test_step_labels:second_right")(problem("test"), TEXT, WRONG)
    assert (made["step_labels"], made["step_source"]) == ([0, 1, 1, 1], "gold")


@pytest.mark.parametrize(
    ("policy", "labels", "errors"),
    [
        ("keep", [0, 1, 1, 1], ["logical", "", "", ""]),
        ("mask", [0, -1, -1, -1], ["logical", "", "", ""]),
        ("inherited", [0, 0, 0, 0], ["logical", *["accumulation"] * 3]),
    ],
)
def test_the_policy_holds_for_every_source(run: Run, policy: str, labels: list[int], errors: list[str]) -> None:
    function = labeller(run, steps="tests.labels.test_step_labels:second_right", after_first_error=policy)
    made = function(problem("test"), TEXT, WRONG)
    assert (made["step_labels"], made["error_types"]) == (labels, errors)
    rolled = labeller(run, after_first_error=policy)(problem(), TEXT, WRONG)
    assert rolled["step_labels"] == {"keep": [1, 0, -1, 0], "mask": [1, 0, -1, -1], "inherited": [1, 0, 0, 0]}[policy]


def test_thinking_and_the_next_question_have_no_steps_and_are_no_prefix(run: Run) -> None:
    labels = labeller(run)
    thought = labels(problem(), f"<think>\na\nStep 9: or b?\n</think>\n\n{TEXT}", WRONG)
    assert thought == labels(problem(), TEXT, WRONG)
    runs_on = labels(problem(), f"{TEXT}\n\nQuestion: What is 2?\nAnswer:\nd\nThe answer is: 2", WRONG)
    assert runs_on == labels(problem(), TEXT, WRONG)
    cut_off = labels(problem(), "<think>\na\nStep 9: or", graded(None, None))
    assert cut_off["steps"] == cut_off["step_labels"] == []
