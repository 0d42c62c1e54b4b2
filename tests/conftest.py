"""Set before anything imports ray: no token file, uv hook, memory monitor, watcher of spot nodes, model hub; and
workers as urgent as the tests, which wait for them (Ray's default is 15, and a busy machine then starves them)."""

import gc
import os
import signal
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.raylets import Raylets

TRAINING = "tests/training/"
os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    RAY_BACKEND_LOG_LEVEL="fatal",
    RAY_memory_monitor_refresh_ms="0",
    RAY_worker_niceness="0",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.5",
    RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0",
    RAY_USAGE_STATS_ENABLED="0",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.pop("RAY_ADDRESS", None)
# A shell lets its background jobs, and their children, ignore Ctrl-C; some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# A busy machine is no failure of a property. The examples are the same in every run, so that a failure is one of the
# change that is tested; with MINOS_RANDOM=1 they are others each time.
same_examples = not os.environ.get("MINOS_RANDOM")
settings.register_profile(
    "minos", deadline=None, derandomize=same_examples, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("minos")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """One thread for torch in this process; Ray gives its workers as many as they have CPUs. Ctrl-C as Python has it.

    Two threads that share a tiny model wait for one another, on a busy machine for the turn of each: 8 s became 95.
    A test that calls Ray Train itself leaves Ray's handler of Ctrl-C behind.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What the modules of tests import lives as long as the process; looking through it for garbage, again and again,
    took a quarter of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def work_of_one_process(nodeid: str) -> str:
    """With `-n` (`make test`) a file is one process's work, and so is tests/training, whose files share trainings."""
    file = nodeid.partition("::")[0]
    return TRAINING if file.startswith(TRAINING) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """xdist's own groups (`--dist loadgroup`) do not reach its scheduler in pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return work_of_one_process(nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The work with the most slow tests begins first, so that no process waits long for the last one."""
    if hasattr(config, "workerinput"):
        slow = Counter(work_of_one_process(item.nodeid) for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[work_of_one_process(item.nodeid)])


@pytest.fixture(scope="session")
def end_of_ray() -> Iterator[None]:
    """Ends the Ray of the session after the last test."""
    yield
    import ray

    ray.shutdown()


@pytest.fixture
def local_ray(end_of_ray: None) -> None:
    """A real Ray with two CPUs, kept from test to test (started again when a command under test has left it)."""
    import logging

    import ray

    from minos_ray.cluster.connect import quiet_data

    if not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=256 << 20,
            logging_level=logging.ERROR,
        )
    quiet_data()


@pytest.fixture
def raylets(end_of_ray: None) -> "Iterator[Raylets]":
    """A head of real raylets, joined, to which the test adds nodes."""
    from tests.raylets import enter, started_raylets

    with started_raylets() as made:
        enter(made)
        yield made


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets (gsm8k, math500, processbench, gsm8k_gemini); skips where they are not."""
    path = Path(os.environ.get("MINOS_SHARED") or Path(__file__).parents[2] / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"no real data at {path}: set MINOS_SHARED to the folder that holds it")
    return path
