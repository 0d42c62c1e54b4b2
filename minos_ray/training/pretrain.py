"""A small base model from nothing: its tokenizer, then a Mistral trained on whole documents."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from typing import Any

from minos_ray.config.load import Config, resolve
from minos_ray.config.schema import Model
from minos_ray.config.training import Pretrain
from minos_ray.graph.specs import begin, fresh
from minos_ray.steps import encoding
from minos_ray.store.run import Manifest, Run
from minos_ray.training.data import Data, require_rows, split_by_problem
from minos_ray.training.documents import document_rows
from minos_ray.training.job import make_job, write_table
from minos_ray.training.trainer import finished, fit

BASE = "models/base"
START = "train/start"
HELD_OUT = 200
Document = tuple[str, str]


def pretrain(config: Config, run: Run) -> Manifest:
    """Trains `models/base` on the corpus: the loss is on every token of question, solution and EOS."""
    if done := fresh(config, run, BASE):
        fit(config, run, "pretrain", [])
        return done
    begin(config, run, BASE)
    section = config.pretrain
    source = {"run": run} if section.needs else {}
    documents = list(resolve(section.corpus)(seed=section.seed, **source, **section.options))
    tokenizer = resolve(section.tokenizer)(map(document_text, documents), section.vocab_size)
    save_start(section, tokenizer, run)
    data = document_data(tokenizer, documents, section)
    require_rows("pretrain", data)
    table = write_table(run, "documents", data)
    job = make_job(run, BASE, "lm", Model(model=f"run:{START}"), table, section, config.resources)
    fit(config, run, "pretrain", [job])
    return finished(run, BASE)


def document_text(document: Document) -> str:
    """A document as one text, for the tokenizer."""
    question, solution = document
    return encoding.question_text(question) + "".join(map(encoding.step_text, solution.splitlines()))


def save_start(section: Pretrain, tokenizer: Any, run: Run) -> None:
    """The untrained model and its tokenizer, where every worker can read them."""
    from transformers.utils import logging

    from minos_ray.training.architecture import new_mistral

    logging.disable_progress_bar()

    artefact = run.artefact(START)
    artefact.begin(section.model_dump(mode="json"))
    with tempfile.TemporaryDirectory() as folder:
        new_mistral(section, tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        run.upload(folder, START)
    artefact.complete({})


def document_data(tokenizer: Any, documents: Sequence[Document], section: Pretrain) -> Data:
    """Tokenised documents, in the encoding that verifiers read; a few questions are held out."""
    dropped: Counter[str] = Counter()
    split = [(question, question, [line for line in text.splitlines() if line.strip()]) for question, text in documents]
    rows = list(document_rows(tokenizer, split, section.max_length, dropped))
    train, held_out = split_by_problem(rows, min(HELD_OUT, len(rows) // 50), None, section.seed)
    return Data(train, held_out, dropped)
