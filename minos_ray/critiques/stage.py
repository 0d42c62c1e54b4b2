"""The stage `critique`: choose candidates, ask the critic, read the critiques, set apart what contradicts the labels.

And what would stop the stage, and what it will cost.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from minos_ray.config.load import Config, NamedFunction
from minos_ray.config.resources import OFFLINE
from minos_ray.config.schema import Critique
from minos_ray.critiques.limits import advice, cost, has_prices, most_tokens, priced, with_model
from minos_ray.critiques.prompts import EXAMPLE, Request, build_request, case_of
from minos_ray.critiques.reply import Answer, Cache
from minos_ray.errors import UserError, WorkStopped, errors_of
from minos_ray.graph.specs import VERSIONS, begin, fresh
from minos_ray.graph.state import Todo
from minos_ray.labels.stage import require_for_error_analysis
from minos_ray.problems.split import Selection, read_problems, select_stored
from minos_ray.steps.critique_text import Parsed, agreement, agrees, parse_critique
from minos_ray.store.columns import Row, table
from minos_ray.store.run import Artefact, Manifest, Run

PART_ROWS = 5000
CRITIC_S = 10.0
BYTES_PER_TOKEN = 4
"""English text, with the tokenizers of the large models."""
PROMPT_TOKENS, ANSWER_TOKENS = 500, 250
"""Of a GSM8K-sized case: the label-aware prompt has about 2,000 bytes, the paper's 30,000 critiques about 1,000."""
THINKS = re.compile(
    r"\b(?:o[134]|gpt-5|gpt-oss|qwq|magistral|grok-4|gemini-[23]\.?\d*-pro)\b|thinking|reason|deepseek-r", re.I
)
"""Names of models that think before they write, which counts as output."""
ENOUGH_TO_THINK = 4096


@dataclass(frozen=True)
class Task:
    """A chosen candidate (its label row) and the request for its critique."""

    row: Row
    request: Request


def critique(config: Config, run: Run) -> Manifest:
    """Buys the critiques, then has wrong steps sorted into types where `error_analysis.count` wants some."""
    from minos_ray.critiques.error_types import error_types  # late, as `ask`: most checks need no HTTP client

    require_for_error_analysis(config, run)
    manifest = buy_critiques(config, run)
    error_types(config, run)
    return manifest


def buy_critiques(config: Config, run: Run) -> Manifest:
    """Makes the artefact `critiques`: one row per chosen candidate, in the order of the selection.

    Stage 1 uses the rows with status `ok` that agree with the labels; the first k of them are the ones that a smaller
    `critique.count` begins with. Raises StopAtBudget at `critique.max_usd`; a rerun goes on from there.
    """
    from minos_ray.critiques.client import ask

    if done := fresh(config, run, "critiques"):
        return done
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


def functions(config: Config, stages: Set[str]) -> Iterator[NamedFunction]:
    """The prompts that ask the critic."""
    if "critique" in stages:
        yield prompt_function("critique.prompt", config.critique.prompt)
        yield prompt_function("error_analysis.prompt", config.error_analysis.prompt)


def prompt_function(key: str, name: str) -> NamedFunction:
    """A prompt that asks a critic, tried on an example."""
    return NamedFunction(key, name, "(case) -> list of chat messages", (EXAMPLE,), is_right=is_chat)


def is_chat(value: object) -> bool:
    """Whether it is a list of chat messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "content" in m for m in value)


def problems_of(config: Config, run: Run, todo: Todo) -> list[str]:
    """One line when wrong steps are to be sorted and none will be known."""
    asked = todo.artefacts & {"critiques", "error_types"}
    return errors_of(require_for_error_analysis, config, run) if asked else []


def critic_problems(config: Config) -> Iterator[str]:
    """One line when the critic does not answer, or its price is not known where a limit is set."""
    section = config.critique
    if section.base_url != OFFLINE and (section.count or config.error_analysis.count):
        yield from errors_of(require_critic, config)
        yield from errors_of(priced, section)


def require_critic(config: Config) -> None:
    """UserError when the key is missing or refused, or nobody answers; one request that costs nothing."""
    from minos_ray.critiques.endpoint import open_endpoint, preflight

    with open_endpoint(config.critique, config.resources.client, config.seed) as endpoint:
        asyncio.run(preflight(endpoint, CRITIC_S))


def expected_cost(config: Config, run: Run) -> str:
    """One line for `minos check`: what the critiques are likely to cost, and whether `max_tokens` is likely to do."""
    section, few = config.critique, ""
    if THINKS.search(section.model) and section.max_tokens < ENOUGH_TO_THINK and section.reasoning_effort is None:
        few = f"; critique.max_tokens = {section.max_tokens} may be too few for a model that thinks before it writes"
    return costs(config, run) + few


def costs(config: Config, run: Run) -> str:
    """Count x what one critique is likely to cost, or why that cannot be said."""
    section = config.critique
    if section.base_url == OFFLINE:
        return f"critique: {section.count:,} critiques of the miniature's own critic, free"
    if not has_prices(section):
        return (
            f"critique: the cost of {section.count:,} critiques cannot be told: no price of critique.model = "
            f"'{section.model}' is known (set critique.usd_per_million_input and critique.usd_per_million_output)"
        )
    section, half = priced(section), 0.5 if section.mode == "batch" else 1.0
    if not all(run.artefact(name).manifest() for name in ("problems", "labels")):
        usd = section.count * cost(section, PROMPT_TOKENS, ANSWER_TOKENS) * half
        return f"critique: {section.count:,} critiques, about {usd:,.2f} USD (of the usual size: no labels yet)"
    cache = Cache(run)
    missing = [task.request for task in chosen(config, section, run)[1] if task.request.key not in cache.answers]
    prompt_tokens = sum(most_tokens(request.messages) for request in missing) / BYTES_PER_TOKEN
    lengths = [answer.completion_tokens for answer in cache.answers.values() if answer.completion_tokens]
    answer_tokens = sum(lengths) / len(lengths) if lengths else ANSWER_TOKENS
    usd = cost(section, prompt_tokens, len(missing) * answer_tokens) * half
    most = cost(section, prompt_tokens, len(missing) * section.max_tokens) * half
    return f"critique: {len(missing):,} critiques to buy, about {usd:,.2f} USD, {most:,.2f} if every answer is longest"
