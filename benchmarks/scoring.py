"""Scoring with shared beginnings against padded batches and one candidate at a time, same weights, same scores.

python benchmarks/scoring.py [--problems 4] [--rounds 3]
"""

import argparse
import random
import tempfile

import torch
from common import alternate, show
from transformers import AutoModelForTokenClassification, AutoTokenizer

from minos_ray.models import locate
from minos_ray.problems.miniature.chain import solution_text
from minos_ray.problems.miniature.maker import draw
from minos_ray.problems.miniature.noise import attempt
from minos_ray.scoring.scorer import Scorer
from minos_ray.sections import Model
from minos_ray.store import Run
from minos_ray.training import encoding

Solution = tuple[str, list[str]]


def solutions(problems: int, candidates: int = 256) -> list[Solution]:
    """Candidates as the miniature's authors write them."""
    rng = random.Random(0)
    found = []
    for problem in (draw(rng) for _ in range(problems)):
        for calculations in (attempt(problem, rng) for _ in range(candidates)):
            found.append((problem.question, solution_text(calculations, calculations[-1].result).split("\n")))
    return found


def new_prm(folder: str) -> str:
    """A PRM on the miniature's base model, with a new head."""
    base = locate(Model(model="package:problems/miniature/model"), Run(folder))
    torch.manual_seed(0)
    AutoModelForTokenClassification.from_pretrained(base, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@torch.inference_mode()
def padded(model: torch.nn.Module, encoded: list[encoding.Encoded], rows: int) -> list[list[float]]:
    """Scores in length-sorted padded batches of `rows`."""
    found: list[list[float]] = [[] for _ in encoded]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
    for first in range(0, len(order), rows):
        chosen = order[first : first + rows]
        width = len(encoded[chosen[-1]].ids)
        ids = torch.tensor([encoded[i].ids + [0] * (width - len(encoded[i].ids)) for i in chosen])
        scores = model(input_ids=ids).logits[..., 0].sigmoid()
        for line, i in enumerate(chosen):
            found[i] = scores[line, encoded[i].positions].tolist()
    return found


def main() -> None:
    """Prints the table and the largest difference between the scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    asked = solutions(arguments.problems)
    with tempfile.TemporaryDirectory() as folder:
        scorer = Scorer(new_prm(folder))
        model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    encoded = encoding.encode_solutions(scorer.tokenizer, asked)
    ours, theirs = scorer.score(asked)[0], padded(model, encoded, 64)
    largest = max(abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))
    seconds = alternate(
        {
            "minos_ray, shared beginnings": lambda: scorer.score(asked),
            "transformers, padded batches of 64": lambda: padded(model, encoded, 64),
            "transformers, one at a time": lambda: padded(model, encoded, 1),
        },
        arguments.rounds,
    )
    show("PRM scoring, 256 candidates a problem", len(asked), "candidates", seconds)
    print(f"  largest difference of scores: {largest:.1e}")


if __name__ == "__main__":
    main()
