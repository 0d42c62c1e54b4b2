"""Trainings that are killed, or lose a node, end as if nothing had happened: real workers, real raylets."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from minos_ray.cluster.connect import quiet_data
from minos_ray.config.resources import Workers
from minos_ray.config.schema import Config, Model
from minos_ray.config.training import Pretrain
from minos_ray.errors import UserError, WorkStopped
from minos_ray.store.run import Run
from minos_ray.training.checkpoint import complete_checkpoints
from minos_ray.training.job import Job
from minos_ray.training.log import Record, read_log
from minos_ray.training.pretrain import pretrain
from minos_ray.training.reward import reward, verifier_jobs
from minos_ray.training.sft import sft
from minos_ray.training.trainer import fit
from tests.raylets import STORE, cluster_of_raylets
from tests.tiny import tiny_model
from tests.training.world import world

pytestmark = pytest.mark.slow

# Four epochs of some 240 rows: 124 steps.
SECTION = {"batch_rows": 8, "epochs": 4, "eval_every": 20, "lr": 2e-3}
STEPS = 124


class Made(NamedTuple):
    """A world, and the run in which its ORM was trained without a stop: by one worker, and by two with ZeRO 2."""

    config: Config
    run: Run


def job(made: Made, run: Run, name: str = "orm-base", **workers: Any) -> Job:
    """The training of that name in a run; runs share inputs, not models."""
    run.artefact(f"models/{name}").begin({"for": "test"})
    run.artefact("models/orm-base").begin({"for": "test"})
    made_job = verifier_jobs(made.config, run, ["orm-base"])[0]
    settings = Workers(**{"micro_tokens": 512, "save_every": 10, "max_failures": 0, **workers})
    return made_job.model_copy(update={"artefact": f"models/{name}", "workers": settings})


def copy(made: Made, folder: Path) -> Run:
    """A run with the same inputs and no models."""
    run = Run(str(folder / "run"))
    Path(run.root).mkdir()
    for name in ("problems", "candidates", "labels", "critiques"):
        (Path(run.root) / name).symlink_to(Path(made.run.root) / name)
    return run


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, end_of_ray: None) -> Made:
    """Never killed."""
    made = Made(*world(tmp_path_factory.mktemp("straight"), reward=SECTION, resources={"num_cpus": 2}))
    fit(made.config, made.run, "reward", [job(made, made.run)])
    fit(made.config, made.run, "reward", [job(made, made.run, "zero2", workers=2, zero=2), best(made)])
    return made


def best(made: Made) -> Job:
    """So high a learning rate that the loss on held-out rows rises again."""
    like = job(made, made.run, "best", workers=2, zero=3, save_every=1000)
    section = like.section.model_copy(update={"lr": 3e-2, "eval_every": 5, "pick": "best"})
    return like.model_copy(update={"section": section, "key": "best"})


@pytest.fixture(scope="module")
def stopped(straight: Made, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One worker, killed after step 35."""
    run = copy(straight, tmp_path_factory.mktemp("stopped"))
    killed(straight, run, 35)
    return run


def copied(run: Run, folder: Path) -> Run:
    """The same again, checkpoints and all."""
    return Run(str(shutil.copytree(run.root, folder / "run", symlinks=True)))


def records(run: Run, event: str, name: str = "orm-base") -> list[Record]:
    return [record for record in read_log(run, name) if record["event"] == event]


def losses(run: Run, name: str = "orm-base") -> list[float]:
    """Losses of all steps, then those on held-out rows."""
    return [record["loss"] for event in ("train", "eval") for record in records(run, event, name)]


def weights(run: Run, name: str = "orm-base") -> bytes:
    return run.read_bytes(f"models/{name}/model.safetensors")


def once(condition: Callable[[], Any], then: Callable[[Any], None]) -> threading.Thread:
    """Does something as soon as a condition gives something, within a minute."""

    def watch() -> None:
        for _ in range(6000):
            if found := condition():
                then(found)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def killed(made: Made, run: Run, at: int, **workers: Any) -> None:
    """Trains until the first worker is killed after step `at`, which fails the training."""

    def pid_then() -> int | None:
        done = records(run, "train")
        return records(run, "start")[-1]["pid"] if done and done[-1]["step"] >= at else None

    killer = once(pid_then, lambda pid: os.kill(pid, signal.SIGKILL))
    line = r"reward: worker 1 of \d failed: its process was killed.* memory.* a rerun goes on from the last checkpoint$"
    with pytest.raises(WorkStopped, match=line):
        fit(made.config, run, "reward", [job(made, run, **workers)])
    killer.join()
    assert run.artefact("models/orm-base").manifest() is None
    assert complete_checkpoints(run, "checkpoints/reward/orm-base", job(made, run).key)


def test_killed_and_resumed_is_as_never_killed(straight: Made, stopped: Run, tmp_path: Path) -> None:
    """Killed twice; ends with the same curves and the same bytes."""
    run = copied(stopped, tmp_path)
    killed(straight, run, 71)
    fit(straight.config, run, "reward", [job(straight, run)])
    starts = [record["step"] for record in records(run, "start")]
    assert len(starts) == 3 and starts[0] == 0 and 0 < starts[1] <= 40 and starts[1] < starts[2] <= 80
    assert len(records(run, "train")) == STEPS
    assert losses(run) == losses(straight.run)
    assert weights(run) == weights(straight.run)
    assert not run.exists("checkpoints/reward")


def test_zero_shards_go_on_with_as_many_workers_and_are_refused_to_others(straight: Made, tmp_path: Path) -> None:
    run = copy(straight, tmp_path)
    killed(straight, run, 35, workers=2, zero=2)
    before = read_log(run, "orm-base")
    with pytest.raises(UserError, match=r"resources\.train: .*workers=2 zero=2"):
        fit(straight.config, run, "reward", [job(straight, run, workers=1, zero=2)])
    assert read_log(run, "orm-base") == before, "refused before anything was started"
    fit(straight.config, run, "reward", [job(straight, run, workers=2, zero=2)])
    assert losses(run) == losses(straight.run, "zero2")
    assert weights(run) == weights(straight.run, "zero2")


def test_without_zero_another_number_of_workers_goes_on(straight: Made, stopped: Run, tmp_path: Path) -> None:
    run = copied(stopped, tmp_path)
    fit(straight.config, run, "reward", [job(straight, run, workers=2)])
    assert records(run, "start")[-1]["step"] > 0
    assert losses(run) == pytest.approx(losses(straight.run), abs=1e-4)


def test_the_best_weights_are_those_of_the_best_evaluation(straight: Made) -> None:
    manifest = straight.run.artefact("models/best").manifest()
    assert manifest is not None
    curve = {point["step"]: point["loss"] for point in manifest.details["curve"] if point["step"]}
    lowest = min(curve, key=lambda step: curve[step])
    assert lowest < STEPS and manifest.details["weights_of_step"] == lowest
    assert held_out_loss(straight.run, "best") == pytest.approx(curve[lowest], abs=1e-5)


def held_out_loss(run: Run, name: str) -> float:
    """The loss of the saved model on the held-out rows."""
    import numpy as np
    import torch
    from transformers import AutoModelForSequenceClassification

    from minos_ray.training.batches import pack
    from minos_ray.training.losses import Objective
    from minos_ray.training.rows import Rows

    model = AutoModelForSequenceClassification.from_pretrained(f"{run.root}/models/{name}")
    rows = Rows.read(run, "orm-held-out")
    with torch.no_grad():
        found = Objective(model, "orm").eval()(*map(torch.from_numpy, pack(rows, np.arange(len(rows)))))
    return found.main.item() / len(rows)


def test_what_a_worker_says_to_the_user_is_said(straight: Made, tmp_path: Path) -> None:
    """A base whose weights do not fit its config is found by the workers: one line, no traceback of Ray Train."""
    import json

    run, folder = copy(straight, tmp_path), Path(tiny_model(tmp_path / "other"))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"intermediate_size": 96}))
    first = job(straight, run, workers=2, zero=3)
    with pytest.raises(UserError, match=r"base\.model: .* and its config.json wants"):
        fit(straight.config, run, "reward", [first.model_copy(update={"start": Model(model=str(folder))})])


def test_checkpoints_that_a_kill_after_the_last_manifest_left_go_with_the_rerun(straight: Made, tmp_path: Path) -> None:
    run = copy(straight, tmp_path)
    made = {"base": Model(model="run:models/base"), "pretrain": Pretrain(corpus="no:corpus")}
    config = straight.config.model_copy(update={"run": run.path, **made})
    for name in ("base", "critic", *config.reward.verifiers):
        run.artefact(f"models/{name}").begin({"import": "complete"})
        run.artefact(f"models/{name}").complete({})
    for stage, function in {"pretrain": pretrain, "sft": sft, "reward": reward}.items():
        run.write_bytes(f"checkpoints/{stage}/some/step-0000004-aaaa/rank-0.json", b"{}")
        function(config, run)
        assert not run.exists(f"checkpoints/{stage}")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Three nodes with one CPU each."""
    import ray

    with cluster_of_raylets(monkeypatch) as made:
        nodes = [made.add_node(num_cpus=1, node_ip_address=f"127.0.0.{n}", **STORE) for n in (3, 4, 5)]
        ray.init(address=made.address, log_to_driver=False)
        quiet_data()
        yield made, nodes


def test_a_node_lost_in_the_middle_of_stage_2(straight: Made, cluster: Any, tmp_path: Path) -> None:
    """The raylet under a worker is killed: Ray Train starts the group again on the nodes left, from the checkpoint."""
    import ray

    ray_cluster, nodes = cluster
    run = copy(straight, tmp_path)

    def node_then() -> Any:
        done = records(run, "train")
        if not done or done[-1]["step"] < 35:
            return None
        raylet = psutil.Process(records(run, "start")[-1]["pid"]).ppid()
        return next(node for node in nodes if node.all_processes["raylet"][0].process.pid == raylet)

    killer = once(node_then, lambda node: ray_cluster.remove_node(node, allow_graceful=False))
    config = straight.config.model_copy(update={"run": run.path})
    fit(config, run, "reward", [job(straight, run, workers=2, zero=2, max_failures=2)])
    killer.join()
    assert sum(node["Alive"] for node in ray.nodes()) == 3, "the head and two of three nodes"
    starts = [record["step"] for record in records(run, "start")]
    assert len(starts) == 2 and starts[1] > 0
    assert losses(run) == losses(straight.run, "zero2")
    assert weights(run) == weights(straight.run, "zero2")
