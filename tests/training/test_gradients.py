"""What a step's gradient is in bf16: the sum over packs and ranks is made in fp32, whatever ZeRO divides."""

from pathlib import Path

import numpy as np
import pytest
import torch

from minos_ray.config.resources import Workers
from minos_ray.config.training import Train
from minos_ray.training import engine, models
from minos_ray.training.data import Rows
from minos_ray.training.objective import Objective
from minos_ray.training.packing import pack
from tests.tiny import tiny_model
from tests.training.test_losses import rows

PACKS, RANKS = 64, 2
LAYOUTS = [
    (0, "none"),
    (1, "none"),
    (2, "none"),
    (3, "none"),
    (1, "optimizer"),
    (2, "optimizer"),
    (3, "optimizer"),
    (3, "all"),
]


def packs(data: Rows, rank: int) -> list[list[torch.Tensor]]:
    """Of one row each; all ranks together see a row again and again, so that the sum is large beside what is added."""
    chosen = [np.array([(rank + RANKS * number) % len(data)]) for number in range(PACKS)]
    return [[torch.from_numpy(array) for array in pack(data, micro)] for micro in chosen]


def exact(base: str) -> torch.Tensor:
    """The gradients that torch gives for each pack of each rank in bf16, added up in float64."""
    objective = Objective(models.load(base, "orm", "bf16", 0, {}), "orm")
    sums = [torch.zeros_like(p, dtype=torch.float64) for p in objective.parameters()]
    for rank in range(RANKS):
        for arrays in packs(rows("orm"), rank):
            objective.zero_grad()
            (objective(*arrays).main / PACKS).backward()
            for total, parameter in zip(sums, objective.parameters(), strict=True):
                total += parameter.grad
    return torch.cat([total.flatten() for total in sums])


def in_rank(rank: int, folder: str) -> None:
    """A step in every ZeRO stage; rank 0 saves Adam's first moment, a tenth of the gradient."""
    import os

    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    engine.prepare(gpu=False)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    section, data = Train(precision="bf16", clip=1e9), rows("orm")
    for zero, offload in LAYOUTS:
        workers = Workers(workers=RANKS, zero=zero, offload=offload)
        model = models.load(f"{folder}/base", "orm", "bf16", 0, {})
        made = engine.start(Objective(model, "orm"), section, workers)
        for arrays in packs(data, rank):
            made.backward(made(*arrays).main / PACKS * RANKS)
        engine.update(made)
        optimizer = getattr(made.optimizer, "optimizer", made.optimizer)
        parts = [None] * RANKS
        mine = torch.cat([state["exp_avg"].flatten() for state in optimizer.state.values()])
        torch.distributed.all_gather_object(parts, mine)
        if rank == 0:
            torch.save(torch.cat(parts if zero else parts[:1]) / 0.1, f"{folder}/{zero}-{offload}.pt")
        made.destroy()
    torch.distributed.destroy_process_group()
    os._exit(0)  # at the interpreter's end a thread of gloo may still run, which aborts the process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gradients")
    torch.save(exact(tiny_model(folder / "base")), folder / "exact.pt")
    torch.multiprocessing.spawn(in_rank, (str(folder),), nprocs=RANKS)
    return folder


@pytest.mark.parametrize(("zero", "offload"), LAYOUTS)
def test_gradients_of_many_packs_are_added_up_in_fp32(folder: Path, zero: int, offload: str) -> None:
    """In bf16 the sum is off by a percent. Shards are in another order and filled up with zeros, so they are sorted."""
    found, want = torch.load(folder / f"{zero}-{offload}.pt").double(), torch.load(folder / "exact.pt")
    want = torch.cat([want, want.new_zeros(len(found) - len(want))])
    assert ((found.sort().values - want.sort().values).norm() / want.norm()).item() < 1e-5
