"""What critics are shown and how their answers count; asking itself is tested with the command and with critiques."""

from collections import Counter

import pytest

from minos_ray.config.schema import MetaCritic
from minos_ray.critiques.reply import Answer
from minos_ray.errors import UserError
from minos_ray.meta.critics import check_prompt, inputs, lines_shown, questions_of, rate

PROMPTS = "minos_ray.critiques.prompts"
GOOD, BAD = "This step is correct.", "This step is incorrect."


def solution(steps: list[str], answer: str | None = "7") -> dict:
    names = {"candidate_id": "p/0", "problem_id": "p", "question": "3 + 4?", "gold": "7", "solution": None}
    return {**names, "answer": answer, "steps": steps, "lines": lines_shown(steps, answer)}


def critique(*good: bool, final: bool = True) -> Answer:
    lines = [f"Step {k}: because. {GOOD if g else BAD}" for k, g in enumerate(good, 1)]
    return Answer("\n".join([*lines, f"The final answer is {final}."]), "answered")


def test_an_answer_line_is_shown_once() -> None:
    assert lines_shown(["Step 1: 3 + 4 = 7", "The answer is: 7"], "7") == ["Step 1: 3 + 4 = 7", "The answer is: 7"]
    assert lines_shown(["a", "So it is \\boxed{7}."], "7") == ["a", "So it is \\boxed{7}.", "The answer is: 7"]
    assert lines_shown(["The answer is: 7"], "7") == ["The answer is: 7", "The answer is: 7"]
    assert lines_shown(["a"], None) == ["a", "No final answer is given."]


def test_every_step_of_a_solution_without_answer_line_is_judged_as_a_step() -> None:
    outcomes = Counter()
    row = rate(solution(["3 + 4 = 8", "So \\boxed{7}."]), [critique(False, True, final=True)], outcomes)
    assert (row["score"], row["step_scores"], outcomes) == (1.0, [0.0, 1.0], {"ok": 1})


def test_shares_over_several_critiques_and_what_cannot_be_read() -> None:
    steps = solution(["Step 1: 3 + 4 = 7", "The answer is: 7"])
    four = [critique(True), critique(False, final=False), Answer("I like it.", "answered"), Answer("", "refused")]
    outcomes = Counter()
    row = rate(steps, four, outcomes)
    assert (row["score"], row["step_scores"]) == (0.25, [0.25, 0.25])
    assert outcomes == {"ok": 2, "no_verdict": 1, "refused": 1}
    for unread in (critique(True, True, True), Answer(critique(True).text, "truncated"), Answer("", "failed")):
        assert rate(steps, [unread], Counter())["step_scores"] == []
        assert rate(steps, [unread], Counter())["score"] == 0.0


def test_a_solution_without_steps_is_not_asked_about_and_counted() -> None:
    outcomes = Counter()
    empty = solution([])
    assert list(questions_of(MetaCritic(), 0, empty)) == []
    assert rate(empty, [], outcomes)["step_scores"] == [] and outcomes == {"no_steps": 1}


def test_samples_have_keys_of_their_own_and_the_first_is_that_of_one() -> None:
    row = solution(["Step 1: 3 + 4 = 7", "The answer is: 7"])
    keys = [q.request.key for q in questions_of(MetaCritic(samples=3, temperature=0.7), 4, row)]
    assert len(set(keys)) == 3
    assert [q.request.key for q in questions_of(MetaCritic(temperature=0.7), 4, row)] == keys[:1]
    other = solution(["Step 1: 3 + 4 = 7", "The answer is: 7"]) | {"correct": False, "step_labels": [0, 0]}
    assert [q.request.key for q in questions_of(MetaCritic(temperature=0.7), 4, other)] == keys[:1]


def test_a_prompt_that_shows_labels_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"meta\.critics\.gpt\.prompt = .*label_aware shows the critic the labels"):
        check_prompt("gpt", f"{PROMPTS}:label_aware")
    with pytest.raises(
        UserError, match=r"meta\.critics\.gpt\.prompt = minos_ray\.steps\.split:lines: it fails on an example"
    ):
        check_prompt("gpt", "minos_ray.steps.split:lines")
    for fine in ("blind", "answer_guided", "plain"):
        check_prompt("gpt", f"{PROMPTS}:{fine}")


def test_money_and_address_make_no_score_stale() -> None:
    section = MetaCritic()
    changed = section.model_copy(update={"max_usd": 3.0, "base_url": "http://127.0.0.1:1/v1", "api_key_env": "X"})
    assert inputs(section) == inputs(changed)
    assert inputs(section) != inputs(section.model_copy(update={"model": "gpt-5"}))
    assert inputs(section)["critic"].keys() == {"model", "prompt", "structured", "temperature", "max_tokens", "samples"}
    assert inputs(section) != inputs(section.model_copy(update={"reasoning_effort": "low"}))
