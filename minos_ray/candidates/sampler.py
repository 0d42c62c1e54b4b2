"""The worker of the sampling actors: a batch of units in, candidate rows out."""

import time
from typing import Any

import pyarrow as pa

from minos_ray import schema
from minos_ray.candidates.engine import Generator, Request, Text
from minos_ray.models import locate
from minos_ray.sections import Engine, Model, Sample
from minos_ray.store import Run

# A unit as the actors get it: which candidates, and the prompt.
UNITS = pa.schema(
    [
        ("unit_id", pa.string()),
        ("problem_id", pa.string()),
        ("first", pa.int32()),
        ("count", pa.int32()),
        ("prompt", pa.list_(pa.int32())),
    ]
)


class Sampler:
    """Samples the candidates of units (schema `UNITS`) with its own engine."""

    def __init__(self, run: str, model: Model, resources: Engine, sample: Sample, seed: int) -> None:
        self.generator = Generator(locate(model, Run(run)), model, resources)
        self.model, self.seed = model.model, seed
        self.sampling: dict[str, Any] = {
            "temperature": sample.temperature,
            "top_p": sample.top_p,
            "top_k": sample.top_k,
            "max_tokens": sample.max_tokens,
            "stop": list(sample.stop) or None,
        }

    def __call__(self, batch: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Candidate rows of the batch and its numbers: tokens, seconds, candidates by finish reason."""
        units = batch.to_pylist()
        start = time.monotonic()
        requests = [Request(unit["prompt"], unit["count"]) for unit in units]
        texts = self.generator.generate(requests, self.sampling, seed=f"{self.seed} {units[0]['unit_id']}")
        rows = [
            self.row(unit["problem_id"], unit["first"] + i, text)
            for unit, made in zip(units, texts, strict=True)
            for i, text in enumerate(made)
        ]
        return schema.table("candidates", rows), numbers(texts, time.monotonic() - start)

    def row(self, problem_id: str, index: int, text: Text) -> dict[str, Any]:
        """One candidate."""
        return {
            "candidate_id": f"{problem_id}/{index}",
            "problem_id": problem_id,
            "index": index,
            "text": text.text,
            "finish_reason": text.reason,
            "num_tokens": text.tokens,
            "model": self.model,
        }


def numbers(texts: list[list[Text]], seconds: float) -> dict[str, float]:
    """What is summed over all batches: seconds of all actors, tokens, texts by finish reason."""
    total: dict[str, float] = {"seconds": seconds, "tokens": 0}
    for text in (text for made in texts for text in made):
        total["tokens"] += text.tokens
        total[text.reason] = total.get(text.reason, 0) + 1
    return total
