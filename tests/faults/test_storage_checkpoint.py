"""Checkpoints that arrived in part, in a bucket: training goes on from the last whole one, to the same weights."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minos_ray.config.load import Config
from minos_ray.config.resources import Workers
from minos_ray.errors import WorkStopped
from minos_ray.store.run import Run
from minos_ray.training.data import Job
from minos_ray.training.engine import complete_checkpoints
from minos_ray.training.results import read_log
from minos_ray.training.reward import verifier_jobs
from minos_ray.training.trainer import fit
from tests.raylets import enter, started_raylets
from tests.remote.server import Bucket, bucket
from tests.training.holding import held_at
from tests.training.test_resume import once, weights
from tests.training.trainings import records
from tests.training.world import fill, world

pytestmark = pytest.mark.slow

PLACE = "checkpoints/reward/orm-base"
# Two epochs of some 240 rows, eight a step: 62 steps.
SECTION = {"batch_rows": 8, "epochs": 2, "eval_every": 20, "lr": 2e-3}


@pytest.fixture
def store(end_of_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket, and a node that was started with the keys to it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with bucket(tmp_path / "server.log") as made, started_raylets() as raylets:
        raylets.add(num_cpus=2)
        monkeypatch.setenv("RAY_ADDRESS", raylets.address)
        enter(raylets)
        yield made


def job(config: Config, run: Run, name: str = "orm-base", **workers: Any) -> Job:
    """The training of an ORM under that name."""
    for artefact in (f"models/{name}", "models/orm-base"):
        run.artefact(artefact).begin({"for": "test"})
    settings = Workers(**{"micro_tokens": 512, "max_failures": 0, "workers": 2, "zero": 2, **workers})
    [like] = verifier_jobs(config, run, ["orm-base"])
    return like.model_copy(update={"artefact": f"models/{name}", "workers": settings})


def test_half_a_checkpoint_is_none(store: Bucket, tmp_path: Path) -> None:
    """Of the newest a tensor file is cut, of the one before a rank has not spoken: the third is gone on from."""
    config, _ = world(tmp_path / "local", reward=SECTION, resources={"num_cpus": 2})
    workers = {"save_every": 5, "keep": 4}
    remote = Run(store.uri("run"))
    fill(remote, 40, 8)
    config = config.model_copy(update={"run": remote.path})
    straight = job(config, remote, "straight", save_every=1000).model_copy(update={"key": "straight"})
    killer = once(lambda: pid_after(remote, 40), lambda pid: os.kill(pid, signal.SIGKILL))
    held = job(config, remote, **workers).model_copy(update={"observe": held_at(50, tmp_path / "held")})
    with pytest.raises(WorkStopped, match="its process was killed"):
        fit(config, remote, "reward", [straight, held])
    killer.join(timeout=60)
    assert not killer.is_alive(), "it was the kill that ended the training"
    found = complete_checkpoints(remote, PLACE, job(config, remote, **workers).key)
    assert len(found) >= 3
    harm(remote, found[-1].folder, found[-2].folder)
    left = [checkpoint.step for checkpoint in found[:-2]]
    assert [
        checkpoint.step for checkpoint in complete_checkpoints(remote, PLACE, job(config, remote, **workers).key)
    ] == left
    fit(config, remote, "reward", [job(config, remote, **workers)])
    assert records(remote, "orm-base", "start")[-1]["step"] == left[-1]
    assert weights(remote) == weights(remote, "straight")


def pid_after(run: Run, step: int) -> int | None:
    """The worker of rank 0 when checkpoints of some steps are in the bucket."""
    steps = [int(name.split("-")[1]) for name in run.folders(PLACE)]
    started = [record for record in read_log(run, "orm-base") if record["event"] == "start"]
    return started[-1]["pid"] if started and max(steps, default=0) >= step else None


def harm(run: Run, newest: str, before: str) -> None:
    """Cuts the largest file of a checkpoint; takes away what one rank said of another."""
    sizes = run.sizes(newest)
    largest = max(sizes, key=lambda name: sizes[name])
    run.write_bytes(f"{newest}/{largest}", run.read_bytes(f"{newest}/{largest}")[:-100])
    run.delete(f"{before}/rank-1.json")
