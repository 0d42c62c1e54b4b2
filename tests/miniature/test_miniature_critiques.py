"""The miniature's critiques say what the labels say, name the right calculation and vary in their words."""

import random
import re

import pytest

from minos_ray.miniature import PHRASES, attempt, corpus, draw, gold_chain, read, solution_text
from minos_ray.miniature.critic_server import misread, short, write_critique
from minos_ray.miniature.step_labels import judge, judged, labels_of

QUESTION = "Tom has 12 apples. Tom eats a third of them. Ann gives Tom 5 more. How many apples are there now?"
STEPS = ["Step 1: third: 12 / 3 = 4", "Step 2: gift: 4 - 5 = 1", "The answer is: 1"]


def test_verdicts_are_the_labels_and_the_right_calculations_are_named() -> None:
    for question, text in corpus(500, 1000, tricky=0.4):
        steps = text.split("\n")
        labels, _ = labels_of(question, steps)
        *lines, last = write_critique(question, steps, labels, random.Random(0)).split("\n")
        assert len(lines) == len(steps)
        for k, (line, label) in enumerate(zip(lines, labels, strict=True), 1):
            assert re.fullmatch(rf"Step {k}: .* This step is {'correct' if label else 'incorrect'}\.", line)
        assert last == f"The final answer is {bool(labels[-1])}."
        gold = [str(step.calculation) for step in gold_chain(read(question))]
        named = [calculation for calculation in gold if any(calculation in line for line in lines)]
        assert named == gold


def test_a_known_critique() -> None:
    lines = write_critique(QUESTION, STEPS, [1, 0, 0], random.Random(1)).split("\n")
    assert "12 / 3 = 4" in lines[0]
    assert "first 12 - 4 = 8" in lines[1] and "8 + 5 = 13" in lines[1] and "4 - 5" in lines[1]
    assert "13" in lines[2] and lines[3] == "The final answer is False."


def test_some_critiques_quote_the_question() -> None:
    texts = {write_critique(QUESTION, STEPS, [1, 0, 0], random.Random(seed)) for seed in range(40)}
    quoting = {text for text in texts if "gives Tom 5 more: 8 + 5 = 13" in text}
    assert quoting and quoting != texts


def test_the_words_vary_with_the_seed_and_repeat_with_it() -> None:
    texts = [write_critique(QUESTION, STEPS, [1, 0, 0], random.Random(seed)) for seed in range(20)]
    assert len(set(texts)) > 5
    assert texts[3] == write_critique(QUESTION, STEPS, [1, 0, 0], random.Random(3))


def test_a_truncated_or_unreadable_candidate_ends_in_false() -> None:
    for steps in (STEPS[:1], ["hmm"], []):
        labels, _ = labels_of(QUESTION, steps)
        assert write_critique(QUESTION, steps, labels, random.Random(0)).endswith("The final answer is False.")


def test_labels_which_are_not_gold_are_refused() -> None:
    with pytest.raises(ValueError, match="not those of the gold chain"):
        write_critique(QUESTION, STEPS, [1, 1, 1], random.Random(0))


def test_quotes_are_short() -> None:
    clauses = [clause for question, _ in corpus(300, 1000) for clause in read(question).clauses]
    assert {clause.phrase for clause in clauses} == set(PHRASES)
    for clause in clauses:
        assert short(clause) in clause.text
        assert not short(clause).endswith(".")


def test_a_critic_without_labels_judges_by_a_reading_of_its_own() -> None:
    """Right steps mostly stay right, some do not; who misreads says so about every step that depends on it."""
    texts = {write_critique(QUESTION, STEPS, None, random.Random(seed)) for seed in range(200)}
    gold = {write_critique(QUESTION, STEPS, [1, 0, 0], random.Random(seed)) for seed in range(200)}
    assert texts & gold and texts - gold


def test_about_as_many_blind_critiques_agree_as_published() -> None:
    rng, agreeing = random.Random(4), []
    for _ in range(2000):
        problem = draw(rng)
        calculations = attempt(problem, rng)
        steps = solution_text(calculations, calculations[-1].result).split("\n")
        labels = [verdict.label for verdict in judge(problem.question, steps)]
        blind = [verdict.label for verdict in judged(misread(problem, rng), steps)]
        agreeing.append(labels == blind)
    assert 0.74 < sum(agreeing) / len(agreeing) < 0.84
