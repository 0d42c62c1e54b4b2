"""Pools on the nodes that suit them: raylets with accelerator types and labels, GPUs by name, and a real Ray."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from minos_ray.cluster.connect import require
from minos_ray.cluster.nodes import alive, by_address
from minos_ray.cluster.room import Bundles, bundles, lack, on_nodes
from minos_ray.config.load import build
from minos_ray.config.resources import Actors, Engine, Resources, Scoring, Workers
from minos_ray.errors import UserError
from minos_ray.pipeline import machine_findings
from minos_ray.store.run import Run
from minos_ray.units.run_units import Work, run_units
from tests.raylets import Raylets, all_is_free, enter, started_raylets

FAST, SLOW = "127.0.0.2", "127.0.0.3"


@pytest.fixture(scope="module")
def cluster(end_of_ray: None) -> Iterator[Raylets]:
    """A head that has nothing; a node with two A100 on a spot machine, and one with two L4. No GPU is there."""
    with pytest.MonkeyPatch.context() as patch, started_raylets() as made:
        for address, gpu, labels in (
            (FAST, "A100", {"tier": "fast", "market": "spot"}),
            (SLOW, "L4", {"tier": "slow"}),
        ):
            kinds = {f"accelerator_type:{gpu}": 1.0}
            made.add(node_ip_address=address, num_cpus=4, num_gpus=2, resources=kinds, labels=labels)
        enter(made)
        patch.setenv("RAY_ADDRESS", made.address)
        yield made


class Places:
    """Rows that say where a unit was done, and with which GPUs; `pipeline`: where the engine's workers were."""

    def __init__(self, pipeline: int = 0) -> None:
        self.pipeline = pipeline

    def __call__(self, units: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        nodes = [ray.util.get_node_ip_address()]
        if self.pipeline:  # as vLLM's Ray executor starts its workers
            group = ray.util.get_current_placement_group()
            assert [spec["GPU"] for spec in group.bundle_specs] == [1.0] * self.pipeline
            places = [PlacementGroupSchedulingStrategy(group, index) for index in range(self.pipeline)]
            node = ray.remote(num_cpus=0, num_gpus=1)(ray.util.get_node_ip_address)
            nodes = ray.get([node.options(scheduling_strategy=place).remote() for place in places], timeout=120)
        return pa.table({"unit": units["unit_id"], "nodes": [" ".join(sorted(nodes))] * len(units)}), {}


def places(folder: Path, resources: Resources, pool: str, pipeline: int = 0, units: int = 8) -> set[str]:
    """On which nodes actors of a pool do units."""
    run = Run(str(folder / "run"))
    table = pa.table({"unit_id": [str(unit) for unit in range(units)]})
    work = Work("places", pool, Places, {"pipeline": pipeline}, batch_units=1, rows=units)
    run_units(run, "places", table, work, resources)
    return set(run.artefact("places").read(partial=True)["nodes"].to_pylist())


@pytest.mark.parametrize(
    ("selector", "node"),
    [
        ({"market": "spot"}, FAST),
        ({"market": "!spot"}, SLOW),  # the node has no such label; the head has none either, and no CPU
        ({"tier": "in(slow, slower)"}, SLOW),
        ({"tier": "!in(slow,slower)", "market": "in(spot)"}, FAST),
    ],
)
def test_conditions_on_labels_are_read_as_ray_reads_them(cluster: Raylets, selector: dict[str, str], node: str) -> None:
    import ray

    pool = Actors(label_selector=selector)
    task = ray.remote(num_cpus=1)(ray.util.get_node_ip_address).options(**on_nodes(pool))
    assert set(ray.get([task.remote() for _ in range(4)], timeout=120)) == {node}
    need = bundles(pool)
    suited = [name for name, offer in by_address(alive(), need).items() if all(map(offer.get, need.conditions))]
    assert [name for name in suited if name in (FAST, SLOW)] == [node]


def test_actors_of_a_pool_are_where_it_says(cluster: Raylets, tmp_path: Path) -> None:
    halves = Actors(actors=2, gpus=0.5, accelerator_type="L4")
    assert places(tmp_path / "type", Resources(wait_s=60, grade=halves), "grade") == {SLOW}
    assert places(tmp_path / "label", Resources(wait_s=60, grade=Actors(label_selector={"tier": "fast"})), "grade") == {
        FAST
    }
    all_is_free()


def test_the_parts_of_a_pipeline_take_the_gpus_of_several_nodes(cluster: Raylets, tmp_path: Path) -> None:
    engine = Engine(gpus=2, pipeline_parallel_size=2)
    assert bundles(engine) == Bundles(2, {"CPU": 1.0, "GPU": 2.0})
    both = " ".join(sorted([FAST, FAST, SLOW, SLOW]))
    assert places(tmp_path, Resources(wait_s=60, sample=engine), "sample", pipeline=4, units=2) == {both}
    all_is_free()
    with pytest.raises(UserError, match=r"3 x \(1 CPU, 2 GPU\), each on one node: 2 of 3 fit"):
        require("sample", engine.model_copy(update={"pipeline_parallel_size": 3}), 0.1)


def test_workers_of_a_training_are_where_it_says(cluster: Raylets, tmp_path: Path) -> None:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    marks = tmp_path / "nodes"
    marks.mkdir()

    def mark() -> None:
        (marks / f"{ray.util.get_node_ip_address()} {ray.train.get_context().get_world_rank()}").touch()

    workers = Workers(workers=2, accelerator_type="A100", label_selector={"market": "spot"})
    scaling = ScalingConfig(num_workers=2, resources_per_worker={"CPU": workers.cpus}, **on_nodes(workers))
    DataParallelTrainer(
        mark, scaling_config=scaling, run_config=RunConfig(storage_path=str(tmp_path / "runs"), name="x")
    ).fit()
    assert {file.name for file in marks.iterdir()} == {f"{FAST} 0", f"{FAST} 1"}


def test_what_no_node_is_stands_in_one_line(cluster: Raylets) -> None:
    with pytest.raises(UserError) as error:
        require("score", Scoring(actors=2, gpus=1, accelerator_type="H100", label_selector={"market": "spot"}), 0.1)
    assert str(error.value) == (
        "resources.score wants 2 x (1 CPU, 1 GPU, accelerator_type:H100, market=spot), each on one node: 0 of 2 fit on "
        f"{FAST}: 4 CPU, 2 GPU, not accelerator_type:H100; {SLOW}: 4 CPU, 2 GPU, not accelerator_type:H100 nor "
        "market=spot; lower it or add nodes"
    )


def test_a_node_of_the_right_type_must_be_large_enough_too() -> None:
    need = bundles(Actors(actors=2, gpus=2, accelerator_type="A100"))
    node = {"CPU": 8.0, "GPU": 3.0, "accelerator_type:A100": 1.0}
    assert lack("x", need, {"a": node}) == (
        "x wants 2 x (1 CPU, 2 GPU, accelerator_type:A100), each on one node: 1 of 2 fit on a: 8 CPU, 3 GPU"
    )
    assert lack("x", need, {"a": node, "b": node}) is None


def test_a_machine_alone_has_no_labels() -> None:
    pools = {"grade": {"label_selector": {"market": "!spot"}}, "judge": {"label_selector": {"market": "spot"}}}
    config = build({"run": "x", "base": {"model": "x"}, "resources": {"num_cpus": 2, **pools}})
    needs = {name: bundles(getattr(config.resources, name)) for name in pools}
    assert list(machine_findings(config, Run("x"), needs)) == [
        "resources.judge wants 1 x (1 CPU, market=spot), each on one node: 0 of 1 fit on this machine: 2 CPU, "
        "not market=spot"
    ]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sample.gpus", 1.5, "a share of a GPU is below 1"),
        ("sample.gpus", -0.5, "greater than or equal to 0"),
        ("sample.pipeline_parallel_size", 2, "needs gpus: 1 or more"),
        ("score.pipeline_parallel_size", 0, "greater than or equal to 1"),
        ("grade.label_selector", {"market": "spot or not"}, "write VALUE, !VALUE, in(A, B)"),
        ("grade.label_selector", {"my market": "spot"}, "'my market' is no key of a label"),
        ("train.label_selector", {"market": "in()"}, "write VALUE, !VALUE, in(A, B)"),
        ("judge.accelerator_type", "", "at least 1 character"),
    ],
)
def test_what_no_cluster_can_be_asked_for_is_no_config(key: str, value: object, message: str) -> None:
    pool, _, name = key.partition(".")
    with pytest.raises(UserError) as error:
        build({"run": "x", "base": {"model": "x"}, "resources": {pool: {name: value}}})
    assert key in str(error.value) or f"resources.{pool}" in str(error.value)
    assert message in str(error.value)


def test_numbers_of_gpus_stay_whole() -> None:
    assert isinstance(Actors(gpus=2.0).gpus, int)
    assert Actors(gpus=0.25).gpus == 0.25
