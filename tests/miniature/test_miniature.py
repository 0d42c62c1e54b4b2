"""The miniature's problems: readable back, exact, seeded, split by their calculations."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minos_ray.errors import UserError
from minos_ray.miniature import PHRASES, TRICKY, corpus, gold_chain, load, read, split_of
from minos_ray.store import columns

EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
ARITHMETIC = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


def test_rows_fit_the_schema_and_are_a_function_of_the_seed() -> None:
    rows = list(load("train", 50, 1000))
    columns.validate("problems", columns.table("problems", rows))
    assert rows == list(load("train", 50, 1000))
    assert rows[:20] == list(load("train", 20, 1000))
    assert rows != list(load("train", 50, 1001))
    assert len({row["problem_id"] for row in rows}) == len({row["question"] for row in rows}) == 50


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_a_question_reads_back_and_its_solution_is_exact(seed: int) -> None:
    row = next(load("train", 1, seed))
    problem = read(row["question"])
    assert problem.question == row["question"]
    *steps, last = row["solution"].split("\n")
    assert last == f"The answer is: {row['answer']}"
    found = [EQUATION.search(step).groups() for step in steps]
    assert all(ARITHMETIC[op](int(a), int(b)) == int(c) for a, op, b, c in found)
    assert found[-1][-1] == row["answer"]
    assert [" ".join((a, op, b, "=", c)) for a, op, b, c in found] == [str(g.calculation) for g in gold_chain(problem)]
    assert all(step.startswith(f"Step {k}: ") for k, step in enumerate(steps, 1))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Tom has 12 apples. Tom eats a third of them. Ann gives Tom 5 more. How many apples are there now?", 13),
        ("Ann starts with 7 pens. Ben has 3 fewer than twice as many. How many pens in the end?", 11),
        ("There are 9 eggs in the bag of Mia. 3 friends bring 4 each. What is the number of eggs?", 21),
        ("Leo has 20 coins. Zoe has 7 books. Leo uses 3 a day for 4 days. How many coins are there now?", 8),
        ("Leo has 20 coins. Leo sells half of them. Kim borrows 2 of them. How many coins are there now?", 8),
    ],
)
def test_known_problems_have_known_answers(question: str, answer: int) -> None:
    assert gold_chain(read(question))[-1].calculation.result == answer


def test_train_and_test_share_no_calculations() -> None:
    def chains(split: str, seed: int) -> set[str]:
        rows = load(split, 1500, seed, clauses=(2, 2), start=(6, 9))
        return {str(EQUATION.findall(row["solution"])) for row in rows}

    assert not chains("train", 1000) & chains("test", 1001)
    assert chains("train", 1000) & chains("train", 1002)


def test_the_corpus_holds_no_test_problem_and_many_mistakes() -> None:
    documents = list(corpus(1500, 1000))
    assert documents == list(corpus(1500, 1000))
    assert all(split_of(read(question)) == "train" for question, _ in documents)
    answers = [str(gold_chain(read(question))[-1].calculation.result) for question, _ in documents]
    right = sum(text.endswith(f"The answer is: {gold}") for (_, text), gold in zip(documents, answers, strict=True))
    assert 0.2 < right / len(documents) < 0.6


def test_difficulty_can_be_chosen() -> None:
    easy = list(load("train", 100, 1000, clauses=(2, 2), tricky=0.0, largest=50))
    names = {clause.phrase.name for row in easy for clause in read(row["question"]).clauses}
    assert names <= {phrase.name for phrase in PHRASES} - set(TRICKY)
    assert max(int(number) for row in easy for number in re.findall(r"= (\d+)", row["solution"])) <= 50
    hard = list(load("train", 100, 1000, clauses=(4, 4), tricky=1.0))
    assert {clause.phrase.name for row in hard for clause in read(row["question"]).clauses} == set(TRICKY)


def test_foreign_questions_and_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="not a sentence of the miniature"):
        read("Natalia sold clips to 48 of her friends. How many clips?")
    with pytest.raises(UserError, match="'validation'"):
        next(load("validation", 1, 0))
