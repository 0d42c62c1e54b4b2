"""The command `minos`. Exit codes: 0 done, 1 the work failed, 2 the request was wrong (one clear line)."""

import argparse
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from minos_ray.arguments import parser
from minos_ray.errors import UserError, WorkStopped

if TYPE_CHECKING:
    from minos_ray.config.schema import Config
    from minos_ray.serving.rank_file import CriticTask
    from minos_ray.serving.scorer import Task
    from minos_ray.store.run import Run

# What may be asked for while another command works on the run.
READING = ("report",)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    arguments = parser().parse_args(argv)  # ends `--help` and wrong usage, before anything heavy is imported
    from minos_ray.config.load import find_own_modules

    find_own_modules(getattr(arguments, "config", None))
    try:
        COMMANDS.get(arguments.command, one_stage)(arguments)
    except UserError as error:
        return print_error(error, 2)
    except WorkStopped as error:
        return print_error(error, 1)
    except KeyboardInterrupt:
        print("minos: interrupted; the same command resumes", file=sys.stderr)
        return 1
    except Exception as error:
        from minos_ray.observe.failure import as_work_stopped

        return print_error(as_work_stopped(None, arguments.command, error), 1)
    return 0


def print_error(error: UserError | WorkStopped, code: int) -> int:
    """Prints what is wrong, then where a full log lies, if there is one; returns the exit code."""
    from minos_ray.observe.failure import without_secrets

    lines = "\nminos: ".join([str(error), *getattr(error, "__notes__", [])])
    print(f"minos: {without_secrets(lines)}", file=sys.stderr)
    return code


def one_stage(arguments: argparse.Namespace) -> None:
    """`minos STAGE CONFIG`."""
    from minos_ray.config.load import load_config
    from minos_ray.pipeline.run import run_stage

    config = load_config(arguments.config, arguments.overrides)
    with working(config, f"{arguments.command} {arguments.config}", alone=arguments.command not in READING) as run:
        manifest = run_stage(config, run, arguments.command)
    print(f"{manifest.artefact}: {numbers(manifest.counts)}{dropped(manifest.dropped)}")
    if arguments.command == "evaluate":
        import json

        from minos_ray.report.budget import budget_table, peak_lines
        from minos_ray.report.statement import category_tables

        evaluation = json.loads(run.read_bytes(manifest.artefact))
        budgets, peaks = budget_table(evaluation), "\n".join(peak_lines(evaluation))
        for text in filter(None, (category_tables(evaluation), budgets, peaks)):
            print(f"\n{text}")


@contextmanager
def working(config: "Config", command: str, alone: bool = True) -> "Generator[Run]":
    """The run of a config; no other command works on it meanwhile. UserError where one does already."""
    from minos_ray.pipeline.run import open_run, require_lasting_folder
    from minos_ray.store.run import Run
    from minos_ray.units.lock import locked

    require_lasting_folder(config)
    with locked(Run(config.run), f"minos {command}") if alone else nullcontext(), leaving_ray():
        yield open_run(config)


@contextmanager
def leaving_ray() -> "Generator[None]":
    """Leaves Ray at the end of the block, whatever happened."""
    try:
        yield
    finally:
        if "ray" in sys.modules:
            from minos_ray.cluster.connect import disconnect

            disconnect()


def numbers(counts: dict[str, int]) -> str:
    """`rows 12,800, problems 50`."""
    return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items())


def dropped(reasons: dict[str, int]) -> str:
    """`; dropped: wrong step count 3`, or nothing."""
    return f"; dropped: {numbers(reasons)}" if reasons else ""


def run(arguments: argparse.Namespace) -> None:
    """`minos run CONFIG`."""
    run_pipeline(arguments.config, arguments.overrides, f"run {arguments.config}")


def demo(arguments: argparse.Namespace) -> None:
    """`minos demo`."""
    run_pipeline("miniature", [f"run={arguments.out}"], "demo")


def run_pipeline(source: str, overrides: Sequence[str], command: str) -> None:
    """Runs all stages of a config, then prints the results and where the report lies."""
    import json
    import time

    from minos_ray.config.load import load_config
    from minos_ray.observe.progress import duration
    from minos_ray.pipeline.run import require, run_all
    from minos_ray.report.statement import results_table
    from minos_ray.store.run import Run
    from minos_ray.units.lock import require_unlocked

    start, config = time.monotonic(), load_config(source, overrides)
    require_unlocked(Run(config.run))
    require(config, Run(config.run))
    with working(config, command) as run:
        run_all(config, run)
    print(results_table(json.loads(run.read_bytes("evaluation.json"))))
    print(f"total {duration(time.monotonic() - start)}; report: {run.at('report.html')}")


def check(arguments: argparse.Namespace) -> None:
    """`minos check CONFIG`."""
    from minos_ray.config.load import load_config
    from minos_ray.pipeline.run import check as check_config

    with leaving_ray():
        check_config(load_config(arguments.config, arguments.overrides))


def status(arguments: argparse.Namespace) -> None:
    """`minos status RUN`."""
    from minos_ray.graph.state import status as states
    from minos_ray.pipeline.run import saved_config
    from minos_ray.store.run import Run

    run = Run(arguments.run)
    for state in states(saved_config(run), run):
        rows = f"{numbers(state.manifest.counts)}{dropped(state.manifest.dropped)}" if state.manifest else ""
        why = f"({state.why}) " if state.why else ""
        print(f"{state.artefact:18} {state.state:8} {why}{rows}".rstrip())


def meta(arguments: argparse.Namespace) -> None:
    """`minos meta CONFIG`."""
    from minos_ray.config.load import load_config
    from minos_ray.meta.command import meta as judge
    from minos_ray.observe.failure import reported

    config = load_config(arguments.config, arguments.overrides)
    with working(config, f"meta {arguments.config}") as run, reported(run, "meta"):
        judge(config, run)


def search(arguments: argparse.Namespace) -> None:
    """`minos search CONFIG`."""
    import json

    from minos_ray.config.load import load_config
    from minos_ray.report.statement import results_table
    from minos_ray.search.command import search as search_candidates

    config = load_config(arguments.config, arguments.overrides)
    with working(config, f"search {arguments.config}") as run:
        target, manifest = search_candidates(config, run)
    print(results_table(json.loads(target.read_bytes("evaluation.json"))))
    print(f"search: {numbers(manifest.counts)}{dropped(manifest.dropped)}; report: {target.at('report.html')}")


def grade(arguments: argparse.Namespace) -> None:
    """`minos grade FILE`."""
    from minos_ray.grading.grade_file import grade_file

    with leaving_ray():
        grade_file(arguments.file, arguments.gold, arguments.text, arguments.out, arguments.style)


def rank(arguments: argparse.Namespace) -> None:
    """`minos rank FILE`."""
    from minos_ray.serving.rank_file import rank_file

    task = critic_task(arguments) if arguments.critic else verifier_task(arguments)
    with leaving_ray():
        rank_file(arguments.file, arguments.out, task, arguments.group)


def verifier_task(arguments: argparse.Namespace) -> "Task":
    """What `minos rank --verifier` asks for."""
    from minos_ray.config.resources import Scoring
    from minos_ray.serving.scorer import CRITIC_OPTIONS, Task, verifier_of

    if lost := [name for name in (*CRITIC_OPTIONS, "set") if getattr(arguments, name) not in (None, [])]:
        raise UserError(f"--{lost[0].replace('_', '-')} is an option of --critic; --verifier takes none of it")
    resources = Scoring(actors=arguments.actors, gpus=arguments.gpus, max_model_len=arguments.max_length)
    return Task(
        verifier_of(arguments.verifier, arguments.kind, arguments.separator),
        arguments.question,
        arguments.text,
        arguments.style,
        arguments.splitter,
        arguments.aggregation,
        resources,
    )


def critic_task(arguments: argparse.Namespace) -> "CriticTask":
    """What `minos rank --critic` asks for."""
    from minos_ray.serving.rank_file import CriticTask, critic_config
    from minos_ray.serving.scorer import CRITIC_OPTIONS

    options = {name: getattr(arguments, name) for name in CRITIC_OPTIONS}
    config = critic_config(arguments.critic, f"{arguments.out}.critiques", options, arguments.set)
    return CriticTask(config, arguments.question, arguments.text, arguments.style, arguments.splitter)


def serve(arguments: argparse.Namespace) -> None:
    """`minos serve MODEL`."""
    from pydantic import ValidationError

    from minos_ray.serving.serve import Settings, serve_forever

    options = {name: value for name, value in vars(arguments).items() if name not in ("command", "host", "port")}
    try:
        settings = Settings.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise UserError(f"--{option} {first['input']!r}: {first['msg']}") from None
    with suppress(KeyboardInterrupt):
        serve_forever(settings, arguments.host, arguments.port)


def import_(arguments: argparse.Namespace) -> None:
    """`minos import FORMAT SRC RUN`."""
    from minos_ray.config.load import parse_override
    from minos_ray.imports import bring
    from minos_ray.observe.failure import reported
    from minos_ray.store.run import Run
    from minos_ray.units.lock import locked

    options = dict(parse_override(o) for o in arguments.overrides)
    run = Run(arguments.run)
    with locked(run, f"minos import {arguments.format}"), reported(run, "import"):
        manifests = bring(arguments.format, arguments.src, run, **options)
    for manifest in manifests:
        print(f"{manifest.artefact}: {numbers(manifest.counts)}{dropped(manifest.dropped)}")


def export(arguments: argparse.Namespace) -> None:
    """`minos export FORMAT RUN OUT`."""
    from minos_ray.config.load import parse_override
    from minos_ray.exports import send
    from minos_ray.store.run import Run

    options = dict(parse_override(o) for o in arguments.overrides)
    exported = send(arguments.format, Run(arguments.run), arguments.out, **options)
    print(f"{exported.path}: {numbers(exported.counts)}{dropped(exported.dropped)}")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "demo": demo,
    "run": run,
    "check": check,
    "status": status,
    "meta": meta,
    "search": search,
    "grade": grade,
    "rank": rank,
    "serve": serve,
    "import": import_,
    "export": export,
}

if __name__ == "__main__":
    sys.exit(main())
