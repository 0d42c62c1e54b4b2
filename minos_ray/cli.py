"""The command `minos`. Exit codes: 0 done, 1 the work failed, 2 the request was wrong (one clear line)."""

import argparse
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from minos_ray import __version__, exports, imports
from minos_ray.errors import UserError, WorkStopped

if TYPE_CHECKING:
    from minos_ray.config.schema import Config
    from minos_ray.store.run import Run

STAGES = {
    "pretrain": "train a small base model from nothing (section 'pretrain')",
    "problems": "load problems",
    "sample": "sample candidates with vLLM actors",
    "label": "grade answers and label steps",
    "critique": "ask the critic about candidates",
    "sft": "stage 1: fine-tune the critic on critiques",
    "reward": "stage 2: train the verifiers",
    "score": "score test candidates with every verifier",
    "evaluate": "best-of-n, votes, intervals, meta-evaluation",
    "sweep": "scale-up study over the amount of critiques",
    "study": "does Minos beat base? Arms and ablations over several seeds of data and training",
    "report": "one offline HTML file",
}
# What may be asked for while another command works on the run.
READING = ("report",)


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    top = argparse.ArgumentParser(prog="minos", description="Math-Minos on Ray: verifiers trained with critiques.")
    top.add_argument("--version", action="version", version=f"minos_ray {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="the whole pipeline on an embedded miniature, on this machine")
    demo.add_argument("--out", default="runs/demo", metavar="DIR", help="run directory (default: %(default)s)")
    with_config(commands.add_parser("run", help="every stage that is missing or stale, in order"))
    for name, text in STAGES.items():
        with_config(commands.add_parser(name, help=text))
    with_config(commands.add_parser("check", help="validate the config and what it needs; does no work"))
    status = commands.add_parser("status", help="state of each artefact of a run")
    status.add_argument("run", metavar="RUN")
    with_config(
        commands.add_parser("meta", help="judge verifiers, published reward models and critics on labelled sets")
    )
    add_grade(commands.add_parser("grade", help="grade a file of answers"))
    add_rank(commands.add_parser("rank", help="score the solutions in a file with a verifier and rank them"))
    add_import(commands.add_parser("import", help="bring foreign data in as artefacts"))
    add_export(commands.add_parser("export", help="write artefacts in others' formats"))
    return top


def with_config(command: argparse.ArgumentParser) -> None:
    """Arguments CONFIG and overrides."""
    command.add_argument("config", metavar="CONFIG", help="YAML file or shipped config")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="override, such as sample.n_test=64")


def add_grade(command: argparse.ArgumentParser) -> None:
    """Arguments of `minos grade`."""
    command.add_argument("file", metavar="FILE", help="jsonl, json, csv or parquet, or a folder of them")
    command.add_argument("--gold", required=True, metavar="COL")
    command.add_argument("--text", required=True, metavar="COL")
    command.add_argument("--out", required=True, metavar="OUT.parquet")
    command.add_argument("--style", choices=("gsm8k", "math"), default="gsm8k")


def add_rank(command: argparse.ArgumentParser) -> None:
    """Arguments of `minos rank`."""
    command.add_argument("file", metavar="FILE", help="jsonl, json, csv or parquet, or a folder of them")
    command.add_argument("--verifier", required=True, metavar="MODEL", help="a directory, a hub id or package:FOLDER")
    command.add_argument("--question", required=True, metavar="COL")
    command.add_argument("--text", required=True, metavar="COL", help="solutions: texts, or lists of steps")
    command.add_argument("--out", required=True, metavar="OUT.parquet")
    command.add_argument("--group", metavar="COL", help="rows with one value here are ranked together, and vote")
    command.add_argument("--style", choices=("gsm8k", "math"), default="gsm8k", help="how answers are read for votes")
    command.add_argument("--kind", choices=("minos", "sequence", "tokens", "shepherd", "qwen"), help="docs/meta.md")
    command.add_argument("--separator", metavar="TEXT", help="kind tokens: what stands behind each step (a line break)")
    command.add_argument("--aggregation", choices=("min", "product", "last", "mean"), default="min")
    command.add_argument(
        "--splitter",
        metavar="package.module:function",
        help="text to steps",
        default="minos_ray.steps.split:paragraphs_or_lines",
    )
    command.add_argument("--max-length", type=int, default=4096, metavar="TOKENS", help="longer ones get no score")
    command.add_argument(
        "--actors", type=int, default=1, metavar="N", help="above 1, and on a cluster: Ray Data actors"
    )
    command.add_argument("--gpus", type=int, choices=(0, 1), default=0, help="of each actor")


def add_import(command: argparse.ArgumentParser) -> None:
    """Arguments of `minos import`."""
    command.add_argument("format", metavar="FORMAT", help=", ".join(imports.FORMATS))
    command.add_argument("src", metavar="SRC")
    command.add_argument("run", metavar="RUN")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="option of the format")


def add_export(command: argparse.ArgumentParser) -> None:
    """Arguments of `minos export`."""
    command.add_argument("format", metavar="FORMAT", help=", ".join(exports.FORMATS))
    command.add_argument("run", metavar="RUN")
    command.add_argument("out", metavar="OUT", help="a .jsonl, .jsonl.gz or .parquet file; huggingface: a new folder")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="option of the format")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    arguments = parser().parse_args(argv)
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


def find_own_modules(config: str | None) -> None:
    """Lets configs name functions in the working directory, as `python -m` does, and beside the config.

    They come last, so that no file there takes the place of a package. Ray gives its workers the working directory;
    those of this machine, and the processes that compare answers, get the other folder with their environment.
    """
    try:
        working_directory = os.getcwd()
    except FileNotFoundError:  # removed meanwhile: there are no modules in it
        return
    beside = os.path.dirname(os.path.abspath(config)) if config and os.path.isfile(config) else working_directory
    for folder in dict.fromkeys((working_directory, beside)):
        if folder not in sys.path:
            sys.path.append(folder)
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if beside != working_directory and beside not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, inherited), beside])


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


@contextmanager
def working(config: "Config", command: str, alone: bool = True) -> "Generator[Run]":
    """The run of a config; no other command works on it meanwhile. UserError where one does already."""
    from minos_ray.pipeline.run import open_run, require_lasting_folder
    from minos_ray.store.run import Run
    from minos_ray.work.lock import locked

    require_lasting_folder(config)
    with locked(Run(config.run), f"minos {command}") if alone else nullcontext(), Work():
        yield open_run(config)


class Work:
    """Leaves Ray at the end, whatever happened."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        from minos_ray.cluster.connect import disconnect

        if "ray" in sys.modules:
            disconnect()


def numbers(counts: dict[str, int]) -> str:
    """`rows 12,800, problems 50`."""
    return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items())


def dropped(reasons: dict[str, int]) -> str:
    """`; dropped: wrong step count 3`, or nothing."""
    return f"; dropped: {numbers(reasons)}" if reasons else ""


def run(arguments: argparse.Namespace) -> None:
    """`minos run CONFIG`."""
    from minos_ray.config.load import load_config

    run_config(load_config(arguments.config, arguments.overrides), f"run {arguments.config}")


def demo(arguments: argparse.Namespace) -> None:
    """`minos demo`."""
    from minos_ray.config.load import load_config

    run_config(load_config("miniature", [f"run={arguments.out}"]), "demo")


def run_config(config: "Config", command: str) -> None:
    """Runs all stages, then prints the results and where the report lies."""
    import json
    import time

    from minos_ray.observe.progress import duration
    from minos_ray.pipeline.check import require
    from minos_ray.pipeline.run import run_all
    from minos_ray.report.statement import results_table
    from minos_ray.store.run import Run
    from minos_ray.work.lock import require_unlocked

    start = time.monotonic()
    require_unlocked(Run(config.run))
    require(config, Run(config.run))
    with working(config, command) as run:
        run_all(config, run)
    print(results_table(json.loads(run.read_bytes("evaluation.json"))))
    print(f"total {duration(time.monotonic() - start)}; report: {run.at('report.html')}")


def check(arguments: argparse.Namespace) -> None:
    """`minos check CONFIG`."""
    from minos_ray.config.load import load_config
    from minos_ray.pipeline.check import check as check_config

    with Work():
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


def grade(arguments: argparse.Namespace) -> None:
    """`minos grade FILE`."""
    from minos_ray.grading.grade_file import grade_file

    with Work():
        grade_file(arguments.file, arguments.gold, arguments.text, arguments.out, arguments.style)


def rank(arguments: argparse.Namespace) -> None:
    """`minos rank FILE`."""
    from minos_ray.config.resources import Scoring
    from minos_ray.ranking.rank_file import rank_file
    from minos_ray.ranking.scorer import Task, verifier_of

    resources = Scoring(actors=arguments.actors, gpus=arguments.gpus, max_model_len=arguments.max_length)
    task = Task(
        verifier_of(arguments.verifier, arguments.kind, arguments.separator),
        arguments.question,
        arguments.text,
        arguments.style,
        arguments.splitter,
        arguments.aggregation,
        resources,
    )
    with Work():
        rank_file(arguments.file, arguments.out, task, arguments.group)


def import_(arguments: argparse.Namespace) -> None:
    """`minos import FORMAT SRC RUN`."""
    from minos_ray.config.load import parse_override
    from minos_ray.imports import bring
    from minos_ray.observe.failure import reported
    from minos_ray.store.run import Run
    from minos_ray.work.lock import locked

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
    "grade": grade,
    "rank": rank,
    "import": import_,
    "export": export,
}

if __name__ == "__main__":
    sys.exit(main())
