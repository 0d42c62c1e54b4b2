"""Workers that follow the cluster: fewer when a node is lost, more when one comes. Real raylets and DeepSpeed."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from minos_ray.cluster.connect import quiet_data
from minos_ray.config.load import build
from minos_ray.config.resources import Elastic, Observe, Resources, Workers
from minos_ray.errors import UserError, WorkStopped
from minos_ray.observe.trackers import TrackedRun
from minos_ray.store.run import Run
from minos_ray.study.trials import trials_at_once
from minos_ray.training import checks, elastic
from minos_ray.training.checkpoint import complete_checkpoints
from minos_ray.training.log import Log, Record
from minos_ray.training.reward import verifier_jobs
from minos_ray.training.trainer import fit
from tests.raylets import STORE, cluster_of_raylets
from tests.training.trainings import changed, records
from tests.training.world import world

LIMIT_S = 600
HELD_AT, STEPS = 12, 100


def wait_for(event: Callable[[], object]) -> None:
    """Until it has happened."""
    until = time.monotonic() + LIMIT_S
    while not event():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.05)


class Pacing:
    """A tracker, which lives in the process of rank 0: two workers stay at a step until one is lost; one alone goes on
    when a node has been added, a step a second, so that there is time to see it."""

    def __init__(self, run: TrackedRun, *, folder: str) -> None:
        workers, held, added = run.settings["workers"], Path(folder, "held"), Path(folder, "added")
        add = Log.add

        def add_in_time(log: Log, record: Record) -> None:
            if workers == 2 and record["step"] >= HELD_AT and not held.exists():
                held.touch()
                time.sleep(LIMIT_S)
            if workers == 1:
                wait_for(added.exists)
                time.sleep(1)
            add(log, record)

        Log.add = add_in_time

    def log(self, numbers: dict[str, float], /, *, step: int) -> None:
        """Nothing is kept."""

    def finish(self) -> None:
        """Nothing to do."""


@pytest.mark.slow
def test_two_workers_then_one_then_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(elastic, "LOOK_EVERY_S", 1.0)
    settings = {"workers": {"min": 1, "max": 2}, "zero": 2, "save_every": 4, "micro_tokens": 512}
    section = {"verifiers": ["orm-base"], "batch_rows": 7, "eval_every": 20}
    config, run = world(tmp_path, reward=section, resources={"train": settings, "wait_s": LIMIT_S})
    like = verifier_jobs(config, run, ["orm-base"])[0]
    observe = Observe(tracker=f"{__name__}:Pacing", options={"folder": str(tmp_path)})
    made = changed(run, like, "elastic", section={"epochs": STEPS * 7 / like.table.rows}, **settings)
    made = made.model_copy(update={"observe": observe})

    def starts() -> list[Record]:
        return records(run, "elastic", "start") or [{"workers": 0}]

    with cluster_of_raylets(monkeypatch) as cluster:
        nodes = [cluster.add_node(num_cpus=1, node_ip_address=f"127.0.0.{n}", **STORE) for n in (3, 4)]
        ray.init(address=cluster.address, log_to_driver=False)
        quiet_data()
        with ThreadPoolExecutor(1) as pool:  # Ray's cluster of raylets is to be changed by the main thread
            training = pool.submit(fit, config, run, "reward", [made])
            wait_for((tmp_path / "held").exists)
            wait_for(lambda: complete_checkpoints(run, "checkpoints/reward/elastic", made.key)[-1].step == HELD_AT - 4)
            cluster.remove_node(nodes[0], allow_graceful=False)
            wait_for(lambda: starts()[-1]["workers"] == 1)
            cluster.add_node(num_cpus=1, node_ip_address="127.0.0.5", **STORE)
            (tmp_path / "added").touch()
            training.result(LIMIT_S)
    assert [start["workers"] for start in starts()] == [2, 1, 2]
    assert starts()[1]["step"] == HELD_AT - 4 and starts()[2]["step"] > starts()[1]["step"]
    assert [record["step"] for record in records(run, "elastic", "train")] == list(range(1, STEPS + 1))
    manifest = run.artefact("models/elastic").manifest()
    assert manifest is not None and manifest.details["workers"] == 2


class Fake(elastic.FollowingCluster):
    """Without a controller of Ray Train: `reserved` nodes and the `newest` checkpoints are given."""

    given: dict[str, dict[str, float]]
    checkpoints: list[str]

    def _maybe_send_resource_request(self) -> None:
        """Nobody to ask."""

    def _get_reserved_resources(self) -> Any:
        return self.given

    def newest(self) -> list[str]:
        return self.checkpoints


def policy(wait_s: float, **given: dict[str, float]) -> Fake:
    from ray.train import ScalingConfig

    scaling = ScalingConfig(num_workers=(2, 3), resources_per_worker={"CPU": 2}, elastic_resize_monitor_interval_s=0)
    made = Fake(scaling, wait_s, "/run", [])
    made.given, made.checkpoints = given, []
    return made


def test_the_wait_for_the_least_has_a_limit() -> None:
    waiting = policy(0.0, a={"CPU": 3.0})
    waiting.make_decision_for_non_running_worker_group()
    time.sleep(0.01)
    with pytest.raises(WorkStopped, match=r"resources\.train\.workers\.min = 2 workers, waited 0 s"):
        waiting.make_decision_for_non_running_worker_group()
    waiting.given = {"a": {"CPU": 3.0}, "b": {"CPU": 9.0}}
    assert waiting.make_decision_for_non_running_worker_group().num_workers == 3, "four would fit"


@pytest.mark.parametrize("every_s", [0.0, 1e9])
def test_a_group_that_trains_makes_way_after_a_checkpoint(every_s: float) -> None:
    """Also when every poll finds that more would fit; a node that has gone meanwhile is not counted."""
    from types import SimpleNamespace as Space

    growing = policy(60.0, a={"CPU": 4.0}, b={"CPU": 2.0})
    growing.scaling_config.elastic_resize_monitor_interval_s = every_s
    state = Space(num_workers=2, start_time=float("-inf"))

    def sizes(*checkpoints: str) -> list[int | None]:
        decisions = []
        for growing.checkpoints in ([name] for name in checkpoints):
            decisions.append(growing.make_decision_for_running_worker_group(state, None))
        return [getattr(decision, "num_workers", None) for decision in decisions]

    assert sizes("step-4", "step-4", "step-4", "step-8") == [None, None, None, 3]
    growing._latest_monitor_time = float("-inf")
    assert sizes("step-8", "step-8") == [None, None]
    growing.given = {"a": {"CPU": 4.0}}
    assert sizes("step-12") == [None]


def test_check_says_how_many_would_start() -> None:
    values = {"run": "r", "base": {"model": "m"}, "resources": {"train": {"workers": {"min": 2, "max": 4}, "cpus": 2}}}
    [line] = checks.workers_placed(build(values), {"a": {"CPU": 3.0}, "b": {"CPU": 5.0}})
    assert line == "resources.train.workers: 2 to 4 are allowed, 3 fit on a, b"
    values["resources"] = {"train": {"workers": 2}}
    assert not list(checks.workers_placed(build(values), {}))


def test_a_trial_is_counted_with_all_workers_that_it_may_have() -> None:
    resources = Resources(train=Workers(workers=Elastic(min=1, max=4)))
    assert trials_at_once(resources, [{"CPU": 8.0, "GPU": 0.0}], 9) == 2


@pytest.mark.parametrize("workers", [0, {"min": 0, "max": 2}, {"min": 3, "max": 2}, {"min": 1}, "some"])
def test_a_wrong_number_is_one_line_about_its_key(workers: Any) -> None:
    with pytest.raises(UserError, match=r"resources\.train\.workers(\.min|\.max)?'"):
        build({"run": "r", "base": {"model": "m"}, "resources": {"train": {"workers": workers}}})


def test_a_run_directory_knows_no_checkpoint_before_the_first(tmp_path: Path) -> None:
    from ray.train import ScalingConfig

    run = Run(str(tmp_path / "run"))
    made = elastic.FollowingCluster(ScalingConfig(num_workers=(1, 2)), 1.0, run.path, [("checkpoints/reward/a", "k")])
    assert made.newest() == []
