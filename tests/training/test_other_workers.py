"""A training that goes on with other numbers of workers, 2, then 1, then 3, is as one that was never changed.

No Ray: the ranks are processes that torch starts, one group of them for each number, and train every job in turn.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from minos_ray.config.training import Lora
from minos_ray.store.run import Run
from minos_ray.training import engine
from minos_ray.training.data import Job, Room, layout, step_rows
from minos_ray.training.engine import Parts, spans
from minos_ray.training.reward import verifier_jobs
from tests.training.trainings import changed, losses
from tests.training.world import world

WORLDS = (2, 1, 3)
STEPS = (3, 6, 9)  # at which a number of workers ends
ROWS = 7  # of a step: no number of workers above 1 divides them
ADAPTER, BF16 = {"lora": Lora(rank=4, alpha=8)}, {"precision": "bf16"}
# ZeRO stages of the three groups, other settings of the workers, changes of the section.
TRAININGS: dict[str, tuple[tuple[int, int, int], dict[str, Any], dict[str, Any]]] = {
    "zero1": ((1, 1, 1), {}, {}),
    "zero2": ((2, 2, 2), {}, {}),
    "zero3": ((3, 3, 3), {}, {}),
    "another-stage": ((2, 3, 1), {}, {}),
    "offloaded": ((3, 3, 3), {"offload": "all"}, {}),
    "adapter": ((2, 2, 2), {}, ADAPTER),
    "bf16": ((1, 1, 1), {}, BF16),
}
# Never changed, for all of them: two workers with ZeRO 2 throughout.
STRAIGHT = {"straight": {}, "straight-adapter": ADAPTER, "straight-bf16": BF16}


def jobs(folder: Path, phase: int) -> Iterator[tuple[Job, int]]:
    """The trainings of one group of workers, and up to which step; the first group has also those never changed."""
    config, run = world(folder, reward={"verifiers": ["orm-base"], "batch_rows": ROWS, "eval_every": 4, "lr": 1e-4})
    like = verifier_jobs(config, run, ["orm-base"])[0]
    plans = {name: (STEPS[phase], stages[phase], *changes) for name, (stages, *changes) in TRAININGS.items()}
    if phase == 0:
        plans |= {name: (STEPS[-1], 2, {}, section) for name, section in STRAIGHT.items()}
    for name, (until, zero, workers, section) in plans.items():
        section = section | {"epochs": STEPS[-1] * ROWS / like.table.rows}
        yield changed(run, like, name, section=section, zero=zero, save_every=3, **workers), until


def in_rank(rank: int, ranks: int, folder: str, run_path: str, trainings: list[tuple[dict[str, Any], int]]) -> None:
    """Each training up to a step, with a checkpoint there; to its end where that is the last one."""
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # these are no workers of Ray Train
    engine.prepare(gpu=False)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    from minos_ray.training.loop import Training

    for values, until in trainings:
        job = Job.model_validate(values)
        made = Training(Run(run_path), f"checkpoints/{job.name}", job)
        if until == made.steps:
            made.fit()
            continue
        for step in range(made.first, until):
            if step % made.section.eval_every == 0:
                made.evaluate(step)
            made.step(step)
        made.save(until, needed=True)
        made.checkpoints.wait()
        torch.distributed.barrier()
        made.engine.destroy()
    torch.distributed.destroy_process_group()
    os._exit(0)  # at the interpreter's end a thread of gloo may still run, which aborts the process


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run after three groups of workers."""
    folder = tmp_path_factory.mktemp("workers")
    _, run = world(folder)
    for phase, ranks in enumerate(WORLDS):
        trainings = [(job.model_dump(), until) for job, until in jobs(folder, phase)]
        (meet := folder / f"meet-{phase}").mkdir()
        torch.multiprocessing.spawn(in_rank, (ranks, str(meet), run.path, trainings), nprocs=ranks)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_two_then_one_then_three_workers_are_as_two_throughout(run: Run, name: str) -> None:
    straight = f"straight-{name}" if f"straight-{name}" in STRAIGHT else "straight"
    limit = 1e-3 if name == "bf16" else 1e-6
    assert losses(run, name) == pytest.approx(losses(run, straight), abs=limit)
    assert len(losses(run, name)) == STEPS[-1] + 4, "nine steps, evaluated before 0, 4 and 8 and at the end"
    found, want = (load_file(f"{run.root}/models/{model}/model.safetensors") for model in (name, straight))
    assert found.keys() == want.keys()
    largest = max((found[key].double() - want[key].double()).abs().max().item() for key in want)
    of_loss = max(abs(a - b) for a, b in zip(losses(run, name), losses(run, straight), strict=True))
    print(f"\n{name}: largest difference of a loss {of_loss:.1e}, of a weight {largest:.1e}")
    assert largest < limit


def divided(values: dict[str, np.ndarray], ranks: int, zero: int) -> list[np.ndarray]:
    """What each rank has of a group, by the book: all in a row (ZeRO 1, 2) or each parameter, filled up with zeros."""
    parts = list(values.values()) if zero == 3 else [np.concatenate(list(values.values()))]
    unit = ranks if zero == 3 else 2 * ranks
    filled = [np.append(part, np.zeros(-len(part) % unit, "f4")).reshape(ranks, -1) for part in parts]
    return [np.concatenate([part[rank] for part in filled]) for rank in range(ranks)]


@pytest.mark.parametrize("seed", range(30))
def test_any_division_becomes_any_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = {f"p{number}": int(size) for number, size in enumerate(rng.integers(1, 40, rng.integers(1, 8)))}
    values = {name: rng.normal(size=size).astype("f4") for name, size in sizes.items()}
    (before, old), (after, new) = ((int(rng.integers(1, 10)), int(rng.integers(1, 4))) for _ in range(2))
    parts = Parts()
    for rank, flat in enumerate(divided(values, before, old)):
        part = None if old == 3 else len(flat)
        parts.add(spans(sizes, rank, before, part), {engine.WEIGHTS: torch.from_numpy(flat)})
    for rank, flat in enumerate(divided(values, after, new)):
        mine = list(spans(sizes, rank, after, None if new == 3 else len(flat)))
        assert np.array_equal(parts.flat(engine.WEIGHTS, mine, len(flat)), flat)


def test_a_part_that_no_rank_wrote_is_no_zero() -> None:
    parts = Parts()
    parts.add(spans({"p": 6}, 0, 2, 3), {engine.WEIGHTS: torch.ones(3)})
    with pytest.raises(RuntimeError, match="3 of 6 elements of p"):
        parts.flat(engine.WEIGHTS, list(spans({"p": 6}, 0, 1, 6)), 6)


@pytest.mark.parametrize("seed", range(30))
def test_any_number_of_workers_sees_each_row_of_a_step_once(seed: int) -> None:
    """Also where there are more workers than rows: every rank makes as many passes, and some of them are empty."""
    rng = np.random.default_rng(seed)
    rows, batch = int(rng.integers(5, 200)), int(rng.integers(1, 40))
    lengths, step = rng.integers(1, 100, rows), int(rng.integers(0, 5))
    chosen = step_rows(rows, 9.0, batch, seed, step)
    groups = np.arange(rows) // 3 if seed % 2 else None
    for ranks in range(1, 12):
        packs = layout(chosen, lengths, ranks, Room(128), groups)
        assert len(packs) == ranks and len({len(rank) for rank in packs}) == 1
        assert sorted(np.concatenate([micro for rank in packs for micro in rank])) == sorted(chosen)
        assert math.isclose(sum(lengths[micro].sum() for rank in packs for micro in rank), lengths[chosen].sum())
