"""What choosing among millions of labelled solutions takes: critiques' candidates, and the plan of the critic as judge.

python benchmarks/choosing.py [--problems 1000000] [--candidates 8] [--count 30000] [--folder DIR] [--judge]

Made-up labels with real ids and about 200 characters of steps, in parts of 25,600. Half of the problems are of the
split `train`, among whose candidates `--count` are chosen; with `--judge` also the units of `score.judge` are planned,
on the other half. Seconds of CPU, and the peak of memory over what the process has with everything imported.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from planning import peak

from minos_ray.critiques.select import select_stored
from minos_ray.problems.split import read_problems
from minos_ray.scoring import judge
from minos_ray.store import columns as schema
from minos_ray.store.run import Run

PART = 25_600
STEPS = ["Step 1: Tom has # apples and buys # more at the shop.", "Step 2: # + # = #, which is what he has now."]
STEPS += ["Step 3: We check this again, and again it is # apples.", "The answer is: #"]


def make(run: Run, problems: int, candidates: int) -> None:
    """Problems, and their labels: two thirds are right."""
    numbers = pa.array(np.arange(problems)).cast(pa.string())
    ids = pc.binary_join_element_wise("benchmark/", numbers, "")
    splits = pa.array(np.where(np.arange(problems) % 2, "test", "train"))
    question = pc.binary_join_element_wise("How many apples has Tom in the ", numbers, "th of these problems?", "")
    constant = {"dataset": "benchmark", "answer": "7", "solution": ""}
    repeated = {name: pa.array([value]).take(pa.array(np.zeros(problems, int))) for name, value in constant.items()}
    columns = {"problem_id": ids, "split": splits, "question": question, **repeated}
    artefact, labels = run.artefact("problems"), run.artefact("labels")
    artefact.begin({"import": "benchmark"})
    artefact.write_part("0", pa.table({name: columns[name] for name in schema.SCHEMAS["problems"].names}))
    artefact.complete({})
    labels.begin({"import": "benchmark"})
    for first in range(0, problems * candidates, PART):
        row = np.arange(first, min(first + PART, problems * candidates))
        labels.write_part(f"{first:012}", label_rows(ids.take(pa.array(row // candidates)), row, row % candidates))
    labels.complete({})


def label_rows(problem_ids: pa.Array, row: np.ndarray, index: np.ndarray) -> pa.Table:
    """Labels of these candidates, each with a number of its own in every step."""
    number, size = pa.array(row).cast(pa.string()), len(row)
    steps = [pc.binary_join_element_wise(*split, number) for split in (text.split("#") for text in STEPS)]
    ends = np.arange(size + 1, dtype=np.int32) * len(steps)
    flat = pa.concat_arrays(steps).take(pa.array(np.arange(size * len(steps)).reshape(len(steps), size).T.ravel()))
    columns = {
        "candidate_id": pc.binary_join_element_wise(problem_ids, pa.array(index).cast(pa.string()), "/"),
        "problem_id": problem_ids,
        "answer": number,
        "correct": pa.array(row % 3 > 0),
        "status": pa.array(np.where(row % 3 > 0, "correct", "wrong")),
        "steps": pa.ListArray.from_arrays(ends, flat),
        "step_labels": pa.ListArray.from_arrays(ends, pa.array(np.full(size * len(steps), -1, np.int8))),
        "step_scores": pa.nulls(size, schema.FLOATS),
        "step_source": pa.array([""] * size),
        "error_types": pa.ListArray.from_arrays(ends * 0, pa.array([], pa.string())),
    }
    return pa.table(columns).cast(schema.SCHEMAS["labels"])


def measured(title: str, rows: int, work: Callable[[], object]) -> None:
    """Prints what a piece of work took."""
    before, start = peak(), time.process_time()
    work()
    took, more = time.process_time() - start, peak() - before
    print(
        f"{title}: {took:.1f} s of CPU, {more:,} MiB more at the peak, {more * 2**20 / rows:.0f} bytes each", flush=True
    )


def main() -> None:
    """Makes the run, chooses, plans."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1_000_000)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--count", type=int, default=30_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--judge", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = Run(str(options.folder or temporary))
        if not run.exists("labels/manifest.json"):
            make(run, options.problems, options.candidates)
        rows = options.problems * options.candidates // 2
        if options.judge:
            measured(
                f"plan of {options.problems // 2:,} problems to judge", options.problems // 2, lambda: judge.plan(run)
            )
        train = set(read_problems(run, "train", ["problem_id"])["problem_id"].to_pylist())
        labels = run.artefact("labels")
        title, count = f"{options.count:,} of {rows:,} candidates", options.count
        measured(title, rows, lambda: select_stored(labels, train, count, 0.5, 0))


if __name__ == "__main__":
    main()
