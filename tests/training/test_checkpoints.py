"""What counts as a whole checkpoint, which ones are kept, and what an object store gives back."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from minos_ray.config.resources import Workers
from minos_ray.errors import UserError
from minos_ray.store.run import Run, fingerprint
from minos_ray.training.data import Job
from minos_ray.training.engine import best, clear, complete_checkpoints
from minos_ray.training.trainer import require_resumable

PLACE = "checkpoints/reward/orm-base"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path / "run"))


def put(run: Run, step: int, world: int = 2, said: int = 2, **changes: Any) -> str:
    """A checkpoint of `world` ranks of which the first `said` have finished; its folder's name."""
    name = f"step-{step:07}-{changes.pop('attempt', 'aaaa')}"
    for rank in range(world):
        run.write_bytes(f"{PLACE}/{name}/state/rank_{rank}.pt", b"0123")
    for rank in range(said):
        part = {"key": "k", "step": step, "world": world, "zero": 2, "held_out_loss": None, **changes}
        files = {f"state/rank_{rank}.pt": 4}
        run.write_bytes(f"{PLACE}/{name}/rank-{rank}.json", json.dumps({**part, "files": files}).encode())
    return name


def steps(run: Run, key: str = "k") -> list[int]:
    return [made.step for made in complete_checkpoints(run, PLACE, key)]


def job(key: str = "k", **workers: Any) -> Job:
    table = {"name": "orm", "rows": 8, "held_out_rows": 0, "train": "", "held_out": "", "dropped": {}}
    values = {"artefact": "models/orm-base", "kind": "orm", "start": {"model": "m"}, "table": table}
    return Job.model_validate({**values, "section": {}, "workers": workers, "key": key})


def test_only_what_every_rank_has_finished_is_whole(run: Run) -> None:
    assert steps(run) == []
    for step in (10, 20):
        put(run, step)
    put(run, 30, said=1)
    put(run, 40, said=0)
    put(run, 50, key="another training")
    run.write_bytes(f"{PLACE}/{put(run, 20)}/rank-1.json.123.tmp", b"still being written")
    assert steps(run) == [10, 20]
    assert steps(run, "another training") == [50]


@pytest.mark.parametrize("harm", ["file gone", "file cut", "word torn"])
def test_a_harmed_checkpoint_is_passed_over(run: Run, harm: str) -> None:
    put(run, 10)
    folder = Path(run.root) / PLACE / put(run, 20)
    if harm == "file gone":
        (folder / "state/rank_1.pt").unlink()
    elif harm == "file cut":
        (folder / "state/rank_1.pt").write_bytes(b"01")
    else:
        (folder / "rank-1.json").write_text('{"key": "k", "st')
    assert steps(run) == [10]


def test_the_last_ones_and_the_best_are_kept(run: Run) -> None:
    losses = {10: 0.5, 20: 0.3, 30: None, 40: 0.4, 50: 0.6}
    for step, loss in losses.items():
        put(run, step, held_out_loss=loss)
    put(run, 15, said=1)
    put(run, 60, said=1)
    found = best(complete_checkpoints(run, PLACE, "k"))
    assert found is not None and found.step == 20
    clear(run, PLACE, job(keep=2))
    assert [int(name.split("-")[1]) for name in run.folders(PLACE)] == [20, 40, 50, 60], "60 is on its way"
    clear(run, PLACE, job(keep=1))
    assert steps(run) == [20, 50]


def test_a_second_attempt_at_a_step_stands_beside_the_first(run: Run) -> None:
    put(run, 10, attempt="aaaa", said=1)
    put(run, 10, attempt="bbbb")
    assert [made.folder.rpartition("-")[2] for made in complete_checkpoints(run, PLACE, "k")] == ["bbbb"]


class Remote(Run):
    """A run that cannot be read where it lies, as one in an object store."""

    local = False


def saved_and_resumed(base: str, path: str) -> tuple[list[float], int, list[dict[str, Any]], list[str]]:
    """Trains a step, saves, trains another; a second attempt goes on from the first. In a process of its own."""
    import numpy as np
    import torch

    from minos_ray.training import engine, models
    from minos_ray.training.engine import Checkpoints
    from minos_ray.training.objective import Objective
    from minos_ray.training.packing import pack
    from tests.training.test_losses import rows

    engine.prepare(gpu=False)
    os.environ["LOCAL_RANK"] = "0"
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    training, data, losses = job(zero=1), rows("orm"), []
    arrays = [torch.from_numpy(array) for array in pack(data, np.arange(len(data)))]
    resumed: tuple[int, list[dict[str, Any]]] = (0, [])
    for attempt in range(2):
        model = models.load(base, "orm", "fp32", 0, {})
        made = engine.start(Objective(model, "orm"), training.section, training.workers)
        checkpoints = Checkpoints(Remote(path), "checkpoints/reward", training)
        resumed = checkpoints.resume(made)
        for step in range(resumed[0], 2):
            if step == 1 and not attempt:
                checkpoints.save(made, 1, [{"event": "train", "step": 1}], 0.5)
                checkpoints.wait()
            made.optimizer.param_groups[0]["lr"] = 1e-2
            loss = made(*arrays).main
            made.backward(loss)
            made.step()
            losses.append(loss.item())
    left = [made.folder for made in complete_checkpoints(Remote(path), PLACE, "k")]
    checkpoints.close()
    return losses, *resumed, left


def test_from_an_object_store_it_is_fetched_first(local_ray: None, tmp_path: Path) -> None:
    import ray

    from tests.tiny import tiny_model

    work = ray.remote(num_cpus=1, max_calls=1)(saved_and_resumed)
    arguments = tiny_model(tmp_path / "base"), str(tmp_path / "run")
    losses, step, history, left = ray.get(work.remote(*arguments), timeout=300)
    assert step == 1 and history == [{"event": "train", "step": 1}] and len(left) == 1
    assert len(losses) == 3 and losses[1] == losses[2] != losses[0], "the second step twice, from the same state"
    assert not (tmp_path / "run" / PLACE).exists(), "removed at the end"
    mine = fingerprint({"run": arguments[1], "key": "k"})
    assert not list(Path(tempfile.gettempdir()).glob(f"minos-checkpoint-{mine}-*"))


@pytest.mark.parametrize(
    ("before", "now", "refused"),
    [
        ((2, 2), (2, 2), False),
        ((2, 2), (4, 2), False),
        ((2, 2), (2, 3), False),
        ((2, 0), (4, 0), False),
        ((2, 0), (2, 1), True),
        ((2, 3), (2, 0), True),
    ],
)
def test_another_layout(run: Run, before: tuple[int, int], now: tuple[int, int], refused: bool) -> None:
    """Any number of workers, and any stage of ZeRO, can go on; without ZeRO a checkpoint is another one."""
    put(run, 10, world=before[0], said=before[0], zero=before[1])
    workers = Workers(workers=now[0], zero=now[1]).model_dump()
    require_resumable(run, "checkpoints/reward", [job("another training", **workers)])
    if not refused:
        require_resumable(run, "checkpoints/reward", [job(**workers)])
        return
    stages = "1, 2 or 3" if before[1] else "0"
    with pytest.raises(UserError, match=f"zero = {now[1]}: .* ran with zero={before[1]}; go on with {stages}"):
        require_resumable(run, "checkpoints/reward", [job(**workers)])
