"""Small run directories for scoring and evaluation: problems, labelled candidates (as many as one likes), scores."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minos_ray.config.load import Config
from minos_ray.store import columns
from minos_ray.store.run import Manifest, Run

TYPES = ("calculation", "logical", "accumulation")


def config(run: Run, **sections: Any) -> Config:
    """A config whose run is `run`, on one CPU."""
    return Config(**{"run": run.path, "base": {"model": "no/base"}, **sections})


def put(run: Run, name: str, rows: list[dict[str, Any]], dropped: dict[str, int] | None = None) -> Manifest:
    """Writes a whole artefact, as an import would."""
    artefact = run.artefact(name)
    artefact.begin({"import": name})
    artefact.write_part("0", columns.table(name.partition("/")[0], rows))
    return artefact.complete({"rows": len(rows)}, dropped)


def make_run(path: Path | str, sizes: Sequence[int], labelled: bool = True, seed: int = 0) -> Run:
    """A run with one test problem per entry of `sizes`, which is its number of candidates; about half are right.

    Steps are labelled unless `labelled` is false; every tenth candidate has no answer.
    """
    run, rng = Run(str(path)), random.Random(seed)
    problems, candidates, labels = [], [], []
    for number, size in enumerate(sizes):
        problems.append(problem(number))
        for index in range(size):
            label = candidate_label(number, index, rng, labelled)
            labels.append(label)
            candidates.append(candidate(label, index))
    put(run, "problems", problems)
    put(run, "candidates", candidates, {"too_long": 2})
    put(run, "labels", labels)
    return run


def problem(number: int) -> dict[str, Any]:
    """A test problem whose answer is 40 + its number."""
    question = f"Tom has {number} apples and buys 40 more. How many apples does Tom have?"
    identity = {"problem_id": f"p{number}", "dataset": "small", "split": "test", "question": question}
    return {**identity, "answer": str(40 + number), "solution": None}


def candidate_label(number: int, index: int, rng: random.Random, labelled: bool) -> dict[str, Any]:
    """The label of one candidate; a wrong one goes wrong at its first or second step."""
    right, answered = rng.random() < 0.5, rng.random() < 0.9
    answer = str(40 + number + (0 if right else rng.randint(1, 3)))
    steps = [f"Step 1: Tom has {number} apples.", f"Step 2: {number} + 40 = {answer}", f"The answer is: {answer}"]
    wrong_from = 3 if right else rng.randint(0, 1)
    marks = [int(place < wrong_from) for place in range(3)]
    kind = rng.choice(TYPES)
    return {
        "candidate_id": f"p{number}/{index}",
        "problem_id": f"p{number}",
        "answer": answer if answered else None,
        "correct": right and answered,
        "status": ("correct" if right else "wrong") if answered else "no_answer",
        "steps": steps if answered else steps[:2],
        "step_labels": (marks if answered else marks[:2]) if labelled else [-1] * (3 if answered else 2),
        "step_scores": None,
        "step_source": "made" if labelled else "",
        "error_types": [kind if place == wrong_from else "" for place in range(3 if answered else 2)]
        if labelled
        else [],
    }


def candidate(label: dict[str, Any], index: int) -> dict[str, Any]:
    """The candidate of a label; those without an answer were cut off."""
    return {
        "candidate_id": label["candidate_id"],
        "problem_id": label["problem_id"],
        "index": index,
        "text": "\n".join(label["steps"]),
        "finish_reason": "stop" if label["answer"] else "length",
        "num_tokens": 30,
        "model": "made",
    }


def scores(run: Run, verifier: str, sharpness: float, seed: int = 1, skip: Sequence[str] = ()) -> None:
    """Writes scores that tell right from wrong with some noise; step scores for a PRM, verdicts for the critic."""
    rng = random.Random(f"{seed} {verifier}")
    rows = []
    for label in run.artefact("labels").read().to_pylist():
        score = min(1.0, max(0.0, 0.5 + (sharpness if label["correct"] else -sharpness) + rng.gauss(0, 0.2)))
        score = float(score >= 0.5) if verifier == "critic" else max(score, 1e-6)
        steps = [1.0] * (len(label["steps"]) - 1) + [score] if verifier.startswith(("prm", "critic")) else []
        row = {"candidate_id": label["candidate_id"], "problem_id": label["problem_id"]}
        if label["candidate_id"] not in skip:
            rows.append({**row, "score": score, "step_scores": steps})
    put(run, f"scores/{verifier}", rows)
