"""What a policy learns of its own solutions: the best of each problem, as rows from the sampler's prompt to EOS."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from minos_ray.candidates.prompts import prompt_of
from minos_ray.config.load import Config
from minos_ray.config.schema import NEXT_QUESTION, Model
from minos_ray.config.training import StepEncoding, Teach
from minos_ray.errors import UserError
from minos_ray.problems.split import problems_by_id
from minos_ray.steps import encoding
from minos_ray.store.columns import Row
from minos_ray.store.model_files import load_tokenizer, locate
from minos_ray.store.run import Run
from minos_ray.training.job import Job, make_job, write_table
from minos_ray.training.rows import Data, chunks, language_row, require_rows, split_by_problem

HELD_OUT_ROWS = 200  # a fiftieth of the rows, at most so many


def chosen_solutions(solutions: Sequence[Row], section: Teach, dropped: Counter[str]) -> list[Row]:
    """The best solutions of each problem, sorted by problem; of equal scores the first sampled.

    Left out, and counted: what did not end, what the judge rejected (score 0) or scored below the threshold, what
    repeats a better one word for word, and what is over the number that is kept.
    """
    chosen = []
    for _, of_problem in groupby(sorted(solutions, key=itemgetter("problem_id")), key=itemgetter("problem_id")):
        texts: set[str] = set()
        for row in sorted(of_problem, key=lambda row: (-row["score"], row["index"])):
            if row["finish_reason"] != "stop":
                dropped[f"not_ended_{row['finish_reason']}"] += 1
            elif not row["score"]:
                dropped["rejected"] += 1
            elif row["score"] < section.threshold:
                dropped["below_threshold"] += 1
            elif row["text"] in texts:
                dropped["same_text"] += 1
            elif len(texts) == section.most:
                dropped["over_most"] += 1
            else:
                texts.add(row["text"])
                chosen.append(row)
    return chosen


def policy_job(config: Config, run: Run, artefact: str, start: Model, chosen: list[Row]) -> Job:
    """The training of a policy on these solutions, with the prompts that they were sampled from; the prompt has no
    loss. UserError when the generator's tokenizer cannot end a solution."""
    section, tokenizer = config.teach, load_tokenizer(locate(start, run), start.trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"generator.model: the tokenizer of '{start.model}' has no EOS token, which would end a solution"
        )
    dropped: Counter[str] = Counter()
    rows = solution_rows(config, run, tokenizer, chosen, dropped)
    train, held_out = split_by_problem(rows, min(HELD_OUT_ROWS, len(rows) // 50), None, section.seed)
    data = Data(train, held_out, dropped)
    require_rows("teach", data)
    name = artefact.rpartition("/")[2]
    job = make_job(run, artefact, "lm", start, write_table(run, name, data), section, config)
    # A policy that is asked by its chat template keeps it.
    asks = tokenizer.chat_template and config.sample.prompt not in NEXT_QUESTION
    turns = {"system": config.sample.system, "chat_template_kwargs": config.sample.chat_template_kwargs}
    layout = StepEncoding(name="chat", **turns) if asks else encoding.LINES
    return job.model_copy(update={"encoding": layout})


def solution_rows(config: Config, run: Run, tokenizer: Any, chosen: list[Row], dropped: Counter[str]) -> list[Row]:
    """Rows of a language model: the prompt, the text of the solution and EOS."""
    questions, prompt, rows = problems_by_id(run, "train", ["problem_id", "question"]), prompt_of(config.sample), []
    for chunk in chunks(chosen):
        # Special tokens that a sampler leaves in a text, as those around a thought, are the policy's own.
        texts = tokenizer([row["text"] for row in chunk], add_special_tokens=False)["input_ids"]
        for row, text in zip(chunk, texts, strict=True):
            asked = prompt(questions[row["problem_id"]]["question"], tokenizer)
            ids = [*asked, *text, tokenizer.eos_token_id]
            if len(ids) > config.teach.max_length:
                dropped["over_max_length"] += 1
            else:
                rows.append(language_row(row["problem_id"], ids, len(asked)))
    return rows
