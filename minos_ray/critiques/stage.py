"""The stage: choose candidates, ask the critic, read the critiques, set apart what contradicts the labels."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from minos_ray.config.load import Config
from minos_ray.config.schema import Critique
from minos_ray.critiques.client import ask
from minos_ray.critiques.endpoint import with_model
from minos_ray.critiques.error_types import error_types
from minos_ray.critiques.limits import has_prices
from minos_ray.critiques.prompts import Request, build_request, case_of
from minos_ray.critiques.reply import Answer, Cache
from minos_ray.critiques.retry import advice
from minos_ray.critiques.select import Selection, select_stored
from minos_ray.errors import UserError, WorkStopped
from minos_ray.graph.specs import VERSIONS, begin, fresh
from minos_ray.labels.stage import require_for_error_analysis
from minos_ray.problems.split import read_problems
from minos_ray.steps.critique_text import Parsed, agreement, agrees, parse_critique
from minos_ray.store.columns import Row, table
from minos_ray.store.run import Artefact, Manifest, Run

PART_ROWS = 5000


@dataclass(frozen=True)
class Task:
    """A chosen candidate (its label row) and the request for its critique."""

    row: Row
    request: Request


def critique(config: Config, run: Run) -> Manifest:
    """Buys the critiques, then has wrong steps sorted into types where `error_analysis.count` wants some."""
    require_for_error_analysis(config, run)
    manifest = buy_critiques(config, run)
    error_types(config, run)
    return manifest


def buy_critiques(config: Config, run: Run) -> Manifest:
    """Makes the artefact `critiques`: one row per chosen candidate, in the order of the selection.

    Stage 1 uses the rows with status `ok` that agree with the labels; the first k of them are the ones that a smaller
    `critique.count` begins with. Raises StopAtBudget at `critique.max_usd`; a rerun goes on from there.
    """
    manifest = fresh(config, run, "critiques")
    if manifest is not None:
        return manifest
    start = time.monotonic()
    section = with_model(config.critique)
    if section.count and not has_prices(section):
        print(f"critique: no price of critique.model = '{section.model}' is known; costs count as 0 USD")
    selection, tasks = chosen(config, section, run)
    if section.count and not tasks:
        raise UserError("critique: no train candidate has a graded answer; see sample.n_train and `minos status`")
    cache = Cache(run)
    from_cache = sum(task.request.key in cache.answers for task in tasks)
    try:
        answers, details = ask(config, section, [task.request for task in tasks], cache, critique_status)
    except (WorkStopped, KeyboardInterrupt):
        bought = [task for task in tasks if task.request.key in cache.answers]
        write(begin_again(config, run), section, bought, cache.answers)
        raise
    target = begin_again(config, run)
    rows = write(target, section, tasks, answers)
    details |= {"seconds": round(time.monotonic() - start, 1), "unreadable_cache_rows": cache.unreadable}
    details |= {"spent_usd_in_this_run": round(cache.spent_usd, 6)}
    details |= {"agreement": agreement(section.prompt, rows, [task.row["correct"] for task in tasks])}
    dropped = Counter("disagrees" if row["status"] == "ok" else row["status"] for row in rows if not row["agrees"])
    usable = len(rows) - dropped.total()
    if rows and not usable:
        hint = "see critique.prompt" if dropped["disagrees"] else advice(section, dropped)
        raise UserError(f"critique: none of {len(rows)} critiques can be used ({dict(dropped)}): {hint}")
    counts = {"rows": len(rows), "usable": usable, "asked": len(rows) - from_cache, "from_cache": from_cache}
    sums = {key: sum(row[key] for row in rows) for key in ("prompt_tokens", "completion_tokens", "cost_usd")}
    return target.complete(counts | selection.short, dict(dropped) | selection.passed_over, details | sums)


def chosen(config: Config, section: Critique, run: Run) -> tuple[Selection, list[Task]]:
    """The candidates that get a critique, and what is to be asked for each."""
    train = set(read_problems(run, "train", ["problem_id"])["problem_id"].to_pylist())
    selection = select_stored(run.artefact("labels"), train, section.count, section.wrong_share, config.seed)
    columns = ["problem_id", "question", "answer", "solution"]
    asked = run.artefact("problems").read_where("problem_id", {row["problem_id"] for row in selection.rows}, columns)
    problems = {row["problem_id"]: row for row in asked.to_pylist()}
    tasks = []
    for row in selection.rows:
        case = case_of(row, problems[row["problem_id"]])
        tasks.append(Task(row, build_request(section, section.prompt, case, (len(row["steps"]),))))
    return selection, tasks


def begin_again(config: Config, run: Run) -> Artefact:
    """The artefact, ready to be written; what stood there before is cleared only now."""
    if fresh(config, run, "critiques"):
        raise WorkStopped(f"{run.at('critiques')} was completed by another process meanwhile")
    return begin(config, run, "critiques")


def critique_status(text: str, expected: Sequence[int]) -> str:
    """The status of a critique of a solution with `expected` (one number) steps."""
    return parse_critique(text, *expected).status


def write(target: Artefact, section: Critique, tasks: list[Task], answers: dict[str, Answer]) -> list[Row]:
    """Writes the rows of all tasks, in their order, and returns them."""
    rows = [critique_row(section, task, answers[task.request.key]) for task in tasks]
    for part, first in enumerate(range(0, max(1, len(rows)), PART_ROWS)):
        target.write_part(f"{part:05d}", table("critiques", rows[first : first + PART_ROWS]))
    return rows


def critique_row(section: Critique, task: Task, answer: Answer) -> Row:
    """A row of the artefact: the text, what it says, and whether that agrees with the labels."""
    row = task.row
    answered = answer.outcome == "answered"
    parsed = parse_critique(answer.text, len(row["steps"])) if answered else Parsed([], None, "empty")
    return {
        "candidate_id": row["candidate_id"],
        "critic": section.model,
        "prompt_version": f"{section.prompt}@{VERSIONS['critique_prompt']}{'+json' if section.structured else ''}",
        "text": answer.text,
        "step_verdicts": parsed.step_verdicts,
        "final_verdict": parsed.final_verdict,
        "agrees": agrees(parsed, row["step_labels"], row["correct"]),
        "status": parsed.status if answered else answer.outcome,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "cost_usd": answer.cost_usd,
    }
