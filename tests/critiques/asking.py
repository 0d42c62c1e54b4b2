"""A critic's client in this process, on a scripted server."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minos_ray.critiques.client import Critic
from minos_ray.critiques.endpoint import Endpoint, headers
from minos_ray.critiques.prompts import Case, Request, content_key, label_aware
from minos_ray.critiques.reply import Answer, Cache
from minos_ray.critiques.stage import critique_status
from minos_ray.observe.progress import Progress
from minos_ray.store.run import Run
from tests.critiques.scripted import KEY, MakeConfig, Script, ScriptedServer, Serve


def requests(rows: int) -> list[Request]:
    """Different questions about one solution."""
    steps = ["Step 1: 1 + 1 = 2", "The answer is: 2"]
    texts = [label_aware(Case(f"Question {i}?", steps, [1, 1], True, "0", None)) for i in range(rows)]
    return [Request(content_key("m", text, 0.0, 9), text, expected=(2,)) for text in texts]


def only(answers: dict[str, Answer]) -> Answer:
    """The one answer."""
    [answer] = answers.values()
    return answer


def moments(server: ScriptedServer) -> list[float]:
    """When the requests came, from the first on."""
    return [moment - server.seen[0][0] for moment, _ in server.seen]


@dataclass
class Seen:
    """What went wrong on the way to the answers."""

    retries: Counter[str]
    complaints: Counter[str]


@dataclass
class Ask:
    """Asks a scripted server; the client, its server and its cache are kept, also when it raises."""

    path: Path
    serve: Serve
    make_config: MakeConfig

    def prepare(
        self,
        script: Script,
        rows: int = 1,
        client: dict[str, Any] | None = None,
        key: str = KEY,
        clients: int = 1,
        models: int = 200,
        query: str = "",
        **critique: Any,
    ) -> Critic:
        """A client on a new server, for `rows` requests; what earlier calls bought is in its cache."""
        run = Run(str(self.path))
        self.server, self.cache = self.serve(script), Cache(run)
        self.server.models = models
        config = self.make_config(run, self.server.url, {"actors": clients, **(client or {})}, **critique)
        url = self.server.url + query
        endpoint = Endpoint(config.critique, config.resources.client, url, key, headers(config.critique))
        self.progress = Progress("critique", rows, "critiques")
        self.critic = Critic(endpoint, self.cache, self.progress, critique_status)
        return self.critic

    def __call__(self, script: Script, rows: int = 1, **options: Any) -> tuple[dict[str, Answer], Seen, ScriptedServer]:
        """Asks `rows` requests, as far as the cache does not hold them."""
        critic = self.prepare(script, rows, **options)
        missing = [request for request in requests(rows) if request.key not in self.cache.answers]
        answers = asyncio.run(critic.ask(missing))
        asked = {request.key for request in requests(rows)}
        stored = {key: answer for key, answer in self.cache.answers.items() if key in asked}
        return stored | answers, Seen(critic.retries, critic.complaints), self.server
