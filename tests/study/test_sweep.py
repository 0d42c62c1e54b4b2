"""A whole sweep on tiny models: real Ray Tune, Ray Train, DeepSpeed and scorers; a failed trial; a rerun."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from minos_ray.config.load import Config
from minos_ray.errors import WorkStopped
from minos_ray.evaluation.comparison import outcomes_of, read_outcomes
from minos_ray.store.run import Manifest, Run
from minos_ray.study.grid import Arm, Trial, sweep_grid
from minos_ray.study.stage import sweep
from tests.raylets import all_is_free
from tests.training.world import world

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


def manifests(run: Run, *names: str) -> list[Manifest | None]:
    """Manifests, which hold the time of their making."""
    return [run.artefact(name).manifest() for name in names]


def trial_run(config: Config, run: Run, critiques: int) -> Run:
    """The run directory of a trial of seed 1."""
    return sweep_grid(config, run).trial_run(Trial(Arm(f"critiques-{critiques:06d}", critiques, {}), 1))


def test_a_sweep_with_a_failing_trial_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = {"critiques": [0, 60], "kinds": ["orm", "prm"], "seeds": [1]}
    worker = {"train": {"workers": 1, "micro_tokens": 512}, "score": {"actors": 1}}
    broken, run = world(tmp_path, sweep=grid, sft={"max_length": 8}, resources=worker)
    with pytest.raises(
        WorkStopped, match=r"1 of 2 trials failed \(critiques-000060-seed-1: .*no rows to train on"
    ) as caught:
        sweep(broken, run)
    all_is_free()
    assert caught.value.__cause__ is not None, "what failed is still looked at"
    told = capsys.readouterr().out.splitlines()
    assert {"sweep: critiques-000060-seed-1 failed", "sweep: critiques-000000-seed-1 is done (1 of 2)"} <= set(told)
    others = [line for line in told if not line.startswith(("sweep: ", "[", "("))]  # "(": from actors
    assert others == [], "no boxes and bars"
    assert not run.exists("sweep/results.parquet")
    base = trial_run(broken, run, 0)
    kept = ("problems", "labels", "models/orm-base", "models/prm-base", "scores/prm-base")
    first = manifests(base, *kept)
    assert None not in first

    config = broken.model_copy(update={"sft": broken.sft.model_copy(update={"max_length": 256})})
    manifest = sweep(config, run)
    all_is_free()
    assert manifest.counts == {"trials": 2, "rows": 4}
    assert manifest.details["trials_run_now"] == 1
    assert manifests(base, *kept) == first
    rows = pq.read_table(f"{run.path}/sweep/results.parquet").to_pylist()
    assert [(row["critiques"], row["verifier"]) for row in rows] == [
        (0, "orm-base"),
        (0, "prm-base"),
        (60, "orm-minos"),
        (60, "prm-minos"),
    ]
    for row in rows:
        assert (row["seed"], row["n"], row["problems"]) == (1, 8, 4)
        assert all(0 <= row[name] <= 1 for name in ("best_of_n", "weighted_vote", "self_consistency", "accuracy", "f1"))
        assert (row["trained_critiques"] > 0) is (row["critiques"] > 0)
    assert len({row["self_consistency"] for row in rows}) == 1
    assert not run.exists("sweep/tune")
    minos = trial_run(config, run, 60)
    assert minos.artefact("models/critic").manifest().details["start"] == config.base.model
    starts = {minos.artefact(f"models/{name}").manifest().details["start"] for name in ("orm-minos", "prm-minos")}
    assert starts == {"run:models/critic"}

    check_trend(config, run, rows)
    assert sweep(config, run) == manifest
    run.artefact("sweep/results.parquet").run.delete("sweep/results.parquet.manifest.json")
    run.write_bytes("sweep/tune/of-a-killed-driver", b"")
    assert sweep(config, run).details["trials_run_now"] == 0
    assert not run.exists("sweep/tune")


def check_trend(config: Config, run: Run, rows: list[dict]) -> None:
    """Intervals of each trial, and the trend over two amounts of one seed, are those of the outcomes by problem."""
    found = json.loads(run.read_bytes("sweep/trend.json"))
    assert (found["amounts"], found["seeds"], found["n"], len(found["curves"])) == ([0, 60], [1], 8, 8)
    for row in rows:
        table = read_outcomes(trial_run(config, run, row["critiques"]))
        for column, method in (("best_of_n", "best-of-n"), ("weighted_vote", "weighted-vote")):
            assert row[f"{column}_low"] <= row[column] <= row[f"{column}_high"]
            assert np.mean(outcomes_of(table, method, row["verifier"])) == pytest.approx(row[column])
            mine = next(c for c in found["curves"] if (c["kind"], c["measure"]) == (row["kind"], column))
            at = {p["critiques"]: p["mean"] for p in mine["points"]}
            assert at[row["critiques"]] == pytest.approx(row[column])
            assert (mine["seeds"], mine["problems"], mine["trend"]["exchanges"] <= 2) == (1, 4, True)
