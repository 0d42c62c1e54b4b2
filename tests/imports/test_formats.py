"""Imports of problems and of step-labelled sets, from real files and from small ones of the same shape."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from minos_ray import schema
from minos_ray.errors import UserError
from minos_ray.imports import FORMATS, bring
from minos_ray.store import Run

TAG = "\u043a\u0438"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path / "run"))


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def stored(run: Run, name: str) -> list[dict[str, Any]]:
    return schema.validate(name, run.artefact(name).read()).to_pylist()


def test_every_format_names_a_function() -> None:
    from minos_ray.config import resolve

    assert all(callable(resolve(function)) for function in FORMATS.values())


def test_real_gsm8k_by_command(tmp_path: Path, shared_data: Path) -> None:
    command = ["import", "gsm8k", str(shared_data / "gsm8k"), str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-m", "minos_ray", *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "problems: rows 8,792, train 7,473, test 1,319\n"


def test_gsm8k_of_one_file(run: Run, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"question": "1+1?", "answer": "#### 2"}, "torn")
    (manifest,) = bring("gsm8k", path, run, split="test")
    assert manifest.counts == {"rows": 1, "test": 1} and manifest.dropped == {"test: not valid JSON": 1}
    with pytest.raises(UserError, match="say split=train or split=test"):
        bring("gsm8k", path, Run(run.path + "2"))


def test_real_math500(run: Run, shared_data: Path) -> None:
    (manifest,) = bring("math", str(shared_data / "math500"), run)
    assert manifest.counts == {"rows": 500, "test": 500}


def test_jsonl_with_candidates(run: Run, tmp_path: Path) -> None:
    rows = [{"q": f"{n // 3}?", "a": n // 3, "out": f"The answer is: {n}"} for n in range(6)]
    path = jsonl(tmp_path / "mine.jsonl", *rows, {"q": "0?", "a": 0, "out": ""})
    problems, candidates = bring("jsonl", path, run, columns={"question": "q", "answer": "a"}, text="out", model="m")
    assert problems.counts == {"rows": 2, "test": 2}
    assert candidates.counts == {"rows": 6} and candidates.dropped == {"empty 'out'": 1}
    assert [row["candidate_id"] for row in stored(run, "candidates")] == [
        f"mine-test-{n}/{i}" for n in range(2) for i in range(3)
    ]


def test_real_processbench(run: Run, shared_data: Path) -> None:
    made = {m.artefact: m for m in bring("processbench", str(shared_data / "processbench"), run)}
    assert made["labels"].counts == {"rows": 1400} and not made["labels"].dropped
    assert made["problems"].counts["rows"] < 1400
    labels = stored(run, "labels")
    assert Counter(0 in row["step_labels"] for row in labels) == {True: 207 + 594, False: 193 + 406}
    assert sum(row["correct"] and 0 in row["step_labels"] for row in labels) == 7 + 94
    for row in labels:
        known = [label for label in row["step_labels"] if label != -1]
        assert 0 not in known[:-1] and len(row["step_labels"]) == len(row["steps"])
    assert {row["problem_id"] for row in labels} == {row["problem_id"] for row in stored(run, "problems")}


def test_processbench_rows_that_do_not_fit(run: Run, tmp_path: Path) -> None:
    good = {"id": "gsm8k-0", "generator": "g", "problem": "p", "steps": ["a", "b", "c"], "label": 1}
    good["final_answer_correct"] = False
    bad = [{**good, "label": 3}, {**good, "steps": []}, {**good, "final_answer_correct": None}]
    (tmp_path / "a.json").write_text(json.dumps([good, *bad]))
    _, _, labels = bring("processbench", str(tmp_path / "a.json"), run)
    assert labels.counts == {"rows": 1} and sum(labels.dropped.values()) == 3
    assert stored(run, "labels")[0]["step_labels"] == [1, 0, -1]


def test_math_shepherd(run: Run, tmp_path: Path) -> None:
    def row(question: str, signs: str) -> dict[str, str]:
        steps = ["Step 1: 2 - 1 = <<2-1=1>>1 + 0 {}\n", f"Step 2: 1 + 1 = 2. The answer is: {signs.count('+')} {{}}"]
        text = f"{question} " + "".join(steps)
        return {"input": text.format(TAG, TAG), "label": text.format(*signs), "task": "GSM8K"}

    rows = [row("How many?", "++"), row("How many?", "+-"), row("Else?", "--")]
    torn = [{**rows[0], "label": rows[0]["label"].replace("Step 2", "Step 3")}, {**rows[0], "input": "no tags"}]
    problems, _, labels = bring("math-shepherd", jsonl(tmp_path / "a.jsonl", *rows, *torn), run)
    assert problems.counts == {"rows": 2, "train": 2} and problems.details["gold_unknown"] == 1
    assert labels.dropped == {"'label' does not follow 'input'": 1, "no step tag in 'input'": 1}
    found = stored(run, "labels")
    assert [row["step_labels"] for row in found] == [[1, 1], [1, 0], [0, 0]]
    assert [row["correct"] for row in found] == [True, False, False]
    assert found[0]["steps"] == ["Step 1: 2 - 1 = <<2-1=1>>1 + 0", "Step 2: 1 + 1 = 2. The answer is: 2"]
    assert {row["question"]: row["answer"] for row in stored(run, "problems")} == {"How many?": "2", "Else?": ""}


def prm_step(*ratings: int | None, chosen: int | None = 0, human: str | None = None) -> dict[str, Any]:
    completions = [{"text": f"step rated {rating}", "rating": rating, "flagged": False} for rating in ratings]
    written = {"text": human, "rating": None} if human else None
    return {"completions": completions, "human_completion": written, "chosen_completion": chosen}


def test_prm800k(run: Run, tmp_path: Path) -> None:
    def row(reason: str, *steps: dict[str, Any], written: list[str] | None = None) -> dict[str, Any]:
        question = {"problem": "What is $x$?", "ground_truth_answer": "\\frac{1}{2}", "pre_generated_steps": written}
        return {"question": question, "label": {"steps": list(steps), "finish_reason": reason}}

    end = {**prm_step(1), "completions": [{"text": "# Answer\n\n\\boxed{0.5}", "rating": 1, "flagged": False}]}
    written = ["step rated 1", "step rated -1", "# Answer\n\n\\boxed{2}"]
    rows = [
        row("solution", prm_step(-1, 0, chosen=1), prm_step(-1, chosen=None, human="a person's step"), end),
        row("found_error", prm_step(1), prm_step(-1, chosen=None), written=written),
        row("give_up", prm_step(1)),
        {"question": {"problem": "x"}},
    ]
    problems, _, labels = bring("prm800k", jsonl(tmp_path / "a.jsonl", *rows), run)
    assert problems.counts == {"rows": 1, "train": 1}
    assert labels.dropped == {"finished as 'give_up'": 1, "not the shape of PRM800K": 1}
    right, wrong = stored(run, "labels")
    assert right["step_labels"] == [1, 1, 1] and right["correct"] and right["steps"][1] == "a person's step"
    assert wrong["step_labels"] == [1, 0, -1] and wrong["steps"] == written
    assert wrong["status"] == "wrong" and wrong["answer"] == "2"
