"""`minos serve`: a verifier over HTTP. Ray Serve runs the replicas, each with one model and one thread that scores;
this process answers, and drains when it is ended.

On KubeRay the same app runs as ingress of a Serve application (`application`, kuberay/rayservice.yaml).
"""

import asyncio
import ipaddress
import json
import logging
import os
import signal
import socket
import time
import traceback
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from minos_ray.cluster.connect import disconnect, heed_sigterm, join, joins, require
from minos_ray.config.load import resolve
from minos_ray.config.resources import Actors, Resources, Scoring
from minos_ray.config.schema import Aggregation, Model
from minos_ray.errors import UserError, WorkStopped
from minos_ray.serving.contracts import PLAIN_PROMPT, Pairs, Reply, Served, size_of
from minos_ray.serving.scorer import SPLITTER, SolutionScorer, Task, verifier_of
from minos_ray.store.model_files import locate
from minos_ray.store.run import Run

WAIT_S = 600.0  # for room for the replicas, as `resources.wait_s` of a config, and then for the first one
DRAIN_S = 120  # longest wait for requests in flight at the end
EXTRA = ("uvicorn", "starlette", "fastapi", "watchfiles", "prometheus_client")  # what `ray.serve` needs of it


class Replica:
    """Scores batches of requests in the order in which they come; the verifier is loaded before the first."""

    def __init__(self, task: Task) -> None:
        self.scorer = SolutionScorer(task)
        self.scorer(["1 + 1?"], ["2"])  # loads the model, and computes once
        self.by_step = self.scorer.by_step()
        self.thread = ThreadPoolExecutor(1)

    async def score(self, batch: list[Pairs]) -> list[Reply | Exception]:
        """The reply to each request of a batch. A caller that is cancelled leaves the queue."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.score_batch, batch)

    def score_batch(self, batch: list[Pairs]) -> list[Reply | Exception]:
        """The replies of a batch; where it fails, of each request alone, so that one cannot fail the others."""
        try:
            return list(self.together(batch))
        except Exception as error:
            if len(batch) == 1:  # as text: not every exception can be sent
                return [RuntimeError("".join(traceback.format_exception(error)))]
            return [result for request in batch for result in self.score_batch([request])]

    def together(self, batch: list[Pairs]) -> Iterator[Reply]:
        """The reply of each request, all scored in one call."""
        questions = [question for asked, _ in batch for question in asked]
        solutions = [solution for _, given in batch for solution in given]
        scores, step_scores, stats = self.scorer.scored(questions, solutions)
        reasons = [
            self.scorer.reason(question, solution) if score is None else None
            for question, solution, score in zip(questions, solutions, scores, strict=True)
        ]
        sizes = [size_of(*request) for request in batch]
        start = 0
        for (asked, _), size in zip(batch, sizes, strict=True):
            end, share = start + len(asked), size / sum(sizes)
            yield Reply(
                scores[start:end],
                step_scores[start:end],
                reasons[start:end],
                self.by_step,
                round(stats.get("tokens_of_solutions", 0) * share),
                round(stats.get("tokens", 0) * share),
            )
            start = end


class Settings(BaseModel):
    """What a server is made from: options of `minos serve`, `args` of a Serve config."""

    model_config = ConfigDict(extra="forbid")
    model: str
    kind: str | None = None
    separator: str | None = None
    aggregation: Aggregation = "min"
    splitter: str = SPLITTER
    max_length: int = Field(4096, ge=8)
    replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1, description="above `replicas`: Serve scales between them")
    cpus: float | None = Field(None, gt=0, description="of each replica; all that Ray counts here are shared out")
    gpus: int = Field(0, ge=0, le=1)
    api_key_env: str | None = None
    max_body_mb: float = Field(4, gt=0)
    max_queue: int = Field(256, ge=1)
    batch_tokens: int = Field(16_384, ge=1)
    prompt: str = PLAIN_PROMPT
    unscored: float = 0.0
    name: str | None = None

    def most_replicas(self) -> int:
        """Replicas that may run at the same time."""
        return max(self.replicas, self.max_replicas or 0)

    def served(self) -> Served:
        """What answers depend on."""
        prompt = self.prompt.replace("\\n", "\n")
        if prompt.count("{}") != 1 or prompt.endswith("{}"):
            raise UserError(f"--prompt {self.prompt!r}: it needs one {{}} for the question, and text behind it")
        folder = Path(locate(Model(model=self.model), Run(".")))
        label = json.loads((folder / "config.json").read_text()).get("id2label", {}).get("0", "LABEL_0")
        return Served(self.name or folder.name, label, prompt, self.unscored)

    def key(self) -> str | None:
        """The key that clients need, if any."""
        if self.api_key_env is None:
            return None
        if not (key := os.environ.get(self.api_key_env, "").strip()):
            raise UserError(f"--api-key-env {self.api_key_env}: the environment has no such variable, or it is empty")
        return key

    def task(self) -> Task:
        """What a replica does; UserError for a model that cannot be served."""
        resolve(self.splitter)
        resources = Scoring(gpus=self.gpus, max_model_len=self.max_length)
        verifier = verifier_of(self.model, self.kind, self.separator)
        return Task(verifier, "", "", "", self.splitter, self.aggregation, resources)

    def replicas_of(self, task: Task, cpus: float) -> Any:
        """The bound Serve deployment of the replicas; each has so many CPUs where the settings do not say.

        Between `replicas` and `max_replicas` run: more while each has a batch in work and another that waits for it
        (`front.BATCHES`).
        """
        from ray import serve

        scaling: dict[str, Any] = {"num_replicas": self.replicas}
        if self.most_replicas() > self.replicas:
            limits = {"min_replicas": self.replicas, "max_replicas": self.most_replicas()}
            pace = {"target_ongoing_requests": 1.5, "look_back_period_s": 15, "upscale_delay_s": 10}
            scaling = {"autoscaling_config": {**limits, **pace}}
        replicas: Any = serve.deployment(
            Replica,
            name="Replica",
            ray_actor_options={"num_cpus": self.cpus or cpus, "num_gpus": self.gpus},
            max_ongoing_requests=self.max_queue,
            health_check_period_s=2,
            graceful_shutdown_timeout_s=20,
            max_constructor_retry_count=3,
            logging_config={"enable_access_log": False},
            **scaling,
        )
        return replicas.bind(task)

    def front(self, application: str, handle: Any) -> Any:
        """The HTTP side."""
        from minos_ray.serving.front import Front, Limits

        limits = Limits(int(self.max_body_mb * (1 << 20)), self.max_queue, self.batch_tokens)
        return Front(application, handle, self.served(), limits, self.key())


def serve_forever(settings: Settings, host: str, port: int) -> None:
    """Serves until SIGTERM or Ctrl-C, then answers what is in flight and ends the replicas.

    UserError for what is wrong with the request, before Ray starts where that can be known; WorkStopped when no
    replica can be started.
    """
    # Not imported: Ray reads its environment then, and `join` has not set that yet.
    if missing := ", ".join(name for name in EXTRA if find_spec(name) is None):
        raise UserError(f"minos serve needs Ray Serve (pip install 'ray[serve]'); missing: {missing}")
    settings.served()
    key, task = settings.key(), settings.task()
    with listening(host, port) as listener:
        if key is None and not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
            raise UserError(f"--host {host} lets other machines in: give clients a key (--api-key-env NAME)")
        address = f"http://{host}:{listener.getsockname()[1]}"
        print(f"minos serve: {settings.model} is loading; {address}", flush=True)
        # For a replica with several threads, which Ray starts on this machine: those that spin while they wait for each
        # other take the cores from this process and from whoever else shares them.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        join(Resources())
        cpus = settings.cpus or share_of_cpus(settings)
        require("serve", Actors(actors=settings.replicas, cpus=cpus, gpus=settings.gpus), WAIT_S)
        application = f"minos-{os.getpid()}-{listener.getsockname()[1]}"
        try:
            handle = start(application, settings.replicas_of(task, cpus))
            asyncio.run(answer(settings.front(application, handle), listener, address))
        finally:
            heed_sigterm()  # the event loop has taken its place
            end(application)


def share_of_cpus(settings: Settings) -> float:
    """CPUs of each replica where nobody says: those of a Ray of this machine are shared out. Ray heeds a container's
    limit, which `os.cpu_count` does not."""
    import ray

    if settings.gpus or joins(Resources()):
        return 1
    return max(1, int(ray.cluster_resources().get("CPU", 1)) // settings.most_replicas())


@contextmanager
def listening(host: str, port: int) -> Generator[socket.socket]:
    """A socket that listens; UserError where it cannot."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: {error}") from error
    with listener:
        yield listener


def start(application: str, replicas: Any) -> Any:
    """Starts Serve without its own HTTP servers, and the replicas; returns their handle, at once."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="Disabled")
    target = serve.RunTarget(replicas, name=application, route_prefix=None)
    (handle,) = serve.run_many([target], wait_for_applications_running=False)
    return handle


async def answer(front: Any, listener: socket.socket, address: str) -> None:
    """Answers requests until the process is told to end, or no replica can be started."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Generator[None]:
            """Signals are handled below: uvicorn raises them again at its end, as an exception in its own task."""
            yield

    options: Any = {"log_level": "warning", "access_log": False, "timeout_graceful_shutdown": DRAIN_S}
    options["timeout_keep_alive"] = 75  # longer than clients keep connections, which would meet a closed one
    server = Server(uvicorn.Config(front.app(), lifespan="on", **options))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.handle_exit, number, None)
    serving = asyncio.create_task(server.serve([listener]))
    until = time.monotonic() + WAIT_S
    while not (front.ready or serving.done() or (front.failure and front.failure.done())):
        if time.monotonic() > until and front.failure:
            front.failure.set_result(f"none has come up within {WAIT_S:g} s")
        await asyncio.sleep(0.1)
    if front.ready:
        print(f"minos serve: ready; POST {address}/score, /get_reward, /classify; /health, /metrics", flush=True)
        await asyncio.wait({serving, front.failure}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await serving
    if front.failure and front.failure.done():
        raise failure_of(front.failure.result())


def failure_of(message: str) -> Exception:
    """The error in Serve's account of why a replica did not start, which ends with a traceback."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for line in reversed(lines):
        name, _, text = line.partition(": ")
        if name.endswith("UserError"):
            return UserError(text)
    return WorkStopped(f"serve: no replica can be started: {lines[-1] if lines else message}")


def end(application: str) -> None:
    """Ends the replicas, and Serve where nothing else runs on it; a Ray that was started for them ends too."""
    import ray
    from ray import serve

    try:
        if ray.is_initialized():
            with suppress(TimeoutError):  # a replica that hangs; Serve goes on ending it
                serve.delete(application)
            if not serve.status().applications:
                serve.shutdown()
    finally:
        disconnect()


class Gateway:
    """The HTTP side as ingress of a Serve application: Serve's own servers hand it their requests."""

    def __init__(self, settings: Settings, handle: Any) -> None:
        self.settings, self.handle = settings, handle

    def __serve_build_asgi_app__(self) -> Any:
        from ray import serve

        return self.settings.front(serve.get_replica_context().app_name, self.handle).app()


def application(settings: Settings) -> Any:
    """A Serve application, for `serve run minos_ray.serving.serve:application model=...` and Serve configs.

    The address, the port and HTTPS are Serve's (`http_options`).
    """
    from ray import serve

    settings.key()
    most = 2 * settings.max_queue  # so that those above `max_queue` are answered with 429, not kept waiting
    gateway: Any = serve.deployment(
        serve.ingress()(Gateway), name="Gateway", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=most
    )
    return gateway.bind(settings, settings.replicas_of(settings.task(), 1))
