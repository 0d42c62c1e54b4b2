"""Small tokenizers that behave differently, made on the spot from the same texts."""

from collections.abc import Callable
from typing import Any

TEXTS = [
    "Question: Tom has 3 apples and buys 14 more. How many apples?\nAnswer:\n",
    "Step 1: Tom has 3 + 14 = 17 apples.\nThe answer is: 17\nCritique:\nThis step is correct.\n",
] * 8
BYTES = "byte-level"


def byte_level(**special: str) -> Any:
    """Byte-level BPE: every text can be written, a space belongs to the word after it."""
    from tokenizers import decoders, pre_tokenizers

    return trained(pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(), BYTES, special)


def metaspace(prefix: str, **special: str) -> Any:
    """SentencePiece's way: a space is part of a token; `prefix` says whether each piece gets one in front."""
    from tokenizers import decoders, pre_tokenizers

    split = pre_tokenizers.Metaspace(prepend_scheme=prefix)
    return trained(split, decoders.Metaspace(prepend_scheme=prefix), "", special)


def trained(split: Any, decoder: Any, alphabet: str, special: dict[str, str]) -> Any:
    """A BPE of 330 tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = split, decoder
    initial = sorted(pre_tokenizers.ByteLevel.alphabet()) if alphabet == BYTES else []
    names = ["<unk>", *dict.fromkeys(special.values())]
    core.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=330, special_tokens=names, initial_alphabet=initial, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **special)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "byte-level": lambda: byte_level(eos_token="</s>", pad_token="<pad>"),
    "byte-level-bos": lambda: byte_level(bos_token="<s>", eos_token="</s>", pad_token="<pad>"),
    "byte-level-pad-is-eos": lambda: byte_level(eos_token="</s>", pad_token="</s>"),
    "sentencepiece-prefix": lambda: metaspace("always", bos_token="<s>", eos_token="</s>", pad_token="<pad>"),
    "sentencepiece-plain": lambda: metaspace("never", bos_token="<s>", eos_token="</s>", pad_token="<pad>"),
}
