"""How large 10 million problems of 256 candidates are, stage by stage, and what the driver needs to plan them.

python benchmarks/capacity.py [--problems 10000000] [--n 256] [--simulate] [--memory-gb 24] [--out FILE]
Bytes of a row are those of real candidates, labels, critiques and training rows (the first `--questions` questions of
$MINOS_SHARED/gsm8k_gemini, imported), of scores those of a PRM with as many steps; memory of a row as a Python object
likewise. `--simulate` makes the plan of the sampling stage for that many problems, all missing and half of it stored,
and draws those whose candidates are chosen among, each in a process of its own: seconds and peak of memory. (Plans take
12 bytes a candidate and more.)
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from planned import MODEL, UNIT, none_stored
from planning import peak

from minos_ray.candidates.stage import plan
from minos_ray.config.training import Reward
from minos_ray.imports.genrm import import_genrm
from minos_ray.problems.split import MOST_OUTLINED, drawn
from minos_ray.store import columns as schema
from minos_ray.store.model_files import load_tokenizer, locate
from minos_ray.store.run import Run
from minos_ray.training.data import as_table, write_rows
from minos_ray.training.reward import MOST, labelled, reward_data
from minos_ray.units.run_units import MAX_PARTS

ARTEFACTS = ("problems", "candidates", "labels", "critiques")
CASES = ("new", "half", "draw")
GIB = 2**30


def imported(folder: str, questions: int) -> Run:
    """Real candidates as artefacts."""
    shared = Path(os.environ.get("MINOS_SHARED", Path(__file__).parents[2] / "shared" / "data"))
    run = Run(folder)
    import_genrm(str(shared / "gsm8k_gemini"), run, questions=questions)
    return run


def bytes_per_row(run: Run) -> dict[str, float]:
    """Parquet bytes of a row of each artefact, and of a training row."""
    found = {}
    for name in ARTEFACTS:
        rows = sum(part.num_rows for part in run.artefact(name).parts([schema.KEYS[name]]))
        found[name] = sum(size for file, size in run.sizes(name).items() if file.endswith(".parquet")) / rows
    labels = run.artefact("labels").read(["candidate_id", "problem_id", "steps"]).to_pylist()
    rng = random.Random(0)
    scores = [{**row, "score": rng.random(), "step_scores": [rng.random() for _ in row["steps"]]} for row in labels]
    columns = schema.SCHEMAS["scores"].names
    made = schema.table("scores", [{name: row[name] for name in columns} for row in scores])
    run.artefact("scores/prm").write_part("0", made)
    found["scores"] = sum(run.sizes("scores/prm").values()) / len(scores)
    data = reward_data(run, load_tokenizer(locate(MODEL, run)), Reward(), "orm").train
    write_rows(run, "rows", as_table(data))
    found["training rows"] = sum(run.sizes("train").values()) / len(data)
    return found


def object_bytes(run: Run) -> float:
    """Memory of a labelled train candidate as training data has it: a dict with its steps and labels."""
    before = resident()
    rows, _ = labelled(run)
    return (resident() - before) / len(rows)


def resident() -> int:
    """Bytes of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def simulated(problems: int, n: int, half: bool) -> dict[str, float]:
    """The plan of the sampling stage: the table of what is stored, and the units of what is not."""
    start, amounts = time.monotonic(), np.full(problems, n)
    stored = none_stored(amounts)
    if half:
        stored[: problems // 2] = True
    units = plan(amounts, stored, UNIT)
    planned = time.monotonic() - start
    units = units.shuffled(0)
    took = {"plan_s": planned, "shuffled_s": time.monotonic() - start - planned}
    return {"units": len(units), **{k: round(v, 1) for k, v in took.items()}, "peak_mib": peak()}


def simulated_draw(problems: int, n: int) -> dict[str, float]:
    """The problems of which the stages take all candidates, by the bound on these; all problems are of one split."""
    start, rows = time.monotonic(), {f"benchmark/{number}": n for number in range(problems)}
    taken = {f"of_{most}": len(drawn(rows, most)[0]) for most in (MOST_OUTLINED, MOST)}
    return {**taken, "draw_s": round(time.monotonic() - start, 1), "peak_mib": peak()}


def elsewhere(options: argparse.Namespace, case: str) -> dict[str, float]:
    """The simulation of a case in a process of its own."""
    command = [sys.executable, __file__, "--problems", str(options.problems), "--n", str(options.n)]
    done = subprocess.run([*command, "--simulated", case], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(options: argparse.Namespace, disk: dict[str, float], memory: float) -> None:
    """Rows, bytes and files of every artefact, and how many rows of those that are held as objects fit."""
    candidates = options.problems * options.n
    rows = {name: candidates for name in ("candidates", "labels", "scores")} | {"problems": options.problems}
    print(f"{options.problems:,} problems x {options.n}; units of {UNIT}: {-(-options.n // UNIT) * options.problems:,}")
    print("| artefact | bytes a row | rows | GiB | files, about |\n|---|---|---|---|---|")
    for name in ("problems", "candidates", "labels", "scores"):
        files = 1 if name == "problems" else MAX_PARTS
        print(f"| {name} | {disk[name]:.0f} | {rows[name]:,} | {rows[name] * disk[name] / GIB:,.0f} | {files:,} |")
    for name in ("critiques", "training rows"):
        print(f"| {name} | {disk[name]:.0f} | as asked for | {1e6 * disk[name] / GIB:.2f} a million | |")
    fit = options.memory_gb * GIB / memory
    print(
        f"a train candidate as an object: {memory:,.0f} bytes; {options.memory_gb:g} GiB hold {fit / 1e6:.0f} million"
    )


def main() -> None:
    """Prints the table, and the simulation where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=10_000_000)
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--memory-gb", type=float, default=24)
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--simulated", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.simulated:
        size = options.problems, options.n
        draw = options.simulated == "draw"
        print(json.dumps(simulated_draw(*size) if draw else simulated(*size, half=options.simulated == "half")))
        return
    with tempfile.TemporaryDirectory() as folder:
        run = imported(folder, options.questions)
        memory, disk = object_bytes(run), bytes_per_row(run)
    table(options, disk, memory)
    found: dict[str, Any] = {"bytes": disk, "object_bytes": memory}
    for case in CASES if options.simulate else ():
        found[f"simulated_{case}"] = took = elsewhere(options, case)
        print(f"{case}: {took}")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
