"""Rollouts on a real Ray with real engines of the shipped model: every prefix once, whatever is killed or repeated."""

import re
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import yaml

from minos_ray import cli
from minos_ray.config.load import Config, build
from minos_ray.errors import UserError
from minos_ray.grading.numbers import extract_number, gold_number
from minos_ray.graph.specs import inputs, spec
from minos_ray.labels.rollouts import Completer, chosen, cost, make_plan, prefix_id, rollouts, unit_table
from minos_ray.labels.stage import label
from minos_ray.miniature import load
from minos_ray.pipeline import check, findings
from minos_ray.problems.split import problems_by_id
from minos_ray.store.run import Manifest, Run
from tests.runs import put

MODEL = {"model": "package:miniature/model"}
GOLD = "minos_ray.miniature.step_labels:label_steps"


def make_config(folder: Path, rollouts: dict[str, Any] | None = None, **sections: Any) -> Config:
    """One engine on one CPU, a few problems a task."""
    values = {
        "run": str(folder / "run"),
        "base": MODEL,
        "generator": MODEL,
        "sample": {"temperature": 0.7, "max_tokens": 60, "unit": 16},
        "label": {"rollouts": {"completions": 4, **(rollouts or {})}},
        "resources": {
            "num_cpus": 2,
            "sample": {"max_model_len": 512, "dtype": "float32", "kv_cache_gb": 0.1, "units_per_task": 1},
        },
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return build(values)


def make_run(config: Config, problems: int = 8) -> Run:
    """Train problems with five candidates each: right, two that go wrong (the same way at first), none, right again;
    and a test problem, which gets no rollouts."""
    run = Run(config.run)
    rows = [*load("train", problems, 0), *load("test", 1, 0)]
    asked, candidates = [], []
    for number, row in enumerate(rows):
        split = "train" if number < problems else "test"
        asked.append({"dataset": "m", "solution": None, **row, "problem_id": f"p{number}", "split": split})
        candidates += [candidate(f"p{number}", index, text) for index, text in enumerate(texts(row["solution"]))]
    put(run, "problems", asked)
    put(run, "candidates", candidates)
    return run


def texts(solution: str) -> list[str]:
    """Candidates made of a right solution."""
    lines = solution.split("\n")
    slip = re.sub(r"(\d+)$", lambda found: str(int(found[0]) + 1), lines[0])
    wrong = "\n".join([slip, *lines[1:-1], "The answer is: 1"])
    late = "\n".join([*lines[:-1], "The answer is: 2"])
    return [solution, wrong, late, "I do not know", solution]


def candidate(problem: str, index: int, text: str) -> dict[str, Any]:
    ids = {"candidate_id": f"{problem}/{index}", "problem_id": problem, "index": index}
    return {**ids, "text": text, "finish_reason": "stop", "num_tokens": 5, "model": "m"}


def wanted_prefixes(run: Run) -> set[str]:
    """Names of all beginnings of graded train candidates, by plain string work."""
    train = {row["problem_id"] for row in run.artefact("problems").read().to_pylist() if row["split"] == "train"}
    found = set()
    for row in run.artefact("candidates").read().to_pylist():
        lines = row["text"].split("\n")
        if row["problem_id"] in train and len(lines) > 1:
            found |= {prefix_id(row["problem_id"], "\n".join(lines[:k]) + "\n") for k in range(1, len(lines))}
    return found


def assert_every_prefix_once(run: Run, completions: int) -> list[dict[str, Any]]:
    """The rows, after a look at what must hold for them all."""
    rows = run.artefact("rollouts").read().to_pylist()
    names = [row["prefix_id"] for row in rows]
    assert len(names) == len(set(names)) and set(names) == wanted_prefixes(run)
    for row in rows:
        assert row["completions"] <= completions
        assert row["correct"] + row["no_answer"] + row["timeout"] <= row["completions"]
        assert row["label"] == 1 or (row["label"], row["correct"], row["completions"]) == (0, 0, completions)
    return rows


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_every_prefix_once_with_a_killed_actor_and_a_rerun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minos_ray.labels.rollouts.Completer", Held)
    config = make_config(tmp_path, {"completions": 8}, sample={"unit": 8})
    run = make_run(config, problems=16)
    killed: list[int] = []
    killer = threading.Thread(target=kill_an_actor, args=(run, killed))
    killer.start()
    manifest = rollouts(config, run)
    killer.join(timeout=60)
    assert killed, "no actor was killed"
    said = capsys.readouterr().out
    rows = assert_every_prefix_once(run, 8)
    right = {prefix_id(problem, prefix) for problem, prefix in right_prefixes(run)}
    assert {row["prefix_id"] for row in rows if row["completions"] == 0} >= right
    assert all(row["label"] == 1 for row in rows if row["prefix_id"] in right)
    assert 0 < manifest.counts["completions"] <= manifest.counts["at_most"] == 8 * (len(rows) - len(right))
    assert manifest.counts["completions"] == sum(row["completions"] for row in rows)
    assert f"at most {manifest.counts['at_most']:,} completions" in said
    assert manifest.dropped == {"candidate_no_answer": 16}
    assert rollouts(config, run) == manifest
    kept = lose_a_part(run)
    again = rollouts(config, run)
    after = {row["prefix_id"]: row for row in assert_every_prefix_once(run, 8)}
    assert 0 < again.details["prefixes_before"] == len(kept) < len(rows)
    assert all(after[row["prefix_id"]] == row for row in kept)


def right_prefixes(run: Run) -> list[tuple[str, str]]:
    """Prefixes of right train candidates."""
    found = []
    problems = problems_by_id(run, "train", ["problem_id", "answer"])
    for row in run.artefact("candidates").read().to_pylist():
        answer = extract_number(row["text"])
        gold = problems.get(row["problem_id"], {}).get("answer")
        if gold is not None and answer is not None and gold_number(gold) == answer:
            lines = row["text"].split("\n")
            found += [(row["problem_id"], "\n".join(lines[:k]) + "\n") for k in range(1, len(lines))]
    return found


def lose_a_part(run: Run) -> list[dict[str, Any]]:
    """Deletes the manifest, a part and a prefix of another, as if the plan had not known it; the rows of the others."""
    artefact = run.artefact("rollouts")
    gone, short, *kept = artefact.part_names()
    run.delete("rollouts/manifest.json")
    run.delete(f"rollouts/part-{gone}.parquet")
    notes = artefact.part_footer(short)
    artefact.write_part(short, artefact.read_part(short).slice(1), notes.stats, notes.units)
    return [row for name in kept for row in artefact.read_part(name).to_pylist()]


class Held(Completer):
    """When something is stored it waits until an actor was killed: the stage is not over before."""

    def __init__(self, run: str, *arguments: Any, **keywords: Any) -> None:
        super().__init__(run, *arguments, **keywords)
        self.folder = Path(run)

    def __call__(self, batch: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        until = time.monotonic() + 600
        while list(self.folder.glob("rollouts/part-*")) and not (self.folder / "killed").exists():
            assert time.monotonic() < until, "nobody kills this actor"
            time.sleep(0.02)
        return super().__call__(batch)


def kill_an_actor(run: Run, killed: list[int]) -> None:
    """Waits for the first part, then kills an actor at work."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not any(f.startswith("part-") for f in run.files("rollouts")):
        time.sleep(0.02)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # another one may end meanwhile
            if "PartWriter" in process.name() or "PartWriter" in " ".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)
                Path(run.root, "killed").touch()
                return


@pytest.mark.slow
def test_the_command_gives_labels_with_soft_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(tmp_path, {"soft": True}, label={"rollouts": {"completions": 4, "soft": True}, "steps": GOLD})
    run = make_run(config)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert cli.main(["label", str(file)]) == 0
    said = capsys.readouterr().out
    assert "label.rollouts: at most" in said and "no consensus" in said
    manifest = run.artefact("labels").manifest()
    assert isinstance(manifest, Manifest)
    counts = manifest.counts
    assert counts["consensus"] + counts["no_consensus"] == counts["rollouts"] == 8 * 4
    labels = run.artefact("labels").read().to_pylist()
    assert {row["completions"] for row in run.artefact("rollouts").read().to_pylist()} == {4}
    rolled = [row for row in labels if row["step_source"] == "rollouts"]
    assert len(rolled) == counts["consensus"] > 0
    for row in rolled:
        assert len(row["step_labels"]) == len(row["step_scores"]) == len(row["steps"])
        assert all(round(score * 4) == pytest.approx(score * 4) for score in row["step_scores"])
        assert all(step == 1 for step, score in zip(row["step_labels"], row["step_scores"], strict=True) if score > 0)
        assert row["step_labels"][-1] == int(row["correct"]) == row["step_scores"][-1]
    assert {row["step_source"] for row in labels if row["problem_id"] == "p8"} == {"gold"}


def test_the_estimate_is_stated_before_and_is_no_less_than_the_plan(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    run = make_run(config)
    estimate, graded = make_plan(config, run, graded=False), make_plan(config, run, graded=True)
    assert set(wanted_prefixes(run)) == {
        prefix_id(tree.problem_id, text) for tree in estimate.trees for text in tree.texts()
    }
    assert estimate.prefixes >= graded.prefixes > 0
    assert graded.counts["candidate_no_answer"] == 8 and graded.candidates == 32
    assert not any(any(tree.proven) for tree in estimate.trees)
    lines: list[str] = []
    with pytest.raises(UserError):
        check(config, lines.append)
    assert cost(config, run) in lines and f"at most {4 * estimate.prefixes:,} completions" in cost(config, run)


def test_without_candidates_the_formula_is_said(tmp_path: Path) -> None:
    config = make_config(tmp_path, {"candidates": 1000})
    assert "candidates (1,000) x (steps - 1) x 4 completions" in cost(config, Run(config.run))


def test_only_what_completions_depend_on_makes_rollouts_stale(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    run = make_run(config)
    before = inputs(config, run, spec(config, "rollouts"))
    same = make_config(tmp_path, label={**config.label.model_dump(), "after_first_error": "mask", "steps": GOLD})
    assert inputs(same, run, spec(same, "rollouts")) == before
    for key, value in (("splitter", "minos_ray.steps.split:paragraphs"), ("rollouts", {"completions": 3})):
        other = make_config(tmp_path, label={**config.label.model_dump(), key: value})
        assert inputs(other, run, spec(other, "rollouts")) != before
    own = make_config(tmp_path, {"completer": {"model": "run:models/base"}})
    assert "models/base" in spec(own, "rollouts").needs


def test_the_completer_and_its_engines_are_checked_beforehand(tmp_path: Path) -> None:
    config = make_config(
        tmp_path, {"completer": {"model": "./nowhere"}}, resources={"num_cpus": 2, "sample": {"actors": 9}}
    )
    run = make_run(config)
    said = "\n".join(findings(config, run))
    assert "label.rollouts.completer" in said and "nowhere" in said
    assert "resources.sample wants 9 x (1 CPU)" in said


def test_imported_labels_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    run = make_run(config)
    put(run, "labels", [])
    with pytest.raises(UserError, match=r"label\.rollouts.*imported"):
        label(config, run)


def test_a_limit_takes_problems_in_turn_and_a_larger_one_adds_to_it(tmp_path: Path) -> None:
    run = make_run(make_config(tmp_path))
    problems = list(problems_by_id(run, "train", ["problem_id"]))
    few, more = ({row["candidate_id"] for row in chosen(run, problems, limit, 0)} for limit in (12, 20))
    assert len(few) == 12 and few < more
    counts = [sum(name.startswith(f"{problem}/") for name in few) for problem in problems]
    assert set(counts) == {1, 2}


def test_greedy_completions_are_refused_before_any_work(tmp_path: Path) -> None:
    config = make_config(tmp_path, sample={"temperature": 0.0})
    run = make_run(config)
    with pytest.raises(UserError, match=r"label\.rollouts\.completions = 4.*sample\.temperature"):
        label(config, run)
    assert not run.exists("rollouts")


def test_no_completer_and_no_answers_are_one_line(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    run = make_run(config)
    with pytest.raises(UserError, match=r"label\.rollouts\.completer"):
        rollouts(config.model_copy(update={"generator": None}), run)
    put(run, "candidates", [candidate("p0", 0, "I do not know")])
    with pytest.raises(UserError, match=r"sample\.n_train"):
        rollouts(config, run)
    assert not run.exists("rollouts")


def test_problems_that_killed_every_engine_have_unlabelled_prefixes(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    made = make_plan(config, make_run(config), graded=True)
    rows, stats = Completer.failed(unit_table(made.trees), seed=0)
    assert stats == {"engine_died": rows.num_rows} and rows.num_rows == made.prefixes
    assert set(rows["label"].to_pylist()) == {-1} and set(rows["completions"].to_pylist()) == {0}
    assert len(set(rows["prefix_id"].to_pylist())) == made.prefixes


def test_no_prefix_holds_thinking(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    run = make_run(config)
    trees = make_plan(config, run, graded=False).trees
    rows = run.artefact("candidates").read().to_pylist()
    put(run, "candidates", [{**row, "text": f"<think>\n1 + 1\n= 3\n</think>\n\n{row['text']}"} for row in rows])
    assert make_plan(config, run, graded=False).trees == trees
