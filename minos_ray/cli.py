"""The command `minos`. Exit codes: 0 done, 1 the work failed, 2 the request was wrong (one clear line)."""

import argparse
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext, suppress
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
    "refine": "rounds in which the critic learns from its own critiques (section 'refine')",
    "reward": "stage 2: train the verifiers",
    "score": "score test candidates with every verifier",
    "evaluate": "best-of-n, votes, intervals, meta-evaluation",
    "sweep": "scale-up study over the amount of critiques",
    "study": "does Minos beat base? Arms and ablations over several seeds of data and training",
    "teach": "the generator learns its own best solutions, by the scores of a verifier, in rounds",
    "report": "one offline HTML file",
}
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
    from minos_ray.pipeline import run_stage

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
    from minos_ray.pipeline import open_run, require_lasting_folder
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
    """`minos run CONFIG`, or `minos demo` with the miniature: all stages, the results, and where the report lies."""
    import json
    import time

    from minos_ray.config.load import load_config
    from minos_ray.observe.progress import duration
    from minos_ray.pipeline import require, run_all
    from minos_ray.report.statement import results_table
    from minos_ray.store.run import Run
    from minos_ray.units.lock import require_unlocked

    start = time.monotonic()
    if arguments.command == "demo":
        config, command = load_config("miniature", [f"run={arguments.out}"]), "demo"
    else:
        config, command = load_config(arguments.config, arguments.overrides), f"run {arguments.config}"
    require_unlocked(Run(config.run))
    require(config, Run(config.run))
    with working(config, command) as run:
        run_all(config, run)
    print(results_table(json.loads(run.read_bytes("evaluation.json"))))
    print(f"total {duration(time.monotonic() - start)}; report: {run.at('report.html')}")


def check(arguments: argparse.Namespace) -> None:
    """`minos check CONFIG`."""
    from minos_ray.config.load import load_config
    from minos_ray.pipeline import check as check_config

    with leaving_ray():
        check_config(load_config(arguments.config, arguments.overrides))


def status(arguments: argparse.Namespace) -> None:
    """`minos status RUN`."""
    from minos_ray.graph.state import status as states
    from minos_ray.pipeline import saved_config
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
    from minos_ray.grading.graders import grade_file

    with leaving_ray():
        grade_file(arguments.file, arguments.gold, arguments.text, arguments.out, arguments.style)


def rank(arguments: argparse.Namespace) -> None:
    """`minos rank FILE`, by `--verifier` or `--critic`."""
    from minos_ray.serving.rank_file import CriticTask, critic_config, rank_file
    from minos_ray.serving.scorer import CRITIC_OPTIONS, Task, verifier_of

    columns = (arguments.question, arguments.text, arguments.style, arguments.splitter)
    if arguments.critic:
        options = {name: getattr(arguments, name) for name in CRITIC_OPTIONS}
        config = critic_config(arguments.critic, f"{arguments.out}.critiques", options, arguments.set)
        task = CriticTask(config, *columns)
    else:
        from minos_ray.config.resources import Scoring

        if lost := [name for name in (*CRITIC_OPTIONS, "set") if getattr(arguments, name) not in (None, [])]:
            raise UserError(f"--{lost[0].replace('_', '-')} is an option of --critic; --verifier takes none of it")
        resources = Scoring(actors=arguments.actors, gpus=arguments.gpus, max_model_len=arguments.max_length)
        verifier = verifier_of(arguments.verifier, arguments.kind, arguments.separator)
        task = Task(verifier, *columns, arguments.aggregation, resources)
    with leaving_ray():
        rank_file(arguments.file, arguments.out, task, arguments.group)


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
    with_config(commands.add_parser("search", help="candidates of the test problems by PRM-guided search over steps"))
    grade = commands.add_parser("grade", help="grade a file of answers")
    grade.add_argument("file", metavar="FILE", help="jsonl, json, csv or parquet, or a folder of them")
    grade.add_argument("--gold", required=True, metavar="COL")
    grade.add_argument("--text", required=True, metavar="COL")
    grade.add_argument("--out", required=True, metavar="OUT.parquet")
    grade.add_argument("--style", choices=("gsm8k", "math"), default="gsm8k")
    add_rank(commands.add_parser("rank", help="score and rank the solutions in a file with a verifier or a critic"))
    add_serve(commands.add_parser("serve", help="serve a verifier over HTTP, on Ray Serve"))
    bring = commands.add_parser("import", help="bring foreign data in as artefacts")
    bring.add_argument("format", metavar="FORMAT", help=", ".join(imports.FORMATS))
    bring.add_argument("src", metavar="SRC")
    bring.add_argument("run", metavar="RUN")
    bring.add_argument("overrides", nargs="*", metavar="key=value", help="option of the format")
    send = commands.add_parser("export", help="write artefacts and models in others' formats, or to the hub")
    send.add_argument("format", metavar="FORMAT", help=", ".join(exports.FORMATS))
    send.add_argument("run", metavar="RUN", help="a run directory; hub: also the folder of a model")
    send.add_argument("out", metavar="OUT", help="a .jsonl, .jsonl.gz or .parquet file; hub, huggingface: a new folder")
    send.add_argument("overrides", nargs="*", metavar="key=value", help="option of the format")
    return top


def with_config(command: argparse.ArgumentParser) -> None:
    """Arguments CONFIG and overrides."""
    command.add_argument("config", metavar="CONFIG", help="YAML file or shipped config")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="override, such as sample.n_test=64")


def add_rank(command: argparse.ArgumentParser) -> None:
    """Arguments of `minos rank`."""
    command.add_argument("file", metavar="FILE", help="jsonl, json, csv or parquet, or a folder of them")
    verifier = command.add_mutually_exclusive_group(required=True)
    verifier.add_argument("--verifier", metavar="MODEL", help="a directory, a hub id or package:FOLDER")
    verifier.add_argument("--critic", metavar="MODEL", help="a model behind an endpoint, whose critiques are asked for")
    command.add_argument("--question", required=True, metavar="COL")
    command.add_argument("--text", required=True, metavar="COL", help="solutions: texts, lists of steps, or chats")
    command.add_argument("--out", required=True, metavar="OUT.parquet")
    command.add_argument("--group", metavar="COL", help="rows with one value here are ranked together, and vote")
    command.add_argument("--style", choices=("gsm8k", "math"), default="gsm8k", help="how answers are read for votes")
    add_scoring(command)
    command.add_argument(
        "--actors", type=int, default=1, metavar="N", help="above 1, and on a cluster: Ray Data actors"
    )
    command.add_argument("--gpus", type=int, choices=(0, 1), default=0, help="of each actor")
    critic = command.add_argument_group("options of --critic")
    critic.add_argument("--base-url", metavar="URL", help="an OpenAI-compatible endpoint (OpenAI's own)")
    critic.add_argument("--api-key-env", metavar="NAME", help="the variable that holds its key (OPENAI_API_KEY)")
    critic.add_argument("--prompt", metavar="package.module:function", help="what the critic is asked")
    critic.add_argument("--samples", type=int, metavar="K", help="critiques of each solution (1)")
    critic.add_argument("--temperature", type=float, metavar="T", help="0 for one sample, 0.7 for several")
    critic.add_argument("--max-usd", type=float, metavar="USD", help="stop before more is spent")
    critic.add_argument("--concurrency", type=int, metavar="N", help="requests in flight (64)")
    critic.add_argument("--set", action="append", default=[], metavar="key=value", help="a key of meta.critics")


def add_scoring(command: argparse.ArgumentParser) -> None:
    """How a verifier that lies outside of a run reads solutions."""
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


def add_serve(command: argparse.ArgumentParser) -> None:
    """Arguments of `minos serve`; `serving.serve.Settings` has the same defaults."""
    command.add_argument("model", metavar="MODEL", help="a directory, a hub id or package:FOLDER")
    command.add_argument("--host", default="127.0.0.1", help="others than this machine need --api-key-env")
    command.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    command.add_argument("--api-key-env", metavar="NAME", help="the variable with the key that clients send")
    command.add_argument("--replicas", type=int, default=1, metavar="N")
    command.add_argument("--max-replicas", type=int, metavar="N", help="above --replicas: scaled by load between them")
    command.add_argument("--cpus", type=float, metavar="N", help="threads of a replica (this machine's, shared out)")
    command.add_argument("--gpus", type=int, choices=(0, 1), default=0, help="of each replica")
    add_scoring(command)
    command.add_argument("--max-body-mb", type=float, default=4, metavar="MB", help="of one request")
    command.add_argument("--max-queue", type=int, default=256, metavar="N", help="requests in flight")
    command.add_argument("--batch-tokens", type=int, default=16_384, metavar="N", help="scored together, about")
    command.add_argument(
        "--prompt", default=r"Question: {}\nAnswer:\n", metavar="TEXT", help="of /get_reward and /classify"
    )
    command.add_argument("--unscored", type=float, default=0.0, metavar="X", help="reward without a score")
    command.add_argument("--name", help="of the model in answers (its folder)")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "demo": run,
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
