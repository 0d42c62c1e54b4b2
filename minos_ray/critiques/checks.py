"""What would stop the stage `critique`, and what it will cost."""

import asyncio
import re
from collections.abc import Iterator, Set

from minos_ray.config.load import Config, NamedFunction
from minos_ray.config.resources import OFFLINE
from minos_ray.critiques.limits import cost, has_prices, most_tokens, priced
from minos_ray.critiques.prompts import EXAMPLE
from minos_ray.errors import errors_of
from minos_ray.graph.state import Todo
from minos_ray.labels.stage import require_for_error_analysis
from minos_ray.store.run import Run

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
    from minos_ray.critiques.endpoint import open_endpoint, preflight  # late: most checks need no HTTP client

    with open_endpoint(config.critique, config.resources.client, config.seed) as endpoint:
        asyncio.run(preflight(endpoint, CRITIC_S))


def expected_cost(config: Config, run: Run) -> str:
    """One line for `minos check`: what the critiques are likely to cost, and whether `max_tokens` is likely to do."""
    section = config.critique
    if THINKS.search(section.model) and section.max_tokens < ENOUGH_TO_THINK and section.reasoning_effort is None:
        few = f"; critique.max_tokens = {section.max_tokens} may be too few for a model that thinks before it writes"
        return costs(config, run) + few
    return costs(config, run)


def costs(config: Config, run: Run) -> str:
    """Count x what one critique is likely to cost, or why that cannot be said."""
    from minos_ray.critiques.reply import Cache
    from minos_ray.critiques.stage import chosen

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
