"""The artefact `rollouts`: labels of prefixes of solutions from their completions (Math-Shepherd, arXiv 2312.08935).

The prefixes of a problem's candidates form a tree: each distinct prefix once, its parent one step shorter. A prefix is
*reached* when some continuation of it ends in the gold answer: a completion of its own, the remaining steps of a right
candidate, or a continuation of a longer prefix, which also continues every shorter one.
"""

import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import blake2b
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.candidates.engine import ENGINE_DIED, Generator, Request
from minos_ray.candidates.prompts import prompt_of, sampling_of
from minos_ray.candidates.stage import generator
from minos_ray.config.load import Config, resolve
from minos_ray.config.resources import Engine
from minos_ray.config.schema import Label, Model, Rollouts, Sample
from minos_ray.errors import UserError
from minos_ray.grading.graders import Grading
from minos_ray.graph import lengths, specs
from minos_ray.graph.lengths import PROMPT_TOO_LONG, require_room
from minos_ray.problems.split import MOST_OUTLINED, count_rows, drawn, problems_by_id, rows_of_problems, turns
from minos_ray.steps.encoding import token_ids
from minos_ray.steps.split import own_solution
from minos_ray.store import columns
from minos_ray.store.columns import GRADED, Row
from minos_ray.store.model_files import load_tokenizer, locate
from minos_ray.store.run import Artefact, Manifest, Run
from minos_ray.units.run_units import Work, run_units, stored_units

# The last tokens of the prompt that are decoded, to see how the first word of the solution reads behind them.
CONTEXT = 8
Statuses = Sequence[str]
# draw(prefixes, count): statuses of `count` new completions of each of these prefixes; none where there is no room.
Draw = Callable[[list[int], int], Sequence[Statuses]]
ROOT = -1
# A tree as the actors get it: the fields of `Tree`, named by its problem.
UNITS = pa.schema(
    [
        ("unit_id", pa.string()),
        ("parents", pa.list_(pa.int32())),
        ("pieces", pa.list_(pa.string())),
        ("proven", pa.list_(pa.bool_())),
    ]
)
INEXACT = "prefixes_tokenised_inexactly"
REJOINED = "candidates_rejoined"


def prefixes(text: str, steps: Sequence[str]) -> tuple[list[str], bool]:
    """The text up to the end of each step but the last, and whether the steps are parts of the text.

    A prefix ends behind the step and the line breaks that follow it, where the author began the next step. When the
    splitter rewrote more of the text than its white space, the flag is False and the steps are joined anew, one a
    line.
    """
    ends = step_ends(text, steps)
    if ends is None:
        return ["".join(f"{step}\n" for step in steps[:k]) for k in range(1, len(steps))], False
    return [text[:end] for end in ends[:-1]], True


def step_ends(text: str, steps: Sequence[str]) -> list[int] | None:
    """Where each step ends in the text; None when the steps are not its words in their order."""
    ends, end = [], 0
    for step in steps:
        start = end + len(text[end:]) - len(text[end:].lstrip())
        end = start + len(step)
        if not text.startswith(step, start):  # white space may differ
            match = re.compile(r"\s+".join(map(re.escape, step.split()))).match(text, start)
            if match is None:
                return None
            end = match.end()
        # Behind the last line break that follows. A space is left to the completer, whose tokens mostly begin with it.
        gap = len(text[end:]) - len(text[end:].lstrip())
        ends.append(max(end, text.rfind("\n", end, end + gap) + 1))
    return ends


def prefix_id(problem_id: str, prefix: str) -> str:
    """A name for a prefix: the same for the same text of the same problem."""
    return blake2b(f"{problem_id}\0{prefix}".encode(), digest_size=12).hexdigest()


def ids_after(tokenizer: Any, prompt: Sequence[int], texts: Sequence[str]) -> list[tuple[list[int], bool]]:
    """For each text its token ids behind the prompt, and whether prompt and ids then read exactly as prompt and text.

    SentencePiece puts a space before a text that stands alone; behind a line break it does not, so the text is also
    tokenised behind one.
    """
    decode, context = partial(tokenizer.decode, clean_up_tokenization_spaces=False), list(prompt[-CONTEXT:])
    before, tokenised = decode(context), []
    for text, ids in zip(texts, token_ids(tokenizer, texts), strict=True):
        exact = decode([*context, *ids]) == before + text
        if not exact:
            line_break, both = token_ids(tokenizer, ["\n", f"\n{text}"])
            behind = both[len(line_break) :]
            exact = decode([*context, *behind]) == before + text
            ids = behind if exact else ids
        tokenised.append((ids, exact))
    return tokenised


class Tree(NamedTuple):
    """The prefixes of one problem: the parent of each (an earlier prefix, or ROOT), the text it adds to its parent, and
    whether a right candidate continues it."""

    problem_id: str
    parents: list[int]
    pieces: list[str]
    proven: list[bool]

    def texts(self) -> list[str]:
        """Every prefix in full."""
        texts: list[str] = []
        for parent, piece in zip(self.parents, self.pieces, strict=True):
            texts.append(piece if parent == ROOT else texts[parent] + piece)
        return texts


class Decided(NamedTuple):
    """Whether each prefix is reached, and the statuses of its own completions."""

    reached: list[bool]
    outcomes: list[list[str]]

    def label(self, prefix: int) -> int:
        """The hard label: 1 reached, 0 not reached by any completion, -1 without completions."""
        return 1 if self.reached[prefix] else 0 if self.outcomes[prefix] else -1


def grow(problem_id: str, solutions: Iterable[tuple[Sequence[str], bool]]) -> Tree:
    """The tree of solutions, each given by its prefixes from short to long and whether it is right."""
    tree = Tree(problem_id, [], [], [])
    numbers: dict[str, int] = {}
    for prefixes, correct in solutions:
        parent, before = ROOT, ""
        for prefix in prefixes:
            if prefix not in numbers:
                numbers[prefix] = len(tree.parents)
                tree.parents.append(parent)
                tree.pieces.append(prefix[len(before) :])
                tree.proven.append(False)
            parent, before = numbers[prefix], prefix
            tree.proven[parent] |= correct
    return tree


def rounds(completions: int) -> list[int]:
    """Completions of each round: 1, 1, 2, 4, ... so that at most half of a prefix's completions were not needed."""
    counts: list[int] = []
    while (done := sum(counts)) < completions:
        counts.append(min(max(1, done), completions - done))
    return counts


def decide(parents: Sequence[int], proven: Sequence[bool], completions: int, soft: bool, draw: Draw) -> Decided:
    """Completes each prefix `completions` times (`soft`), or in rounds until it is reached."""
    decided = Decided([False] * len(parents), [[] for _ in parents])
    for prefix in (prefix for prefix, right in enumerate(proven) if right):
        reach(decided.reached, parents, prefix)
    for count in [completions] if soft else rounds(completions):
        undecided = [prefix for prefix, reached in enumerate(decided.reached) if soft or not reached]
        if not undecided:
            break
        for prefix, statuses in zip(undecided, draw(undecided, count), strict=True):
            decided.outcomes[prefix] += statuses
            if "correct" in statuses:
                reach(decided.reached, parents, prefix)
    return decided


def reach(reached: list[bool], parents: Sequence[int], prefix: int) -> None:
    """Marks a prefix and all shorter ones of its branch."""
    while prefix != ROOT and not reached[prefix]:
        reached[prefix] = True
        prefix = parents[prefix]


def forest(trees: Sequence[Tree]) -> tuple[list[int], list[bool]]:
    """Parents and proofs of several trees as one: the prefixes are numbered through."""
    parents: list[int] = []
    for tree in trees:
        first = len(parents)
        parents += [parent if parent == ROOT else parent + first for parent in tree.parents]
    return parents, [proven for tree in trees for proven in tree.proven]


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
        trees = read_trees(batch)
        draws = Draws(self, trees)
        decided = decide(*forest(trees), self.rollouts.completions, self.rollouts.soft, draws)
        rows = []
        for prefix, (name, statuses) in enumerate(zip(draws.prefixes, decided.outcomes, strict=True)):
            counts = {status: statuses.count(status) for status in ("correct", "no_answer", "timeout")}
            counts |= {"completions": len(statuses), "tokens": draws.tokens[prefix]}
            rows.append({**unlabelled(*name), "label": decided.label(prefix), **counts})
        stats = {INEXACT: draws.inexact, PROMPT_TOO_LONG: sum(row["label"] < 0 for row in rows)}
        return columns.table("rollouts", rows), {"seconds": time.monotonic() - start, **stats}

    @staticmethod
    def failed(units: pa.Table, **kwargs: Any) -> tuple[pa.Table, dict[str, float]]:
        """The prefixes of poisoned problems: no completions, no label."""
        rows = [unlabelled(tree.problem_id, text) for tree in read_trees(units) for text in tree.texts()]
        return columns.table("rollouts", rows), {ENGINE_DIED: len(rows)}


def unlabelled(problem_id: str, text: str) -> dict[str, Any]:
    """The row of a prefix without completions."""
    counts = dict.fromkeys(("completions", "correct", "no_answer", "timeout", "tokens"), 0)
    return {"prefix_id": prefix_id(problem_id, text), "problem_id": problem_id, "label": -1, **counts}


class Draws:
    """The prefixes of a batch as requests. Called for completions, it samples and grades them (`Draw`)."""

    def __init__(self, completer: Completer, trees: list[Tree]) -> None:
        self.completer, self.round, self.inexact = completer, 0, 0
        self.prefixes = [(tree.problem_id, text) for tree in trees for text in tree.texts()]
        # What each completion continues: the prompt and the prefix.
        self.ids: list[list[int]] = []
        for tree in trees:
            prompt = completer.prompt(completer.problems[tree.problem_id]["question"], completer.tokenizer)
            tokenised = ids_after(completer.tokenizer, prompt, tree.texts())
            self.inexact += sum(not exact for _, exact in tokenised)
            self.ids += [[*prompt, *ids] for ids, _ in tokenised]
        self.tokens = [0] * len(self.prefixes)
        self.name = f"{completer.seed} rollouts {trees[0].problem_id}"

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
        # Each is graded together with its prefix, as a candidate would be.
        golds = [self.completer.problems[self.prefixes[prefix][0]]["answer"] for prefix, _ in completions]
        grades = self.completer.grading(golds, [self.prefixes[prefix][1] + text.text for prefix, text in completions])
        outcomes: dict[int, list[str]] = {prefix: [] for prefix in prefixes}
        for (prefix, text), grade in zip(completions, grades, strict=True):
            outcomes[prefix].append(grade.status)
            self.tokens[prefix] += text.tokens
        return list(outcomes.values())


class Plan(NamedTuple):
    """The trees of all problems, the number of their candidates and steps, and how many are dropped or rejoined."""

    trees: list[Tree]
    candidates: int
    steps: int
    counts: Counter[str]

    @property
    def prefixes(self) -> int:
        """Distinct prefixes."""
        return sum(len(tree.parents) for tree in self.trees)

    def count_completed(self, section: Rollouts) -> int:
        """How many prefixes are completed: with `soft` all, else those that no right candidate proves."""
        return sum(section.soft or not proven for tree in self.trees for proven in tree.proven)

    def cost(self, section: Rollouts) -> str:
        """The most that will be sampled, in words."""
        count = self.count_completed(section)
        proven = f" ({self.prefixes - count:,} more are proven by right ones)" if count < self.prefixes else ""
        return (
            f"label.rollouts: at most {count * section.completions:,} completions: {count:,} distinct prefixes of "
            f"{self.candidates:,} candidates{proven} x {section.completions}"
        )


def rollouts(config: Config, run: Run) -> Manifest:
    """Labels the prefixes of train candidates; a rerun samples only for problems that are not stored yet."""
    if done := specs.fresh(config, run, "rollouts"):
        return done
    start, section, model = time.monotonic(), settings(config), completer(config)
    path = locate(model, run)
    require_room("sample.max_tokens", config.sample.max_tokens, "sample", config.resources.sample, path)
    plan = make_plan(config, run, graded=True)
    if not plan.candidates:
        raise UserError("label.rollouts: no train candidate has an answer to go by; see sample.n_train")
    target = specs.begin(config, run, "rollouts")
    lengths.make_again(target, lengths.length_of(config, target.name, path))
    print(plan.cost(section), flush=True)
    before = complete_missing(config, run, target, plan, model)
    return finish(target, plan, section, before, {"model": model.model, "seconds": time.monotonic() - start})


def cost(config: Config, run: Run) -> str:
    """The most that will be sampled, in words: a number once the candidates are stored, before that its formula."""
    section = settings(config)
    if specs.fresh(config, run, "candidates") is not None:
        return make_plan(config, run, graded=False).cost(section)
    count = f"{section.candidates:,}" if section.candidates else "sample.n_train x train problems"
    return (
        f"label.rollouts: at most candidates ({count}) x (steps - 1) x {section.completions} completions; "
        "how many steps there are is known after sampling"
    )


def settings(config: Config) -> Rollouts:
    """The section; UserError when all completions of a prefix would be the same."""
    section = config.label.rollouts
    assert section is not None
    if config.sample.temperature == 0 and section.completions > 1:
        raise UserError(
            f"label.rollouts.completions = {section.completions}, but with sample.temperature = 0 all completions of "
            "a prefix are the same; raise the temperature or set completions to 1"
        )
    return section


def completer(config: Config) -> Model:
    """The model that completes."""
    model = config.label.rollouts.completer if config.label.rollouts else None
    if model is None and config.generator is None:
        raise UserError("label.rollouts.completer is missing, and there is no generator that could complete")
    return model or generator(config)


def make_plan(config: Config, run: Run, graded: bool) -> Plan:
    """The trees of the chosen candidates.

    With `graded`, candidates without an outcome are dropped and right ones prove their prefixes. Without, which is
    quicker, the trees can only be larger.
    """
    assert config.label.rollouts is not None
    problems = problems_by_id(run, "train", ["problem_id", "answer"])
    rows = chosen(run, list(problems), config.label.rollouts.candidates, config.seed)
    statuses = ["wrong"] * len(rows)
    if graded:
        grader, workers = resolve(config.label.grader), len(os.sched_getaffinity(0))
        with Grading(grader, config.label.timeout_s, workers) as grading:
            grades = grading([problems[row["problem_id"]]["answer"] for row in rows], [row["text"] for row in rows])
        statuses = [grade.status for grade in grades]
    counts = Counter(f"candidate_{status}" for status in statuses if status not in GRADED)
    graded_rows = [(row, status == "correct") for row, status in zip(rows, statuses, strict=True) if status in GRADED]
    split = resolve(config.label.splitter)
    trees, steps = [], 0
    for problem_id, group in groupby(graded_rows, key=lambda pair: pair[0]["problem_id"]):
        texts = [(own_solution(row["text"]), correct) for row, correct in group]
        cuts = [(*prefixes(text, split(text)), correct) for text, correct in texts]
        counts[REJOINED] += sum(not is_cut for _, is_cut, _ in cuts)
        steps += sum(len(cut) for cut, _, _ in cuts)
        trees.append(grow(problem_id, [(cut, correct) for cut, _, correct in cuts]))
    return Plan([tree for tree in trees if tree.parents], len(graded_rows), steps, counts)


def chosen(run: Run, problem_ids: list[str], limit: int | None, seed: int) -> list[Row]:
    """Candidates of these problems, ordered by problem and id: all, or `limit` of them, round-robin over problems (over
    some of them where they have too many candidates, see `drawn`)."""
    names = set(problem_ids)
    if limit is not None:
        names &= drawn(count_rows(run.artefact("candidates"), names), MOST_OUTLINED)[0]
    columns = ["candidate_id", "problem_id", "text"]
    order = [("problem_id", "ascending"), ("candidate_id", "ascending")]
    ids = rows_of_problems(run.artefact("candidates"), columns[:2], names).sort_by(order)
    if limit is None or limit >= len(ids):
        rows = rows_of_problems(run.artefact("candidates"), columns, names)
    else:  # texts of those that are chosen
        problems = ids["problem_id"].combine_chunks().dictionary_encode().indices.to_numpy()
        first = ids["candidate_id"].take(pa.array(turns(problems, f"{seed}/rollouts")[:limit]))
        rows = run.artefact("candidates").read_where("candidate_id", first.to_pylist(), columns)
    return rows.sort_by(order).to_pylist()


def complete_missing(config: Config, run: Run, target: Artefact, plan: Plan, model: Model) -> int:
    """Completes the trees that are not stored; returns how many prefixes were stored before.

    A problem that is stored with another number of prefixes is completed again: grading has a time limit, so that one
    call can leave out a candidate that the next one grades.
    """
    assert config.label.rollouts is not None
    rows = np.array([len(tree.parents) for tree in plan.trees], np.int64)
    stored = stored_units(target, pa.array([tree.problem_id for tree in plan.trees], pa.string()), rows)
    before = int(rows[stored].sum())
    missing = [tree for tree, is_stored in zip(plan.trees, stored, strict=True) if not is_stored]
    random.Random(config.seed).shuffle(missing)  # so that every batch is about equally much work
    resources = config.resources.sample
    # Without `soft` a first round has one completion for each prefix.
    prefixes = sum(len(tree.parents) for tree in missing) / max(1, len(missing))
    per_tree = prefixes * (config.label.rollouts.completions if config.label.rollouts.soft else 1)
    work = Work(
        label="rollouts",
        pool="sample",
        worker=Completer,
        kwargs={
            "run": run.path,
            "model": model,
            "resources": resources,
            "sample": config.sample,
            "label": config.label,
            "seed": config.seed,
        },
        batch_units=max(1, round(resources.units_per_task * config.sample.unit / max(1, per_tree))),
        rows=plan.prefixes,
        rows_before=before,
        row_name="prefixes",
    )
    run_units(run, target.name, unit_table(missing), work, config.resources)
    return before


def unit_table(trees: list[Tree]) -> pa.Table:
    """The trees as the actors get them."""
    rows = [{"unit_id": tree.problem_id, **tree._asdict()} for tree in trees]
    return pa.Table.from_pylist(rows, schema=UNITS)


def finish(target: Artefact, plan: Plan, section: Rollouts, before: int, details: dict[str, Any]) -> Manifest:
    """Checks that every prefix is stored once, then writes the manifest."""
    rows = target.read(partial=True)
    if {rows.num_rows, pc.count_distinct(rows["prefix_id"]).as_py()} != {plan.prefixes}:
        raise RuntimeError(f"{plan.prefixes} prefixes, but {rows.num_rows} rows of rollouts; run again")
    totals = {name: pc.sum(rows[name]).as_py() or 0 for name in ("completions", "correct", "tokens")}
    counts = {"prefixes": plan.prefixes, "candidates": plan.candidates, **totals}
    counts["at_most"] = plan.count_completed(section) * section.completions
    dropped = {reason: count for reason, count in plan.counts.items() if reason != REJOINED}
    stats = target.stats()
    details |= lengths.details(target, stats) | {
        "prefixes_with_repeats": plan.steps,
        "prefixes_before": before,
        "reached": pc.sum(pc.equal(rows["label"], 1)).as_py() or 0,
        REJOINED: plan.counts[REJOINED],
        INEXACT: int(stats.get(INEXACT, 0)),
        "engine_seconds": round(stats.get("seconds", 0.0), 2),
        "seconds": round(details["seconds"], 2),
    }
    unlabelled = {reason: int(stats.get(reason, 0)) for reason in (PROMPT_TOO_LONG, ENGINE_DIED)}
    return target.complete(counts, dropped | unlabelled, details)


def read_trees(units: pa.Table) -> list[Tree]:
    """The trees of `unit_table`."""
    return [Tree(row["unit_id"], row["parents"], row["pieces"], row["proven"]) for row in units.to_pylist()]
