"""What trials say together.

A study: differences of arms, paired within seeds, Student's t over them, problems resampled within each.
A sweep: from the outcomes of trials to trend.json.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from minos_ray.config.load import Config, build
from minos_ray.errors import UserError, WorkStopped
from minos_ray.evaluation.comparison import OUTCOMES_FILE, Method, write_outcomes
from minos_ray.evaluation.statistics import student
from minos_ray.store.run import Run
from minos_ray.study.comparison import compared, critics, log_ratio, measures, over_problems, trends
from minos_ray.study.grid import Arm, Grid, Trial, study_grid, sweep_grid
from minos_ray.study.stage import named_before
from minos_ray.study.statement import over_labels, statement

SEEDS, N = (3, 4, 5, 6), 8
PROBLEMS = [f"p{i}" for i in range(40)]
GAIN = {"critiques-000000": 0.0, "critiques-000005": 0.02, "critiques-000010": 0.06, "blind": 0.01}


def study(run: Run) -> Grid:
    section = {"seeds": SEEDS, "shares": [0, 0.5, 1], "kinds": ["orm"], "ablations": {"blind": {"sft.agreeing": False}}}
    values = {"critique": {"count": 10}, "evaluate": {"bootstrap": 400}, "study": section}
    return study_grid(build({"run": run.path, "base": {"model": "x"}, **values}), run)


def finished(run: Run) -> tuple[Grid, list[dict[str, Any]]]:
    """Trials as they are left: each seed has a level of its own, far larger than what arms differ by."""
    grid, rows = study(run), []
    for trial in grid.trials:
        rng = np.random.default_rng([trial.seed, len(trial.arm.name)])
        level = {3: 0.2, 4: 0.9, 5: 0.5, 6: 0.7}[trial.seed] - 0.1
        f1 = level + GAIN[trial.arm.name] + rng.normal(0, 0.005)
        drawn = (rng.random(len(PROBLEMS)) < level).astype(float)
        verifier = grid.verifiers(trial.arm)[0]
        found = {Method(name, verifier, N): drawn for name in ("best-of-n", "weighted-vote")}
        write_outcomes(grid.trial_run(trial), found, N, pa.array(PROBLEMS))
        row = {"arm": trial.arm.name, "kind": "orm", "seed": trial.seed, "n": N, "critiques": trial.arm.critiques}
        row |= {"stage_1_rows": 7, "stage_1_steps": 3, "stage_1_tokens": 100}
        row |= {"f1": f1, "auc": f1, "accuracy": f1, "step_f1": None, "steps": 40, "steps_to_base": None}
        row |= {"best_of_n": drawn.mean(), "weighted_vote": drawn.mean()}
        rows.append(row | {"one_sample": 0.4, "self_consistency": 0.5, "oracle": 1.0})
    return grid, rows


def test_student_is_students() -> None:
    found = np.array([0.01, 0.05, 0.03, 0.08, 0.02])
    ends = student(found)
    low, high = stats.t.interval(0.95, 4, loc=found.mean(), scale=stats.sem(found))
    assert (ends["ci_low"], ends["ci_high"]) == pytest.approx((low, high))
    assert student(found[:1]) == {"ci_low": None, "ci_high": None}
    assert student(np.full(3, 0.1)) == {"ci_low": pytest.approx(0.1), "ci_high": pytest.approx(0.1)}


def test_arms_are_compared_within_seeds(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    grid, rows = finished(run)
    answer = compared(grid, rows)
    by_arm = {arm.name: [r["f1"] for r in rows if r["arm"] == arm.name] for arm in grid.arms}
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


@pytest.mark.parametrize("start_round", [None, 1])
def test_refined_critics_are_compared_with_the_bought_ones_they_come_from(
    tmp_path: Path, start_round: int | None
) -> None:
    refined = {"refine.rounds": 2, "refine.start_round": start_round}
    section = {"seeds": SEEDS, "shares": [0, 1], "kinds": ["orm"], "ablations": {"refined": refined}}
    values = {"run": str(tmp_path), "base": {"model": "x"}, "critique": {"count": 10}, "study": section}
    grid = study_grid(build(values), Run(str(tmp_path)))
    aucs = {seed: [0.5 + seed / 100, 0.7 + seed / 50, 0.9] for seed in SEEDS}
    for seed, of_rounds in aucs.items():
        content = {"chosen": 2, "rounds": [{"auc": auc} for auc in of_rounds]}
        grid.trial_run(Trial(grid.ablations[0], seed)).write_bytes("refine.json", json.dumps(content).encode())
    (answer,) = critics(grid)
    differences = np.array([of_rounds[start_round or 2] - of_rounds[0] for of_rounds in aucs.values()])
    assert answer["arm"] == "refined" and answer["bought"] == pytest.approx(np.mean([a[0] for a in aucs.values()]))
    assert answer["refined_minus_bought"]["seeds"] == pytest.approx(differences)
    low, high = stats.t.interval(0.95, 3, loc=differences.mean(), scale=stats.sem(differences))
    assert (answer["refined_minus_bought"]["ci_low"], answer["refined_minus_bought"]["ci_high"]) == pytest.approx(
        (low, high)
    )


def test_measures_that_nothing_has_are_left_out_and_the_trend_is_tested(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    answer = compared(*finished(run))
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
    grid, rows = finished(run)
    answer = compared(grid, rows)
    text = statement({"named": named_before(grid.config, run), **answer})
    first = text.splitlines()[0]
    assert first.startswith("Named before: F1 of the ORM, Minos minus base: +") and "over 4 seeds" in first
    titles = ("base", "5 critiques", "Minos (10 critiques)", "blind")
    assert len(titles) == len(grid.arms) and all(f"| {name} |" in text for name in titles)
    assert "| never, never, never, never | 40 |" in text
    values = grid.config.model_dump()
    richer = build({**values, "critique": {**values["critique"], "max_usd": 5}, "seed": 9})
    assert named_before(richer, run)["changed"] == [], "what decides nothing may change"
    other = build({**values, "study": {**values["study"], "primary": {"measure": "auc"}}})
    again = statement({"named": named_before(other, run), **compared(study_grid(other, run), rows)}).splitlines()
    assert (
        again[0].startswith("NOT named before: AUC")
        and ": f1 of orm, seeds [3, 4, 5, 6]. Changed since: primary.measure." in again[1]
    )


def test_what_was_named_before_modules_moved_is_the_same(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    grid, _ = finished(run)
    problems = {
        "train": {"loader": "minos_ray.problems.gsm8k:load"},
        "test": {"loader": "minos_ray.problems.table:load"},
    }
    config = build({**grid.config.model_dump(), "problems": problems})
    assert named_before(config, run)["changed"] == []
    named = json.loads(run.read_bytes("study/named.json"))
    for split, content in problems.items():
        assert named["setting"]["problems"][split]["loader"] != content["loader"]
        named["setting"]["problems"][split]["loader"] = content["loader"]
    run.write_bytes("study/named.json", json.dumps(named).encode())
    assert named_before(config, run)["changed"] == []


def test_a_named_measure_that_some_trial_lacks_is_said(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    grid, rows = finished(run)
    rows[3]["f1"] = None
    with pytest.raises(WorkStopped, match=r"study\.primary: some trial has no f1 of its orm"):
        compared(grid, rows)


LABELS = 1000 * np.array([0.25, 0.5, 1, 2, 4])


@pytest.mark.parametrize("times", [0.5, 1.0, 3.0])
def test_curves_that_are_a_known_number_of_times_apart(times: float) -> None:
    def f1(labels: np.ndarray) -> np.ndarray:
        return 0.2 + 0.09 * np.log(labels)

    assert log_ratio(LABELS, f1(LABELS), LABELS, f1(times * LABELS)) == (pytest.approx(np.log(times)), True)
    # Steps that stage 1 adds move Minos' curve.
    shifted = log_ratio(LABELS, f1(LABELS), 2 * LABELS, f1(times * LABELS))
    assert shifted == (pytest.approx(np.log(times / 2)), True)


def test_one_that_falls_is_made_monotone_and_one_that_shares_nothing_is_bounded() -> None:
    base, minos = np.array([0.5, 0.6, 0.55, 0.7, 0.8]), np.array([0.6, 0.7, 0.8, 0.8, 0.8])
    smooth = np.array([0.5, 0.575, 0.575, 0.7, 0.8])
    assert log_ratio(LABELS, base, LABELS, minos) == log_ratio(LABELS, smooth, LABELS, minos)
    assert log_ratio(LABELS, base, LABELS, base + 0.5) == (pytest.approx(np.log(16)), False)
    assert log_ratio(LABELS, base + 0.5, LABELS, base) == (pytest.approx(-np.log(16)), False)
    assert log_ratio(LABELS, np.full(5, 0.7), LABELS, np.full(5, 0.7)) == (0.0, False)


def labels_study(run: Run, times: int = 3) -> tuple[Grid, list[dict[str, Any]]]:
    """Trials in which Minos reaches with labels what base does with so many times as many, each seed at its level."""
    section = {"seeds": SEEDS, "shares": [0, 1], "kinds": ["orm"], "labels": [0.25, 0.5, 2, 4]}
    values = {"critique": {"count": 10}, "reward": {"rows": 1000}, "study": section}
    grid = study_grid(build({"run": run.path, "base": {"model": "x"}, **values}), run)
    rows = []
    for arm in grid.arms:
        for seed in SEEDS:
            labels = arm.changes.get("reward.rows", 1000)
            f1 = 0.1 + seed / 100 + 0.08 * np.log(labels * (times if arm.critiques else 1))
            row = {"arm": arm.name, "kind": "orm", "seed": seed, "n": N, "critiques": arm.critiques}
            row |= {"stage_1_rows": 7, "stage_1_steps": 60 if arm.critiques else 0, "stage_1_tokens": 100}
            row |= {"f1": f1, "auc": None, "accuracy": None, "step_f1": None, "best_of_n": None, "weighted_vote": None}
            row |= {"steps": labels // 10, "steps_to_base": None}
            rows.append(row | {"one_sample": 0.4, "self_consistency": 0.5, "oracle": 1.0})
    return grid, rows


def test_curves_that_are_the_same_in_every_seed_need_as_many_labels(tmp_path: Path) -> None:
    grid, rows = labels_study(Run(str(tmp_path)), times=1)
    ratio = compared(grid, rows)["labels"][0]["ratio"]
    assert [ratio[name] for name in ("mean", "ci_low", "ci_high")] == [1.0] * 3


def test_labels_as_amounts_have_a_ratio_over_seeds_and_stand_in_the_statement(tmp_path: Path) -> None:
    grid, rows = labels_study(Run(str(tmp_path)))
    answer = compared(grid, rows)
    entry = answer["labels"][0]
    assert len(answer["labels"]) == 1 and entry["amounts"] == [250, 500, 1000, 2000, 4000]
    assert entry["ratio"]["seeds"] == pytest.approx([3.0] * 4) and entry["ratio"]["bounded"] == 0
    assert [entry["ratio"][name] for name in ("mean", "ci_low", "ci_high")] == pytest.approx([3.0] * 3)
    assert 1 < entry["steps_ratio"]["mean"] < 2.5, "stage 1 costs steps"
    assert entry["minos"][2]["mean"] == pytest.approx(np.mean([row["f1"] for row in rows[4:8]]))
    text = statement({"named": {"changed": []}, **answer})
    assert "| verifier, measure | stage 1 | 250 labels | 500 labels | 1,000 labels |" in text
    assert "| ORM, F1 | 3.00 [3.00, 3.00] | 3.00, 3.00, 3.00, 3.00 |" in text and "| minos, 250 labels |" in text
    assert over_labels(answer["labels"]) is not None and over_labels([]) is None


FEW = [f"p{i}" for i in range(12)]


def outcome(critiques: int, seed: int, method: str) -> np.ndarray:
    """Outcomes by problem, of which one has too few candidates."""
    rng = np.random.default_rng([critiques, seed, len(method)])
    found = (rng.random(len(FEW)) < 0.5).astype(float)
    found[3] = np.nan
    return found


def swept(run: Run) -> tuple[Grid, list[dict[str, Any]]]:
    """Trials of a sweep as their evaluations leave them, and rows of results."""
    section = {"critiques": [100, 0, 50], "kinds": ["orm"], "seeds": [1, 0]}
    grid = sweep_grid(Config(run=run.path, base={"model": "x"}, sweep=section, evaluate={"bootstrap": 200}), run)
    rows = []
    for trial in grid.trials:
        for verifier in grid.verifiers(trial.arm):
            names, critiques = ("best-of-n", "weighted-vote"), trial.arm.critiques
            found = {Method(name, verifier, n): outcome(critiques, trial.seed, name) for name in names for n in (4, N)}
            write_outcomes(grid.trial_run(trial), found, N, pa.array(FEW))
            values = {"f1": 0.5 + critiques / 1000, "auc": 0.75 if trial.seed else None}
            rows.append({"critiques": critiques, "seed": trial.seed, "kind": "orm", "n": N, **values})
    return grid, rows


def test_each_kind_and_measure_has_a_curve_over_what_every_trial_has(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    grid, rows = swept(run)
    found = trends(grid, rows)
    assert (found["amounts"], found["seeds"], found["n"], found["bootstrap"]) == ([0, 50, 100], [0, 1], N, 200)
    by_name = {(c["kind"], c["measure"]): c for c in found["curves"]}
    assert list(by_name) == [("orm", name) for name in ("best_of_n", "weighted_vote", "f1", "auc")]
    best = by_name["orm", "best_of_n"]
    assert (best["seeds"], best["problems"], best["problems_left_out"]) == (2, 11, 1)
    for point in best["points"]:
        values = [outcome(point["critiques"], seed, "best-of-n") for seed in (0, 1)]
        assert point["mean"] == pytest.approx(np.nanmean(values))
    assert best["trend"]["exchanges"] == 36
    f1 = by_name["orm", "f1"]
    assert [p["mean"] for p in f1["points"]] == pytest.approx([0.5, 0.55, 0.6])
    assert f1["trend"]["p_trials"] == pytest.approx(1 / 36) and f1["trend"]["p_problems"] is None


def test_seeds_without_a_value_are_left_out_and_counted(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    grid, rows = swept(run)
    auc = trends(grid, rows)["curves"][-1]
    assert (auc["measure"], auc["seeds"], auc["seeds_left_out"]) == ("auc", 1, 1)
    nothing = trends(grid, [{**row, "auc": None} for row in rows])["curves"][-1]
    assert (nothing["seeds"], nothing["seeds_left_out"], nothing["points"], nothing["trend"]) == (0, 2, [], None)


def test_a_trial_without_outcomes_by_problem_is_named(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    grid, rows = swept(run)
    grid.trial_run(Trial(Arm("critiques-000050", 50, {}), 1)).delete(OUTCOMES_FILE)
    with pytest.raises(UserError, match=r"critiques-000050-seed-1/outcomes\.parquet is not there"):
        trends(grid, rows)


def test_a_trial_is_measured_where_nearly_all_problems_have_candidates() -> None:
    names = {"self-consistency": "", "best-of-n": "orm-minos", "weighted-vote": "orm-minos"}
    methods = [
        {
            "method": name,
            "verifier": verifier,
            "n": n,
            "accuracy": n / 100,
            "ci_low": 0,
            "ci_high": 1,
            "problems": count,
        }
        for name, verifier in names.items()
        for n, count in ((1, 100), (16, 98), (32, 60), (64, 1))
    ]
    methods.append({**methods[0], "method": "pass@1", "problems": 98})
    methods.append({**methods[0], "method": "pass@n", "n": 16, "problems": 98})
    judged = {"verifier": "orm-minos", "level": "outcome", "accuracy": 0.5, "f1": 0.5, "auc": 0.5}
    evaluation = {"methods": methods, "meta": [judged], "counts": {"problems": 100}}
    found = measures(evaluation, "orm-minos")
    assert (found["n"], found["problems"], found["best_of_n"], found["weighted_vote"]) == (16, 98, 0.16, 0.16)
