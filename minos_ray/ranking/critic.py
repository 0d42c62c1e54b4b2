"""A critic's endpoint as verifier of a file: a solution's score is the share of its critiques that accept it.

Critiques are requested, rate-limited, paid for and cached as those of `minos meta` are. What was bought is kept in
`OUT.critiques`, so the same command buys nothing twice.
"""

import itertools
import re
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from minos_ray.config.load import Config, build, parse_override
from minos_ray.config.schema import MetaCritic
from minos_ray.critiques.client import ask
from minos_ray.critiques.endpoint import with_model
from minos_ray.critiques.limits import has_prices, priced
from minos_ray.critiques.reply import Cache
from minos_ray.critiques.stage import critique_status
from minos_ray.errors import UserError, WorkStopped
from minos_ray.files.slices import Rows
from minos_ray.meta.critics import check_prompt, depends_on, lines_shown, questions_of, rated
from minos_ray.ranking.scorer import CRITIC_OPTIONS, RESULT, SPLITTER, answer_of, as_text, steps_of
from minos_ray.store.run import Run
from minos_ray.units.lock import locked

NAME = "critic"  # under which the config has it
KEYS = re.compile(rf"(?:config key ')?\b(?:meta\.critics\.{NAME}(?:\.(\w+))?|(?:critique|resources\.client)\.(\w+))'?")
SPREAD = 0.7  # the temperature of several critiques of one solution, which must be able to differ


@dataclass(frozen=True)
class CriticTask:
    """What is scored, as in `scorer.Task`, by the critic of `config.meta.critics`; its run keeps what was bought."""

    config: Config
    question: str
    text: str
    style: str
    splitter: str = SPLITTER

    @property
    def critic(self) -> MetaCritic:
        """The critic, with the name of the model that answers."""
        return with_model(self.config.meta.critics[NAME])


def critic_config(model: str, folder: str, options: dict[str, Any], settings: list[str]) -> Config:
    """The config of a critic, from options of the command line (None where not given) and `key=value` settings."""
    values = {key: value for key, value in options.items() if value is not None}
    client = {"concurrency": values.pop("concurrency")} if "concurrency" in values else {}
    if values.get("samples", 1) > 1:
        values.setdefault("temperature", SPREAD)
    section = {"model": model, **values, **dict(map(parse_override, settings))}
    sections = {"meta": {"critics": {NAME: section}}, "resources": {"client": client}}
    with named_as_options():
        config = build({"run": folder, "base": {"model": "none"}, **sections})
        critic = config.meta.critics[NAME]
        check_prompt(NAME, critic.prompt)
        if depends_on(critic.prompt, answer="3"):
            raise UserError(f"critique.prompt = {critic.prompt} shows the right answer, which a file does not have")
        priced(critic)
    return config


@contextmanager
def named_as_options() -> Generator[None]:
    """Errors about keys of a config name the options of `minos rank` in their place."""
    try:
        yield
    except (UserError, WorkStopped) as error:
        raise type(error)(KEYS.sub(option, str(error))) from error


def option(match: re.Match[str]) -> str:
    """How a key of the critic is given on the command line."""
    key = match[1] or match[2] or "model"
    if key == "model":
        return "--critic"
    return f"--{key.replace('_', '-')}" if key in CRITIC_OPTIONS else f"--set {key}"


def critiqued(rows: Rows, task: CriticTask) -> tuple[pa.Table, Counter[str]]:
    """A row of `RESULT` for each row of the file, null where no critique gave a verdict; critiques by outcome."""
    critic, solutions = task.critic, list(solutions_of(rows, task))
    if not has_prices(critic):
        print(f"rank: no price of model '{critic.model}' is known; costs count as 0 USD")
    questions = [question for number, row in enumerate(solutions) for question in questions_of(critic, number, row)]
    run = Run(task.config.run)
    with locked(run, "minos rank"), named_as_options():
        answers, _ = ask(task.config, critic, [q.request for q in questions], Cache(run), critique_status)
    score_rows, outcomes = rated(solutions, questions, answers)
    scores = [row["score"] if row["step_scores"] else None for row in score_rows]
    columns = [scores, [row["step_scores"] for row in score_rows], [row["answer"] for row in solutions]]
    return pa.table(columns, schema=RESULT), outcomes


def solutions_of(rows: Rows, task: CriticTask) -> Iterator[dict[str, Any]]:
    """The solutions of the file as `minos meta` shows them to critics. Nothing is known of them: no gold, no labels."""
    number = itertools.count()
    for block in rows.blocks():
        for question, solution in zip(block[task.question].to_pylist(), block[task.text].to_pylist(), strict=True):
            steps, answer = steps_of(solution, task.splitter), answer_of(solution, task.style)
            yield {
                "candidate_id": str(next(number)),
                "problem_id": "",
                "question": as_text(question, "user"),
                "steps": steps,
                "lines": lines_shown(steps, answer),
                "answer": answer,
                "gold": "",
                "solution": None,
            }
