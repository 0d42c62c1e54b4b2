"""What a shipped config of the paper would take on 2 nodes x 8 GPUs: a calculation, not a measurement.

    python benchmarks/paper_run.py

Counts come from `gsm8k-mistral-7b`; tokens per text were counted with Mistral's tokenizer on GSM8K and on Gemini's
solutions and critiques of it. Speeds and prices are assumptions, each a range from slow to fast; the table says hours.
"""

from collections.abc import Iterator
from typing import NamedTuple

from minos_ray.config.load import load_config
from minos_ray.config.schema import Config

PROBLEMS = {"train": 7_473, "test": 1_319}
QUESTION, SOLUTION, CRITIQUE = 64, 120, 290  # tokens: 63.3 and 64.9; Gemini's 122 (GSM8K's own: 97); Gemini's
STEPS = 3.6  # before the answer line
WRONG = 0.22  # of the generator's samples; MetaMath-Mistral-7B: 77.9 % greedy on the test set
PARAMETERS = 7.24e9
GPUS = 16


class Card(NamedTuple):
    """A kind of GPU with (slow, fast) and (cheap, dear) assumptions."""

    name: str
    peak: float  # dense bf16, FLOP/s
    written: tuple[float, float]  # tokens/s that vLLM writes with a 7B model and full batches
    usd: tuple[float, float]  # an hour of one


CARDS = (
    Card("A100 80 GB", 312e12, (3_000, 6_000), (1.5, 5.1)),
    Card("H100", 989e12, (6_000, 12_000), (2.5, 12.3)),
)
USED = (0.25, 0.45)  # share of the peak that training and scoring reach


class Stage(NamedTuple):
    """Work of one stage: tokens written by vLLM, operations of training or scoring, minutes of starting and saving."""

    name: str
    work: str
    written: float = 0
    flops: float = 0
    fixed: float = 0


def stages(config: Config) -> Iterator[Stage]:
    """The stages that use GPUs."""
    test, train = (PROBLEMS[split] * getattr(config.sample, f"n_{split}") for split in ("test", "train"))
    yield Stage("sample", f"{test:,} + {train:,} candidates", (test + train) * SOLUTION, fixed=4)
    asked = train * WRONG * STEPS * config.label.rollouts.completions if config.label.rollouts else 0
    yield Stage(
        "label: rollouts", f"at most {asked:,.0f} completions of half a solution", asked * SOLUTION / 2, fixed=4
    )
    tokens = config.critique.count * config.sft.epochs * (QUESTION + SOLUTION + CRITIQUE)
    yield Stage(
        "sft", f"{tokens / 1e6:,.0f} M tokens, {config.sft.epochs:g} epochs", flops=8 * PARAMETERS * tokens, fixed=8
    )
    tokens = train * (QUESTION + SOLUTION) * len(config.reward.verifiers)
    work = f"{len(config.reward.verifiers)} verifiers, {tokens / 1e6:,.0f} M tokens"
    yield Stage("reward", work, flops=8 * PARAMETERS * tokens, fixed=6 * len(config.reward.verifiers))
    tokens = test * SOLUTION * len(config.reward.verifiers)
    work = f"{len(config.reward.verifiers)} x {test:,} candidates, questions once"
    yield Stage("score", work, flops=2 * PARAMETERS * tokens, fixed=3 * len(config.reward.verifiers))
    yield Stage("score: critic as judge", f"{test:,} critiques", test * CRITIQUE, fixed=4)


def hours(stage: Stage, card: Card, fast: int) -> float:
    """On all GPUs, slow (0) or fast (1)."""
    seconds = stage.written / card.written[fast] + stage.flops / (card.peak * USED[fast])
    return seconds / GPUS / 3600 + stage.fixed / 60


def span(low: float, high: float, form: str = ".1f") -> str:
    """`1.2 - 2.3`."""
    return f"{low:{form}} - {high:{form}}"


def main() -> None:
    """Prints the table as Markdown."""
    found = list(stages(load_config("gsm8k-mistral-7b")))
    print("| stage | work | " + " | ".join(f"hours, {GPUS} x {card.name}" for card in CARDS) + " |\n|---|---|---|---|")
    for stage in found:
        cells = (span(hours(stage, card, 1), hours(stage, card, 0), ".2f") for card in CARDS)
        print(f"| {stage.name} | {stage.work} | {' | '.join(cells)} |")
    totals = [[sum(hours(stage, card, fast) for stage in found) for fast in (1, 0)] for card in CARDS]
    print("| all that hold GPUs | | " + " | ".join(span(*total) for total in totals) + " |")
    costs = (
        span(total[0] * GPUS * card.usd[0], total[1] * GPUS * card.usd[1], ",.0f")
        for card, total in zip(CARDS, totals, strict=True)
    )
    print(
        "| USD for them | "
        + ", ".join(f"{c.usd[0]} - {c.usd[1]} a {c.name} hour" for c in CARDS)
        + f" | {' | '.join(costs)} |"
    )


if __name__ == "__main__":
    main()
