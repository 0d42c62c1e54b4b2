"""The stage on a real Ray: every candidate labelled once, resumed where it stopped, the same in any order."""

from pathlib import Path

import pytest

from minos_ray.config.load import Config
from minos_ray.errors import UserError
from minos_ray.labels import stage
from minos_ray.labels.stage import NO_PROBLEM, Labeller, label, plan
from minos_ray.store.columns import table
from minos_ray.store.run import Run

CANDIDATES = 50
QUESTIONS = 3


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Three problems whose answer is their number, 50 candidates each: right, wrong, none by turns; two of no one."""
    run = Run(str(tmp_path / "run"))
    problems = [
        {"problem_id": f"p{n}", "dataset": "d", "split": "test", "question": f"{n}?", "answer": f"{n}", "solution": "s"}
        for n in range(QUESTIONS)
    ]
    rows = [candidate(f"p{n}", i, text(n, i)) for n in range(QUESTIONS) for i in range(CANDIDATES)]
    rows += [candidate("stranger", i, "The answer is: 1") for i in range(2)]
    for name, parts in {"problems": [problems], "candidates": [rows[:70], rows[70:]]}.items():
        artefact = run.artefact(name)
        artefact.begin({"import": {"made": "by hand"}})
        for number, part in enumerate(parts):
            artefact.write_part(str(number), table(name, part))
        artefact.complete({"rows": sum(map(len, parts))})
    return run


def candidate(problem: str, index: int, text: str) -> dict[str, object]:
    ids = {"candidate_id": f"{problem}/{index}", "problem_id": problem, "index": index}
    return {**ids, "text": text, "finish_reason": "stop", "num_tokens": 5, "model": "m"}


def text(n: int, i: int) -> str:
    return [f"Step 1: {n}\nThe answer is: {n}.00", f"Step 1: x\n\nThe answer is: {n + 1}", "I do not know"][i % 3]


def config(run: Run, **label: object) -> Config:
    return Config(run=run.path, base={"model": "none"}, label=label, resources={"grade": {"actors": 1}})


def by_question(question: str, solution: str | None, steps: list[str]) -> tuple[list[int], list[str]]:
    """Step labels that show what they were made from."""
    return [int(step.startswith("Step")) for step in steps], [f"{question}{solution}" for _ in steps]


@pytest.mark.usefixtures("local_ray")
def test_every_candidate_is_labelled_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "UNIT_ROWS", 16)
    manifest = label(config(run), run)
    assert manifest.counts == {"rows": 150, "correct": 51, "wrong": 51, "no_answer": 48, "timeout": 0}
    assert manifest.dropped == {NO_PROBLEM: 2}
    rows = {row["candidate_id"]: row for row in run.artefact("labels").read().to_pylist()}
    assert len(rows) == 150
    assert rows["p1/0"] == {
        "candidate_id": "p1/0",
        "problem_id": "p1",
        "answer": "1",
        "correct": True,
        "status": "correct",
        "steps": ["Step 1: 1", "The answer is: 1.00"],
        "step_labels": [-1, -1],
        "step_scores": None,
        "step_source": "none",
        "error_types": [],
    }
    assert rows["p1/2"]["status"] == "no_answer" and rows["p1/2"]["answer"] is None
    assert label(config(run), run) == manifest


@pytest.mark.usefixtures("local_ray")
def test_a_rerun_labels_only_what_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "UNIT_ROWS", 16)
    label(config(run), run)
    labels = run.artefact("labels")
    whole = sorted(labels.read().to_pylist(), key=lambda row: row["candidate_id"])
    kept = {
        name: run.fs.get_file_info(f"{run.root}/labels/part-{name}.parquet").mtime_ns for name in labels.part_names()
    }
    lost = next(iter(kept))
    run.delete(f"labels/part-{lost}.parquet")
    run.delete("labels/manifest.json")
    manifest = label(config(run), run)
    assert manifest.counts["rows"] == 150
    again = {
        name: run.fs.get_file_info(f"{run.root}/labels/part-{name}.parquet").mtime_ns for name in labels.part_names()
    }
    assert kept.pop(lost) and kept.items() <= again.items(), "what was there is not written again"
    assert sorted(labels.read().to_pylist(), key=lambda row: row["candidate_id"]) == whole


def test_step_labels_of_a_function(run: Run) -> None:
    settings = config(run, steps="tests.labels.test_label_stage:by_question").label
    labeller = Labeller(run.path, settings)
    units = plan(run.artefact("candidates"))
    rows, stats = labeller(units)
    assert stats["correct"] == 51 and stats[NO_PROBLEM] == 2
    first = rows.to_pylist()[0]
    assert first["step_labels"] == [1, 0] and first["error_types"] == ["0?s", "0?s"] and first["step_source"] == "gold"


def test_the_mathematics_grader_in_a_worker(run: Run) -> None:
    labeller = Labeller(run.path, config(run, grader="minos_ray.grading.graders:math", timeout_s=5).label)
    _, stats = labeller(plan(run.artefact("candidates")))
    assert stats["correct"] == 51 and "timeout" not in stats
    labeller.grading.close()


def test_units_are_slices_of_parts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan(run.artefact("candidates"))["rows"].to_pylist() == [70, 82]
    monkeypatch.setattr(stage, "UNIT_ROWS", 50)
    assert plan(run.artefact("candidates"))["unit_id"].to_pylist() == ["0:0", "0:50", "1:0", "1:50"]


def test_candidates_must_be_complete(run: Run) -> None:
    run.delete("candidates/manifest.json")
    with pytest.raises(UserError, match="sample"):
        label(config(run), run)
    assert not run.exists("labels")
