"""Answers of a critic, from the cache or its endpoint."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from minos_ray.config.endpoints import OFFLINE
from minos_ray.config.load import Config, secret
from minos_ray.config.schema import Critique
from minos_ray.critiques.batch_record import refuse_open
from minos_ray.critiques.cache import Answer, Cache
from minos_ray.critiques.client import Reader, Request, status_of
from minos_ray.critiques.prices import priced
from minos_ray.miniature.critic_server import offline_critic
from minos_ray.observe.progress import Progress


def ask(
    config: Config, section: Critique, tasks: Sequence[Any], cache: Cache, reader: Reader
) -> tuple[dict[str, Answer], dict[str, Any]]:
    """Answers of all tasks by key, from the cache or the endpoint, and what the endpoint complained about.

    Any tasks with a `request` will do; they are asked for as JSON when their requests say so. `reader` tells of each
    answer, as it comes, whether it can be used: when none of the first can, no more are bought.
    """
    wanted = {task.request.key: task.request for task in tasks}
    missing = [request for key, request in wanted.items() if key not in cache.answers]
    if not missing:
        return cache.answers, {}
    if section.mode == "online":
        refuse_open(cache.run, [request.key for request in missing])
    known = until_useful(wanted.values(), cache, reader)
    section = priced(section).model_copy(update={"structured": any(request.structured for request in missing)})
    with (
        endpoint(section, config.seed) as (base_url, key),
        Progress("critique", len(wanted), "critiques", len(wanted) - len(missing), cache.run) as progress,
    ):
        if section.mode == "batch":
            from minos_ray.critiques.batch import ask_batch

            asked, details = ask_batch(
                section, config.resources.client, base_url, key, cache, missing, progress, reader=reader, known=known
            )
        else:
            from minos_ray.critiques.online import ask_online

            asked, details = ask_online(config, section, base_url, key, cache, missing, progress, reader, known)
    return cache.answers | asked, details


def until_useful(requests: Iterable[Request], cache: Cache, reader: Reader) -> Counter[str]:
    """The statuses of what the cache holds, up to the first answer that can be used: then others can be, too."""
    statuses: Counter[str] = Counter()
    for request in requests:
        if request.key in cache.answers and not statuses["ok"]:
            statuses[status_of(cache.answers[request.key], request, reader)] += 1
    return statuses


@contextmanager
def endpoint(section: Critique, seed: int) -> Iterator[tuple[str, str]]:
    """Address and key of the critic; `offline` starts the miniature's own and ends it."""
    if section.base_url == OFFLINE:
        with offline_critic(seed) as address_and_key:
            yield address_and_key
        return
    yield section.base_url, secret(section.api_key_env)
