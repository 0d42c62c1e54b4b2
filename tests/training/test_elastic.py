"""Workers that follow the cluster: fewer when a node is lost, more when one comes. Real raylets and DeepSpeed."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace as Space
from typing import Any

import pytest
import ray
from ray.experimental import internal_kv
from ray.train import FailureConfig
from ray.train.v2.api.exceptions import WorkerGroupError

from minos_ray.cluster.room import bundles, free_by_node
from minos_ray.config.load import build
from minos_ray.config.resources import Elastic, Observe, Resources, Workers
from minos_ray.errors import UserError, WorkStopped
from minos_ray.observe.trackers import TrackedRun
from minos_ray.store.run import Run
from minos_ray.study.stage import trials_at_once
from minos_ray.training import checks, elastic
from minos_ray.training.elastic import NodeLeaves
from minos_ray.training.engine import complete_checkpoints
from minos_ray.training.results import Log, Record
from minos_ray.training.reward import verifier_jobs
from minos_ray.training.trainer import fit, train, watch
from tests.raylets import Raylets
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
def test_two_workers_then_one_then_two(raylets: Raylets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

    lost, _ = raylets.add(3), raylets.add(4)
    with ThreadPoolExecutor(1) as pool:  # Ray's cluster of raylets is to be changed by the main thread
        training = pool.submit(fit, config, run, "reward", [made])
        wait_for((tmp_path / "held").exists)
        wait_for(lambda: complete_checkpoints(run, "checkpoints/reward/elastic", made.key)[-1].step == HELD_AT - 4)
        raylets.remove(lost, lost=True)
        wait_for(lambda: starts()[-1]["workers"] == 1)
        raylets.add(5)
        (tmp_path / "added").touch()
        training.result(LIMIT_S)
    assert [start["workers"] for start in starts()] == [2, 1, 2]
    assert starts()[1]["step"] == HELD_AT - 4 and starts()[2]["step"] > starts()[1]["step"]
    assert [record["step"] for record in records(run, "elastic", "train")] == list(range(1, STEPS + 1))
    manifest = run.artefact("models/elastic").manifest()
    assert manifest is not None and manifest.details["workers"] == 2


class Alone(elastic.FollowingCluster):
    """Without a controller of Ray Train."""

    def _maybe_send_resource_request(self) -> None:
        """Nobody to ask."""


class Fake(Alone):
    """The nodes and the `newest` checkpoints are given."""

    given: dict[str, dict[str, float]]
    checkpoints: list[str]

    def _get_reserved_resources(self) -> Any:
        return self.given.values()

    def newest(self) -> list[str]:
        return self.checkpoints


def policy(wait_s: float, **given: dict[str, float]) -> Fake:
    made = following(Fake, Workers(workers=Elastic(min=2, max=3), cpus=2), wait_s)
    made.given, made.checkpoints = given, []
    return made


def following(kind: type[elastic.FollowingCluster], workers: Workers, wait_s: float = 60.0) -> Any:
    from ray.train import ScalingConfig

    scaling = ScalingConfig(num_workers=(workers.least, workers.most), elastic_resize_monitor_interval_s=0)
    return kind(scaling, bundles(workers)._replace(count=workers.most), wait_s, "/run", [])


A, B, MINE, OTHER = "aa" * 28, "bb" * 28, "01" * 16, "02" * 16
Group = tuple[str, str, dict[str, float], str]


def tables(
    patch: pytest.MonkeyPatch,
    nodes: dict[str, dict[str, float]],
    labels: dict[str, dict[str, str]] | None = None,
    leaving: str = "",
    groups: list[Group] | None = None,
) -> None:
    """Ray's tables of nodes with 8 CPUs, of which `nodes` has what is free; this process is the actor MINE."""
    import ray
    from ray._private import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    common = {"Alive": True, "Resources": {"CPU": 8.0}}
    table = [{"NodeID": n, "NodeManagerAddress": n, "Labels": (labels or {}).get(n, {}), **common} for n in nodes]
    raw = []
    for actor, status, amounts, node in groups or []:
        values = PlacementGroupTableData.PlacementGroupState.Value(status)
        group = PlacementGroupTableData(creator_actor_id=bytes.fromhex(actor), state=values)
        group.bundles.add(node_id=bytes.fromhex(node), unit_resources=amounts)
        raw.append(group.SerializeToString())
    patch.setattr(ray, "nodes", lambda: table)
    patch.setattr(ray, "get_runtime_context", lambda: Space(get_actor_id=lambda: MINE))
    patch.setattr(state, "available_resources_per_node", lambda: nodes)
    patch.setattr(state.state, "get_draining_nodes", lambda: dict.fromkeys(filter(None, [leaving]), 0))
    accessor = Space(get_placement_group_table=lambda: raw)
    patch.setattr(state.state, "_connect_and_get_accessor", lambda: accessor)


@pytest.mark.parametrize(
    ("workers", "cluster", "fitting"),
    [
        ({}, {"nodes": {A: {"CPU": 4.0}, B: {"CPU": 1.0}}}, 5),
        (
            {"label_selector": {"market": "spot"}},
            {"nodes": {A: {"CPU": 8.0}, B: {"CPU": 2.0}}, "labels": {B: {"market": "spot"}}},
            2,
        ),
        (
            {"gpu": True, "accelerator_type": "A100"},
            {
                "nodes": {
                    A: {"CPU": 8.0, "GPU": 8.0, "accelerator_type:L4": 1.0},
                    B: {"CPU": 8.0, "GPU": 3.0, "accelerator_type:A100": 0.996},
                }
            },
            3,
        ),
        ({}, {"nodes": {A: {"CPU": 4.0}, B: {"CPU": 3.0}}, "leaving": A}, 3),
        ({"cpus": 0.2}, {"nodes": {A: {"CPU": 1.0}}}, 5),
        ({"cpus": 0.1}, {"nodes": {A: {"CPU": 0.3}}}, 3),
        (
            {},
            {
                "nodes": {A: {"CPU": 1.0}, B: {}},
                "groups": [
                    (MINE, "CREATED", {"CPU": 2.0}, A),
                    (MINE, "RESCHEDULING", {"CPU": 1.0}, B),
                    (MINE, "REMOVED", {"CPU": 4.0}, B),
                    (OTHER, "CREATED", {"CPU": 4.0}, B),
                ],
            },
            4,
        ),
        ({}, {"nodes": {A: {}, B: {"CPU": 3.0}}, "leaving": A, "groups": [(MINE, "CREATED", {"CPU": 2.0}, A)]}, 3),
    ],
    ids=["taken by others", "labels", "accelerator", "drained", "fifths", "tenths", "held by it", "held and drained"],
)
def test_workers_are_counted_where_they_would_start(
    monkeypatch: pytest.MonkeyPatch, workers: dict[str, Any], cluster: dict[str, Any], fitting: int
) -> None:
    """Also as `min`, with which the group starts; with a larger `min` it does not."""
    tables(monkeypatch, **cluster)
    assert cluster.get("leaving") not in free_by_node()
    monkeypatch.setattr(elastic, "SETTLED_S", 0.0)
    counting = following(Alone, Workers.model_validate({"workers": {"min": fitting, "max": 8}, **workers}))
    assert counting.make_decision_for_non_running_worker_group().num_workers == fitting
    more = following(Alone, Workers.model_validate({"workers": {"min": fitting + 1, "max": 8}, **workers}))
    assert not hasattr(more.make_decision_for_non_running_worker_group(), "num_workers")


def test_a_group_starts_with_fewer_only_when_nothing_is_being_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic, "SETTLED_S", 1e9)
    starting = policy(0.0, a={"CPU": 4.0})
    starting.make_decision_for_non_running_worker_group()
    time.sleep(0.01)
    assert not hasattr(starting.make_decision_for_non_running_worker_group(), "num_workers")
    monkeypatch.setattr(elastic, "SETTLED_S", 0.0)
    assert starting.make_decision_for_non_running_worker_group().num_workers == 2


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
    made = following(elastic.FollowingCluster, Workers(workers=Elastic(min=1, max=2)))
    made.path, made.places = Run(str(tmp_path / "run")).path, [("checkpoints/reward/a", "k")]
    assert made.newest() == []


@pytest.mark.parametrize(("workers", "text"), [(4, "of 4"), ({"min": 2, "max": 8}, "of at most 8")])
def test_a_worker_that_failed_is_one_of_so_many(workers: Any, text: str) -> None:
    from ray.train import TrainingFailedError
    from ray.train.v2.api.exceptions import WorkerGroupError

    def failing() -> None:
        raise WorkerGroupError("lost", {2: RuntimeError("it broke")})

    assert issubclass(WorkerGroupError, TrainingFailedError)
    with pytest.raises(WorkStopped, match=rf"^reward: worker 3 {text} failed: .*it broke"):
        train(Space(fit=failing), Workers.model_validate({"workers": workers}), "reward")


def test_each_model_has_its_line_of_how_many_workers_train_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second of a stage has the same one as the first."""
    run, done = Run(str(tmp_path / "run")), threading.Event()
    start = {"event": "start", "step": 0, "pid": 1, "workers": 4, "text": "4 of 2 to 8 workers, from step 1"}
    for name in ("orm-base", "prm-base"):
        run.write_bytes(f"logs/{name}.jsonl", f"{json.dumps(start)}\n".encode())
    done.set()
    watch(run, [Space(name=name, steps=1) for name in ("orm-base", "prm-base")], done)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{name}: {start['text']}" for name in ("orm-base", "prm-base")]


def test_a_group_that_leaves_a_node_starts_again_uncounted() -> None:
    """Any other failure counts, also beside it."""
    excusing = elastic.DrainsExcused(FailureConfig(max_failures=1))
    drained = {rank: NodeLeaves("to go") for rank in range(2)}
    decisions = [excusing.make_decision(WorkerGroupError("all", drained)) for _ in range(3)]
    mixed = WorkerGroupError("one", {**drained, 1: ValueError("wrong")})
    decisions += [excusing.make_decision(mixed) for _ in range(2)]
    assert [decision.name for decision in decisions] == ["RETRY"] * 4 + ["RAISE"]


def test_spares_start_where_workers_are_and_where_others_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {"a": 0.0, "b": 1.0, "c": 5.0, "d": 0.0, "e": 1.0, "f": 1.0}
    monkeypatch.setattr(elastic, "alive", lambda: [Space(id=name) for name in nodes])
    monkeypatch.setattr(elastic, "free_for", lambda need: [{"CPU": cpus} for cpus in nodes.values()])
    workers = Workers(workers=4, cpus=1)
    assert elastic.spares_per_node(["a", "a", "x", "x"], ["x"], workers) == {"a": 2, "b": 1, "c": 2, "e": 1}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Ray's table of keys and values, of one process; it is told by `MINOS_RAY_...` that it can have spares."""
    table: dict[str, bytes] = {}
    monkeypatch.setattr(internal_kv, "_internal_kv_put", table.__setitem__)
    monkeypatch.setattr(internal_kv, "_internal_kv_list", lambda start: [key for key in table if key.startswith(start)])
    monkeypatch.setenv(elastic.MARK, "1")

    def delete(start: str, del_by_prefix: bool = False) -> None:
        for key in [key for key in table if key == start or (del_by_prefix and key.startswith(start))]:
            del table[key]

    def start(counts: Counter[str], order: str, deadline: float) -> Counter[str]:
        table[f"{elastic.KEY}@b/{elastic.owner()}"] = order.encode()
        return counts

    monkeypatch.setattr(internal_kv, "_internal_kv_del", delete)
    monkeypatch.setattr(elastic, "start_spares", start)
    monkeypatch.setattr(elastic, "spares_per_node", lambda *_: Counter(b=2))
    return table


def drained(seconds: float) -> Space:
    """What Ray Train tells of a node that is to go."""
    return Space(deadline_ms=(time.time() + seconds) * 1000, preempted_node_ids=["a"])


def test_workers_leave_when_their_own_spares_are_ready(
    monkeypatch: pytest.MonkeyPatch, table: dict[str, bytes]
) -> None:
    """Spares of another training beside it do not count; its orders stand when the first one hands over."""
    context = Space(get_actor_id=lambda: owner, get_worker_id=lambda: f"w{len(table)}")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    mine, other = (elastic.Spares(Workers(workers=2, gpu=True)) for _ in range(2))
    owner = "first"
    mine.begin(drained(600), ["a", "b"])
    owner = "second"
    other.begin(drained(600), ["a", "b"])
    elastic.prepare_spare("json", {"second": "gpu"})
    elastic.prepare_spare("json", {"second": "gpu"})
    assert other.hand_over(drained(600), 1.0)
    owner = "first"
    assert not mine.hand_over(drained(600), 1.0)
    elastic.prepare_spare("json", {"first": "gpu", "second": "gpu"})
    elastic.prepare_spare("json", {"first": "gpu"})
    assert mine.hand_over(drained(600), 1.0)
    mine.forget()
    assert {key.rpartition("@")[2] for key in table if "@" in key} == {"b/second"}
    assert not any("/first/" in key for key in table)


@pytest.mark.parametrize(
    ("notice_s", "later_s", "step_s", "saving_s", "leaves"),
    [
        (600, 600, 1, 0, False),
        (600, 600, 301, 0, True),  # half of the notice is over
        (600, 600, 250, 180, True),  # two checkpoints would not fit behind it
        (600, 30, 20, 0, True),  # another node goes sooner
        (600, 30, 1, 0, False),
        (-1, -1, 0, 0, True),
    ],
)
def test_workers_leave_before_it_is_too_late(
    monkeypatch: pytest.MonkeyPatch,
    table: dict[str, bytes],
    notice_s: float,
    later_s: float,
    step_s: float,
    saving_s: float,
    leaves: bool,
) -> None:
    monkeypatch.setattr(ray, "get_runtime_context", lambda: Space(get_actor_id=lambda: "first"))
    group = elastic.Spares(Workers(workers=2))
    group.begin(drained(notice_s), ["a", "b"])
    group.saving_s = saving_s
    assert group.hand_over(drained(later_s), step_s) == leaves


@pytest.mark.parametrize("fails", ["start_spares", "spares_per_node", "table", "mark", "deadline"])
def test_workers_leave_at_once_where_nobody_gets_ready(
    monkeypatch: pytest.MonkeyPatch, table: dict[str, bytes], fails: str
) -> None:
    """What goes wrong with spares, as when nodes come and go meanwhile, fails no training."""

    def fail(*_: object) -> None:
        raise ValueError("gone")

    monkeypatch.setattr(ray, "get_runtime_context", lambda: Space(get_actor_id=lambda: "first"))
    info = drained(600)
    if fails == "table":
        monkeypatch.setattr(internal_kv, "_internal_kv_list", fail)
        monkeypatch.setattr(internal_kv, "_internal_kv_del", fail)
    elif fails == "mark":  # a setup hook of the user's own
        monkeypatch.delenv(elastic.MARK)
    elif fails == "deadline":
        info.deadline_ms = None
    else:
        monkeypatch.setattr(elastic, fails, fail)
    group = elastic.Spares(Workers(workers=2))
    group.begin(info, ["a", "b"])
    assert group.hand_over(info, 0.0)
    group.forget()
