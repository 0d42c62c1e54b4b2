"""Every stage gives back what it held, at its end and when it fails, on a cluster of raylets."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minos_ray.config.load import build
from minos_ray.config.schema import Config
from minos_ray.errors import WorkStopped
from minos_ray.pipeline import run_stage
from minos_ray.store.run import Run
from tests.critiques.scripted import KEY, Reply, ScriptedServer
from tests.raylets import Raylets, all_is_free, enter, started_raylets
from tests.runs import put
from tests.training.world import world

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(end_of_ray: None) -> Iterator[Raylets]:
    """A head without CPUs, two nodes with one each."""
    with started_raylets() as made:
        for _ in range(2):
            made.add()
        enter(made)
        yield made


def fails(text: str) -> list[str]:
    """A step splitter that fails in the actor."""
    raise ValueError("the splitter fails")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of a critic that says what the labels say, and goes away when asked to."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TEST_CRITIC_KEY", KEY)
    patch.setenv("CRITIC", "there")
    critic = ScriptedServer(lambda prompt, number: Reply(cut=os.environ.get("CRITIC") == "gone"))
    threading.Thread(target=critic.serve_forever, daemon=True).start()
    yield critic.url
    critic.shutdown()
    critic.server_close()
    patch.undo()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, server: str) -> Config:
    """A run with problems and labels; what is to be made of them costs seconds."""
    config, run = world(
        tmp_path_factory.mktemp("release"),
        problems=10,
        critique={"base_url": server, "api_key_env": "TEST_CRITIC_KEY", "count": 40},
        reward={"verifiers": ["orm-minos"]},
        score={"judge": None},
        resources={
            "train": {"workers": 2, "micro_tokens": 512, "max_failures": 0},
            "score": {"actors": 2},
            "client": {"max_retries": 1, "timeout_s": 60},
        },
    )
    run.delete("critiques")
    return config


@pytest.fixture(scope="module")
def sampled(made: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run with problems alone, which are sampled with the base model by two actors."""
    values = made.model_dump(mode="json")
    run = Run(str(tmp_path_factory.mktemp("sampled")))
    put(run, "problems", Run(made.run).artefact("problems").read().to_pylist())
    return build(
        {
            **values,
            "run": run.path,
            "generator": {"model": made.base.model},
            "sample": {"n_train": 2, "n_test": 2, "unit": 2, "max_tokens": 8},
            "resources": {"sample": {"actors": 2, "kv_cache_gb": 0.05}, "grade": {"actors": 2}},
        }
    )


def without_logs(folder: Path, config: Config) -> Config:
    """The config of a copy of the run, where a file lies in the way of the logs that a training worker writes."""
    shutil.copytree(config.run, folder / "run")
    shutil.rmtree(folder / "run/logs/tb", ignore_errors=True)
    Run(str(folder / "run")).write_bytes("logs/tb", b"a file where the worker wants a folder")
    return config.model_copy(update={"run": str(folder / "run")})


def without_splitting(folder: Path, config: Config) -> Config:
    """The config with a step splitter that fails."""
    label = config.label.model_copy(update={"splitter": "tests.observe.test_release:fails"})
    return config.model_copy(update={"label": label})


def broken_verifier(folder: Path, config: Config) -> Config:
    """The config of a copy of the run, where the weights of the verifier are cut off: scorers fail as they are made."""
    shutil.copytree(config.run, folder / "run")
    weights = folder / "run/models/orm-minos/model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b'"F32"', b'"F99"'))
    return config.model_copy(update={"run": str(folder / "run")})


def without_critic(folder: Path, config: Config) -> Config:
    """The config, whose critic has gone."""
    os.environ["CRITIC"] = "gone"
    return config


Break = Callable[[Path, Config], Config]
FAILURES: dict[str, Break] = {
    "label": without_splitting,
    "critique": without_critic,
    "sft": without_logs,
    "score": broken_verifier,
}


def holds_nothing_after(stage: str, config: Config, folder: Path) -> None:
    """First it fails, where that is tried here, and while its exception is looked at; then it succeeds."""
    os.environ["CRITIC"] = "there"
    if stage in FAILURES:
        with pytest.raises(WorkStopped) as caught:  # which keeps the exception, and its frames
            failing = FAILURES[stage](folder, config)
            run_stage(failing, Run(failing.run), stage)
        all_is_free()
        assert caught.value.__notes__
    os.environ["CRITIC"] = "there"
    run_stage(config, Run(config.run), stage)
    all_is_free()


@pytest.mark.parametrize("stage", ["sample", "label", "critique", "sft"])
def test_a_stage_holds_nothing_when_it_is_over(
    cluster: Raylets, made: Config, sampled: Config, stage: str, tmp_path: Path
) -> None:
    holds_nothing_after(stage, sampled if stage in ("sample", "label") else made, tmp_path)


def other(config: Config, folder: Path, wait_s: float = 600) -> Config:
    """The same work in a run of its own, with nothing trained yet."""
    shutil.copytree(config.run, folder, ignore=shutil.ignore_patterns("orm-*", "scores", "sweep", "logs"))
    resources = config.resources.model_copy(update={"wait_s": wait_s})
    return config.model_copy(update={"run": str(folder), "resources": resources})


def test_two_that_each_need_the_whole_cluster_take_turns(cluster: Raylets, made: Config, tmp_path: Path) -> None:
    """And they hold nothing when they are over; training within a sweep: tests/sweep."""
    configs = [made, other(made, tmp_path / "run")]
    work = [threading.Thread(target=run_stage, args=(own, Run(own.run), "reward"), daemon=True) for own in configs]
    for each in work:
        each.start()
    for each in work:
        each.join(timeout=600)
    assert all(Run(own.run).artefact("models/orm-minos").manifest() for own in configs)
    all_is_free()


def test_scoring_holds_nothing_when_it_is_over(cluster: Raylets, made: Config, tmp_path: Path) -> None:
    holds_nothing_after("score", made, tmp_path)


def test_who_gets_no_room_gives_up_and_holds_no_part_of_it(cluster: Raylets, made: Config, tmp_path: Path) -> None:
    import ray

    class Holder:
        """Takes one of the two CPUs."""

        def ready(self) -> bool:
            return True

    holder = ray.remote(Holder).options(num_cpus=1).remote()
    ray.get(holder.ready.remote())
    config = other(made, tmp_path / "run", wait_s=8)
    with pytest.raises(WorkStopped, match=r"^train: .*resources\.wait_s"):
        run_stage(config, Run(config.run), "reward")
    all_is_free(beside=["1 CPU", "actor Holder"])
    ray.kill(holder)
    all_is_free()
