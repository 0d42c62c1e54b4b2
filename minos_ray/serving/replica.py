"""A replica of the verifier on Ray Serve: one model, one thread that scores."""

import asyncio
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from minos_ray.ranking.scorer import SolutionScorer, Task
from minos_ray.serving.contracts import Pairs, Reply, size_of


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


def deployment(replicas: int, max_replicas: int, cpus: float, gpus: int, most: int) -> Any:
    """The Serve deployment of `Replica`. A replica takes `most` batches at once; between `replicas` and `max_replicas`
    run: more while each has a batch in work and another that waits for it (`front.BATCHES`)."""
    from ray import serve

    scaling: dict[str, Any] = {"num_replicas": replicas}
    if max_replicas > replicas:
        limits = {"min_replicas": replicas, "max_replicas": max_replicas, "target_ongoing_requests": 1.5}
        scaling = {"autoscaling_config": {**limits, "look_back_period_s": 15, "upscale_delay_s": 10}}
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
