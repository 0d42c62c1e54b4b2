"""A small run directory with everything that training reads: problems, labels, critiques of right and wrong sums."""

import random
from pathlib import Path
from typing import Any

from minos_ray.config.load import build
from minos_ray.config.schema import Config
from minos_ray.store.columns import table
from minos_ray.store.run import Run
from tests.tiny import tiny_model


def candidate(problem: int, index: int) -> dict[str, Any]:
    """A labelled candidate: two sums, of which one or none is wrong; every fifth has no step labels."""
    rng = random.Random(f"{problem} {index}")
    a, b, c = (rng.randint(1, 9) for _ in range(3))
    slips = (rng.random() < 0.3, rng.random() < 0.3)
    first, second = a + b + slips[0], a + b + slips[0] + c + slips[1]
    correct = not any(slips)
    steps = [f"Step 1: {a} + {b} = {first}", f"Step 2: {first} + {c} = {second}", f"The answer is: {second}"]
    known = [int(not slips[0]), int(correct), int(correct)] if index % 5 else [-1, -1, -1]
    return {
        "candidate_id": f"p{problem:03}/{index}",
        "problem_id": f"p{problem:03}",
        "answer": str(second),
        "correct": correct,
        "status": "correct" if correct else "wrong",
        "steps": steps,
        "step_labels": known,
        "step_scores": None,
        "step_source": "gold",
        "error_types": [] if correct else ["calculation"],
    }


def critique(label: dict[str, Any]) -> dict[str, Any]:
    """What a critic says about it; one in seven disagrees with the label."""
    agrees = sum(map(ord, label["candidate_id"])) % 7 != 0
    text = f"Step 1: so it is. This step is correct.\nThe final answer is {label['correct'] == agrees}."
    return {
        "candidate_id": label["candidate_id"],
        "critic": "test",
        "prompt_version": "1",
        "text": text,
        "step_verdicts": [1, 1, int(label["correct"])],
        "final_verdict": label["correct"] == agrees,
        "agrees": agrees,
        "status": "ok",
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "cost_usd": 0.0,
    }


def fill(run: Run, problems: int, candidates: int) -> None:
    """Writes the artefacts; the last tenth of the problems is the test split."""
    labels = [candidate(p, i) for p in range(problems) for i in range(candidates)]
    asked = [
        {
            "problem_id": f"p{p:03}",
            "dataset": "sums",
            "split": "test" if p >= problems * 0.9 else "train",
            "question": f"What is the sum of set {p}?",
            "answer": "1",
            "solution": None,
        }
        for p in range(problems)
    ]
    rows = {"problems": asked, "candidates": [], "labels": labels, "critiques": list(map(critique, labels))}
    for name, made in rows.items():
        artefact = run.artefact(name)
        artefact.begin({"import": "test"})
        artefact.write_part("all", table(name, made))
        artefact.complete({"rows": len(made)})


def world(folder: Path, problems: int = 40, candidates: int = 8, **sections: dict[str, Any]) -> tuple[Config, Run]:
    """The run and a config whose trainings take seconds; `sections` are merged into it."""
    run = Run(str(folder / "run"))
    fill(run, problems, candidates)
    short = {"precision": "fp32", "lr": 1e-3, "batch_rows": 32, "eval_every": 4, "max_length": 256}
    values: dict[str, Any] = {
        "run": run.path,
        "base": {"model": tiny_model(folder / "base", spread=0.05)},
        "sft": {**short, "epochs": 1},
        "reward": {**short, "epochs": 1, "eval_rows": 40, "verifiers": ["orm-base", "prm-minos"]},
        "resources": {"train": {"micro_tokens": 512}},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return build(values), run
