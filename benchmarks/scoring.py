"""Scoring against the paper's way, padded batches and vLLM: the same weights, one process, fp32.

python benchmarks/scoring.py [--rounds 3] [--shapes small] [--cases distinct] [--without vllm] [--out FOLDER]

Everybody gets token ids. `distinct` is the worst case: random solutions of GSM8K's lengths that share their question
only. Padded batches are sorted by length, with an attention mask, of the best of several sizes; vLLM has its cache of
prefixes. Medians of alternating rounds; the last line of a table is the largest difference of scores.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from common import alternate, show
from transformers import AutoConfig
from transformers.utils import logging

from minos_ray.config.resources import Scoring
from minos_ray.config.schema import Model
from minos_ray.miniature import attempt, draw, solution_text
from minos_ray.scoring.verifier import load
from minos_ray.steps.encoding import Encoded, encode_solutions
from minos_ray.store.model_files import load_tokenizer, locate
from minos_ray.store.run import Run
from minos_ray.training.base import auto_class, saved_class
from minos_ray.training.pretrain import byte_level_bpe

Scores = list[list[float]]
# Layers, width, MLP, heads, key and value heads; problems x candidates of the worst case.
SHAPES = {"small": (4, 256, 688, 8, 4), "large": (8, 512, 1376, 16, 8)}
SIZES = {"small": (1, 256), "large": (1, 32)}
BATCHES = [("rows", 8), ("rows", 16), ("rows", 64), ("tokens", 2048), ("tokens", 8192)]
VLLM = Scoring(engine="vllm", kv_cache_gb=0.5, extra={"max_num_batched_tokens": 8192})
REAL = 5000  # real solutions that the tokenizer is trained on; 128 are scored
GEMINI = Path(os.environ.get("MINOS_SHARED") or Path(__file__).parents[2] / "shared" / "data") / "gsm8k_gemini"


def distinct(vocabulary: int, problems: int, candidates: int) -> list[Encoded]:
    """Random tokens: questions of about 100, solutions of about 150 in three to seven steps."""
    rng, found = np.random.default_rng(0), []
    for _ in range(problems):
        question = rng.integers(3, vocabulary, int(rng.normal(100, 15))).tolist()
        for length in rng.normal(150, 40, candidates).clip(40, 300).astype(int):
            ends = np.sort(rng.choice(length - 1, rng.integers(2, 7), replace=False)) + len(question)
            ids = question + rng.integers(3, vocabulary, length).tolist()
            found.append(Encoded(ids, [*ends.tolist(), len(ids) - 1], len(question)))
    return found


def miniature(tokenizer: Any, problems: int = 1, candidates: int = 256) -> list[Encoded]:
    """Candidates as the miniature's authors write them."""
    rng, found = random.Random(0), []
    for problem in (draw(rng) for _ in range(problems)):
        for calculations in (attempt(problem, rng) for _ in range(candidates)):
            found.append((problem.question, solution_text(calculations, calculations[-1].result).split("\n")))
    return encode_solutions(tokenizer, found)


def gemini() -> list[tuple[str, list[str]]]:
    """Real solutions, those of one question after one another."""
    rows = pq.read_table(next(iter(sorted(GEMINI.glob("*.parquet")))), columns=["question", "solution"])[
        :REAL
    ].to_pylist()
    return sorted((row["question"], row["solution"].split("\n")) for row in rows)


def save_tokenizer(folder: str, real: list[tuple[str, list[str]]]) -> Any:
    """A byte-level BPE trained on the real solutions; without them, the miniature's."""
    if not real:
        tokenizer = load_tokenizer(locate(Model(model="package:miniature/model"), Run(folder)))
    else:
        tokenizer = byte_level_bpe((part for q, steps in real for part in (q, *steps)), 2048)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_model(folder: str, kind: str, shape: str, tokenizer: Any) -> str:
    """A random Mistral with a verifier's head and the tokenizer."""
    from transformers import MistralConfig

    layers, hidden, intermediate, heads, kv_heads = SHAPES[shape]
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=1024,
        sliding_window=None,
        initializer_range=0.05,
        pad_token_id=0,
        num_labels=1,
    )
    torch.manual_seed(0)
    path = f"{folder}/{shape}-{kind}"
    auto_class(kind, config).from_config(config).float().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def batches(encoded: list[Encoded], unit: str, size: int) -> Iterator[list[int]]:
    """Places of solutions in order of length, so many rows or so many tokens with padding at once."""
    chosen: list[int] = []
    for place in sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids)):
        width = len(encoded[place].ids)
        if chosen and (len(chosen) + 1) * (1 if unit == "rows" else width) > size:
            yield chosen
            chosen = []
        chosen.append(place)
    yield chosen


@torch.inference_mode()
def padded(model: Any, kind: str, encoded: list[Encoded], unit: str, size: int) -> Scores:
    """Scores as transformers gives them; a batch of equal lengths needs no mask."""
    found: Scores = [[] for _ in encoded]
    for chosen in batches(encoded, unit, size):
        width = len(encoded[chosen[-1]].ids)
        ids, mask = torch.zeros(len(chosen), width, dtype=torch.long), torch.zeros(len(chosen), width, dtype=torch.long)
        for line, place in enumerate(chosen):
            length = len(encoded[place].ids)
            ids[line, :length], mask[line, :length] = torch.tensor(encoded[place].ids), 1
        told = {} if mask.all() else {"attention_mask": mask}
        scores = model(input_ids=ids, use_cache=False, **told).logits.sigmoid()
        for line, place in enumerate(chosen):
            found[place] = (
                scores[line].tolist() if kind == "orm" else scores[line, encoded[place].positions, 0].tolist()
            )
    return found


def pooled(vllm: Any, encoded: list[Encoded]) -> Scores:
    """Scores of vLLM, whose cache forgets what the round before has left there."""
    assert vllm.llm.reset_prefix_cache()
    return vllm.score_encoded(encoded)[0]


def best_batches(model: Any, kind: str, encoded: list[Encoded]) -> tuple[str, int]:
    """The fastest of `BATCHES` on a sixteenth of the solutions, of all lengths, each tried twice."""
    some = sorted(encoded, key=lambda e: len(e.ids))[:: max(1, len(encoded) // 64)]
    seconds = {}
    for batch in BATCHES * 2:
        start = time.perf_counter()
        padded(model, kind, some, *batch)
        seconds[batch] = min(seconds.get(batch, np.inf), time.perf_counter() - start)
    return min(seconds, key=seconds.__getitem__)


def compare(title: str, encoded: list[Encoded], ways: dict[str, Callable[[], Scores]], rounds: int, out: Any) -> None:
    """Prints one table; the first way is ours."""
    scores: dict[str, list[float]] = {}

    def kept(name: str) -> Callable[[], None]:
        return lambda: scores.update({name: [value for line in ways[name]() for value in line]})

    seconds = alternate({name: kept(name) for name in ways}, rounds)
    show(title, len(encoded), "candidates", seconds, out and Path(out) / f"{title.replace(' ', '-')}.json")
    ours = next(iter(scores.values()))
    print(
        f"  largest difference of scores: {max(float(np.abs(np.subtract(ours, s)).max()) for s in scores.values()):.1e}"
    )


def main() -> None:
    """Prints a table for each shape, kind and case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--cases", nargs="+", default=["distinct", "miniature", "gemini"])
    parser.add_argument("--without", nargs="+", choices=["one", "vllm"], default=[])
    parser.add_argument("--out", help="folder for JSON files")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    real = gemini() if GEMINI.is_dir() else []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = save_tokenizer(folder, real)
        for shape in arguments.shapes:
            cases = {"distinct": distinct(len(tokenizer), *SIZES[shape])}
            if shape == "small":
                cases |= {"miniature": miniature(tokenizer)} | (
                    {"gemini": encode_solutions(tokenizer, real[:128])} if real else {}
                )
            for kind in ("orm", "prm"):
                run(arguments, save_model(folder, kind, shape, tokenizer), f"{shape} {kind}", cases)


def run(arguments: argparse.Namespace, path: str, name: str, cases: dict[str, list[Encoded]]) -> None:
    """The tables of one model."""
    kind = name.split()[1]
    ours = load(path, False, Scoring())
    model = saved_class(AutoConfig.from_pretrained(path)).from_pretrained(path).eval()
    vllm = None if "vllm" in arguments.without else load(path, False, VLLM)
    for case in (case for case in arguments.cases if case in cases):
        encoded = cases[case]
        unit, size = best_batches(model, kind, encoded)
        ways = {"minos_ray": lambda e=encoded: ours.score_encoded(e)[0]}
        ways[f"padded, best: {size} {unit}"] = lambda e=encoded, u=unit, s=size: padded(model, kind, e, u, s)
        if vllm is not None:
            ways["vLLM pooling"] = lambda e=encoded: pooled(vllm, e)
        if "one" not in arguments.without:
            ways["one at a time"] = lambda e=encoded: padded(model, kind, e, "rows", 1)
        compare(f"{name} {case}", encoded, ways, arguments.rounds, arguments.out)


if __name__ == "__main__":
    main()
