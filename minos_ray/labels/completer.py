"""The worker of the rollouts: a batch of prefix trees in, one row per prefix out."""

import time
from typing import Any

import pyarrow as pa

from minos_ray.candidates.engine import ENGINE_DIED, Generator, Request, Text
from minos_ray.candidates.prompts import prompt_of
from minos_ray.candidates.sampler import sampling_of
from minos_ray.config.load import resolve
from minos_ray.config.resources import Engine
from minos_ray.config.schema import Label, Model, Sample
from minos_ray.grading.pool import Grading
from minos_ray.graph.lengths import PROMPT_TOO_LONG
from minos_ray.labels.rollout_plan import Tree, decide, forest, ids_after, prefix_id
from minos_ray.problems.split import problems_by_id
from minos_ray.store import columns
from minos_ray.store.model_files import load_tokenizer, locate
from minos_ray.store.run import Run

# A tree as the actors get it: `rollout_plan.Tree`, named by its problem.
UNITS = pa.schema(
    [
        ("unit_id", pa.string()),
        ("parents", pa.list_(pa.int32())),
        ("pieces", pa.list_(pa.string())),
        ("proven", pa.list_(pa.bool_())),
    ]
)
INEXACT = "prefixes_tokenised_inexactly"


class Completer:
    """Completes and grades the prefixes of trees (schema `UNITS`) with its own engine."""

    def __init__(self, run: str, model: Model, resources: Engine, sample: Sample, label: Label, seed: int) -> None:
        path = locate(model, Run(run))
        self.generator = Generator(path, model, resources)
        self.tokenizer = load_tokenizer(path, model.trust_remote_code)
        self.prompt, self.sampling, self.seed = prompt_of(sample), sampling_of(sample, self.tokenizer), seed
        self.grading = Grading(resolve(label.grader), label.timeout_s)
        assert label.rollouts is not None
        self.rollouts = label.rollouts
        self.problems = problems_by_id(Run(run), "train", ["problem_id", "question", "answer"])

    def __call__(self, batch: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """A row for each prefix of the batch, and its numbers: seconds, prefixes that went wrong by reason."""
        start = time.monotonic()
        trees = [tree_of(row) for row in batch.to_pylist()]
        draws = Draws(self, trees)
        decided = decide(*forest(trees), self.rollouts.completions, self.rollouts.soft, draws)
        rows = [draws.row(prefix, decided.label(prefix), statuses) for prefix, statuses in enumerate(decided.outcomes)]
        stats = {INEXACT: draws.inexact, PROMPT_TOO_LONG: sum(row["label"] < 0 for row in rows)}
        return columns.table("rollouts", rows), {"seconds": time.monotonic() - start, **stats}

    @staticmethod
    def failed(units: pa.Table, **kwargs: Any) -> tuple[pa.Table, dict[str, float]]:
        """The prefixes of poisoned problems: no completions, no label."""
        trees = [tree_of(row) for row in units.to_pylist()]
        rows = [unlabelled(tree.problem_id, text) for tree in trees for text in tree.texts()]
        return columns.table("rollouts", rows), {ENGINE_DIED: len(rows)}


def tree_of(row: dict[str, Any]) -> Tree:
    """A row of `UNITS` as a tree."""
    return Tree(row["unit_id"], row["parents"], row["pieces"], row["proven"])


def unlabelled(problem_id: str, text: str) -> dict[str, Any]:
    """The row of a prefix without completions."""
    counts = dict.fromkeys(("completions", "correct", "no_answer", "timeout", "tokens"), 0)
    return {"prefix_id": prefix_id(problem_id, text), "problem_id": problem_id, "label": -1, **counts}


class Draws:
    """The prefixes of a batch as requests. Called for completions, it samples and grades them (`rollout_plan.Draw`)."""

    def __init__(self, completer: Completer, trees: list[Tree]) -> None:
        self.completer, self.round, self.inexact = completer, 0, 0
        self.prefixes = [(tree.problem_id, text) for tree in trees for text in tree.texts()]
        self.ids = [ids for tree in trees for ids in self.encode(tree)]
        self.tokens = [0] * len(self.prefixes)
        self.name = f"{completer.seed} rollouts {trees[0].problem_id}"

    def encode(self, tree: Tree) -> list[list[int]]:
        """The ids that each completion continues: those of the prompt and of the prefix."""
        question = self.completer.problems[tree.problem_id]["question"]
        prompt = self.completer.prompt(question, self.completer.tokenizer)
        tokenised = ids_after(self.completer.tokenizer, prompt, tree.texts())
        self.inexact += sum(not exact for _, exact in tokenised)
        return [[*prompt, *ids] for ids, _ in tokenised]

    def __call__(self, prefixes: list[int], count: int) -> list[list[str]]:
        """Statuses of `count` new completions of each of these prefixes; none where there is no room for them."""
        requests = [Request(self.ids[prefix], count) for prefix in prefixes]
        self.round += 1
        seed = f"{self.name} {self.round}"
        texts_by_prefix = self.completer.generator.generate(requests, self.completer.sampling, seed)
        completions = [
            (prefix, text)
            for prefix, texts in zip(prefixes, texts_by_prefix, strict=True)
            for text in texts
            if text.reason != PROMPT_TOO_LONG
        ]
        outcomes: dict[int, list[str]] = {prefix: [] for prefix in prefixes}
        for (prefix, text), status in zip(completions, self.grade(completions), strict=True):
            outcomes[prefix].append(status)
            self.tokens[prefix] += text.tokens
        return list(outcomes.values())

    def grade(self, completions: list[tuple[int, Text]]) -> list[str]:
        """The outcome of each completion, graded together with its prefix, as a candidate would be."""
        problems = [self.completer.problems[self.prefixes[prefix][0]] for prefix, _ in completions]
        texts = [self.prefixes[prefix][1] + text.text for prefix, text in completions]
        return [graded.status for graded in self.completer.grading([p["answer"] for p in problems], texts)]

    def row(self, prefix: int, label: int, statuses: list[str]) -> dict[str, Any]:
        """One row of the artefact."""
        problem_id, text = self.prefixes[prefix]
        counts = {status: statuses.count(status) for status in ("correct", "no_answer", "timeout")}
        row = {**unlabelled(problem_id, text), "label": label}
        return {**row, "completions": len(statuses), **counts, "tokens": self.tokens[prefix]}
