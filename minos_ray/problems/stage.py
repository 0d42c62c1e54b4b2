"""Stage `problems`: both splits, disjoint, as one part each."""

import inspect
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Set

from minos_ray.config.load import Config, NamedFunction, resolve
from minos_ray.config.schema import Source
from minos_ray.errors import UserError
from minos_ray.graph.specs import begin, fresh
from minos_ray.graph.state import Todo
from minos_ray.store import columns
from minos_ray.store.columns import Row
from minos_ray.store.run import Manifest, Run

SHOWN = 20


def functions(config: Config, stages: Set[str]) -> Iterator[NamedFunction]:
    """The loaders of both splits."""
    if "problems" not in stages or config.problems is None:
        return
    for split in ("train", "test"):
        source = getattr(config.problems, split)
        options = {"path": source.path, "split": split, "limit": source.limit, "seed": 0, **source.options}
        yield NamedFunction(
            f"problems.{split}.loader", source.loader, "(path, split, limit, seed, ...)", options=options
        )


def problems_of(config: Config, todo: Todo) -> Iterator[str]:
    """One line when there is no source of problems, or its file is not there."""
    if "problems" in todo.stages and config.problems is None:
        yield "section 'problems' is missing and nothing was imported; see `minos import`"
    elif "problems" in todo.stages:
        paths = {split: getattr(config.problems, split).path for split in ("train", "test")}
        absent = [split for split, path in paths.items() if path and "://" not in path and not os.path.exists(path)]
        yield from (f"problems.{split}.path = '{paths[split]}' does not exist" for split in absent[:1])


def problems(config: Config, run: Run) -> Manifest:
    """Loads the train and the test problems; a question that is in both is taken out of train."""
    if done := fresh(config, run, "problems"):
        return done
    if config.problems is None:
        raise UserError("section 'problems' is missing and the run holds no imported problems; see `minos import`")
    start = time.monotonic()
    loaded = {split: load(split, getattr(config.problems, split), config.seed) for split in ("train", "test")}
    splits, dropped, aside = sort_out(loaded)
    # Columns and ids are checked over both splits.
    both = columns.validate("problems", columns.table("problems", [*splits["train"], *splits["test"]]))
    target, train = begin(config, run, "problems"), len(splits["train"])
    target.write_part("train", both.slice(0, train))
    target.write_part("test", both.slice(train))
    counts = {"rows": sum(map(len, splits.values())), **{split: len(rows) for split, rows in splits.items()}}
    return target.complete(counts, dropped, {"seconds": round(time.monotonic() - start, 1), "set_aside": aside[:SHOWN]})


def load(split: str, source: Source, seed: int) -> list[Row]:
    """What the loader of one split yields; UserError when it does not take the options."""
    loader = resolve(source.loader)
    options = {"path": source.path, "split": split, "limit": source.limit, "seed": seed, **source.options}
    signature = inspect.signature(loader)
    try:
        signature.bind(**options)
    except TypeError as error:
        accepted = ", ".join(name for name in signature.parameters if name not in ("path", "split", "limit", "seed"))
        raise UserError(f"problems.{split}.options: {error}; accepted: {accepted or 'none'}") from error
    return list(loader(**options))


def sort_out(loaded: dict[str, list[Row]]) -> tuple[dict[str, list[Row]], dict[str, int], list[Row]]:
    """Usable rows by split, rows left out by reason, and those that could not be read."""
    dropped: Counter[str] = Counter()
    aside: list[Row] = []
    splits: dict[str, list[Row]] = {}
    for split, rows in loaded.items():
        splits[split] = [row for row in rows if "error" not in row]
        bad = [{"split": split, **row} for row in rows if "error" in row]
        dropped.update(f"{split}: {row['error']}" for row in bad)
        aside += bad
    test_questions = {key(row["question"]) for row in splits["test"]}
    train = [row for row in splits["train"] if key(row["question"]) not in test_questions]
    dropped["train: also in test"] = len(splits["train"]) - len(train)
    splits["train"] = train
    for split, rows in splits.items():
        if not rows:
            raise UserError(f"problems.{split}: no problem is left; dropped: {dict(dropped)}")
    return splits, dict(dropped), aside


def key(question: str) -> str:
    """A question without case, spaces and punctuation; digits, signs and points between digits stay."""
    return re.sub(r"[^\w+\-*/^=<>.]+|\.(?![0-9])", "", question.casefold())
