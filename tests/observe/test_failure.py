"""Work that fails says the cause in one line, and where the full log lies: actors, training workers, the driver."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from minos_ray.config.load import build
from minos_ray.config.schema import Config
from minos_ray.errors import UserError, WorkStopped
from minos_ray.observe.failure import cause, from_text, reported, without_secrets
from minos_ray.pipeline import run_stage
from minos_ray.store.run import Run
from tests.runs import put
from tests.training.world import world

KEY = "the-key-of-the-critic"


def boom(text: str) -> list[str]:
    """A step splitter that fails, with the key in what it says."""
    raise ValueError(f"no steps with {KEY}\nand a second line")


def refuses(text: str) -> list[str]:
    """A step splitter that has something to say to the user."""
    raise UserError("label.splitter: cannot split this")


def kills(text: str) -> list[str]:
    """A step splitter that is killed."""
    os.kill(os.getpid(), signal.SIGKILL)
    return []


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Config, Run]:
    """A run whose labels are to be made; a failure of training is not tried again."""
    monkeypatch.setenv("TEST_CRITIC_KEY", KEY)
    config, run = world(tmp_path, problems=10, resources={"train": {"max_failures": 0, "micro_tokens": 512}})
    run.delete("labels")
    candidates = [
        {"candidate_id": f"p000/{i}", "problem_id": "p000", "index": i, "text": "1", "finish_reason": "stop"}
        | {"num_tokens": 1, "model": "m"}
        for i in range(4)
    ]

    put(run, "candidates", candidates)
    return config, run


def with_splitter(config: Config, name: str) -> Config:
    """The config, with one of the splitters above."""
    values = config.model_dump(mode="json")
    return build({**values, "label": {"splitter": f"tests.observe.test_failure:{name}"}})


def told(config: Config, run: Run, stage: str) -> tuple[str, str]:
    """The line about the failure, and the content of the log that it names."""
    with pytest.raises(WorkStopped) as caught:
        run_stage(config, run, stage)
    (note,) = caught.value.__notes__
    path = note.removeprefix("full log: ").partition(";")[0]
    assert path.startswith(f"{run.path}/logs/{stage}-")
    assert "\n" not in str(caught.value)
    return str(caught.value), Path(path).read_text()


def test_an_exception_in_an_actor(local_ray: None, made: tuple[Config, Run]) -> None:
    line, log = told(with_splitter(made[0], "boom"), made[1], "label")
    assert line == "label: ValueError: no steps with [$TEST_CRITIC_KEY]"
    assert log.startswith("label failed: ValueError: no steps")
    assert "in boom" in log and "and a second line" in log, "the traceback of the actor"
    assert KEY not in log and "\x1b" not in log
    assert "/logs" in log.splitlines()[2], "where Ray's own logs lie"


def test_what_an_actor_says_to_the_user(local_ray: None, made: tuple[Config, Run]) -> None:
    with pytest.raises(UserError, match=r"^label\.splitter: cannot split this$"):
        run_stage(with_splitter(made[0], "refuses"), made[1], "label")


def test_an_exception_in_a_training_worker(local_ray: None, tmp_path: Path, made: tuple[Config, Run]) -> None:
    config, run = world(tmp_path / "train", problems=10, resources={"train": {"max_failures": 0}})
    run.write_bytes("logs/tb", b"a file where the worker wants a folder")
    line, log = told(config, run, "sft")
    assert line.startswith("sft: worker 1 of 1 failed: NotADirectoryError: ")
    assert "in train_all" in log


def test_the_driver_through_the_command(tmp_path: Path) -> None:
    """Exit code 1, the cause in the first line, the log in the next; no key in either."""
    loader = "tests.observe.test_failure:load"
    config = {"run": str(tmp_path / "run"), "base": {"model": "x"}, "problems": {}}
    config["problems"] = {split: {"loader": loader} for split in ("train", "test")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "minos_ray", "problems", str(tmp_path / "config.yaml")]
    environment = {**os.environ, "MY_API_KEY": KEY}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first == "minos: problems: KeyError: 'no [$MY_API_KEY]'"
    log = Path(second.removeprefix("minos: full log: "))
    assert log.parent == tmp_path / "run" / "logs"
    assert "RuntimeError: cannot load" in log.read_text() and KEY not in log.read_text()


@pytest.mark.slow
def test_the_log_of_a_job_reads_well_when_processes_die(made: tuple[Config, Run], tmp_path: Path) -> None:
    """Our lines alone, without colours, carriage returns and what Ray says of every death; then the cause."""
    config = with_splitter(made[0], "kills")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "minos_ray", "label", str(tmp_path / "config.yaml")]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_BACKEND_LOG_LEVEL"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 1
    assert not {"\r", "\x1b"} & set(done.stdout + done.stderr)
    first, second = done.stderr.splitlines()
    assert first.startswith("minos: grade: unit ") and "killed 3 actors" in first
    assert second.startswith(f"minos: full log: {made[1].path}/logs/label-")
    assert "logs of Ray's processes: " in second
    assert all(line.startswith("grade: ") for line in done.stdout.splitlines())


def load(*args: Any, **kwargs: Any) -> list[dict]:
    """A loader of problems that fails for a deeper reason."""
    try:
        return {}[f"no {KEY}"]
    except KeyError as error:
        raise RuntimeError("cannot load") from error


def test_a_run_that_cannot_be_written_has_its_log_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    with pytest.raises(WorkStopped) as caught, reported(Run(str(tmp_path)), "sample"):
        raise OSError("the disk is full")
    assert str(caught.value) == "sample: OSError: the disk is full"
    path = Path(caught.value.__notes__[0].removeprefix("full log: ").partition(";")[0])
    assert "the disk is full" in path.read_text()
    path.unlink()


def test_secrets() -> None:
    environment = {
        "A_KEY": "abcdef",
        "OPENAI_API_KEY": "abcdefgh",
        "HF_TOKEN": " spaced-out ",
        "MAX_TOKENS": "512",
        "PATH": "/usr/bin",
    }
    text = (
        "abcdefgh spaced-out 512 /usr/bin sk-proj-0123456789 Authorization: Bearer ey.J0-eXAiOiJ http://me:pass@proxy/"
    )
    assert without_secrets(text, environment) == (
        "[$OPENAI_API_KEY] [$HF_TOKEN] 512 /usr/bin sk-[...] Authorization: Bearer [...] http://[...]@proxy/"
    )


@pytest.mark.parametrize("kind", [UserError, WorkStopped])
def test_a_line_from_a_task_of_ray_comes_without_its_traceback(local_ray: None, tmp_path: Path, kind: type) -> None:
    import ray

    def says() -> None:
        raise kind("one clear line")

    with pytest.raises(kind) as caught, reported(Run(str(tmp_path)), "sample"):
        ray.get(ray.remote(says).options(num_cpus=0).remote())
    assert str(caught.value).removeprefix("sample: ") == "one clear line"


REMOTE = """\x1b[36mray::MapWorker(MapBatches(W)).submit()\x1b[39m (pid=20700, ip=192.0.2.2)
  File "/tmp/cause.py", line 16, in __call__
    raise pkg.Bad("no: way")
pkg.Bad: no: way
more

The above exception was the direct cause of the following exception:

\x1b[36mray::MapWorker(MapBatches(W)).submit()\x1b[39m (pid=20700, ip=192.0.2.2)
ray.exceptions.UserCodeException: UDF failed to process a data block.
"""


def test_the_cause_is_read_from_a_traceback_that_came_as_text() -> None:
    assert cause(from_text(REMOTE)) == "Bad: no: way"
    assert isinstance(from_text(REMOTE.replace("pkg.Bad: ", "minos_ray.errors.UserError: ")), UserError)
    assert from_text("nothing") is None
    below = REMOTE.replace(
        "pkg.Bad: ", "OSError: [Errno 28]\n\nDuring handling\n  File x\nminos_ray.errors.StorageFailed: "
    )
    assert cause(from_text(below)) == "no: way"
    assert cause(from_text(REMOTE.replace("pkg.Bad", "minos_ray.nowhere.Bad"))) == "Bad: no: way"


def test_killed_processes_are_told_from_lost_nodes_and_full_ones() -> None:
    import ray

    died = ray.exceptions.RayActorError(error_msg="The actor died.\n\tpid: 77\n\tip: 127.0.0.3\nThe process is killed")
    assert cause(died).endswith("for want of memory (process 77, node 127.0.0.3)")
    low = ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory ...")
    assert cause(low) == "its process was ended by Ray, for its node ran low on memory"
    begun = "The actor died because of an error raised in its creation task, ray::W\n  File x\nValueError: init is bad"
    assert cause(ray.exceptions.RayActorError(error_msg=begun)) == "ValueError: init is bad"


def test_of_several_workers_the_one_that_brought_the_others_down() -> None:
    from ray.train import WorkerGroupError

    lost, bad = RuntimeError("[gloo] Connection closed by peer"), ValueError("rank 1 is bad")
    assert cause(WorkerGroupError("all", {0: lost, 1: bad})) == "ValueError: rank 1 is bad"
    said = UserError("resources.train: too few")
    assert cause(WorkerGroupError("all", {0: bad, 1: said})) == "resources.train: too few"
