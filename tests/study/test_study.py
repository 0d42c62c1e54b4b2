"""A whole study on the miniature, small: real sampling, critic, Ray Tune, trainings and scorers; a rerun, a new arm."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from minos_ray.config.load import Config, load_config
from minos_ray.errors import WorkStopped
from minos_ray.store.run import Run
from minos_ray.study.grid import Trial, study_grid
from minos_ray.study.stage import is_done, run_trial, study
from tests.raylets import all_is_free

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

SMALL = [
    "problems.train.limit=30",
    "problems.test.limit=6",
    "sample.n_test=8",
    "sample.unit=8",
    "resources.sample.actors=1",
    "resources.grade.actors=1",
    "critique.count=60",
    "reward.rows=60",
    "reward.eval_rows=10",
    "reward.batch_rows=20",
    "reward.eval_every=1",
    "sft.batch_rows=20",
    "study.seeds=[1]",
    "study.shares=[0,1]",
    "study.kinds=[orm]",
]
BLIND = {"critique.prompt": "minos_ray.critiques.prompts:blind"}


def small(folder: Path, ablations: dict[str, Any]) -> Config:
    """The shipped study with few of everything."""
    config = load_config("miniature-study", [f"run={folder}/run", *SMALL])
    return config.model_copy(
        update={"study": config.study.model_copy(update={"ablations": ablations, "versus": {}, "from_base": ()})}
    )


def made(run: Run, *names: str) -> dict[str, str]:
    """When artefacts were made, and from what."""
    found = {name: run.artefact(name).manifest() for name in names}
    return {name: manifest and manifest.model_dump_json() for name, manifest in found.items()}


def test_a_study_goes_on_where_it_stopped_and_shares_what_arms_leave_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = small(tmp_path, {"short": {"sft.max_length": 8}})
    run = Run(broken.run)
    with pytest.raises(WorkStopped, match=r"1 of 3 trials failed \(seed-1-short: .*no rows to train on"):
        study(broken, run)
    all_is_free()
    grid = study_grid(broken, run)
    data = grid.data_run(Trial(grid.amounts[0], 1))
    base, minos = (grid.trial_run(Trial(arm, 1)) for arm in grid.amounts)
    kept = [(base, "models/orm-base"), (minos, "models/critic"), (minos, "scores/orm-minos"), (data, "critiques")]
    first = [made(where, name) for where, name in kept]
    assert None not in [manifest for entry in first for manifest in entry.values()]

    config = small(tmp_path, {"blind": BLIND})
    capsys.readouterr()
    manifest = study(config, run)
    all_is_free()
    assert manifest.counts == {"trials": 3, "rows": 3} and manifest.details["trials_run_now"] == 1
    assert [made(where, name) for where, name in kept] == first
    grid = study_grid(config, run)
    trial = Trial(grid.ablations[0], 1)
    blind = grid.trial_run(trial)
    shared = ("problems", "candidates", "labels")
    assert made(blind, *shared) == made(minos, *shared) == made(data, *shared)
    assert made(blind, "critiques") == made(grid.data_run(trial), "critiques")
    prompts = [set(where.artefact("critiques").read()["prompt_version"].to_pylist()) for where in (minos, blind)]
    assert [len(found) for found in prompts] == [1, 1] and prompts[0] != prompts[1]

    rows = pq.read_table(f"{run.path}/study/results.parquet").to_pylist()
    assert {row["arm"] for row in rows} == {"critiques-000000", "critiques-000060", "blind"}
    answer = json.loads(run.read_bytes("study/study.json"))
    by_arm = {row["arm"]: row for row in rows}
    gain = by_arm["critiques-000060"]["f1"] - by_arm["critiques-000000"]["f1"]
    assert answer["primary"]["mean"] == pytest.approx(gain) and answer["primary"]["ci_low"] is None
    assert "Named before: F1 of the ORM, Minos minus base" in capsys.readouterr().out
    assert study(config, run) == manifest

    # Another optimisation of stage 1: all that depends on it is made anew, base is not.
    other = config.model_copy(update={"sft": config.sft.model_copy(update={"lr": 5e-4})})
    grid = study_grid(other, run)
    assert [trial.arm.name for trial in grid.trials if is_done(grid, trial)] == ["critiques-000000"]
    run_trial(grid, Trial(grid.amounts[-1], 1))
    assert is_done(grid, Trial(grid.amounts[-1], 1))
    now = [made(minos, name) for name in ("models/critic", "models/orm-minos", "scores/orm-minos", "evaluation.json")]
    assert all(entry not in first for entry in now) and made(base, "models/orm-base") == first[0]
