"""Rounds of the critic on a run that can be checked by hand: a critic that knows two critiques by heart."""

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minos_ray.config.load import Config
from minos_ray.config.resources import Engine, Resources, Workers
from minos_ray.config.schema import Base
from minos_ray.config.training import Refine, Reward, Sft
from minos_ray.errors import WorkStopped
from minos_ray.graph.specs import critic_chosen
from minos_ray.graph.state import status
from minos_ray.meta.measures import outcome_intervals
from minos_ray.rounds import refine as sampling
from minos_ray.rounds.refine import refine
from minos_ray.store.columns import Row
from minos_ray.store.run import Run
from minos_ray.training.results import read_log
from tests.runs import put
from tests.scoring.test_judge import CRITIQUES, QUESTION, RIGHT, WRONG, memorise
from tests.scoring.test_soft import logits_oracle
from tests.tiny import tiny_model
from tests.training.holding import held_at
from tests.training.test_resume import once

pytestmark = pytest.mark.slow

SAMPLES = 6
TEXTS = {True: CRITIQUES[0][1], False: CRITIQUES[1][1]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Eight train problems with a right and a wrong candidate each, a test problem, and a critic that is half sure."""
    folder = tmp_path_factory.mktemp("refined")
    tiny_model(folder / "base", spread=0.05)
    run = Run(str(folder / "run"))
    problem = {"dataset": "test", "question": QUESTION, "answer": "7", "solution": None}
    put(run, "problems", [{"problem_id": f"p{n}", "split": "test" if n > 7 else "train", **problem} for n in range(9)])
    labels = [label(n, right) for n in range(9) for right in (True, False)]
    put(run, "labels", labels)
    put(run, "candidates", [])
    put(run, "critiques", [bought(row) for row in labels if row["problem_id"] == "p0"])
    critic = run.artefact("models/critic")
    critic.begin({"import": "test"})
    tiny_model(critic.path, spread=0.05)
    # Of the wrong solution it has read two verdicts: some of its critiques will agree with the labels, others not.
    memorise(critic.path, [(RIGHT, TEXTS[True]), (WRONG, TEXTS[False]), (WRONG, TEXTS[True])], enough=0.1)
    critic.complete({"rows": 3})
    return run


def label(number: int, right: bool) -> Row:
    """Every step of the right solution is right, and every step of the wrong one wrong."""
    steps = RIGHT if right else WRONG
    return {
        "candidate_id": f"p{number}/{int(right)}",
        "problem_id": f"p{number}",
        "answer": steps[-1][-1],
        "correct": right,
        "status": "correct" if right else "wrong",
        "steps": steps,
        "step_labels": [int(right)] * len(steps),
        "step_scores": None,
        "step_source": "test",
        "error_types": [""] * len(steps),
    }


def bought(row: Row) -> Row:
    """The critique of a candidate that agrees with its label."""
    verdicts = {"step_verdicts": row["step_labels"], "final_verdict": row["correct"], "agrees": True, "status": "ok"}
    cost = {"prompt_tokens": 1, "completion_tokens": 1, "cost_usd": 0.0}
    origin = {"candidate_id": row["candidate_id"], "critic": "test", "prompt_version": "test"}
    return {**origin, "text": TEXTS[row["correct"]], **verdicts, **cost}


def config_of(run: Run, **section: Any) -> Config:
    """One round; stage 2 holds out two of the problems."""
    return Config(
        run=run.path,
        base=Base(model=str(Path(run.path).parent / "base")),
        sft=Sft(epochs=120, lr=3e-3, batch_rows=4, max_length=160, precision="fp32", source="critiques"),
        reward=Reward(eval_rows=4),
        refine=Refine(rounds=1, samples=SAMPLES, keep=2, max_tokens=60, **section),
        resources=Resources(
            judge=Engine(kv_cache_gb=0.05, dtype="float32"), train=Workers(max_failures=0, save_every=10)
        ),
    )


@pytest.fixture
def refined(run: Run, local_ray: None, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The run after its round, which the first test makes; units are groups of five candidates."""
    monkeypatch.setattr(sampling, "UNIT_CANDIDATES", 5)
    config = config_of(run)
    refine(config, run)
    return config


def rows_of(run: Run, name: str) -> list[Row]:
    return run.artefact(name).read().sort_by("critique_id").to_pylist()


def test_a_round_keeps_what_agrees_and_counts_everything_else(refined: Config, run: Run) -> None:
    rows, held_out = rows_of(run, "sampled/critic"), rows_of(run, "held-out/critic-1")
    candidates = {row["candidate_id"] for row in rows}
    assert len(candidates) == 12 and len(rows) == 12 * SAMPLES
    assert len(held_out) == 4 and not {r["problem_id"] for r in held_out} & {r["problem_id"] for r in rows}
    # A critique of these two solutions agrees if and only if it ends as the one that was bought does.
    by_hand = Counter[str]()
    agreeing: dict[str, set[str]] = {name: set() for name in candidates}
    for row in rows:
        right = row["candidate_id"].endswith("/1")
        verdict = {"True": True, "False": False}.get(row["text"].strip().removesuffix(".").rpartition(" ")[2])
        assert (row["agreement"] == "agrees") <= (verdict is right)
        assert (row["agreement"] == "wrong_final_verdict") <= (verdict is not right)
        if row["agreement"] != "agrees":
            by_hand[row["agreement"]] += 1
        elif row["text"] in agreeing[row["candidate_id"]]:
            by_hand["same_text"] += 1
        else:
            agreeing[row["candidate_id"]].add(row["text"])
    by_hand["surplus_of_candidate"] = sum(max(0, len(texts) - 2) for texts in agreeing.values())
    sides = [sum(min(2, len(t)) for name, t in agreeing.items() if name.endswith(end)) for end in ("/0", "/1")]
    by_hand["balance"] = max(sides) - min(sides)
    round_1 = json.loads(run.read_bytes("refine.json"))["rounds"][1]
    assert min(sides) > 0, "the critic was to be half sure"
    assert round_1["kept"] == 2 * min(sides) and round_1["dropped"] == dict(+by_hand)
    assert round_1["kept"] + sum(round_1["dropped"].values()) == round_1["sampled"] == len(rows)
    model = run.artefact("models/critic-1").manifest()
    assert model and model.counts["from_sampled"] == round_1["kept"] and model.counts["from_critiques"] == 2
    assert {f"sampled_{reason}": count for reason, count in round_1["dropped"].items()}.items() <= model.dropped.items()
    assert all(state.state == "done" for state in status(refined, run) if state.stage == "refine")


def test_critics_are_measured_by_probabilities_that_are_those_of_transformers(refined: Config, run: Run) -> None:
    from sklearn.metrics import roc_auc_score

    content = json.loads(run.read_bytes("refine.json"))
    for row in content["rounds"]:
        rows = rows_of(run, f"held-out/{row['critic']}")
        truth = np.array([r["candidate_id"].endswith("/1") for r in rows])
        scores = np.array([r["right"] or 0.0 for r in rows])
        assert row["auc"] == pytest.approx(roc_auc_score(truth, scores))
        problems = np.array([int(r["problem_id"][1:]) for r in rows])
        assert row["auc_ci"] == outcome_intervals(scores, truth, 0.5, problems, refined.evaluate)["auc_ci"]
        for r, right in zip(rows, truth, strict=True):
            if r["right"] is not None:
                expected = logits_oracle(run.at(f"models/{row['critic']}"), RIGHT if right else WRONG, r["text"])
                assert [*r["steps_right"], r["right"]] == pytest.approx([*expected, expected[-1]], abs=1e-4)
    assert any(r["right"] is not None for r in rows_of(run, "held-out/critic-1"))
    best = max(content["rounds"], key=lambda row: row["auc"])["round"]
    assert content["chosen"] == best and critic_chosen(refined, run) == f"models/critic{f'-{best}' if best else ''}"
    assert critic_chosen(config_of(run, start_round=1), run) == "models/critic-1"


def test_killed_while_it_samples_and_while_it_trains_it_ends_as_if_it_was_not(
    refined: Config, run: Run, tmp_path: Path
) -> None:
    shutil.copytree(Path(run.path).parent, tmp_path, dirs_exist_ok=True)
    again = Run(str(tmp_path / "run"))
    config = refined.model_copy(update={"run": again.path})
    part, *others = again.artefact("sampled/critic").part_names()
    assert others, "several units"
    for name in (
        *("refine.json", "refine.json.manifest.json", "refine.json.begun.json", "models/critic-1", "held-out/critic-1"),
        *("sampled/critic/manifest.json", f"sampled/critic/part-{part}.parquet", "logs/critic-1.jsonl"),
    ):
        again.delete(name)

    def pid_in_training() -> int | None:
        records = read_log(again, "critic-1")
        steps = [record["step"] for record in records if record["event"] == "train"]
        return records[0]["pid"] if max(steps, default=0) > 15 else None

    killer = once(pid_in_training, lambda pid: os.kill(pid, signal.SIGKILL))
    with pytest.raises(WorkStopped, match="refine: worker 1 of 1 failed"):
        refine(config.model_copy(update={"observe": held_at(16, tmp_path / "held")}), again)
    killer.join()
    assert rows_of(again, "sampled/critic") == rows_of(run, "sampled/critic")
    assert {s.artefact: s.state for s in status(config, again)}["models/critic-1"] == "partial"
    refine(config, again)
    assert [r["step"] for r in read_log(again, "critic-1") if r["event"] == "start"][-1] > 0, "it went on"
    weights = "models/critic-1/model.safetensors"
    assert again.read_bytes(weights) == run.read_bytes(weights)
    assert rows_of(again, "held-out/critic-1") == rows_of(run, "held-out/critic-1")
    assert measures(again) == measures(run)


def measures(run: Run) -> list[Row]:
    """The rounds of refine.json without what a clock says."""
    rows = json.loads(run.read_bytes("refine.json"))["rounds"]
    return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in rows]
