"""A replica of the verifier on Ray Serve: one model, one thread that scores, what waits is scored together."""

import asyncio
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from minos_ray.ranking.scorer import SolutionScorer, Task
from minos_ray.serving.contracts import Reply, Solution, tokens_of


@dataclass(eq=False)
class Asked:
    """The solutions of one request, and the future of their scores."""

    questions: list[str]
    solutions: list[Solution]
    reply: "asyncio.Future[Reply]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def size(self) -> int:
        """About how many tokens these are, without what they share."""
        return sum(map(tokens_of, self.solutions)) + sum(map(tokens_of, set(self.questions)))


class Replica:
    """Scores requests in the order in which they come; the verifier is loaded before the first."""

    def __init__(self, task: Task, batch_tokens: int) -> None:
        self.scorer, self.batch_tokens = SolutionScorer(task), batch_tokens
        self.scorer(["1 + 1?"], ["2"])  # loads the model, and computes once
        self.by_step = self.scorer.by_step()
        self.waiting: deque[Asked] = deque()
        self.thread = ThreadPoolExecutor(1)
        self.working: asyncio.Task[None] | None = None

    async def score(self, questions: list[str], solutions: list[Solution]) -> Reply:
        """The scores of each question's solution. A caller that is cancelled leaves the queue."""
        asked = Asked(questions, solutions)
        self.waiting.append(asked)
        if self.working is None or self.working.done():
            self.working = asyncio.create_task(self.work())
        return await asked.reply

    async def work(self) -> None:
        """Scores batches until nothing waits."""
        while batch := list(self.next_batch()):
            results = await asyncio.get_running_loop().run_in_executor(self.thread, self.score_batch, batch)
            for asked, result in zip(batch, results, strict=True):
                if asked.reply.done():
                    continue
                if isinstance(result, Exception):
                    asked.reply.set_exception(result)
                else:
                    asked.reply.set_result(result)

    def next_batch(self) -> Iterator[Asked]:
        """The first requests that wait, up to `batch_tokens` (or one); they share prefixes."""
        budget = self.batch_tokens
        while self.waiting and (budget == self.batch_tokens or self.waiting[0].size() <= budget):
            asked = self.waiting.popleft()
            if not asked.reply.done():
                budget -= asked.size()
                yield asked

    def score_batch(self, batch: list[Asked]) -> list[Reply | Exception]:
        """The replies of a batch; where it fails, of each request alone, so that one cannot fail the others."""
        try:
            return list(self.together(batch))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [result for asked in batch for result in self.score_batch([asked])]

    def together(self, batch: list[Asked]) -> Iterator[Reply]:
        """The reply of each request, all scored in one call."""
        questions = [question for asked in batch for question in asked.questions]
        solutions = [solution for asked in batch for solution in asked.solutions]
        scores, step_scores, stats = self.scorer.scored(questions, solutions)
        reasons = [
            self.scorer.reason(question, solution) if score is None else None
            for question, solution, score in zip(questions, solutions, scores, strict=True)
        ]
        start, size = 0, sum(asked.size() for asked in batch)
        for asked in batch:
            end, share = start + len(asked.solutions), asked.size() / size
            yield Reply(
                scores[start:end],
                step_scores[start:end],
                reasons[start:end],
                self.by_step,
                round(stats.get("tokens_of_solutions", 0) * share),
                round(stats.get("tokens", 0) * share),
            )
            start = end


def deployment(replicas: int, max_replicas: int, cpus: float, gpus: int, most: int) -> Any:
    """The Serve deployment of `Replica`. A replica takes `most` requests at once, and between `replicas` and
    `max_replicas` run, so that each has about an eighth of that."""
    from ray import serve

    scaling: dict[str, Any] = {"num_replicas": replicas}
    if max_replicas > replicas:
        limits = {"min_replicas": replicas, "max_replicas": max_replicas, "target_ongoing_requests": max(1, most // 8)}
        scaling = {"autoscaling_config": limits}
    return serve.deployment(
        Replica,
        name="Replica",
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        max_ongoing_requests=most,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=20,
        max_constructor_retry_count=3,
        logging_config={"enable_access_log": False},
        **scaling,
    )
