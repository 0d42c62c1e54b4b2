"""From the outcomes of trials to trend.json."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from minos_ray.config.load import Config
from minos_ray.errors import UserError
from minos_ray.evaluation import outcomes
from minos_ray.evaluation.comparison import Method
from minos_ray.store.run import Run
from minos_ray.study.curves import curves
from minos_ray.study.space import Trial, trial_run, trials, verifiers
from minos_ray.study.sweep_trial import row

N = 8
PROBLEMS = [f"p{i}" for i in range(12)]


def config(run: Run, **sweep: object) -> Config:
    grid = {"critiques": [100, 0, 50], "kinds": ["orm"], "seeds": [1, 0], **sweep}
    return Config(run=run.path, base={"model": "x"}, sweep=grid, evaluate={"bootstrap": 200})


def outcome(trial: Trial, method: str) -> np.ndarray:
    """Outcomes by problem, of which one has too few candidates."""
    rng = np.random.default_rng([trial.critiques, trial.seed, len(method)])
    found = (rng.random(len(PROBLEMS)) < 0.5).astype(float)
    found[3] = np.nan
    return found


def finished(run: Run, **sweep: object) -> tuple[Config, list[dict]]:
    """Trials as their evaluations leave them, and rows of results."""
    made, rows = config(run, **sweep), []
    for trial in trials(made):
        for verifier in verifiers(made, trial):
            names = ("best-of-n", "weighted-vote")
            found = {Method(name, verifier, n): outcome(trial, name) for name in names for n in (4, N)}
            outcomes.write(trial_run(run, trial), found, N, pa.array(PROBLEMS))
            measures = {"f1": 0.5 + trial.critiques / 1000, "auc": 0.75 if trial.seed else None}
            rows.append({"critiques": trial.critiques, "seed": trial.seed, "kind": "orm", "n": N, **measures})
    return made, rows


def test_each_kind_and_measure_has_a_curve_over_what_every_trial_has(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    made, rows = finished(run)
    found = curves(made, run, rows)
    assert (found["amounts"], found["seeds"], found["n"], found["bootstrap"]) == ([0, 50, 100], [0, 1], N, 200)
    by_name = {(c["kind"], c["measure"]): c for c in found["curves"]}
    assert list(by_name) == [("orm", name) for name in ("best_of_n", "weighted_vote", "f1", "auc")]
    best = by_name["orm", "best_of_n"]
    assert (best["seeds"], best["problems"], best["problems_left_out"]) == (2, 11, 1)
    for point in best["points"]:
        values = [outcome(Trial(point["critiques"], seed), "best-of-n") for seed in (0, 1)]
        assert point["mean"] == pytest.approx(np.nanmean(values))
    assert best["trend"]["exchanges"] == 36
    f1 = by_name["orm", "f1"]
    assert [p["mean"] for p in f1["points"]] == pytest.approx([0.5, 0.55, 0.6])
    assert f1["trend"]["p_trials"] == pytest.approx(1 / 36) and f1["trend"]["p_problems"] is None


def test_seeds_without_a_value_are_left_out_and_counted(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    made, rows = finished(run)
    auc = curves(made, run, rows)["curves"][-1]
    assert (auc["measure"], auc["seeds"], auc["seeds_left_out"]) == ("auc", 1, 1)
    nothing = curves(made, run, [{**row, "auc": None} for row in rows])["curves"][-1]
    assert (nothing["seeds"], nothing["seeds_left_out"], nothing["points"], nothing["trend"]) == (0, 2, [], None)


def test_a_trial_without_outcomes_by_problem_is_named(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    made, rows = finished(run)
    trial_run(run, Trial(50, 1)).delete(outcomes.NAME)
    with pytest.raises(UserError, match=r"critiques-000050-seed-1/outcomes\.parquet is not there"):
        curves(made, run, rows)


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
    judged = {"verifier": "orm-minos", "level": "outcome", "accuracy": 0.5, "f1": 0.5, "auc": 0.5}
    evaluation = {"methods": methods, "meta": [judged], "counts": {"problems": 100}}
    found = row(Trial(0, 0), "orm-minos", evaluation, {"models/orm-minos": None, "scores/orm-minos": None})
    assert (found["n"], found["problems"], found["best_of_n"], found["weighted_vote"]) == (16, 98, 0.16, 0.16)
