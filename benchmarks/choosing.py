"""What choosing among millions of solutions takes: critiques' candidates, and the plan of the critic as judge.

python benchmarks/choosing.py [--problems 1000000] [--candidates 8] [--count 30000] [--folder DIR] [--judge]
                              [--commands] [--cpus 2]

Made-up labels with real ids and about 200 characters of steps, in parts of 25,600. Half of the problems are of the
split `train`, among whose candidates `--count` are chosen; with `--judge` also the units of `score.judge` are planned,
on the other half. Seconds of CPU, and the peak of memory over what the process has with everything imported.

With `--commands` texts and the scores of four verifiers are made up instead, `minos label` grades them before that and
`minos evaluate` selects among them afterwards, each in a process of its own; memory is then all that the process had.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from planned import VERIFIERS
from planning import peak

from minos_ray.problems.split import read_problems, select_stored
from minos_ray.scoring import judge
from minos_ray.store import columns as schema
from minos_ray.store.run import Run

PART = 25_600
STEPS = ["Step 1: Tom has # apples and buys # more at the shop.", "Step 2: # + # = #, which is what he has now."]
STEPS += ["Step 3: We check this again, and again it is # apples."]
SCORES = [f"scores/{name}" for name in VERIFIERS]


def make(run: Run, problems: int, candidates: int, labelled: bool) -> None:
    """Problems, and their labels or texts and scores: two thirds are right."""
    numbers = pa.array(np.arange(problems)).cast(pa.string())
    ids = pc.binary_join_element_wise("benchmark/", numbers, "")
    splits = pa.array(np.where(np.arange(problems) % 2, "test", "train"))
    question = pc.binary_join_element_wise("How many apples has Tom in the ", numbers, "th of these problems?", "")
    constant = {"dataset": "benchmark", "solution": ""}
    repeated = {name: pa.array([value]).take(pa.array(np.zeros(problems, int))) for name, value in constant.items()}
    columns = {"problem_id": ids, "split": splits, "question": question, "answer": numbers, **repeated}
    artefacts = {"problems": run.artefact("problems")}
    artefacts |= {name: run.artefact(name) for name in (["labels"] if labelled else ["candidates", *SCORES])}
    for artefact in artefacts.values():
        artefact.begin({"import": "benchmark"})
    artefacts.pop("problems").write_part("0", pa.table(columns).select(schema.SCHEMAS["problems"].names))
    for first in range(0, problems * candidates, PART):
        row = np.arange(first, min(first + PART, problems * candidates))
        problem_ids = ids.take(pa.array(row // candidates))
        index = pa.array(row % candidates)
        named = {
            "candidate_id": pc.binary_join_element_wise(problem_ids, index.cast(pa.string()), "/"),
            "problem_id": problem_ids,
            "index": index,
        }
        for name, artefact in artefacts.items():
            rows = {"labels": label_rows, "candidates": text_rows}.get(name, score_rows)(row, candidates)
            schema_of = schema.SCHEMAS[name.partition("/")[0]]
            artefact.write_part(f"{first:012}", pa.table({**named, **rows}).select(schema_of.names).cast(schema_of))
    for name in ["problems", *artefacts]:
        run.artefact(name).complete({})


def is_right(row: np.ndarray) -> np.ndarray:
    """[candidates]: two of three, of some problems more than of others."""
    return (row * 2_654_435_761 >> 7) % 100 < 34 + 66 * (row // 97 % 2)


def answers(row: np.ndarray, candidates: int) -> pa.Array:
    """The right number, or one of three wrong ones."""
    return pa.array(row // candidates + ~is_right(row) * (1 + row % 3)).cast(pa.string())


def steps_of(row: np.ndarray, candidates: int) -> list[pa.Array]:
    """The steps of these candidates, each with a number of the candidate's own."""
    number = pa.array(row).cast(pa.string())
    steps = [pc.binary_join_element_wise(*split, number) for split in (text.split("#") for text in STEPS)]
    return [*steps, pc.binary_join_element_wise("The answer is: ", answers(row, candidates), "")]


def text_rows(row: np.ndarray, candidates: int) -> dict[str, pa.Array]:
    """Candidates with texts."""
    constant = {"finish_reason": "stop", "num_tokens": 60, "model": "benchmark"}
    repeated = {name: pa.array([value] * len(row)) for name, value in constant.items()}
    return {"text": pc.binary_join_element_wise(*steps_of(row, candidates), "\n"), **repeated}


def score_rows(row: np.ndarray, candidates: int) -> dict[str, pa.Array]:
    """Scores that tell right from wrong a little."""
    score = (is_right(row) * 0.3 + (row * 40_503 >> 3) % 1000 / 1000) / 1.3
    ends = np.arange(len(row) + 1, dtype=np.int32)
    return {"score": pa.array(score), "step_scores": pa.ListArray.from_arrays(ends, pa.array(score, pa.float32()))}


def label_rows(row: np.ndarray, candidates: int) -> dict[str, pa.Array]:
    """Labels, as `minos label` gives them."""
    steps, size, right = steps_of(row, candidates), len(row), is_right(row)
    ends = np.arange(size + 1, dtype=np.int32) * len(steps)
    flat = pa.concat_arrays(steps).take(pa.array(np.arange(size * len(steps)).reshape(len(steps), size).T.ravel()))
    return {
        "answer": answers(row, candidates),
        "correct": pa.array(right),
        "status": pa.array(np.where(right, "correct", "wrong")),
        "steps": pa.ListArray.from_arrays(ends, flat),
        "step_labels": pa.ListArray.from_arrays(ends, pa.array(np.full(size * len(steps), -1, np.int8))),
        "step_scores": pa.nulls(size, schema.FLOATS),
        "step_source": pa.array([""] * size),
        "error_types": pa.ListArray.from_arrays(ends * 0, pa.array([], pa.string())),
    }


def measured(title: str, rows: int, work: Callable[[], object]) -> None:
    """Prints what a piece of work took."""
    before, start = peak(), time.process_time()
    work()
    took, more = time.process_time() - start, peak() - before
    print(
        f"{title}: {took:.1f} s of CPU, {more:,} MiB more at the peak, {more * 2**20 / rows:.0f} bytes each", flush=True
    )


def command(name: str, run: str, cpus: int) -> None:
    """`minos NAME`; its process ends with it."""
    from minos_ray.cli import main as minos

    config = {"run": run, "base": {"model": "package:miniature/model"}, "reward": {"verifiers": VERIFIERS}}
    config |= {"score": {"judge": None}, "resources": {"num_cpus": cpus, "grade": {"actors": cpus}}}
    Path(run, "benchmark.yaml").write_text(json.dumps(config))
    if code := minos([name, f"{run}/benchmark.yaml"]):
        raise SystemExit(code)


def alone(title: str, work: Callable[..., object], *arguments: object) -> None:
    """Does a piece of work in a process of its own, and prints what that took."""
    process = multiprocessing.get_context("spawn").Process(target=reported, args=(title, work, *arguments))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{title}: exit code {process.exitcode}")


def reported(title: str, work: Callable[..., object], *arguments: object) -> None:
    """What `alone` prints."""
    start, load = time.time(), os.getloadavg()[0]
    work(*arguments)
    took = f"{time.time() - start:.0f} s, {time.process_time():.0f} s of the driver's CPU"
    print(f"{title}: {took}, {peak():,} MiB at the peak; load {load:.0f}", flush=True)


def choose(path: str, count: int) -> int:
    """Chooses candidates for critiques; the number of chosen ones."""
    run = Run(path)
    train = set(read_problems(run, "train", ["problem_id"])["problem_id"].to_pylist())
    return len(select_stored(run.artefact("labels"), train, count, 0.5, 0).rows)


def plan_judge(path: str) -> int:
    """Plans what the critic judges; the number of problems."""
    return len(judge.plan(Run(path)))


def main() -> None:
    """Makes the run, chooses, plans."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1_000_000)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--count", type=int, default=30_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("--commands", action="store_true")
    parser.add_argument("--cpus", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = Run(str(options.folder or temporary))
        if not run.exists("problems/manifest.json"):
            start = time.time()
            make(run, options.problems, options.candidates, labelled=not options.commands)
            print(f"made in {time.time() - start:.0f} s")
        rows, count = options.problems * options.candidates // 2, f"{options.count:,}"
        if options.commands:
            alone(f"minos label, {2 * rows:,} candidates", command, "label", run.path, options.cpus)
            alone(f"{count} of {rows:,} for critiques", choose, run.path, options.count)
            alone(f"plan of {options.problems // 2:,} problems to judge", plan_judge, run.path)
            alone(f"minos evaluate, {rows:,} test candidates", command, "evaluate", run.path, options.cpus)
            return
        if options.judge:
            title, problems = f"plan of {options.problems // 2:,} problems to judge", options.problems // 2
            measured(title, problems, lambda: plan_judge(run.path))
        measured(f"{count} of {rows:,} candidates", rows, lambda: choose(run.path, options.count))


if __name__ == "__main__":
    main()
