"""Training over two nodes, real raylets with addresses of their own on the loopback, against one node."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from minos_ray.config.resources import Workers
from minos_ray.store.run import Run
from minos_ray.training.results import read_log
from minos_ray.training.reward import verifier_jobs
from minos_ray.training.trainer import fit
from tests.raylets import Raylets
from tests.training.world import world

pytestmark = pytest.mark.slow

ZEROS = (0, 2, 3)


def train_and_tell(config: dict[str, Any]) -> None:
    """The function of a worker, which also says where it runs."""
    import ray
    import ray.train

    from minos_ray.training.loop import train_all

    context = ray.train.get_context()
    ranks = {
        "node": context.get_node_rank(),
        "local": context.get_local_rank(),
        "local_world": os.environ["LOCAL_WORLD_SIZE"],
    }
    seen = {**ranks, "address": ray.util.get_node_ip_address(), "id": ray.get_runtime_context().get_node_id()}
    (Path(config["run"]) / f"worker-{context.get_world_rank()}.json").write_text(json.dumps(seen))
    train_all(config)


def trained(raylets: Raylets, folder: Path, cpus: dict[int, int]) -> tuple[Run, list[dict[str, Any]]]:
    """An ORM with every ZeRO stage, two workers on nodes with so many CPUs, by address; what the workers saw."""
    nodes = [raylets.add(last, num_cpus=count) for last, count in cpus.items()]
    config, run = world(folder)
    run.artefact("models/orm-base").begin({"for": "test"})
    like, jobs = verifier_jobs(config, run, ["orm-base"])[0], []
    for zero in ZEROS:
        run.artefact(f"models/zero{zero}").begin({"for": "test"})
        workers = Workers(workers=2, zero=zero, micro_tokens=512, max_failures=0)
        jobs.append(like.model_copy(update={"artefact": f"models/zero{zero}", "workers": workers, "key": f"{zero}"}))
    fit(config, run, "reward", jobs)
    for node in nodes:
        raylets.remove(node)
    return run, [json.loads((folder / f"run/worker-{rank}.json").read_text()) for rank in range(2)]


def losses(run: Run, zero: int) -> list[float]:
    """Of all steps, then those on held-out rows."""
    records = read_log(run, f"zero{zero}")
    return [record["loss"] for event in ("train", "eval") for record in records if record["event"] == event]


def test_two_nodes_train_as_one(raylets: Raylets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same losses and the same bytes of weights, whether two workers share a node or not."""
    monkeypatch.setattr("minos_ray.training.loop.train_all", train_and_tell)
    one, together = trained(raylets, tmp_path / "one", {2: 2})
    two, apart = trained(raylets, tmp_path / "two", {3: 1, 4: 1})
    assert {seen["address"] for seen in together} == {"127.0.0.2"}
    assert [(seen["node"], seen["local"]) for seen in together] == [(0, 0), (0, 1)]
    assert {seen["address"] for seen in apart} == {"127.0.0.3", "127.0.0.4"}
    assert len({seen["id"] for seen in apart}) == 2
    assert [(seen["node"], seen["local"], seen["local_world"]) for seen in apart] == [(0, 0, "1"), (1, 0, "1")]
    for zero in ZEROS:
        assert len(losses(one, zero)) > 8
        assert losses(one, zero) == losses(two, zero), zero
        weights = f"models/zero{zero}/model.safetensors"
        assert one.read_bytes(weights) == two.read_bytes(weights), zero
