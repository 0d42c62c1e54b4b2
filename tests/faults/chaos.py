"""Kills processes of every stage at random moments and tells what came of it: `make chaos N=100 SEED=0`.

Each round is one stage in a run of its own, on one cluster of four raylets on this machine. Exits 1 if any round ended
otherwise than the reference.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.chaos_processes import Watch
from tests.faults.chaos_round import Report, Round, measure
from tests.faults.chaos_table import markdown
from tests.faults.world import ENVIRONMENT, STAGES, World, world

# Kills in one round, of processes of different kinds.
TOGETHER = 3


def main() -> int:
    """The campaign; the exit code."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES))
    kinds = sorted({kind for stage in STAGES.values() for kind in stage.victims})
    parser.add_argument("--victims", nargs="*", choices=kinds, help="only these kinds")
    parser.add_argument("--together", type=int, help="kills in one round (default: up to 3, of different kinds)")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"), help="folder of results (default: %(default)s)")
    options = parser.parse_args()
    # vLLM's engine as a process of its own, as on GPUs, so that it can be killed apart from its actor; within it starts
    # in 2 s, not 13.
    apart = "1" if "engine" in (options.victims or kinds) else "0"
    os.environ.update(ENVIRONMENT, VLLM_ENABLE_V1_MULTIPROCESSING=apart)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    options.out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="minos-chaos-") as folder,
        world(Path(folder)) as made,
        Watch(made) as watch,
    ):
        reports = []
        for report in campaign(made, watch, options):
            reports.append(report)
            write(options.out, reports, options.seed)
    print(markdown(reports, options.seed))
    return int(any(report.wrong for report in reports))


def campaign(world: World, watch: Watch, options: argparse.Namespace) -> Iterator[Report]:
    """Rounds until there were enough kills; the reference of a stage is made before its first round."""
    world.finish("problems", world.reference)
    references, unmeasured, kills = {}, list(STAGES), 0
    for number, (stage, victims) in enumerate(rounds(options)):
        if kills >= options.kills:
            return
        while stage not in references:
            name = unmeasured.pop(0)
            references[name] = measure(world, watch, name)
            print(f"reference: {name} took {references[name].seconds:.1f} s", flush=True)
        made = Round(world, watch, stage, references[stage], f"{number:03d}-{stage}", options.seed * 1000 + number)
        report = made.play(victims[: options.kills - kills])
        kills += len(report.kills)
        clear(made.run.root, options.out, keep=bool(report.wrong))
        tell(report, kills, options.kills)
        yield report


def rounds(options: argparse.Namespace) -> Iterator[tuple[str, Sequence[str]]]:
    """Stages in turn, each time with other victims in another order; every kind of a stage equally often."""
    rng = random.Random(options.seed)
    waiting: dict[str, list[str]] = {stage: [] for stage in options.stages}
    while True:
        for stage in options.stages:
            kinds = [kind for kind in STAGES[stage].victims if not options.victims or kind in options.victims]
            count = options.together or min(TOGETHER, len(kinds))
            while kinds and len(waiting[stage]) < count:
                waiting[stage] += rng.sample(kinds, len(kinds))
            chosen = list(dict.fromkeys(waiting[stage]))[:count] if count <= len(kinds) else waiting[stage][:count]
            for kind in chosen:
                waiting[stage].remove(kind)
            if chosen:
                yield stage, chosen


def clear(run: str, out: Path, keep: bool) -> None:
    """A run that ended well goes; one that did not is kept beside the results."""
    if keep:
        shutil.rmtree(out / Path(run).name, ignore_errors=True)
        shutil.move(run, out / Path(run).name)
    else:
        shutil.rmtree(run)


def tell(report: Report, kills: int, wanted: int) -> None:
    """One line for each kill, and one for whatever is wrong."""
    for kill in report.kills:
        where, lost = (
            f"{kill.second:.1f} s, {kill.share:.0%} stored",
            f"{kill.lost} lost" if kill.lost else "nothing lost",
        )
        after = f"{kill.outcome} after {kill.recovery_s} s, first new after {kill.next_s} s"
        print(f"{report.stage:<9} {kill.victim:<10} at {where}: {after}, {lost}", flush=True)
    for line in report.wrong:
        print(f"{report.stage:<9} WRONG: {line}", flush=True)
    print(f"{time.strftime('%H:%M:%S')} {kills} of {wanted} kills; round of {report.seconds:.0f} s", flush=True)


def write(folder: Path, reports: Sequence[Report], seed: int) -> None:
    """The results so far."""
    values = {"seed": seed, "rounds": [report.as_json() for report in reports]}
    (folder / "chaos.json").write_text(json.dumps(values, indent=1))
    (folder / "chaos.md").write_text(markdown(reports, seed))


if __name__ == "__main__":
    sys.exit(main())
