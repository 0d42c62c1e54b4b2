"""The critic sorts wrong steps into the paper's five types: definitions, prompt, parse, and the artefact `error_types`.

When the text of the prompt changes, raise `error_prompt` in `minos_ray.graph.specs.VERSIONS`.
"""

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from minos_ray.config.load import Config
from minos_ray.config.schema import ERROR_TYPES, Critique, ErrorType
from minos_ray.critiques.client import ask
from minos_ray.critiques.limits import with_model
from minos_ray.critiques.prompts import MARKED, Case, Messages, Request, build_request, case_of
from minos_ray.critiques.reply import Answer, Cache
from minos_ray.errors import UserError
from minos_ray.graph.specs import begin, fresh
from minos_ray.problems.split import Outlines, problems_by_id, turns
from minos_ray.steps.split import without_thinking
from minos_ray.store.columns import SCHEMAS, Row, table
from minos_ray.store.run import Manifest, Run

NAME = "error_types"
Status = Literal["ok", "empty", "unreadable_line", "unknown_type", "wrong_steps"]

DEFINITIONS: dict[ErrorType, str] = {
    "unrelated": "the step has no bearing on the question: it speaks of something, or computes with numbers, that "
    "neither the problem nor an earlier step gives, and that cannot help to answer it.",
    "accumulation": "the step is wrong only because it uses a wrong result of an earlier step; with the right earlier "
    "results, the same reasoning and arithmetic would have been right.",
    "calculation": "the right operation on the right quantities, but its arithmetic or algebra is carried out wrongly.",
    "logical": "wrong reasoning: a wrong operation or formula, a wrong quantity, a misread condition, or a needed step "
    "that is left out; the arithmetic itself may be right.",
    "other": "wrong for none of these reasons, for instance unreadable or contradicting itself.",
}
MARK = "[Types]"
TASK = """Every step that is wrong is marked with `Label: False`; the labels can be relied on. Sort each of these
steps, and no other, into exactly one type. When several fit, take the first cause: a step that would be wrong even
with right earlier results is not `accumulation`. Write one line for each wrong step, in order, and nothing else:
`Step k: TYPE: REASON`
where k is the number of the step, TYPE one of the five words above, and REASON one short sentence."""
LINE = re.compile(r"[\s*#_-]*Step\s+(\d{1,4})\s*:[\s*_]*([A-Za-z]+)[\s*_]*:[\s*_]*(\S.*)")


def classify(case: Case) -> Messages:
    """Messages that show the definitions, the problem and the solution with its wrong steps marked."""
    types = "\n".join(f"{name}: {words}" for name, words in DEFINITIONS.items())
    lines = [" ".join(step.split()) for step in case.steps]
    lines[:-1] = [line if MARKED.match(line) else f"Step {k}: {line}" for k, line in enumerate(lines[:-1], 1)]
    labels = [*case.step_labels[:-1], -1]  # the answer line is not asked about
    marked = [f"{line} Label: False" if label == 0 else line for line, label in zip(lines, labels, strict=True)]
    introduction = "You see a mathematics problem and a solution written step by step, some steps of which are wrong."
    solution = "[Solution]\n" + "\n".join(marked)
    blocks = (introduction, f"{MARK}\n{types}", f"[Question]\n{case.question.strip()}", solution, f"[Task]\n{TASK}")
    return [{"role": "user", "content": "\n\n".join(blocks)}]


def wrong_steps(labels: Sequence[int]) -> list[int]:
    """Indices of the wrong steps before the answer line."""
    return [k for k, label in enumerate(labels[:-1]) if label == 0]


class Sorted(NamedTuple):
    """What the critic says: type and reason of each wrong step, none unless the status is ok."""

    types: list[tuple[ErrorType, str]]
    status: Status


def parse_types(text: str, steps: Sequence[int]) -> Sorted:
    """Reads one line per wrong step (indices from 0), in order; anything else spoils the whole answer. Never raises."""
    lines = [line for line in without_thinking(text).splitlines() if line.strip(" \t\r*_`")]
    if not lines:
        return Sorted([], "empty")
    matches = [match for line in lines if (match := LINE.fullmatch(line.strip(" \t\r`")))]
    if len(matches) < len(lines):
        return Sorted([], "unreadable_line")
    if [int(match[1]) - 1 for match in matches] != list(steps):
        return Sorted([], "wrong_steps")
    names = {str(name): name for name in ERROR_TYPES}
    types = [(names[name], match[3].strip(" *_`")) for match in matches if (name := match[2].lower()) in names]
    return Sorted(types, "ok") if len(types) == len(matches) else Sorted([], "unknown_type")


@dataclass(frozen=True)
class Task:
    """A wrong solution to be sorted and the request for it; `inserted` are the types that were inserted, if any."""

    source: Literal["candidate", "inserted"]
    row: Row
    inserted: list[str] | None
    request: Request


def error_types(config: Config, run: Run) -> Manifest | None:
    """Makes the artefact: a row per wrong step; None when `error_analysis.count` wants none."""
    if not config.error_analysis.count:
        return None
    if done := fresh(config, run, NAME):
        return done
    target = begin(config, run, NAME)
    start = time.monotonic()
    tasks, passed_over = plan(config, run)
    requests = [task.request for task in tasks]
    answers, details = ask(config, critic(config), requests, Cache(run), lambda *reply: parse_types(*reply).status)
    rows = [row for task in tasks for row in rows_of(config, task, answers[task.request.key])]
    target.write_part("00000", table(NAME, rows))
    # Solutions and steps asked about, steps by status where there is no type.
    sources = Counter(task.source for task in tasks)
    counts = {"rows": len(rows), "typed": sum(row["type"] is not None for row in rows)}
    counts |= {"candidates": sources["candidate"], "inserted": sources["inserted"]}
    dropped = Counter(row["status"] for row in rows if row["type"] is None)
    if rows and not counts["typed"]:
        raise UserError(f"error_analysis: no answer could be read ({dict(dropped)}); see error_analysis.prompt")
    details |= {"seconds": round(time.monotonic() - start, 1)}
    details |= {"cost_usd": round(sum(row["cost_usd"] for row in rows), 6)}
    return target.complete(counts, dict(dropped) | passed_over, details)


def plan(config: Config, run: Run) -> tuple[list[Task], dict[str, int]]:
    """Wrong train candidates with known wrong steps, as many inserted errors, and what was passed over by reason."""
    problems = problems_by_id(run, "train", SCHEMAS["problems"].names)
    count, labels = config.error_analysis.count, run.artefact("labels")
    outlines = Outlines.read(labels, problems.keys(), wrong_only=True)
    typable = np.flatnonzero(outlines.usable & outlines.has_error)
    passed_over = Counter(outlines.passed_over)
    passed_over["candidate_without_wrong_step"] = int(outlines.usable.sum()) - len(typable)
    first = typable[turns(outlines.problems[typable], f"{config.seed}/errors")][:count]
    chosen = outlines.rows(labels, first.tolist(), SCHEMAS["labels"].names)
    sources: dict[Literal["candidate", "inserted"], list[Row]] = {"candidate": chosen, "inserted": []}
    if config.inserted.count:
        rows = run.artefact("inserted").read().to_pylist()
        sources["inserted"] = [row for row in rows if not row["correct"]][:count]
    section, prompt, tasks = critic(config), config.error_analysis.prompt, []
    for source, rows in sources.items():
        for row in rows:
            case, steps = case_of(row, problems[row["problem_id"]]), tuple(wrong_steps(row["step_labels"]))
            request = build_request(section, prompt, case, steps)
            tasks.append(Task(source, row, row["error_types"] if source == "inserted" else None, request))
    if not tasks:
        raise UserError("error_analysis: no wrong train candidate has a labelled wrong step, and no error was inserted")
    return tasks, dict(passed_over)


def critic(config: Config) -> Critique:
    """The section `critique` as these questions use it: the answer is lines of text, not the schema of a critique."""
    return with_model(config.critique).model_copy(update={"structured": False})


def rows_of(config: Config, task: Task, answer: Answer) -> list[Row]:
    """A row per wrong step; an answer that cannot be read is kept with each, without a type."""
    steps = wrong_steps(task.row["step_labels"])
    parsed = parse_types(answer.text, steps)
    status = parsed.status if answer.outcome == "answered" else answer.outcome
    types = parsed.types if status == "ok" else [(None, answer.text)] * len(steps)
    common = {"candidate_id": task.row["candidate_id"], "problem_id": task.row["problem_id"], "source": task.source}
    common |= {"status": status, "critic": critic(config).model, "cost_usd": answer.cost_usd / len(steps)}
    return [
        {
            **common,
            "error_id": f"{common['candidate_id']}#{step}",
            "step": step,
            "known": task.inserted[step] if task.inserted else None,
            "type": kind,
            "text": text,
        }
        for step, (kind, text) in zip(steps, types, strict=True)
    ]
