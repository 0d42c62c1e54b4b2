"""Differences of arms: paired within seeds, Student's t over them, problems resampled within each."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from minos_ray.config.load import Config, build
from minos_ray.errors import WorkStopped
from minos_ray.evaluation import outcomes
from minos_ray.evaluation.comparison import Method
from minos_ray.store.run import Run
from minos_ray.study.arms import arms, trial_run, trials, verifiers
from minos_ray.study.comparison import compared, over_problems, student
from minos_ray.study.named import named
from minos_ray.study.statement import statement

SEEDS, N = (3, 4, 5, 6), 8
PROBLEMS = [f"p{i}" for i in range(40)]
GAIN = {"critiques-000000": 0.0, "critiques-000005": 0.02, "critiques-000010": 0.06, "blind": 0.01}


def config(run: Run) -> Config:
    section = {"seeds": SEEDS, "shares": [0, 0.5, 1], "kinds": ["orm"], "ablations": {"blind": {"sft.agreeing": False}}}
    values = {"critique": {"count": 10}, "evaluate": {"bootstrap": 400}, "study": section}
    return build({"run": run.path, "base": {"model": "x"}, **values})


def finished(run: Run) -> tuple[Config, list[dict[str, Any]]]:
    """Trials as they are left: each seed has a level of its own, far larger than what arms differ by."""
    made, rows = config(run), []
    for trial in trials(made):
        rng = np.random.default_rng([trial.seed, len(trial.arm.name)])
        level = {3: 0.2, 4: 0.9, 5: 0.5, 6: 0.7}[trial.seed] - 0.1
        f1 = level + GAIN[trial.arm.name] + rng.normal(0, 0.005)
        drawn = (rng.random(len(PROBLEMS)) < level).astype(float)
        verifier = verifiers(made, trial.arm)[0]
        found = {Method(name, verifier, N): drawn for name in ("best-of-n", "weighted-vote")}
        outcomes.write(trial_run(run, trial), found, N, pa.array(PROBLEMS))
        row = {"arm": trial.arm.name, "kind": "orm", "seed": trial.seed, "n": N, "critiques": trial.arm.critiques}
        row |= {"stage_1_rows": 7, "stage_1_steps": 3, "stage_1_tokens": 100}
        row |= {"f1": f1, "auc": f1, "accuracy": f1, "step_f1": None, "steps": 40, "steps_to_base": None}
        row |= {"best_of_n": drawn.mean(), "weighted_vote": drawn.mean()}
        rows.append(row | {"one_sample": 0.4, "self_consistency": 0.5, "oracle": 1.0})
    return made, rows


def test_student_is_students() -> None:
    found = np.array([0.01, 0.05, 0.03, 0.08, 0.02])
    ends = student(found, 7)
    low, high = stats.t.interval(0.95, 4, loc=found.mean(), scale=stats.sem(found))
    assert ends["ci_low"] == pytest.approx(low, abs=0.03 * (high - low))
    assert ends["ci_high"] == pytest.approx(high, abs=0.03 * (high - low))
    assert student(found[:1], 7) == {"ci_low": None, "ci_high": None}


def test_arms_are_compared_within_seeds(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    made, rows = finished(run)
    answer = compared(made, run, rows)
    by_arm = {arm.name: [r["f1"] for r in rows if r["arm"] == arm.name] for arm in arms(made)}
    each = np.array(by_arm["critiques-000010"]) - np.array(by_arm["critiques-000000"])
    primary = answer["primary"]
    assert (primary["kind"], primary["measure"]) == ("orm", "f1")
    assert primary["seeds"] == pytest.approx(each) and primary["mean"] == pytest.approx(each.mean())
    assert 0 < primary["ci_low"] < primary["mean"] < primary["ci_high"] < 0.1
    pooled = stats.ttest_ind(by_arm["critiques-000010"], by_arm["critiques-000000"])
    assert pooled.pvalue > 0.5, "only pairing can see it"
    blind = next(a for a in answer["arms"] if (a["arm"], a["measure"]) == ("blind", "f1"))
    assert blind["minus_minos"]["mean"] == pytest.approx(np.mean(by_arm["blind"]) - np.mean(by_arm["critiques-000010"]))
    base = next(a for a in answer["arms"] if (a["arm"], a["measure"]) == ("critiques-000000", "f1"))
    assert "minus_base" not in base and base["minus_minos"]["mean"] == pytest.approx(-each.mean())


def test_measures_that_nothing_has_are_left_out_and_the_trend_is_tested(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    answer = compared(*finished(run)[:1], run, finished(run)[1])
    assert {c["measure"] for c in answer["curves"]} == {"f1", "auc", "accuracy", "best_of_n", "weighted_vote"}
    f1 = answer["curves"][0]
    assert [p["critiques"] for p in f1["points"]] == [0, 5, 10]
    assert f1["trend"]["p_trials"] == pytest.approx(1 / 6**4) and f1["trend"]["exact"]
    assert answer["reached"][0] == {"arm": "critiques-000000", "kind": "orm", "last": 40, "steps": [None] * 4}


def test_problems_are_resampled_within_their_seeds() -> None:
    rng = np.random.default_rng(1)
    each = [rng.choice([-1.0, 0.0, 1.0], 200, p=[0.1, 0.6, 0.3]) for _ in range(5)]
    each[0][:3] = np.nan
    found = over_problems(each, 4000, 0)
    means = [np.nanmean(values) for values in each]
    error = np.sqrt(sum(np.nanvar(values) / np.sum(~np.isnan(values)) for values in each)) / len(each)
    middle = (found["ci_low"] + found["ci_high"]) / 2
    assert middle == pytest.approx(np.mean(means), abs=0.005)
    assert found["ci_high"] - found["ci_low"] == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_the_statement_tells_the_named_comparison_first_and_every_arm(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    made, rows = finished(run)
    answer = compared(made, run, rows)
    text = statement({"named": named(made, run), **answer})
    first = text.splitlines()[0]
    assert first.startswith("Named before: F1 of the ORM, Minos minus base: +") and "over 4 seeds" in first
    titles = ("base", "5 critiques", "Minos (10 critiques)", "blind")
    assert len(titles) == len(arms(made)) and all(f"| {name} |" in text for name in titles)
    assert "| never, never, never, never | 40 |" in text
    richer = build({**made.model_dump(), "critique": {**made.critique.model_dump(), "max_usd": 5}, "seed": 9})
    assert named(richer, run)["changed"] == [], "what decides nothing may change"
    other = build({**made.model_dump(), "study": {**made.study.model_dump(), "primary": {"measure": "auc"}}})
    again = statement({"named": named(other, run), **compared(other, run, rows)}).splitlines()
    assert (
        again[0].startswith("NOT named before: AUC")
        and ": f1 of orm, seeds [3, 4, 5, 6]. Changed since: primary.measure." in again[1]
    )


def test_a_named_measure_that_some_trial_lacks_is_said(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    made, rows = finished(run)
    rows[3]["f1"] = None
    with pytest.raises(WorkStopped, match=r"study\.primary: some trial has no f1 of its orm"):
        compared(made, run, rows)
