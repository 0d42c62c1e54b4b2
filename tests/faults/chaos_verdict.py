"""What a stage has done so far, and whether a disturbed run ended as the reference did."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from minos_ray.config.load import Config
from minos_ray.critiques.stage import chosen
from minos_ray.errors import UserError
from minos_ray.store.filesystem import UNITS
from minos_ray.store.run import Run
from minos_ray.training.results import read_log
from tests.faults.world import STAGES, Asking

Done = dict[str, Any]
# So long an answer may be on its way to the disk, and so long a client may go on after its driver or raylet is dead.
WAY_S, ORPHAN_S = 1.0, 3.0


def done(stage: str, run: Run) -> Done:
    """What is stored of a stage, by name: rows of its artefacts, answers of the critic, optimizer steps."""
    if stage == "critique":
        return answers(run)
    if stage in ("sft", "reward"):
        return steps(run, STAGES[stage].makes)
    if stage == "sweep":
        return trials(run)
    return {f"{name} {key}": row for name in STAGES[stage].makes for key, row in rows(run, name).items()}


def rows(run: Run, artefact: str) -> Done:
    """Rows by candidate, also while parts are written, joined and taken away."""
    found: Done = {}
    for path in Path(run.root, artefact).glob("part-*.parquet"):
        try:
            found.update({row["candidate_id"]: row for row in pq.read_table(path).to_pylist()})
        except FileNotFoundError:
            continue
    return found


def answers(run: Run) -> Done:
    """The critic's answers by the key of their request; a last line that is being written is left out."""
    found: Done = {}
    for path in Path(run.root, "cache/critiques").glob("*.jsonl"):
        for line in path.read_text().split("\n")[:-1]:
            row = json.loads(line)
            found[row["key"]] = row["text"]
    return found


def steps(run: Run, models: tuple[str, ...]) -> Done:
    """Optimizer steps by model and number, with their losses."""
    found: Done = {}
    for model in models:
        name = model.rpartition("/")[2]
        path = Path(run.root, "logs", f"{name}.jsonl")
        for line in path.read_text().split("\n")[:-1] if path.exists() else ():
            record = json.loads(line)
            if record["event"] == "train":
                found[f"{name} {record['step']}"] = record["loss"]
    return found


def trials(run: Run) -> Done:
    """Steps and scores of all trials."""
    found: Done = {}
    for folder in Path(run.root, "sweep/trials").glob("*"):
        trial = Run(str(folder))
        made = steps(trial, ("critic", "prm-base", "prm-minos"))
        for name in ("prm-base", "prm-minos"):
            made |= {f"{name} {key}": row for key, row in rows(trial, f"scores/{name}").items()}
        found.update({f"{folder.name} {key}": value for key, value in made.items()})
    return found


def in_work(stage: str, run: Run, node: str) -> int:
    """Units that actors on a node have begun, and that no part holds: what is lost when it goes now."""
    begun, stored = set[str](), set[str]()
    for path in Path(run.root).glob("**/attempts/**/*.json"):
        with suppress(FileNotFoundError):
            log = json.loads(path.read_bytes())
            begun.update(log["running"] if isinstance(log, dict) and log["node"] == node else ())
    for path in (path for name in STAGES[stage].makes for path in Path(run.root, name).glob("part-*.parquet")):
        with suppress(FileNotFoundError):
            stored.update(json.loads(pq.read_metadata(path).metadata[UNITS]))
    return len(begun - stored)


def wrong(stage: str, run: Run, reference: Run) -> list[str]:
    """Everything in which a stage that was disturbed differs from one that was not."""
    found = [line for name in STAGES[stage].makes for line in different(name, run, reference)]
    found += different_file("evaluation.json", run, reference) if stage == "score" else []
    found += different_sweep(run, reference) if stage == "sweep" else []
    return found + litter(run)


def different(name: str, run: Run, reference: Run) -> list[str]:
    """One artefact: its manifest, and its rows or its weights and losses."""
    if run.artefact(name).manifest() is None:
        return [f"{name} has no manifest"]
    mine, theirs = told(name, run), told(name, reference)
    found = [f"{name}: {key} is {mine.get(key)}, not {theirs.get(key)}" for key in different_keys(mine, theirs)]
    if name.startswith("models/"):
        return found + different_model(name, run, reference)
    return found + (different_rows(name, run, reference) if not run.artefact(name).is_file else [])


def told(name: str, run: Run) -> dict[str, int]:
    """What a manifest counts, but for what depends on when a run was interrupted and on what was drawn again."""
    manifest = run.artefact(name).manifest()
    if name == "candidates":
        return {key: manifest.counts[key] for key in ("candidates", "problems")}
    varying = ("asked", "from_cache") if name == "critiques" else ()
    counts = {key: number for key, number in manifest.counts.items() if key not in varying}
    return counts | {f"dropped {reason}": number for reason, number in manifest.dropped.items()}


def different_keys(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Where two mappings are not the same."""
    return [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key)]


def different_rows(name: str, run: Run, reference: Run) -> list[str]:
    """Missing, doubled and changed rows; of candidates the text may differ, for it was drawn again."""
    try:
        mine = run.artefact(name).read().to_pylist()
    except UserError as error:
        return [f"{name}: {error}"]
    twice = [key for key, times in Counter(row["candidate_id"] for row in mine).items() if times > 1]
    theirs = reference.artefact(name).read().to_pylist()
    ours, wanted = ({row["candidate_id"]: row for row in some} for some in (mine, theirs))
    broken = 0
    if name == "candidates":
        fixed = ("candidate_id", "problem_id", "index", "model")
        ours, wanted = ({key: [row[k] for k in fixed] for key, row in some.items()} for some in (ours, wanted))
        broken = sum(row["finish_reason"] not in ("stop", "length") for row in mine)
    counts = {
        "missing": len(wanted.keys() - ours.keys()),
        "twice": len(twice),
        "unknown": len(ours.keys() - wanted.keys()),
        "changed": sum(ours[key] != wanted[key] for key in ours.keys() & wanted.keys()),
        "given up": broken,
    }
    return [f"{name}: {count} rows {what}" for what, count in counts.items() if count]


def different_model(name: str, run: Run, reference: Run) -> list[str]:
    """Weights that are not the same to the bit, losses and evaluations of steps that are not the same."""
    keys = different_keys(records(run, name), records(reference, name))
    others = [f"{name}: other losses at {', '.join(keys)}"] if keys else []
    return different_file(f"{name}/model.safetensors", run, reference) + others


def records(run: Run, model: str) -> Done:
    """What a training logged of every step and evaluation, but for the seconds."""
    lines = [line for line in read_log(run, model.rpartition("/")[2]) if line["event"] in ("train", "eval")]
    return {f"{line['event']} {line['step']}": {**line, "seconds": None} for line in lines}


def different_file(name: str, run: Run, reference: Run) -> list[str]:
    """A file that must be the same."""
    if not run.exists(name):
        return [f"{name} is missing"]
    return [] if run.read_bytes(name) == reference.read_bytes(name) else [f"{name} differs"]


def different_sweep(run: Run, reference: Run) -> list[str]:
    """Results (but for the seconds), the trend, and the models and scores of every trial."""
    if not run.exists("sweep/results.parquet"):
        return ["sweep/results.parquet is missing"]
    tables = [pq.read_table(f"{made.root}/sweep/results.parquet").drop_columns("seconds") for made in (run, reference)]
    found = [] if tables[0].equals(tables[1]) else ["sweep/results.parquet differs"]
    found += different_file("sweep/trend.json", run, reference)
    for theirs in sorted(Path(reference.root).glob("sweep/trials/*")):
        mine = Path(run.root, theirs.relative_to(reference.root))
        names = [str(path.parent.relative_to(theirs)) for path in sorted(theirs.glob("*/*/manifest.json"))]
        lines = [line for name in names for line in different(name, Run(str(mine)), Run(str(theirs)))]
        found += [f"{mine.name}: {line}" for line in lines]
    return found


def litter(run: Run) -> list[str]:
    """What should have gone with the work."""
    found = [path for name in ("attempts", "checkpoints", "tune") for path in Path(run.root).rglob(name)]
    found = [path for path in found if path.name != "checkpoints" or any(path.iterdir())]
    return [f"left: {path.relative_to(run.root)}" for path in found]


def bought_twice(
    asked: Iterable[Asking], kills: Sequence[float], stored: Mapping[str, float]
) -> tuple[int, dict[str, int]]:
    """How many askings beyond the first of the same content are excused, and how many are wrong, by what is wrong.

    One is excused when the asking before it was in flight at a kill (or nearly: WAY_S, ORPHAN_S), so that its answer
    may have reached nobody's disk. `stored`: since when an answer is known to be stored; from then on nothing excuses.
    """
    before: dict[str, Asking] = {}
    excused, found = 0, Counter[str]()
    for asking in sorted(asked, key=lambda asking: asking.began):
        former = before.get(asking.content)
        before[asking.content] = asking
        if asking.began > stored.get(asking.content, math.inf):
            found["answers that were stored were asked for again"] += 1
        elif former and any(former.began < at + ORPHAN_S and at < former.ended + WAY_S for at in kills):
            excused += 1
        elif former:
            found["answers that no kill can have lost were asked for again"] += 1
    return excused, dict(found)


def asked_for(config: Config, run: Run) -> dict[str, str]:
    """What the critic is asked for each key."""
    _, tasks = chosen(config, config.critique, run)
    return {task.request.key: task.request.messages[-1]["content"] for task in tasks}
