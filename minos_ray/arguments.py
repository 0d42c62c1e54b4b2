"""The commands of `minos` and their arguments."""

import argparse

from minos_ray import __version__, exports, imports

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
    add_rank(commands.add_parser("rank", help="score the solutions in a file with a verifier and rank them"))
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
