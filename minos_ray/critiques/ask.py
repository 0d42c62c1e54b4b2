"""Answers of a critic, from the cache or its endpoint."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from minos_ray.cluster.connect import connect, heed_sigterm, joins
from minos_ray.config.load import Config
from minos_ray.config.schema import Critique
from minos_ray.critiques.batch import Batches, require_no_open_batches
from minos_ray.critiques.cache import Cache
from minos_ray.critiques.client import Critic
from minos_ray.critiques.endpoint import open_endpoint
from minos_ray.critiques.limits import priced
from minos_ray.critiques.reply import Answer, Reader, status_of
from minos_ray.critiques.request import Request
from minos_ray.observe.progress import Progress


def ask(
    config: Config, section: Critique, requests: Sequence[Request], cache: Cache, reader: Reader
) -> tuple[dict[str, Answer], dict[str, Any]]:
    """Answers of all requests by key, from the cache or the endpoint, and what the endpoint complained about.

    They are asked for as JSON when they say so. `reader` tells of each answer, as it comes, whether it can be used:
    when none of the first can, no more are bought.
    """
    unique = {request.key: request for request in requests}
    missing = [request for key, request in unique.items() if key not in cache.answers]
    if not missing:
        return cache.answers, {}
    online = section.mode == "online"
    if online:
        require_no_open_batches(cache.run, [request.key for request in missing])
    before = until_usable(unique.values(), cache, reader)
    section = priced(section).model_copy(update={"structured": any(request.structured for request in missing)})
    with (
        open_endpoint(section, config.resources.client, config.seed) as endpoint,
        Progress("critique", len(unique), "critiques", len(unique) - len(missing), cache.run) as progress,
    ):
        heed_sigterm()
        if joins(config.resources):  # where the numbers of the progress become metrics of the cluster
            connect(config)
        buyer = (Critic if online else Batches)(endpoint, cache, progress, reader, before, config.seed)
        answers = asyncio.run(buyer.ask(missing))
        return cache.answers | answers, buyer.details()


def until_usable(requests: Iterable[Request], cache: Cache, reader: Reader) -> Counter[str]:
    """The statuses of what the cache holds, up to the first answer that can be used: then others can be, too."""
    statuses: Counter[str] = Counter()
    for request in requests:
        if request.key in cache.answers and not statuses["ok"]:
            statuses[status_of(cache.answers[request.key], request, reader)] += 1
    return statuses
