"""Checkpoints of a training in progress, kept by Ray Train: DeepSpeed's state, the step and the history."""

import tempfile
from typing import Any

import ray.train

from minos_ray.training.job import Job
from minos_ray.training.log import Record

TAG = "state"


def save(engine: Any, job: Job, step: int, history: list[Record]) -> None:
    """All ranks save their part and wait for each other; Ray Train moves it to the storage, then commits it."""
    with tempfile.TemporaryDirectory() as folder:
        engine.save_checkpoint(
            folder, tag=TAG, client_state={"step": step, "history": history}, exclude_frozen_parameters=True
        )
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        if ray.train.get_context().get_world_rank() == 0:
            checkpoint.set_metadata({"key": job.key})
        ray.train.report({"step": step}, checkpoint=checkpoint)


def resume(engine: Any, job: Job) -> tuple[int, list[Record]]:
    """The step to go on with and the history so far; (0, []) when the newest checkpoint is of another training."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None or checkpoint.get_metadata().get("key") != job.key:
        return 0, []
    with checkpoint.as_directory() as folder:
        _, state = engine.load_checkpoint(folder, tag=TAG, load_module_strict=job.section.lora is None)
    return state["step"], state["history"]
