"""Labelled candidates with critiques for a run: 24 of our own writing, or real ones where the real data lies."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minos_ray.steps.critique_text import parse_critique
from minos_ray.store.run import Run
from tests.runs import put

Row = dict[str, Any]
OWN = Path(__file__).with_name("candidates.jsonl")


def own_rows() -> list[Row]:
    """Six problems with four candidates each: `question, gold, steps, step_labels, critique`."""
    return [json.loads(line) for line in OWN.read_text().splitlines()]


def real_rows(shared: Path, solutions: int, critiques: int) -> list[Row]:
    """GSM8K solutions of many models with human step labels (ProcessBench), and of Gemini 1.0 Pro with its critiques.

    The former have no critique (None), the latter no step labels (-1).
    """
    import pyarrow.parquet as pq

    from minos_ray.steps.split import lines

    judged = json.loads((shared / "processbench" / "gsm8k.json").read_text())[:solutions]
    rows = [
        {
            "question": row["problem"],
            "gold": "",
            "steps": row["steps"],
            "step_labels": step_labels(len(row["steps"]), row["label"]),
            "correct": row["final_answer_correct"],
            "critique": None,
        }
        for row in judged
    ]
    columns = ["question", "target", "solution", "correct", "critique"]
    table = pq.read_table(shared / "gsm8k_gemini" / "part-0.parquet", columns=columns).slice(0, 20 * critiques)
    for row in table.to_pylist()[::20]:
        steps = lines(row["solution"])
        known = {"question": row["question"], "gold": row["target"], "correct": row["correct"]}
        rows.append({**known, "steps": steps, "step_labels": [-1] * len(steps), "critique": row["critique"]})
    return rows


def step_labels(steps: int, first_error: int) -> list[int]:
    """ProcessBench's number of the first wrong step as a label for each step; what stands behind it is unlabelled."""
    if first_error < 0:
        return [1] * steps
    return [1] * first_error + [0] + [-1] * (steps - first_error - 1)


def fill(run: Run, rows: Iterable[Row], test_problems: int = 2) -> None:
    """Writes problems, candidates, labels and critiques, as an import would; the first problems are the test split."""
    questions: dict[str, str] = {}
    candidates, labels, critiques = [], [], []
    problems: list[Row] = []
    for row in rows:
        name = questions.setdefault(row["question"], f"p{len(questions):03}")
        if len(questions) > len(problems):
            known = {"question": row["question"], "answer": row["gold"], "solution": None}
            problems.append({"problem_id": name, "dataset": "real", "split": "train", **known})
        of_problem = sum(one["problem_id"] == name for one in candidates)
        ids = {"candidate_id": f"{name}/{of_problem}", "problem_id": name}
        candidates.append({**ids, **candidate(row), "index": of_problem})
        labels.append({**ids, **label(row)})
        if row["critique"] is not None:
            critiques.append({"candidate_id": ids["candidate_id"], **critique(row)})
    for problem in problems[:test_problems]:
        problem["split"] = "test"
    tables = {"problems": problems, "candidates": candidates, "labels": labels, "critiques": critiques}
    for name, table in tables.items():
        put(run, name, table)


def candidate(row: Row) -> Row:
    """A candidate without its ids."""
    text = "\n".join(row["steps"])
    return {"text": text, "finish_reason": "stop", "num_tokens": len(text.split()), "model": "real"}


def label(row: Row) -> Row:
    """Its label: the steps as they are given."""
    correct = row.get("correct", all(row["step_labels"]))
    return {
        "answer": row["gold"] if correct else None,
        "correct": correct,
        "status": "correct" if correct else "wrong",
        "steps": row["steps"],
        "step_labels": row["step_labels"],
        "step_scores": None,
        "step_source": "human",
        "error_types": [],
    }


def critique(row: Row) -> Row:
    """Its critique, read as one that was bought."""
    parsed = parse_critique(row["critique"], len(row["steps"]))
    return {
        "critic": "real",
        "prompt_version": "1",
        "text": row["critique"],
        "step_verdicts": parsed.step_verdicts,
        "final_verdict": parsed.final_verdict,
        "agrees": True,
        "status": "ok",
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "cost_usd": 0.0,
    }
