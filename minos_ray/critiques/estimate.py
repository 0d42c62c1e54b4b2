"""What the critique stage will cost, as far as that can be known before it starts."""

import re

from minos_ray.config.load import Config
from minos_ray.critiques.ask import OFFLINE
from minos_ray.critiques.cache import Cache
from minos_ray.critiques.prices import has_prices, priced
from minos_ray.critiques.reply import cost, most_tokens
from minos_ray.critiques.stage import chosen
from minos_ray.store.run import Run

BYTES_PER_TOKEN = 4
"""English text, with the tokenizers of the large models."""
PROMPT_TOKENS, ANSWER_TOKENS = 500, 250
"""Of a GSM8K-sized case: the label-aware prompt has about 2,000 bytes, the paper's 30,000 critiques about 1,000."""

THINKS = re.compile(
    r"\b(?:o[134]|gpt-5|gpt-oss|qwq|magistral|grok-4|gemini-[23]\.?\d*-pro)\b|thinking|reason|deepseek-r", re.I
)
"""Names of models that think before they write, which counts as output."""
ENOUGH_TO_THINK = 4096


def expected_cost(config: Config, run: Run) -> str:
    """One line for `minos check`: what the critiques are likely to cost, and whether `max_tokens` is likely to do."""
    section = config.critique
    if THINKS.search(section.model) and section.max_tokens < ENOUGH_TO_THINK and section.reasoning_effort is None:
        few = f"; critique.max_tokens = {section.max_tokens} may be too few for a model that thinks before it writes"
        return costs(config, run) + few
    return costs(config, run)


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
    asked = sum(most_tokens(request.messages) for request in missing) / BYTES_PER_TOKEN
    usd = cost(section, asked, len(missing) * answer_tokens(cache)) * half
    most = cost(section, asked, len(missing) * section.max_tokens) * half
    return f"critique: {len(missing):,} critiques to buy, about {usd:,.2f} USD, {most:,.2f} if every answer is longest"


def answer_tokens(cache: Cache) -> float:
    """Mean length of the answers bought so far, or the usual one."""
    lengths = [answer.completion_tokens for answer in cache.answers.values() if answer.completion_tokens]
    return sum(lengths) / len(lengths) if lengths else ANSWER_TOKENS
