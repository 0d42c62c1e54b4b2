"""`minos evaluate` on a simulated run: seconds, CPU seconds of all processes, and peak memory.

python benchmarks/evaluation.py [--problems 1319] [--candidates 256] [--bootstrap 10000] [--folder DIR]
                                [--against CHECKOUT] [--rounds 1]

With `--against`, the package of another checkout evaluates the same run too, in turns, and the ratios of the medians
are printed, as are the numbers in which the two evaluation.json differ.

Four verifiers, the PRMs with step scores, and the critic's verdicts; all methods for n = 1, 2, 4, ..., N. A problem's
candidates lie in four parts, as sampling leaves them. `--problems 100000` needs about 5 GB of disk.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow as pa
from simulated import population, scores

from minos_ray.store import columns as schema
from minos_ray.store.run import Run

SHARPNESS = {"orm-base": 0.8, "orm-minos": 1.0, "prm-base": 0.9, "prm-minos": 1.1, "critic": 0.6}
CHUNK, QUARTERS, STEPS = 2000, 4, 4
EVALUATE = """
import sys
from minos_ray.config.schema import Config
from minos_ray.evaluation.stage import evaluate
from minos_ray.store.run import Run
run = Run(sys.argv[1])
config = Config(run=run.path, base={"model": "none/none"}, evaluate={"bootstrap": int(sys.argv[2])})
manifest = evaluate(config, run)
print(manifest.counts)
"""


def make(run: Run, problems: int, candidates: int) -> None:
    """Writes problems, labels and scores."""
    names = ["problems", "labels", *(f"scores/{name}" for name in SHARPNESS)]
    for name in names:
        run.artefact(name).begin({"import": "simulated"})
    for first in range(0, problems, CHUNK):
        make_chunk(run, first, min(CHUNK, problems - first), candidates)
    for name in names:
        run.artefact(name).complete({"rows": problems * candidates})


def make_chunk(run: Run, first: int, problems: int, candidates: int) -> None:
    """Some problems, all their candidates and scores."""
    rng = np.random.default_rng([0, first])
    made = population(problems, candidates, rng)
    ids = np.array([f"gsm8k-test-{first + p:06d}" for p in range(problems)])
    rows = [{"problem_id": i, "dataset": "d", "split": "test", "question": "q", "answer": "0"} for i in ids]
    run.artefact("problems").write_part(f"{first:06d}", schema.table("problems", rows))
    tables = {"labels": labels(ids, made.clusters)}
    for name, sharpness in SHARPNESS.items():
        tables[f"scores/{name}"] = score_table(tables["labels"], name, scores(made, sharpness, rng))
    quarter = np.arange(problems * candidates) % candidates * QUARTERS // candidates
    for name, table in tables.items():
        for number in range(QUARTERS):
            run.artefact(name).write_part(f"{first:06d}-{number}", table.filter(pa.array(quarter == number)))


def labels(ids: np.ndarray, clusters: np.ndarray) -> pa.Table:
    """Label rows; without texts, which evaluation does not read."""
    problems, candidates = clusters.shape
    flat = clusters.ravel()
    index = np.tile(np.arange(candidates), problems)
    of = np.repeat(ids, candidates)
    empty = pa.ListArray.from_arrays(np.zeros(len(flat) + 1, np.int32), pa.array([], pa.string()))
    columns = {
        "candidate_id": pa.array([f"{p}/{i}" for p, i in zip(of, index, strict=True)]),
        "problem_id": pa.array(of),
        "answer": pa.array(np.where(flat < 0, None, flat.astype(str)), pa.string()),
        "correct": pa.array(flat == 0),
        "status": pa.array(np.where(flat == 0, "correct", np.where(flat < 0, "no_answer", "wrong"))),
        "steps": empty,
        "step_labels": pa.ListArray.from_arrays(np.zeros(len(flat) + 1, np.int32), pa.array([], pa.int8())),
        "step_scores": pa.nulls(len(flat), schema.SCHEMAS["labels"].field("step_scores").type),
        "step_source": pa.array([""] * len(flat)),
        "error_types": empty,
    }
    return pa.table(columns).cast(schema.SCHEMAS["labels"])


def score_table(rows: pa.Table, name: str, score: np.ndarray) -> pa.Table:
    """Rows of scores: a PRM's lowest step has the score."""
    flat = score.ravel().astype(np.float32)
    width = STEPS if name.startswith("prm") else 0
    rng = np.random.default_rng(1)
    steps = np.minimum(1, flat[:, None] + rng.random((len(flat), width), dtype=np.float32) * (np.arange(width) > 0))
    offsets = np.arange(len(flat) + 1, dtype=np.int32) * width
    columns = {
        "candidate_id": rows["candidate_id"],
        "problem_id": rows["problem_id"],
        "score": pa.array((flat > 0.5).astype(np.float32) if name == "critic" else flat),
        "step_scores": pa.ListArray.from_arrays(offsets, pa.array(steps.ravel(), pa.float32())),
    }
    return pa.table(columns).cast(schema.SCHEMAS["scores"])


class Measured(NamedTuple):
    """One evaluation: seconds, CPU seconds and the most memory (GiB) of all its processes together, and its result."""

    seconds: float
    cpu: float
    peak: float
    content: dict[str, Any]


def measured(run: Run, bootstrap: int, checkout: str, folder: str) -> Measured:
    """Evaluates the run in a process of its own, with the package of a checkout."""
    run.delete("evaluation.json.manifest.json")
    env = {**os.environ, "TMPDIR": folder, "PYTHONPATH": checkout}
    before, start = os.times(), time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", EVALUATE, run.path, str(bootstrap)], env=env, cwd=checkout)
    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            peak.append(memory(psutil.Process(child.pid)))

    watching = threading.Thread(target=watch)
    watching.start()
    status = child.wait()
    seconds, after = time.perf_counter() - start, os.times()
    over.set()
    watching.join()
    if status:
        raise SystemExit(f"the evaluation by {checkout} ended with {status}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Measured(seconds, cpu, max(peak) / 2**30, json.loads(run.read_bytes("evaluation.json")))


def memory(process: psutil.Process) -> int:
    """Bytes of a process and its children, pages that they share counted once; 0 when it has just ended."""
    try:
        return sum(p.memory_full_info().pss for p in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


def differences(a: Any, b: Any) -> list[float]:
    """How far the numbers that two results both have are apart, where they are; infinity for counts and words."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [gap for key in a.keys() & b.keys() for gap in differences(a[key], b[key])]
    if isinstance(a, list) and isinstance(b, list):
        return [gap for x, y in zip(a, b, strict=True) for gap in differences(x, y)]
    if a == b:
        return []
    return [abs(a - b) if isinstance(a, float) and isinstance(b, float) else float("inf")]


def main() -> None:
    """Makes the run, evaluates it, prints what that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1319)
    parser.add_argument("--candidates", type=int, default=256)
    parser.add_argument("--bootstrap", type=int, default=10_000)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--against", default=None)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    ours = str(Path(__file__).parents[1])
    checkouts = [*([str(Path(arguments.against).resolve())] if arguments.against else []), ours]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run = Run(f"{folder}/run")
        make(run, arguments.problems, arguments.candidates)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.parquet"))
        print(f"{arguments.problems:,} problems x {arguments.candidates}, {size / 1e6:,.0f} MB of Parquet")
        rounds = {
            number: [measured(run, arguments.bootstrap, checkout, folder) for checkout in checkouts]
            for number in range(arguments.rounds)
        }
    medians = []
    for place, name in enumerate(checkouts):
        runs = [row[place] for row in rounds.values()]
        medians.append([median(r[column] for r in runs) for column in range(3)])
        seconds, cpu, peak = medians[-1]
        content = runs[0].content
        ns = sorted({m["n"] for m in content["methods"]})
        print(f"{'this checkout' if name == ours else name}:")
        print(f"  {len(content['methods'])} methods and {len(content['aggregations'])} aggregations, n = {ns}")
        print(f"  bootstrap {arguments.bootstrap:,}: {seconds:.1f} s with the start of Python, {cpu:.1f} s of CPU, "
              f"peak {peak:.2f} GiB of all processes")  # fmt: skip
    if arguments.against:
        ratios = [f"{new / old:.3f}" for old, new in zip(*medians, strict=True)]
        gaps = differences(rounds[0][0].content, rounds[0][1].content)
        print(f"this / other: time {ratios[0]}, CPU {ratios[1]}, memory {ratios[2]}")
        fractions = [gap for gap in gaps if gap < float("inf")]
        print(f"fractions that differ: {len(fractions)}, by {max(fractions, default=0):.2g} at most; "
              f"counts: {len(gaps) - len(fractions)}")  # fmt: skip


if __name__ == "__main__":
    main()
