"""Critics as verifiers of a labelled set: each solution is critiqued blind, and the verdicts are its scores.

Those of an endpoint are requested, rate-limited, paid for and cached as those for training are (`minos_ray.critiques`):
nothing is bought twice. A critic that minos_ray trained judges as in the stage `score`.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pyarrow as pa

from minos_ray.config.load import Config, resolve
from minos_ray.config.schema import Judge, MetaCritic, Model
from minos_ray.critiques.client import ask
from minos_ray.critiques.limits import has_prices, with_model
from minos_ray.critiques.prompts import EXAMPLE, Case, Request, build_request
from minos_ray.critiques.reply import BOUGHT, Answer, Cache, Outcome
from minos_ray.critiques.stage import critique_status, prompt_function
from minos_ray.errors import UserError
from minos_ray.graph.lengths import require_room
from minos_ray.graph.specs import UNSET, VERSIONS, without_neutral
from minos_ray.problems.split import read_problems
from minos_ray.scoring.judge import UNITS, CriticJudge, finish, judge_missing, soft_scores, verdicts, wording_of
from minos_ray.steps.critique_text import parse_critique
from minos_ray.store import columns
from minos_ray.store.model_files import load_tokenizer
from minos_ray.store.run import Artefact, Manifest, Run

ANSWER_LINE = re.compile(r"\s*(?:Step\s+\d+\s*:\s*)?The (?:final )?answer is\b", re.IGNORECASE)
# Raise it when `lines_shown` changes, or how critiques are read.
VERSION = 2
SOFT = "-soft"
# A solution, the number of steps that it has without an answer line that was added, and its one row of scores.
SOLUTIONS = pa.schema([*UNITS, ("own_steps", pa.int32()), ("rows", pa.int32())])
FINGERPRINTED = {"model", "prompt", "structured", "temperature", "max_tokens", "samples", *UNSET["critique"]}


class Question(NamedTuple):
    """The request of one critique of the solution `row`."""

    row: int
    request: Request


def inputs(section: MetaCritic) -> dict[str, Any]:
    """What the scores depend on; as in the cache, the address of the endpoint does not matter."""
    return {
        "critic": without_neutral("critique", with_model(section).model_dump(mode="json", include=FINGERPRINTED)),
        "versions": {"critique_prompt": VERSIONS["critique_prompt"], "shown": VERSION},
    }


def check_prompt(name: str, prompt: str) -> None:
    """UserError when a prompt function fails on an example, or shows the labels: its messages change with them."""
    prompt_function(f"meta.critics.{name}.prompt", prompt).check()
    if depends_on(prompt, step_labels=[0, 0], correct=False):
        raise UserError(
            f"meta.critics.{name}.prompt = {prompt} shows the critic the labels that it is judged by; take "
            "minos_ray.critiques.prompts:blind"
        )


def depends_on(prompt: str, **changes: Any) -> bool:
    """Whether a prompt's messages change with these fields of the case."""
    return resolve(prompt)(EXAMPLE) != resolve(prompt)(EXAMPLE._replace(**changes))


def judge_by_endpoint(
    config: Config, run: Run, name: str, section: MetaCritic, labelled: Run, artefact: Artefact
) -> Manifest:
    """Fills the artefact with one row of scores per solution; the answers are bought into the cache of `run`.

    UserError when the prompt shows right answers and the set lacks some, and for errors of the endpoint.
    """
    start, section = time.monotonic(), with_model(section)
    rows = solutions(labelled)
    if depends_on(section.prompt, answer="3") and not all(row["gold"] for row in rows):
        raise UserError(
            f"meta.critics.{name}.prompt = {section.prompt} shows right answers; {labelled.path} lacks some"
        )
    if not has_prices(section):
        print(f"meta.critics.{name}: no price of model '{section.model}' is known; costs count as 0 USD")
    questions = [question for number, row in enumerate(rows) for question in questions_of(section, number, row)]
    try:
        answers, details = ask(config, section, [q.request for q in questions], Cache(run), critique_status)
    except UserError as error:
        raise UserError(f"meta.critics.{name}: {error}") from error
    scores, outcomes = rated(rows, questions, answers)
    artefact.write_part("00000", columns.table("scores", scores))
    paid = {question.request.key: answers[question.request.key] for question in questions}
    details |= {"seconds": round(time.monotonic() - start, 2)}
    for key in ("prompt_tokens", "completion_tokens", "cost_usd"):  # of all answers, those from the cache too
        details[key] = sum(getattr(answer, key) for answer in paid.values())
    counts = {"candidates": len(scores), "critiques": outcomes.total(), "ok": outcomes.pop("ok", 0)}
    manifest = artefact.complete(counts, {f"critique_{reason}": n for reason, n in outcomes.items()}, details)
    if lacking := unanswered(manifest):
        print(f"meta.critics.{name}: {lacking} critiques got no answer and are not read; the same command asks again")
    return manifest


def rated(
    rows: Sequence[Mapping[str, Any]], questions: Iterable[Question], answers: Mapping[str, Answer]
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """A row of scores for each solution from its answers (by the key of the request), and critiques by outcome."""
    replies: list[list[Answer]] = [[] for _ in rows]
    for question in questions:
        replies[question.row].append(answers[question.request.key])
    outcomes: Counter[str] = Counter()
    return [rate(row, of_row, outcomes) for row, of_row in zip(rows, replies, strict=True)], outcomes


def unanswered(manifest: Manifest) -> int:
    """Critiques that got no answer: they were not paid for, and the next command requests them again."""
    return sum(manifest.dropped.get(f"critique_{outcome}", 0) for outcome in get_args(Outcome) if outcome not in BOUGHT)


def solutions(labelled: Run) -> list[dict[str, Any]]:
    """The solutions of split test with their question, gold answer and the lines that the critic is shown."""
    problems = read_problems(labelled, "test", ["problem_id", "question", "answer", "solution"])
    of_problem = {row.pop("problem_id"): row for row in problems.rename_columns({"answer": "gold"}).to_pylist()}
    labels = labelled.artefact("labels").read(["candidate_id", "problem_id", "answer", "steps"]).sort_by("candidate_id")
    return [
        {**row, **of_problem[row["problem_id"]], "lines": lines_shown(row["steps"], row["answer"])}
        for row in labels.to_pylist()
        if row["problem_id"] in of_problem
    ]


def lines_shown(steps: Sequence[str], answer: str | None) -> list[str]:
    """The steps and the answer line, which the final verdict is about; one is added where the last step is not one.

    So every step of ProcessBench is judged as a step, also the one that ends with the answer.
    """
    if len(steps) > 1 and ANSWER_LINE.match(steps[-1]):
        return list(steps)
    return [*steps, f"The answer is: {answer}" if answer else "No final answer is given."]


def questions_of(section: MetaCritic, number: int, row: Mapping[str, Any]) -> Iterator[Question]:
    """The requests about one solution, none for one without steps. The case has no labels."""
    if not row["steps"]:
        return
    case = Case(row["question"], row["lines"], [-1] * len(row["lines"]), False, row["gold"], row["solution"])
    for sample in range(section.samples):
        yield Question(number, build_request(section, section.prompt, case, (len(row["lines"]),), sample))


def rate(row: Mapping[str, Any], answers: Sequence[Answer], outcomes: Counter[str]) -> dict[str, Any]:
    """The row of scores of one solution: fractions of the critiques that were bought; score 0 and no step scores when
    none could be read."""
    parsed = []
    for answer in answers:
        answered = answer.outcome == "answered"
        critique = parse_critique(answer.text if answered else "", len(row["lines"]))
        parsed += [critique] if answer.outcome in BOUGHT else []
        outcomes[critique.status if answered else answer.outcome] += 1
    if not answers:
        outcomes["no_steps"] += 1
    score, step_scores = verdicts(parsed, len(row["lines"]))
    any_read = any(critique.status == "ok" for critique in parsed)
    step_scores = step_scores[: len(row["steps"])] if any_read else []
    names = {"candidate_id": row["candidate_id"], "problem_id": row["problem_id"]}
    return {**names, "score": score, "step_scores": step_scores}


class SetJudge(CriticJudge):
    """Judges units of the schema `SOLUTIONS`; an answer line that was added gets no score."""

    def __call__(self, batch: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Rows of scores and counts, as of `CriticJudge`."""
        scores, numbers = super().__call__(batch)
        lists = [name for name in ("step_scores", "steps_right") if name in scores.column_names]
        rows = [
            {**row, **{name: row[name][:count] for name in lists}}
            for row, count in zip(scores.to_pylist(), batch["own_steps"].to_pylist(), strict=True)
        ]
        return pa.Table.from_pylist(rows, schema=scores.schema), numbers

    @staticmethod
    def failed(units: pa.Table, judge: Judge, **kwargs: Any) -> tuple[pa.Table, dict[str, float]]:
        """As of `CriticJudge`."""
        return CriticJudge.failed(units, judge)


def check_critic(key: str, config: Config, model: Model, path: str) -> None:
    """UserError when it is no language model, nothing says how it writes, or it lacks room or words to judge in."""
    section = config.score.judge
    kinds = json.loads((Path(path) / "config.json").read_text()).get("architectures") or []
    if not any(name.endswith("ForCausalLM") for name in kinds):
        raise UserError(f"{key}.model = '{model.model}' is {kinds}; kind critic needs a language model (*ForCausalLM)")
    if section is None:
        raise UserError(f"{key}.kind = critic: it judges as score.judge says, which is empty; set score.judge={{}}")
    require_room("score.judge.max_tokens", section.max_tokens, "judge", config.resources.judge, path)
    if section.soft:
        wording_of(load_tokenizer(path, model.trust_remote_code))


def judge_by_model(
    config: Config, run: Run, model: Model, labelled: Run, artefact: Artefact, by_likelihood: bool
) -> Manifest:
    """Fills an artefact of `run` with one row of scores per solution of the set; a rerun judges what is missing.

    The votes' artefact has the likelihoods, too; `by_likelihood` takes them from there.
    """
    if by_likelihood:
        votes = run.artefact(artefact.name.removesuffix(SOFT)).manifest()
        assert votes is not None, "the votes come first"
        return soft_scores(run, votes, artefact)
    start = time.monotonic()
    rows = [
        {
            "unit_id": row["candidate_id"],
            "candidate_ids": [row["candidate_id"]],
            "problem_id": row["problem_id"],
            "question": row["question"],
            "steps": row["lines"] if row["steps"] else [],
            "own_steps": len(row["steps"]),
            "rows": 1,
        }
        for row in solutions(labelled)
    ]
    units = pa.Table.from_pylist(rows, schema=SOLUTIONS)
    judge_missing(config, run, artefact, units, SetJudge, {"run": run.path, "model": model})
    return finish(artefact, units, time.monotonic() - start)
