"""Asking the critic from Ray Data actors that share one limiter."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
from pydantic import SecretStr

from minos_ray.cluster import connect
from minos_ray.config.load import Config
from minos_ray.config.resources import Client
from minos_ray.config.schema import Critique
from minos_ray.critiques.budget import StopAtBudget
from minos_ray.critiques.cache import BOUGHT, Answer, Cache
from minos_ray.critiques.client import Endpoint, Reader, Request, headers, preflight
from minos_ray.critiques.gate import GONE
from minos_ray.critiques.limiter import Limiter
from minos_ray.critiques.trouble import Stop
from minos_ray.errors import UserError, WorkStopped
from minos_ray.observe.progress import Progress
from minos_ray.work.tally import ANSWER_S, polling, stop_actors_on_exit

RETRIES = 3
"""A batch whose actor dies is given to the new one; after so many deaths the batch itself must be the cause."""
IN_HAND = 2
"""Requests that an actor has in hand for each that may be in flight: those of slow batches, and those that wait."""
LARGEST_BATCH, STATE_S, DRAIN_S = 32, 60.0, 10.0


class EndpointGone(WorkStopped):
    """The endpoint, or the process that holds the limits, is down; a rerun goes on."""


ERRORS = {"user": UserError, "budget": StopAtBudget, "gone": EndpointGone}


def ask_online(
    config: Config,
    section: Critique,
    base_url: str,
    key: str,
    cache: Cache,
    requests: list[Request],
    progress: Progress,
    reader: Reader | None,
    known: Mapping[str, int],
) -> tuple[dict[str, Answer], dict[str, Any]]:
    """The answers by key, and what went wrong; whatever was bought is in the cache, also when this raises.

    `progress.total` counts the requests answered by the cache too: what may fail is a share of it. `known` says what
    the reader makes of some of those.
    """
    import ray

    limits = config.resources.client
    endpoint = Endpoint(section, limits, base_url, key, headers(section))
    asyncio.run(preflight(endpoint))
    connect.connect(config)
    if not endpoint.loopback:  # clients of one on this machine take no CPUs, see `replies`
        connect.require("client", limits, config.resources.wait_s)
    tally = Tally(cache, progress, f"resources.client.timeout_s = {limits.timeout_s:g}")
    with limiter(section, limits, cache.spent_usd, progress.total, known) as shared:
        with (
            polling(lambda: tally.look(*seen(shared))),
            stop_actors_on_exit(replies(endpoint, shared, cache.run.path, requests, config.seed, reader)) as rows,
        ):
            for row in rows:
                tally.add(row)
            with suppress(ray.exceptions.RayError):  # then the limiter is dead, as `state` says below
                tally.look(*seen(shared))
        stop, lost_usd = state(shared)
    if stop:
        raise ERRORS[stop.kind](stop.message)
    if lacking := len(requests) - len(tally.answers):
        raise EndpointGone(f"critique: {lacking} requests came back without an answer; run again to go on")
    return tally.answers, tally.details() | ({"lost_usd": round(lost_usd, 6)} if lost_usd else {})


@contextmanager
def limiter(section: Critique, limits: Client, spent_usd: float, total: int, known: Mapping[str, int]) -> Iterator[Any]:
    """The limiter as an actor on this node. When this process is interrupted, what is in flight may still arrive."""
    import ray

    here = {"scheduling_strategy": connect.on_this_node(), "num_cpus": 0, "max_restarts": 0}
    shared = ray.remote(Limiter).options(**here).remote(section, limits, spent_usd, total, known)
    try:
        yield shared
    except KeyboardInterrupt:
        shared.halt.remote(Stop("gone", "interrupted"))
        ray.wait([shared.drained.remote()], timeout=DRAIN_S)
        raise
    finally:
        ray.kill(shared)


def state(shared: Any) -> tuple[Stop | None, float]:
    """Why the limiter stopped the work, and what may have been spent in vain."""
    import ray

    try:
        return ray.get(shared.state.remote(), timeout=STATE_S)
    except ray.exceptions.RayActorError:
        return GONE, 0.0


def seen(shared: Any) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """What the limiter has seen: requests that wait and fly, rows that ended by status, errors by name."""
    import ray

    load, (statuses, errors) = ray.get([shared.load.remote(), shared.ends.remote()], timeout=ANSWER_S)
    return load, statuses, errors


def replies(
    endpoint: Endpoint, shared: Any, run: str, requests: list[Request], seed: int, reader: Reader | None
) -> Iterator[dict[str, Any]]:
    """Rows of `worker.REPLIES`, as they come."""
    import ray
    from ray.data import ActorPoolStrategy

    from minos_ray.critiques.worker import Asker

    limits = endpoint.limits
    size = batch_size(len(requests), limits)
    threads = -(-IN_HAND * limits.concurrency // size)
    kwargs = {"section": endpoint.section, "limits": limits, "base_url": endpoint.base_url, "run": run, "seed": seed}
    kwargs |= {"reader": reader, "headers": {name: SecretStr(value) for name, value in endpoint.headers.items()}}
    # What listens on the driver's loopback is reached from its node alone, which may offer no CPUs.
    place = (
        {"scheduling_strategy": connect.on_this_node(), "num_cpus": 0}
        if endpoint.loopback
        else {"num_cpus": limits.cpus}
    )
    done = ray.data.from_arrow(blocks(requests, size)).map_batches(
        Asker,
        fn_constructor_kwargs={"limiter": shared, "key": SecretStr(endpoint.key), **kwargs},
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            size=limits.actors,
            max_tasks_in_flight_per_actor=threads + 2,
            max_concurrent_calls_per_actor=threads,
            enable_true_multi_threading=True,
        ),
        max_restarts=-1,
        max_task_retries=RETRIES,
        **place,
    )
    try:
        yield from done.iter_rows()
    except ray.exceptions.RayActorError as error:
        raise WorkStopped(
            f"critique: a batch killed {RETRIES + 1} actors in a row (memory? Ray's logs say more); what was bought is "
            "kept, a rerun does the rest"
        ) from error


def batch_size(requests: int, limits: Client) -> int:
    """Small enough that all slots of all actors are busy, large enough that a task costs little beside its requests."""
    even = requests // (limits.actors * 8)
    return max(1, min(LARGEST_BATCH, limits.concurrency // 4, even))


def blocks(requests: list[Request], size: int) -> list[pa.Table]:
    """One block per batch."""
    from minos_ray.critiques.worker import REQUESTS

    rows = [{"key": request.key, "messages": request.messages, "wanted": request.wanted} for request in requests]
    return [pa.Table.from_pylist(rows[i : i + size], schema=REQUESTS) for i in range(0, len(rows), size)]


class Tally:
    """Sums up replies and shows the progress: cost so far and expected in all, retries; `timeout` is that key."""

    def __init__(self, cache: Cache, progress: Progress, timeout: str) -> None:
        self.cache, self.progress, self.timeout = cache, progress, timeout
        self.answers: dict[str, Answer] = {}
        self.spent_before, self.cost, self.tokens = cache.spent_usd, 0.0, 0
        self.retries: Counter[str] = Counter()
        self.complaints: Counter[str] = Counter()
        self.first = progress.done

    def add(self, row: dict[str, Any]) -> None:
        """One row of `worker.REPLIES`; those that were stopped have no outcome and are only asked for again later."""
        self.retries.update(row.pop("retries"))
        self.complaints.update(row.pop("complaints"))
        key = row.pop("key")
        if row["outcome"] is None:
            return
        answer = self.answers[key] = Answer(**row)
        if answer.outcome in BOUGHT:
            self.cache.take(key, answer)
        self.cost += answer.cost_usd
        self.tokens += answer.prompt_tokens + answer.completion_tokens
        spent = self.spent_before + self.cost
        self.progress.note(tokens=self.tokens, cost_usd=round(spent, 6))
        self.show(len(self.answers), cost=self._cost())

    def look(self, load: dict[str, int], statuses: dict[str, int], errors: dict[str, int]) -> None:
        """Shows what the limiter knows already of rows whose batch is not complete: statuses, retries, timeouts."""
        lost = {status: number for status, number in statuses.items() if status != "ok"}
        # The last error of a row that was given up is not followed by a retry.
        retries = sum(errors.values()) - statuses.get("failed", 0) - statuses.get("bad_request", 0)
        self.progress.note(lost, retries=retries, **load)
        late = {"timeout": f"{errors['timeout']} ({self.timeout})"} if errors.get("timeout") else {}
        self.show(sum(statuses.values()), retries=retries, **late)

    def show(self, came: int, **shown: object) -> None:
        """At least so many rows have ended in this run."""
        with self.progress.lock:
            self.progress.advance(max(0, self.first + came - self.progress.done), **shown)

    def _cost(self) -> str:
        """`1.20 of about 3.40 USD`, with what earlier runs spent."""
        todo = self.progress.total - self.first - len(self.answers)
        expected = self.spent_before + self.cost * (1 + todo / len(self.answers))
        return f"{self.spent_before + self.cost:.2f} of about {expected:.2f} USD"

    def details(self) -> dict[str, Any]:
        """For the manifest."""
        return {"retries": dict(self.retries), "complaints": dict(self.complaints.most_common(5))}
