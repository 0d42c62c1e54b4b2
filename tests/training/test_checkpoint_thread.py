"""Saving does not wait for storage, and a checkpoint that storage refuses is not passed over in silence."""

import os
import threading
from pathlib import Path
from typing import Any

from minos_ray.errors import WorkStopped
from minos_ray.store.run import Run
from tests.tiny import tiny_model
from tests.training.test_checkpoints import PLACE, job


class Held(Run):
    """A run whose storage takes files only when it may."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.may = threading.Event()

    def write_bytes(self, name: str, content: bytes) -> None:
        assert self.may.wait(60)
        super().write_bytes(name, content)


def saved(base: str, path: str) -> dict[str, Any]:
    """What is there after each save, with a real DeepSpeed engine; in a process of its own."""
    import torch

    from minos_ray.training import engine, models
    from minos_ray.training.engine import Checkpoints, complete_checkpoints
    from minos_ray.training.objective import Objective

    engine.prepare(gpu=False)
    os.environ["LOCAL_RANK"] = "0"
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    training, run = job(zero=1), Held(path)
    objective = Objective(models.load(base, "orm", "fp32", 0, {}), "orm")
    made = engine.start(objective, training.section, training.workers)
    checkpoints = Checkpoints(run, "checkpoints/reward", training)
    checkpoints.save(made, 1, [], None)
    seen: dict[str, Any] = {"on its way": [found.step for found in complete_checkpoints(run, PLACE, "k")]}
    run.may.set()
    checkpoints.wait()
    seen["arrived"] = [found.step for found in complete_checkpoints(run, PLACE, "k")]
    run.delete(PLACE)
    run.write_bytes(PLACE, b"a file where the folder should be")
    checkpoints.save(made, 2, [], None)
    try:
        checkpoints.save(made, 3, [], None)
    except WorkStopped as error:
        seen["said"] = str(error)
    return seen


def test_saving_goes_on_and_what_went_wrong_is_said_at_the_next_one(local_ray: None, tmp_path: Path) -> None:
    import ray

    work = ray.remote(num_cpus=1, max_calls=1)(saved)
    seen = ray.get(work.remote(tiny_model(tmp_path / "base"), str(tmp_path / "run")), timeout=300)
    assert seen["on its way"] == [] and seen["arrived"] == [1]
    assert PLACE in seen["said"]
