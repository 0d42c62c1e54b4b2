"""The critic as a generative verifier: it writes critiques of test candidates, and its verdicts are the score.

Equal solutions of a problem are judged once, and all their candidates get the same score. A unit of work is a problem:
the driver knows in which parts its candidates lie, and the actors read them.

With `score.judge.soft` a second score comes from the same critiques (`scores/critic-soft`): how likely the critic was
to write `True`, from the tokens with which it wrote its verdicts. P(True) = p("True") / (p("True") + p("False")) at the
token of the final verdict, after the critique that leads to it (GenRM, arXiv:2408.15240, equation 6, there with Yes and
No), and likewise of `correct` and `incorrect` for each step. Log-probabilities are those of the model itself, before
any temperature.
"""

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.candidates.engine import ENGINE_DIED, Generator, Request, Text
from minos_ray.config.load import Config
from minos_ray.config.resources import Engine
from minos_ray.config.schema import Judge, Model
from minos_ray.errors import UserError
from minos_ray.graph import lengths, specs
from minos_ray.graph.lengths import require_room
from minos_ray.scoring.stage import read_pieces
from minos_ray.steps import encoding
from minos_ray.steps.critique_text import Parsed, parse_critique
from minos_ray.steps.encoding import token_ids
from minos_ray.store import columns as schema
from minos_ray.store.model_files import load_tokenizer, locate
from minos_ray.store.run import Artefact, Manifest, Run
from minos_ray.units.run_units import Work, Worker, rows_of_units, run_units, stored_units

NO_STEPS = "no_steps"
SOFT = "scores/critic-soft"
# (text, what the parser reads in it) -> P(True), and P(correct) of each step
Soften = Callable[[Text, Parsed], tuple[float, list[float]]]
# What a critic is given: a distinct solution, with the id of its first candidate, and all the candidates that have it.
UNITS = pa.schema(
    [
        ("unit_id", pa.string()),
        ("candidate_ids", pa.list_(pa.string())),
        ("problem_id", pa.string()),
        ("question", pa.string()),
        ("steps", pa.list_(pa.string())),
    ]
)
STEP = re.compile(r"This step is (correct|incorrect)\b")
FINAL = re.compile(r"The final answer is (True|False)\b")


class Wording(NamedTuple):
    """The tokens that decide: the first ones in which both wordings of a verdict differ, of a good and of a bad one."""

    step: tuple[int, int]
    final: tuple[int, int]


def wording_of(tokenizer: Any) -> Wording:
    """The tokens of our own critiques' verdicts; UserError where the tokenizer cannot say which text each
    token stands for."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(
            f"score.judge.soft: needs a fast tokenizer, and {type(tokenizer).__name__} is none; set it to false"
        )
    texts = [
        "This step is correct.",
        "This step is incorrect.",
        "The final answer is True.",
        "The final answer is False.",
    ]
    good, bad, true, false = token_ids(tokenizer, texts)
    return Wording(first_difference(good, bad), first_difference(true, false))


def first_difference(a: list[int], b: list[int]) -> tuple[int, int]:
    """The first pair of differing tokens."""
    return next((x, y) for x, y in zip(a, b, strict=False) if x != y)


def soft_verdicts(tokenizer: Any, wording: Wording, text: Text, critique: Parsed) -> tuple[float, list[float]]:
    """P(True) of the final verdict, and P(correct) of each step, the answer line last, whose verdict is the final one.

    `critique` is what the parser reads in the text, and readable. A verdict that is worded in other tokens counts as
    certain: 1 or 0.
    """
    certain = [float(verdict) for verdict in critique.step_verdicts]
    steps, finals = list(STEP.finditer(text.text)), list(FINAL.finditer(text.text))
    if text.logprobs is None or len(finals) != 1 or len(steps) not in (len(certain) - 1, len(certain)):
        return certain[-1], certain
    ends = token_ends(tokenizer, text)
    soft = [
        probability(text, ends, match.start(1), wording.step, verdict)
        for match, verdict in zip(steps, certain[:-1], strict=False)
    ]
    final = probability(text, ends, finals[0].start(1), wording.final, certain[-1])
    return final, [*soft, final]


def probability(text: Text, ends: list[int], start: int, pair: tuple[int, int], verdict: float) -> float:
    """The probability of the good one of two tokens, where the word that begins at `start` was written."""
    place = next((place for place, end in enumerate(ends) if end > start), None)
    if place is None or text.ids[place] not in pair:
        return verdict
    good, bad = (text.logprobs[place][token].logprob for token in pair)
    return 1 / (1 + math.exp(min(bad - good, 700.0)))


def token_ends(tokenizer: Any, text: Text) -> list[int]:
    """[tokens]: where the text of each generated token ends, in characters of the whole text.

    Counted from the end of the text: some tokenizers drop a space before its first word. Empty where the tokens do
    not spell the text.
    """
    from tokenizers.decoders import DecodeStream

    stream, ends, spelt = DecodeStream(skip_special_tokens=True), [], ""
    for token in text.ids:
        spelt += stream.step(tokenizer.backend_tokenizer, token) or ""
        ends.append(len(spelt))
    shift = len(text.text) - len(spelt)
    return [end + shift for end in ends] if text.text.endswith(spelt) else []


class CriticJudge:
    """Judges units (schema `UNITS`) with its own engine; writes one row of scores for every candidate."""

    def __init__(self, run: str, model: Model, resources: Engine, judge: Judge, seed: int) -> None:
        path = locate(model, Run(run))
        self.generator = Generator(path, model, resources)
        self.tokenizer = load_tokenizer(path, model.trust_remote_code)
        saved = json.loads((Path(path) / "config.json").read_text()).get("step_encoding")
        self.layout = encoding.layout_of(saved, self.tokenizer, path)
        self.judge, self.seed = judge, seed

    def __call__(self, batch: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Rows of scores, and counts: tokens, seconds, critiques by status of the parser or the engine."""
        units = batch.to_pylist()
        start = time.monotonic()
        total: dict[str, float] = {}
        rows = [
            row
            for unit, texts in zip(units, self.critiques(units, self.judge), strict=True)
            for row in rate(unit, texts, total, self.soft_verdicts if self.judge.soft else None)
        ]
        total["seconds"] = time.monotonic() - start
        return pa.Table.from_pylist(rows, schema=scores_schema(self.judge)), total

    @staticmethod
    def failed(units: pa.Table, judge: Judge, **kwargs: Any) -> tuple[pa.Table, dict[str, float]]:
        """Rows of units that crashed every engine: critiques without a verdict, so score 0, counted by their reason."""
        total: dict[str, float] = {}
        texts = [Text("", ENGINE_DIED, 0)] * judge.samples
        rows = [row for unit in units.to_pylist() for row in rate(unit, texts, total)]
        return pa.Table.from_pylist(rows, schema=scores_schema(judge)), total

    @cached_property
    def wording(self) -> Wording:
        """The tokens of verdicts."""
        return wording_of(self.tokenizer)

    def soft_verdicts(self, text: Text, critique: Parsed) -> tuple[float, list[float]]:
        """`soft_verdicts` in the tokens of this critic."""
        return soft_verdicts(self.tokenizer, self.wording, text, critique)

    def critiques(self, units: list[dict[str, Any]], judge: Judge) -> list[list[Text]]:
        """The critiques of every unit (`unit_id`, `question`, `steps`); none for a solution without steps."""
        sampling: dict[str, Any] = {"temperature": judge.temperature, "max_tokens": judge.max_tokens}
        if judge.soft:
            deciding = list(dict.fromkeys([*self.wording.step, *self.wording.final]))
            sampling |= {"logprob_token_ids": deciding, "flat_logprobs": True}
        judged = [unit for unit in units if unit["steps"]]
        requests = [
            Request(
                encoding.critic_prompt_ids(self.tokenizer, unit["question"], unit["steps"], self.layout), judge.samples
            )
            for unit in judged
        ]
        texts = self.generator.generate(requests, sampling, seed=f"judge {self.seed} {units[0]['unit_id']}")
        by_unit = {unit["unit_id"]: critiques for unit, critiques in zip(judged, texts, strict=True)}
        return [by_unit.get(unit["unit_id"], []) for unit in units]


class ProblemJudge:
    """The worker of `run_units`: reads the candidates of problems (units of `plan`) and has the critic judge them."""

    def __init__(self, run: str, model: Model, resources: Engine, judge: Judge, seed: int) -> None:
        self.critic = CriticJudge(run, model, resources, judge, seed)
        self.labels = Run(run).artefact("labels")
        self.parts: dict[str, pa.Table] = {}

    def __call__(self, units: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Rows of scores, and counts, as of `CriticJudge`."""
        # The parts of these problems stay for the next ones, which mostly lie in them, too.
        self.parts = {name: self.parts.get(name) or read_solutions(self.labels, name) for name in part_names(units)}
        return self.critic(distinct(list(self.parts.values()), units))

    @staticmethod
    def failed(units: pa.Table, run: str, judge: Judge, **kwargs: Any) -> tuple[pa.Table, dict[str, float]]:
        """As of `CriticJudge`: of problems that crashed every engine."""
        parts = [read_solutions(Run(run).artefact("labels"), name) for name in part_names(units)]
        return CriticJudge.failed(distinct(parts, units), judge)


def read_solutions(labels: Artefact, part: str) -> pa.Table:
    """The solutions of a part."""
    return labels.read_part(part, ["candidate_id", "problem_id", "steps"])


def part_names(units: pa.Table) -> list[str]:
    """The parts in which the candidates of these units lie."""
    return sorted({name for names in units["parts"].unique().to_pylist() for name in names.split(" ")})


def scores_schema(judge: Judge) -> pa.Schema:
    """Columns of scores, and behind them the soft ones where these are asked for."""
    soft_columns = [("right", pa.float32()), ("steps_right", schema.FLOATS)] if judge.soft else []
    return pa.schema([*schema.SCHEMAS["scores"], *soft_columns])


def rate(
    unit: dict[str, Any], texts: Sequence[Text], total: dict[str, float], soften: Soften | None = None
) -> list[dict[str, Any]]:
    """A row for every candidate of the unit; critiques are counted in `total` by their status.

    With `soften` also the mean P(True) of the critiques, and of each step the mean P(correct); as in `verdicts`,
    unreadable ones count in the denominators.
    """
    parsed = [parse_critique(text.text, len(unit["steps"])) for text in texts]
    for text, critique in zip(texts, parsed, strict=True):
        status = text.reason if text.reason != "stop" else critique.status
        count(total, {"critiques": 1, "tokens": text.tokens, status: 1})
    count(total, {"candidates": len(unit["candidate_ids"]), "distinct": 1, NO_STEPS: 0 if texts else 1})
    score, step_scores = verdicts(parsed, len(unit["steps"]))
    if not any(critique.status == "ok" for critique in parsed):
        step_scores = []  # together with score 0 this means "no score"
    row = {
        "problem_id": unit["problem_id"],
        "score": score,
        "step_scores": step_scores,
        "right": 0.0,
        "steps_right": [],
    }
    if soften and step_scores:
        pairs = zip(texts, parsed, strict=True)
        steps = [soften(text, critique)[1] for text, critique in pairs if critique.status == "ok"]
        row["steps_right"] = [sum(step) / len(texts) for step in zip(*steps, strict=True)]
        row["right"] = row["steps_right"][-1]  # the answer line has the final verdict
    return [{"candidate_id": name, **row} for name in unit["candidate_ids"]]


def verdicts(critiques: Sequence[Parsed], num_steps: int) -> tuple[float, list[float]]:
    """The fraction of critiques that accept the solution, and the fraction for each step; unreadable ones do not.

    Unreadable critiques (status not `ok`) count in the denominators.
    """
    total, read = max(len(critiques), 1), [critique for critique in critiques if critique.status == "ok"]
    score = sum(critique.final_verdict is True for critique in read) / total
    return score, [sum(critique.step_verdicts[step] for critique in read) / total for step in range(num_steps)]


def count(total: dict[str, float], more: dict[str, float]) -> None:
    """Adds numbers to a running total."""
    for key, value in more.items():
        total[key] = total.get(key, 0) + value


def critic(config: Config, run: Run) -> Model:
    """The critic of the run, of stage 1 or of a round after it; its code is trusted where the base model's is."""
    return Model(model=f"run:{specs.critic_chosen(config, run)}", trust_remote_code=config.base.trust_remote_code)


def judge(config: Config, run: Run) -> Manifest:
    """Scores of the critic for every test candidate (`scores/critic`, and `-soft`); a rerun judges what is missing.

    UserError when `score.judge.max_tokens` leaves the engine no room for a prompt.
    """
    section = config.score.judge
    assert section is not None, "the stage judges only where the config says how"
    done = specs.fresh(config, run, "scores/critic") or judge_by_vote(config, run, section)
    if not section.soft:
        return done
    return specs.fresh(config, run, SOFT) or soft_scores(run, done, specs.begin(config, run, SOFT))


def soft_scores(run: Run, judged: Manifest, artefact: Artefact) -> Manifest:
    """The soft scores of an artefact of votes, from its columns beside them; both cost the same tokens."""
    for name, rows in run.artefact(judged.artefact).named_parts(["candidate_id", "problem_id", "right", "steps_right"]):
        artefact.write_part(name, rows.rename_columns(schema.SCHEMAS["scores"].names))
    counts = {key: judged.counts[key] for key in ("candidates", "distinct", "tokens")}
    return artefact.complete(counts, judged.dropped)


def judge_by_vote(config: Config, run: Run, section: Judge) -> Manifest:
    """`scores/critic`."""
    path = locate(critic(config, run), run)
    if section.soft:
        wording_of(load_tokenizer(path, config.base.trust_remote_code))
    require_room("score.judge.max_tokens", section.max_tokens, "judge", config.resources.judge, path)
    units = plan(run)
    artefact = specs.begin(config, run, "scores/critic")
    lengths.make_again(artefact, lengths.length_of(config, artefact.name, path))
    start = time.monotonic()
    judge_missing(config, run, artefact, units, ProblemJudge, {"run": run.path, "model": critic(config, run)})
    return finish(artefact, units, time.monotonic() - start)


def plan(run: Run) -> pa.Table:
    """The test problems with labelled candidates: `unit_id` (the problem's), `question`, `parts` (names of the parts
    of labels in which they lie, with spaces between), `rows` (how many). Problems of one part are neighbours.
    """
    pieces = read_pieces(run, "test")
    problem, part = (pieces[name].combine_chunks() for name in ("problem_id", "part"))
    order = np.lexsort((part.indices.to_numpy(), problem.indices.to_numpy()))
    of_problem = problem.indices.to_numpy()[order]
    starts = np.flatnonzero(np.diff(of_problem, prepend=-1))
    names = part.dictionary.take(part.indices.take(pa.array(order)))
    parts = pa.ListArray.from_arrays(pa.array(np.append(starts, len(order)), pa.int32()), names)
    first = pa.array(order[starts])
    columns = {
        "unit_id": problem.dictionary.take(problem.indices.take(first)),
        "question": pieces["question"].take(first),
        "parts": pc.binary_join(parts, " ").dictionary_encode(),
        "rows": pa.array(np.add.reduceat(pieces["rows"].to_numpy()[order], starts)),
    }
    return pa.table(columns).take(pa.array(np.argsort(part.indices.to_numpy()[order][starts], kind="stable")))


def distinct(parts: Sequence[pa.Table], units: pa.Table) -> pa.Table:
    """The distinct solutions of each of these problems (`UNITS`), in order of problems and texts.

    `parts` have the columns of `read_solutions`, also of other problems; `units` are some of `plan`.
    """
    problems = pa.table({"problem_id": units["unit_id"], "question": units["question"]}).combine_chunks()
    candidates: dict[tuple[str, bytes], list[str]] = {}
    solutions = []
    for part in parts:
        rows = part.filter(pc.is_in(part["problem_id"], value_set=problems["problem_id"].combine_chunks()))
        firsts = []
        for number, row in enumerate(rows.to_pylist()):
            key = row["problem_id"], blake2b(json.dumps(row["steps"]).encode(), digest_size=16).digest()
            if key not in candidates:
                firsts.append(number)
            candidates.setdefault(key, []).append(row["candidate_id"])
        solutions.append(rows.select(["problem_id", "steps"]).take(pa.array(firsts, pa.int64())))
    return as_units(pa.concat_tables(solutions), list(map(sorted, candidates.values())), problems)


def as_units(solutions: pa.Table, candidates: list[list[str]], problems: pa.Table) -> pa.Table:
    """Units of distinct solutions and the candidates of each; solutions with a shared prefix are neighbours, for the
    prefix cache of the engine."""
    question = problems["question"].take(pc.index_in(solutions["problem_id"], problems["problem_id"].combine_chunks()))
    columns = {
        "unit_id": pa.array([ids[0] for ids in candidates], pa.string()),
        "candidate_ids": pa.array(candidates, UNITS.field("candidate_ids").type),
        "problem_id": solutions["problem_id"],
        "question": question,
        "steps": solutions["steps"],
        "text": pc.binary_join(solutions["steps"], "\n"),
    }
    ordered = pa.table(columns).sort_by([("problem_id", "ascending"), ("text", "ascending")])
    return ordered.drop_columns("text").cast(UNITS)


def judge_missing(
    config: Config, run: Run, artefact: Artefact, units: pa.Table, worker: Callable[..., Worker], kwargs: dict[str, Any]
) -> None:
    """Judges the units whose rows are not stored; `worker` is called with `kwargs` and what the config says."""
    assert config.score.judge is not None
    missing = units.filter(pa.array(~stored(artefact, units)))
    resources = config.resources.judge
    solutions = resources.units_per_task * config.sample.unit // config.score.judge.samples
    work = Work(
        label="judge",
        pool="judge",
        worker=worker,
        kwargs={**kwargs, "resources": resources, "judge": config.score.judge, "seed": config.seed},
        batch_units=max(1, solutions * len(units) // max(1, rows_of_units(units))),
        rows=rows_of_units(units),
        rows_before=rows_of_units(units) - rows_of_units(missing),
        row_name="candidates",
    )
    run_units(run, artefact.name, missing, work, config.resources)


def stored(artefact: Artefact, units: pa.Table) -> np.ndarray:
    """[units] of bool: which are stored."""
    return stored_units(artefact, units["unit_id"].combine_chunks(), units["rows"].to_numpy())


def finish(artefact: Artefact, units: pa.Table, seconds: float) -> Manifest:
    """Writes the manifest; RuntimeError unless every candidate has its score."""
    rows, expected = rows_of_units(units.filter(pa.array(stored(artefact, units)))), rows_of_units(units)
    if rows != expected:
        raise RuntimeError(f"the critic judged {rows} of {expected} candidates; run again")
    stats = {key: int(value) for key, value in artefact.stats().items()}
    counts = {key: stats.pop(key, 0) for key in ("candidates", "distinct", "critiques", "ok", "tokens")}
    details = {
        **lengths.details(artefact, stats),
        "engine_seconds": stats.pop("seconds", 0),
        "seconds": round(seconds, 2),
    }
    return artefact.complete(counts, {f"critique_{reason}": number for reason, number in stats.items()}, details)
