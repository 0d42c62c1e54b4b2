"""A made-up run for the candidate browser: problems x candidates of GSM8K lengths, nothing evaluated."""

import math
import random
from typing import Any

from minos_ray.store.run import Run
from tests.report.synthetic import ERRORS, HOSTILE, VERIFIERS, critique, evaluation, put, put_evaluation

WORDS = """the she he first then so has total each apples money hours day week number of in and gives left buys sells
pays earns costs after more than twice half remaining altogether spends makes boxes pages dollars miles students per"""
NO_ANSWER, HOSTILE_AT, TWIN_OF = 3, 5, 9  # candidates of each problem: no answer; hostile texts; the same as the next


def make_browsing_run(path: str, problems: int = 100, n: int = 256, sentences: int = 60) -> Run:
    """Candidates of 4 to 8 steps, taken from `sentences` different ones per problem."""
    run, rng = Run(path), random.Random(3)
    rows = [problem(i, rng) for i in range(problems)]
    labels = [label for row in rows for label in labelled(row, n, sentences, rng)]
    put(run, "problems", rows)
    put(run, "labels", labels)
    put(run, "critiques", [critique(label) for label in labels if label["candidate_id"].endswith("/7")])
    for name in (*VERIFIERS, "critic"):
        put(run, f"scores/{name}", scored(name, labels, rng))
    put_evaluation(run, evaluation(256, problems))
    return run


def sentence(count: int, rng: random.Random) -> str:
    """Words and a calculation."""
    a, b = rng.randrange(2, 90), rng.randrange(2, 90)
    said = " ".join(rng.choices(WORDS.split(), k=max(3, round(rng.gauss(count, count / 4)))))
    return f"{said}: {a} + {b} = <<{a}+{b}={a + b}>>{a + b}."


def problem(i: int, rng: random.Random) -> dict[str, Any]:
    """Every tenth question has markup in it."""
    question = f"Question {i}: {sentence(34, rng)} How many are left?"
    asked = f"{question} {HOSTILE}" if i % 10 == 0 else question
    base = {"dataset": "synthetic", "split": "test", "solution": None}
    return {"problem_id": f"test-{i}", "question": asked, "answer": str(40 + i), **base}


def labelled(row: dict[str, Any], n: int, sentences: int, rng: random.Random) -> list[dict[str, Any]]:
    """Candidates of one problem; candidate TWIN_OF is the next one again."""
    ease, pool = rng.betavariate(1.5, 1), [sentence(14, rng) for _ in range(sentences)]
    made = [label(row, index, pool, ease, rng) for index in range(n)]
    twin = {**made[TWIN_OF + 1], "candidate_id": made[TWIN_OF]["candidate_id"]}
    return [twin if index == TWIN_OF else found for index, found in enumerate(made)]


def label(row: dict[str, Any], index: int, pool: list[str], ease: float, rng: random.Random) -> dict[str, Any]:
    """Wrong ones are wrong from some step on; every eleventh has unlabelled steps."""
    count = rng.randrange(4, 9)
    correct = index != NO_ANSWER and rng.random() < ease
    answer = row["answer"] if correct else f"{int(row['answer']) + min(30, int(rng.expovariate(0.25)) + 1)}"
    first_wrong = count if correct else rng.randrange(count)
    steps = [*rng.sample(pool, count - 1), f"The answer is: {answer}"]
    kinds = [
        rng.choice(ERRORS) if k == first_wrong else "accumulation" if k > first_wrong else "" for k in range(count)
    ]
    if index == HOSTILE_AT:
        steps[0], answer = HOSTILE, answer if correct else HOSTILE
    return {
        "candidate_id": f"{row['problem_id']}/{index}",
        "problem_id": row["problem_id"],
        "answer": None if index == NO_ANSWER else answer,
        "correct": correct,
        "status": "no_answer" if index == NO_ANSWER else "correct" if correct else "wrong",
        "steps": steps,
        "step_labels": [-1] * count if index % 11 == 0 else [int(k < first_wrong) for k in range(count)],
        "step_scores": None,
        "step_source": "gold",
        "error_types": kinds,
    }


def scored(name: str, labels: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """A PRM scores each step, an ORM the whole, a critic in quarters; equal solutions have equal scores."""
    drawn: dict[tuple[str, ...], list[float]] = {}
    rows = []
    for row in labels:
        key = (row["problem_id"], *row["steps"])
        if key not in drawn:
            sides = [1 if v == 1 else -1 for v in row["step_labels"]]
            drawn[key] = [1 / (1 + math.exp(-rng.gauss(0.9 * side, 1.1))) for side in sides]
        steps = drawn[key]
        score = min(steps) if name.startswith("prm") else steps[-1]
        if name == "critic":
            score = 1.0 if steps[-1] > 0.5 else 0.25  # 0 without step scores stands for a candidate without a score
        base = {"candidate_id": row["candidate_id"], "problem_id": row["problem_id"], "score": score}
        rows.append(base | {"step_scores": steps if name.startswith("prm") else []})
    return rows
