"""A small base model from scratch: corpus, byte-level BPE tokenizer, seeded Mistral, and the stage that trains it."""

import inspect
import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from minos_ray.config.load import Config, resolve
from minos_ray.config.schema import Model
from minos_ray.config.training import Pretrain, StepEncoding
from minos_ray.problems.split import NOT_DRAWN
from minos_ray.steps import encoding
from minos_ray.store.columns import Row
from minos_ray.store.run import Manifest, Run
from minos_ray.training.data import (
    Data,
    Job,
    encoded,
    language_row,
    make_job,
    require_rows,
    split_by_problem,
    write_table,
)
from minos_ray.training.reward import labelled
from minos_ray.training.trainer import fit_one

BASE = "models/base"
START = "train/start"
HELD_OUT = 200
PAD, EOS = "<pad>", "</s>"
# What keeps a document apart from others (a problem's id), question, steps.
Document = tuple[str, str, list[str]]


def pretrain(config: Config, run: Run) -> Manifest:
    """Trains `models/base` on the corpus: the loss is on every token of question, solution and EOS."""
    return fit_one(config, run, "pretrain", BASE, lambda: base_job(config, run))


def base_job(config: Config, run: Run) -> Job:
    """The training of an untrained model on the corpus, with a tokenizer made for it."""
    section = config.pretrain
    assert section is not None
    corpus, dropped = resolve(section.corpus), Counter[str]()
    source: dict[str, Any] = {"run": run} if section.needs else {}
    if "dropped" in inspect.signature(corpus).parameters:
        source["dropped"] = dropped
    documents = list(corpus(seed=section.seed, **source, **section.options))
    texts = (
        encoding.question_text(question) + "".join(map(encoding.step_text, solution.splitlines()))
        for question, solution in documents
    )
    tokenizer = resolve(section.tokenizer)(texts, section.vocab_size)
    save_start(section, tokenizer, run)
    # In the encoding that verifiers read; a fiftieth of the questions is held out.
    solutions = [(name, name, [line for line in text.splitlines() if line.strip()]) for name, text in documents]
    rows = list(document_rows(tokenizer, solutions, section.max_length, dropped))
    data = Data(*split_by_problem(rows, min(HELD_OUT, len(rows) // 50), None, section.seed), dropped)
    require_rows("pretrain", data)
    table = write_table(run, "documents", data)
    return make_job(run, BASE, "lm", Model(model=f"run:{START}"), table, section, config)


def document_rows(
    tokenizer: Any,
    documents: Sequence[Document],
    max_length: int,
    dropped: Counter[str],
    layout: StepEncoding = encoding.LINES,
) -> Iterator[Row]:
    """Rows with the loss on every token of question, solution and EOS; longer ones than `max_length` are counted."""
    solutions = encoded(documents, lambda document: document[1:], encoding.encode_solutions, tokenizer, layout)
    for (problem_id, _, _), solution in solutions:
        ids = [*solution.ids, tokenizer.eos_token_id]
        if len(ids) > max_length:
            dropped["over_max_length"] += 1
        else:
            yield language_row(problem_id, ids, 1)


def right_solutions(run: Run, seed: int, rows: int, dropped: Counter[str] | None = None) -> Iterator[tuple[str, str]]:
    """A corpus out of the run itself: `rows` right candidates of the train split, each distinct solution once.

    Those of problems that are not drawn are counted in `dropped`.
    """
    candidates, reasons = labelled(run)
    if dropped is not None and reasons[NOT_DRAWN]:
        dropped[NOT_DRAWN] += reasons[NOT_DRAWN]
    right = [row for row in candidates if row["correct"]]
    for row in random.Random(f"right solutions {seed}").sample(right, min(rows, len(right))):
        yield row["question"], "\n".join(row["steps"])


def byte_level_bpe(texts: Iterable[str], vocab_size: int) -> Any:
    """A transformers tokenizer trained on `texts`; lines never share a token, so steps can be tokenised alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    lines = pre_tokenizers.Split("\n", "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)


def save_start(section: Pretrain, tokenizer: Any, run: Run) -> None:
    """Writes the untrained model and its tokenizer where every worker can read them."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    artefact = run.artefact(START)
    artefact.begin(section.model_dump(mode="json"))
    with tempfile.TemporaryDirectory() as folder:
        new_mistral(section, tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        run.upload(folder, START)
    artefact.complete({})


def new_mistral(section: Pretrain, tokenizer: Any) -> Any:
    """A seeded Mistral with tied embeddings, of the section's sizes."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(section.seed)
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=section.hidden,
            intermediate_size=section.intermediate,
            num_hidden_layers=section.layers,
            num_attention_heads=section.heads,
            num_key_value_heads=section.kv_heads,
            max_position_embeddings=section.max_positions,
            sliding_window=None,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
