"""Our grading against math-verify called as its README does (parse and verify with their own alarms, one process).

python benchmarks/grading.py [--rows 2000] [--rounds 3]      MINOS_SHARED: folder with gsm8k_gemini and math500
"""

import argparse
import json
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
from common import alternate, show
from math_verify import parse, verify

from minos_ray.grading.graders import Grader, Grading, gsm8k, math
from minos_ray.miniature import attempt, draw, gold_chain, solution_text

Pairs = list[tuple[str, str]]
SHARED = Path(os.environ.get("MINOS_SHARED") or Path(__file__).parents[2] / "shared" / "data")


def gsm8k_pairs(rows: int) -> Pairs:
    """Real solutions where the data is, else the miniature's; gold first."""
    if SHARED.is_dir():
        table = pq.read_table(SHARED / "gsm8k_gemini" / "part-0.parquet", columns=["target", "solution"]).slice(0, rows)
        return list(zip(table["target"].to_pylist(), table["solution"].to_pylist(), strict=True))
    rng = random.Random(0)
    problems = [draw(rng) for _ in range(rows)]
    golds = [str(gold_chain(problem)[-1].calculation.result) for problem in problems]
    tries = [attempt(problem, rng) for problem in problems]
    return [(gold, solution_text(steps, steps[-1].result)) for gold, steps in zip(golds, tries, strict=True)]


def math_pairs(rows: int) -> Pairs:
    """Each gold answer of MATH500 with its own solution, then with another problem's."""
    problems = [json.loads(line) for line in (SHARED / "math500" / "test.jsonl").open()]
    golds, texts = [p["answer"] for p in problems], [p["solution"] for p in problems]
    return (list(zip(golds, texts, strict=True)) + list(zip(golds, texts[1:] + texts[:1], strict=True)))[:rows]


def naive(pairs: Pairs) -> list[bool]:
    """What a reader of math-verify's README writes."""
    return [bool(verify(parse(f"${gold}$"), parse(text))) for gold, text in pairs]


def contenders(pairs: Pairs, kept: Grading) -> dict[str, Callable[[], object]]:
    """Ours with an empty memory, ours that has seen the pairs, and the rival."""
    golds, texts = zip(*pairs, strict=True)

    def unremembered() -> None:
        kept.verdicts.known.clear()
        kept(golds, texts)

    return {
        "minos_ray, each pair new": unremembered,
        "minos_ray, pairs seen before": lambda: kept(golds, texts),
        "math-verify, parse + verify": lambda: naive(pairs),
    }


def compare(title: str, pairs: Pairs, grader: Grader, rounds: int) -> None:
    """Rates and agreement on the same pairs."""
    with Grading(grader, 5.0, len(os.sched_getaffinity(0))) as grading:
        show(title, len(pairs), "pairs", alternate(contenders(pairs, grading), rounds))
        ours = [grade.correct for grade in grading(*zip(*pairs, strict=True))]
    theirs = naive(pairs)
    only_ours = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    only_theirs = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    same = len(pairs) - only_ours - only_theirs
    print(f"  same verdict {same / len(pairs):.2%}; correct only by ours {only_ours}, only by theirs {only_theirs}")


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    compare("GSM8K", gsm8k_pairs(arguments.rows), gsm8k, arguments.rounds)
    if SHARED.is_dir():
        compare("MATH500", math_pairs(arguments.rows), math, arguments.rounds)


if __name__ == "__main__":
    main()
