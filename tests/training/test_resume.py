"""Trainings that are killed, or lose a node, end as if nothing had happened: real workers, real raylets."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minos_ray.config.resources import Workers
from minos_ray.config.schema import Base, Model
from minos_ray.config.training import Pretrain
from minos_ray.errors import UserError, WorkStopped
from minos_ray.store.run import Run
from minos_ray.training.data import Job
from minos_ray.training.engine import complete_checkpoints
from minos_ray.training.pretrain import pretrain
from minos_ray.training.results import read_log
from minos_ray.training.reward import reward, verifier_jobs
from minos_ray.training.sft import sft
from minos_ray.training.trainer import fit
from tests.raylets import Raylets
from tests.tiny import tiny_model
from tests.training.holding import held_at
from tests.training.trainings import LONG, Trained, losses, records

pytestmark = pytest.mark.slow

STEPS = 124  # of the long trainings


def job(trained: Trained, run: Run, **workers: Any) -> Job:
    """The long training of an ORM in a run; runs share inputs, not models."""
    run.artefact("models/orm-base").begin({"for": "test"})
    like = verifier_jobs(trained.config, run, ["orm-base"])[0]
    settings = Workers(**{"micro_tokens": 512, "save_every": 10, "max_failures": 0, **workers})
    return like.model_copy(update={"workers": settings, "section": like.section.model_copy(update=LONG)})


def held(made: Job, run: Run, step: int) -> Job:
    """The same, which waits for its end at a step."""
    return made.model_copy(update={"observe": held_at(step, Path(run.root, f"held-at-{step}"))})


def copy(trained: Trained, folder: Path) -> Run:
    """A run with the same inputs and no models."""
    run = Run(str(folder / "run"))
    Path(run.root).mkdir()
    for name in ("problems", "candidates", "labels", "critiques"):
        (Path(run.root) / name).symlink_to(Path(trained.run.root) / name)
    return run


@pytest.fixture(scope="module")
def stopped(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One worker, killed after step 35."""
    run = copy(trained, tmp_path_factory.mktemp("stopped"))
    killed(trained, run, 35)
    return run


def copied(run: Run, folder: Path) -> Run:
    """The same again, checkpoints and all."""
    return Run(str(shutil.copytree(run.root, folder / "run", symlinks=True)))


def weights(run: Run, name: str = "orm-base") -> bytes:
    return run.read_bytes(f"models/{name}/model.safetensors")


def once(condition: Callable[[], Any], then: Callable[[Any], None]) -> threading.Thread:
    """Does something as soon as a condition gives something, within five minutes."""

    def watch() -> None:
        until = time.monotonic() + 300
        while not (found := condition()):
            if time.monotonic() > until:
                return
            time.sleep(0.01)
        then(found)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def killed(trained: Trained, run: Run, at: int, **workers: Any) -> None:
    """Trains until the first worker is killed after step `at`, which fails the training."""

    def pid_then() -> int | None:
        done = records(run, "orm-base", "train")
        return records(run, "orm-base", "start")[-1]["pid"] if done and done[-1]["step"] >= at else None

    killer = once(pid_then, lambda pid: os.kill(pid, signal.SIGKILL))
    line = r"reward: worker 1 of \d failed: its process was killed.* memory.* a rerun goes on from the last checkpoint$"
    with pytest.raises(WorkStopped, match=line):
        fit(trained.config, run, "reward", [held(job(trained, run, **workers), run, at)])
    killer.join()
    assert run.artefact("models/orm-base").manifest() is None
    assert complete_checkpoints(run, "checkpoints/reward/orm-base", job(trained, run).key)


def test_killed_and_resumed_is_as_never_killed(trained: Trained, stopped: Run, tmp_path: Path) -> None:
    """Killed twice; ends with the same curves and the same bytes."""
    run = copied(stopped, tmp_path)
    killed(trained, run, 71)
    fit(trained.config, run, "reward", [job(trained, run)])
    starts = [record["step"] for record in records(run, "orm-base", "start")]
    assert len(starts) == 3 and starts[0] == 0 and 0 < starts[1] <= 40 and starts[1] < starts[2] <= 80
    assert len(records(run, "orm-base", "train")) == STEPS
    assert losses(run, "orm-base") == losses(trained.run, "straight")
    assert weights(run) == weights(trained.run, "straight")
    assert not run.exists("checkpoints/reward")


def test_zero_shards_go_on_and_are_refused_without_zero(trained: Trained, tmp_path: Path) -> None:
    run = copy(trained, tmp_path)
    killed(trained, run, 35, workers=2, zero=2)
    before = read_log(run, "orm-base")
    with pytest.raises(UserError, match=r"resources\.train\.zero = 0: .*zero=2"):
        fit(trained.config, run, "reward", [job(trained, run, workers=2)])
    assert read_log(run, "orm-base") == before, "refused before anything was started"
    fit(trained.config, run, "reward", [job(trained, run, workers=2, zero=2)])
    assert losses(run, "orm-base") == losses(trained.run, "straight-zero2")
    assert weights(run) == weights(trained.run, "straight-zero2")


def test_without_zero_another_number_of_workers_goes_on(trained: Trained, stopped: Run, tmp_path: Path) -> None:
    run = copied(stopped, tmp_path)
    fit(trained.config, run, "reward", [job(trained, run, workers=2)])
    assert records(run, "orm-base", "start")[-1]["step"] > 0
    assert losses(run, "orm-base") == pytest.approx(losses(trained.run, "straight"), abs=1e-4)


def test_the_best_weights_are_those_of_the_best_evaluation(trained: Trained) -> None:
    manifest = trained.run.artefact("models/best").manifest()
    assert manifest is not None
    curve = {point["step"]: point["loss"] for point in manifest.details["curve"] if point["step"]}
    lowest = min(curve, key=lambda step: curve[step])
    assert lowest < STEPS and manifest.details["weights_of_step"] == lowest
    assert held_out_loss(trained.run, "best") == pytest.approx(curve[lowest], abs=1e-5)


def held_out_loss(run: Run, name: str) -> float:
    """The loss of the saved model on the held-out rows."""
    import numpy as np
    import torch
    from transformers import AutoModelForSequenceClassification

    from minos_ray.training.data import Rows
    from minos_ray.training.objective import Objective
    from minos_ray.training.packing import pack

    model = AutoModelForSequenceClassification.from_pretrained(f"{run.root}/models/{name}")
    rows = Rows.read(run, "orm-held-out")
    with torch.no_grad():
        found = Objective(model, "orm").eval()(*map(torch.from_numpy, pack(rows, np.arange(len(rows)))))
    return found.main.item() / len(rows)


def test_what_a_worker_says_to_the_user_is_said(trained: Trained, tmp_path: Path) -> None:
    """A base whose weights do not fit its config is found by the workers: one line, no traceback of Ray Train."""
    import json

    run, folder = copy(trained, tmp_path), Path(tiny_model(tmp_path / "other"))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"intermediate_size": 96}))
    first = job(trained, run, workers=2, zero=3)
    with pytest.raises(UserError, match=r"base\.model: .* and its config.json wants"):
        fit(trained.config, run, "reward", [first.model_copy(update={"start": Model(model=str(folder))})])


def test_checkpoints_that_a_kill_after_the_last_manifest_left_go_with_the_rerun(
    trained: Trained, tmp_path: Path
) -> None:
    run = copy(trained, tmp_path)
    made = {"base": Base(model="run:models/base"), "pretrain": Pretrain(corpus="no:corpus")}
    config = trained.config.model_copy(update={"run": run.path, **made})
    for name in ("base", "critic", *config.reward.verifiers):
        run.artefact(f"models/{name}").begin({"import": "complete"})
        run.artefact(f"models/{name}").complete({})
    for stage, function in {"pretrain": pretrain, "sft": sft, "reward": reward}.items():
        run.write_bytes(f"checkpoints/{stage}/some/step-0000004-aaaa/rank-0.json", b"{}")
        function(config, run)
        assert not run.exists(f"checkpoints/{stage}")


def test_a_node_lost_in_the_middle_of_stage_2(trained: Trained, raylets: Raylets, tmp_path: Path) -> None:
    """The raylet under a worker is killed: Ray Train starts the group again on the nodes left, from the checkpoint."""
    import ray

    for last in (3, 4, 5):
        raylets.add(last)
    run = copy(trained, tmp_path)

    def node_then() -> Any:
        done = records(run, "orm-base", "train")
        if not done or done[-1]["step"] < 35:
            return None
        return raylets.of(records(run, "orm-base", "start")[-1]["pid"])

    killer = once(node_then, lambda node: raylets.remove(node, lost=True))
    config = trained.config.model_copy(update={"run": run.path})
    fit(config, run, "reward", [held(job(trained, run, workers=2, zero=2, max_failures=2), run, 35)])
    killer.join()
    assert sum(node["Alive"] for node in ray.nodes()) == 3, "the head and two of three nodes"
    starts = [record["step"] for record in records(run, "orm-base", "start")]
    assert len(starts) == 2 and starts[1] > 0
    assert losses(run, "orm-base") == losses(trained.run, "straight-zero2")
    assert weights(run) == weights(trained.run, "straight-zero2")
