"""The miniature's tokenizer: words, numbers and the fixed phrases of solutions and critiques are one token each."""

import random
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

from minos_ray.miniature import LARGEST, corpus
from minos_ray.miniature.critic_server import write_critique
from minos_ray.miniature.step_labels import labels_of

PIECE = (
    r"Step \d+:|The answer is:|Question:|Answer:|Critique:| ?This step is (?:in)?correct\."
    r"|The final answer is (?:True|False)\.| ?\d+| ?[A-Za-z]+:?|\n| ?[^\sA-Za-z\d]|\s"
)
EOS, PAD = "</s>", "<pad>"
DOCUMENTS = 5000
"""Texts and critiques that are read: enough for every word to occur."""
STEPS = 12
"""Step numbers that get a token of their own."""


def _critiques(count: int) -> Iterator[str]:
    """Critiques of every sort, those of steps that cannot be read among them."""
    rng = random.Random("miniature tokenizer")
    for question, text in corpus(count, 0):
        steps = [step if rng.random() < 0.9 else "" for step in text.split("\n")]
        yield "Critique:\n" + write_critique(question, steps, labels_of(question, steps)[0], rng)


def tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A transformers tokenizer (byte-level BPE within the pieces); no token spans two lines."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(PIECE), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Every number and step number, twice over: none may depend on having been met.
    numbers = " ".join(["", *map(str, range(LARGEST + 1))])
    counting = 2 * [numbers] + 2 * ["\n".join(f"Step {k}:" for k in range(1, STEPS + 1))]
    core.train_from_iterator(chain(islice(texts, DOCUMENTS), _critiques(DOCUMENTS), counting), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=EOS, pad_token=PAD)
