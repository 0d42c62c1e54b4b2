"""Critics as verifiers of a labelled set: each solution is critiqued blind, and the verdicts are its scores.

Asked, limited, paid for and kept as critiques for training are (`minos_ray.critiques`): nothing is bought twice.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from minos_ray.config.load import Config, resolve
from minos_ray.config.schema import MetaCritic
from minos_ray.critiques.ask import ask
from minos_ray.critiques.cache import Cache
from minos_ray.critiques.checks import prompt_function
from minos_ray.critiques.endpoint import with_model
from minos_ray.critiques.limits import has_prices
from minos_ray.critiques.prompts import EXAMPLE, Case
from minos_ray.critiques.reply import BOUGHT, Answer, Outcome
from minos_ray.critiques.request import Request, build_request
from minos_ray.critiques.stage import critique_status
from minos_ray.errors import UserError
from minos_ray.graph.specs import UNSET, VERSIONS, without_neutral
from minos_ray.problems.split import read_problems
from minos_ray.scoring.judge import verdicts
from minos_ray.steps.critique_text import Parsed, parse_critique
from minos_ray.store import columns
from minos_ray.store.run import Artefact, Manifest, Run

ANSWER_LINE = re.compile(r"\s*(?:Step\s+\d+\s*:\s*)?The (?:final )?answer is\b", re.IGNORECASE)
# Raise it when `shown` changes, or how critiques are read.
VERSION = 2
TELLING = {"model", "prompt", "structured", "temperature", "max_tokens", "samples", *UNSET["critique"]}


class Question(NamedTuple):
    """One critique to be asked for, of the solution `row`."""

    row: int
    request: Request


def inputs(section: MetaCritic) -> dict[str, Any]:
    """What the scores depend on; like in the cache, the address of the endpoint does not matter."""
    return {
        "critic": without_neutral("critique", with_model(section).model_dump(mode="json", include=TELLING)),
        "versions": {"critique_prompt": VERSIONS["critique_prompt"], "shown": VERSION},
    }


def refuse_told(name: str, prompt: str) -> None:
    """UserError when a prompt is none, or shows the labels: found by trying it with others."""
    prompt_function(f"meta.critics.{name}.prompt", prompt).check()
    if asks_by(prompt, step_labels=[0, 0], correct=False):
        raise UserError(
            f"meta.critics.{name}.prompt = {prompt} shows the critic the labels that it is judged by; take "
            "minos_ray.critiques.prompts:blind"
        )


def asks_by(prompt: str, **changes: Any) -> bool:
    """Whether the messages depend on something of the case."""
    return resolve(prompt)(EXAMPLE) != resolve(prompt)(EXAMPLE._replace(**changes))


def judge(config: Config, run: Run, name: str, section: MetaCritic, labelled: Run, artefact: Artefact) -> Manifest:
    """Fills the artefact with one row of scores per solution; the answers are bought into the cache of `run`."""
    start, section = time.monotonic(), with_model(section)
    rows = solutions(labelled)
    if asks_by(section.prompt, answer="3") and not all(row["gold"] for row in rows):
        raise UserError(
            f"meta.critics.{name}.prompt = {section.prompt} shows right answers; {labelled.path} lacks some"
        )
    if not has_prices(section):
        print(f"meta.critics.{name}: no price of model '{section.model}' is known; costs count as 0 USD")
    questions = [question for at, row in enumerate(rows) for question in ask_about(section, at, row)]
    try:
        answers, details = ask(config, section, [q.request for q in questions], Cache(run), critique_status)
    except UserError as error:
        raise UserError(f"meta.critics.{name}: {error}") from error
    replies: list[list[Answer]] = [[] for _ in rows]
    for question in questions:
        replies[question.row].append(answers[question.request.key])
    outcomes: Counter[str] = Counter()
    made = [rated(row, given, outcomes) for row, given in zip(rows, replies, strict=True)]
    artefact.write_part("00000", columns.table("scores", made))
    paid = {question.request.key: answers[question.request.key] for question in questions}
    details |= {"seconds": round(time.monotonic() - start, 2), **sums(paid)}
    manifest = complete(artefact, made, outcomes, details)
    if lacking := unanswered(manifest):
        print(f"meta.critics.{name}: {lacking} critiques got no answer and are not read; the same command asks again")
    return manifest


def unanswered(manifest: Manifest) -> int:
    """Critiques that the endpoint did not give: they were not paid for, and are asked for by the next command."""
    return sum(manifest.dropped.get(f"critique_{outcome}", 0) for outcome in get_args(Outcome) if outcome not in BOUGHT)


def complete(
    artefact: Artefact, rows: Sequence[Mapping[str, Any]], outcomes: Counter[str], details: dict[str, Any]
) -> Manifest:
    """The manifest: critiques by what became of them."""
    counts = {"candidates": len(rows), "critiques": outcomes.total(), "ok": outcomes.pop("ok", 0)}
    return artefact.complete(counts, {f"critique_{reason}": n for reason, n in outcomes.items()}, details)


def sums(answers: Mapping[str, Answer]) -> dict[str, float]:
    """Tokens and money of all answers, those of the cache too."""
    return {
        key: sum(getattr(answer, key) for answer in answers.values())
        for key in ("prompt_tokens", "completion_tokens", "cost_usd")
    }


def solutions(labelled: Run) -> list[dict[str, Any]]:
    """The solutions of split test with their question, gold answer and what the critic is shown (`lines`)."""
    problems = read_problems(labelled, "test", ["problem_id", "question", "answer", "solution"])
    asked = {row.pop("problem_id"): row for row in problems.rename_columns({"answer": "gold"}).to_pylist()}
    labels = labelled.artefact("labels").read(["candidate_id", "problem_id", "answer", "steps"]).sort_by("candidate_id")
    return [
        {**row, **asked[row["problem_id"]], "lines": shown(row["steps"], row["answer"])}
        for row in labels.to_pylist()
        if row["problem_id"] in asked
    ]


def shown(steps: Sequence[str], answer: str | None) -> list[str]:
    """The steps and the answer line, on which the final verdict is; one is added where no step is it.

    So every step of ProcessBench is judged as a step, also the one that ends with the answer.
    """
    if len(steps) > 1 and ANSWER_LINE.match(steps[-1]):
        return list(steps)
    return [*steps, f"The answer is: {answer}" if answer else "No final answer is given."]


def ask_about(section: MetaCritic, at: int, row: Mapping[str, Any]) -> Iterator[Question]:
    """The requests about one solution, none about one without steps. No label is in the case."""
    if not row["steps"]:
        return
    case = Case(row["question"], row["lines"], [-1] * len(row["lines"]), False, row["gold"], row["solution"])
    for sample in range(section.samples):
        yield Question(at, build_request(section, section.prompt, case, (len(row["lines"]),), sample))


def rated(row: Mapping[str, Any], answers: Sequence[Answer], outcomes: Counter[str]) -> dict[str, Any]:
    """Scores of one solution: shares of critiques; no step scores (and score 0) when none could be read."""
    parsed = [read(answer, len(row["lines"]), outcomes) for answer in answers]
    if not answers:
        outcomes["no_steps"] += 1
    score, step_scores = verdicts(parsed, len(row["lines"]))
    any_read = any(critique.status == "ok" for critique in parsed)
    step_scores = step_scores[: len(row["steps"])] if any_read else []
    names = {"candidate_id": row["candidate_id"], "problem_id": row["problem_id"]}
    return {**names, "score": score, "step_scores": step_scores}


def read(answer: Answer, lines: int, outcomes: Counter[str]) -> Parsed:
    """What a critique says. How it went is counted."""
    critique = parse_critique(answer.text if answer.outcome == "answered" else "", lines)
    outcomes[critique.status if answer.outcome == "answered" else answer.outcome] += 1
    return critique
