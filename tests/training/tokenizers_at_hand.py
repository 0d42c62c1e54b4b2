"""Tokenizers that behave differently: small ones made on the spot from the same texts, and Mistral's own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

TEXTS = [
    "Question: Tom has 3 apples and buys 14 more. How many apples?\nAnswer:\n",
    "Step 1: Tom has 3 + 14 = 17 apples.\nThe answer is: 17\nCritique:\nThis step is correct.\n",
] * 8
WORDS = sorted(set(" ".join(TEXTS).split()))
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


def adds_bos() -> Any:
    """Says BOS by itself before each text, as Llama's and Mistral's do: in the middle of a solution it must not."""
    from tokenizers import processors

    made = byte_level(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", made.bos_token_id)])
    made.backend_tokenizer.post_processor = template
    return made


def single_digits() -> Any:
    """Every digit is a token of its own, as in Qwen's and Llama's."""
    from tokenizers import decoders, pre_tokenizers

    digits = pre_tokenizers.Digits(individual_digits=True)
    split = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return trained(split, decoders.ByteLevel(), BYTES, {"eos_token": "</s>", "pad_token": "<pad>"})


def byte_fallback() -> Any:
    """SentencePiece with bytes for what it has no piece for: Llama 2's and Mistral's way."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    like = metaspace("first", bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    words, merges = bpe(like)
    first = len(words)
    words |= {f"<0x{byte:02X}>": first + byte for byte in range(256)}
    core = Tokenizer(models.BPE(words, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    pieces = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(pieces)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def bpe(tokenizer: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Words and merges of a trained tokenizer."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return dict(model["vocab"]), [tuple(pair) for pair in model["merges"]]


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


def unigram() -> Any:
    """SentencePiece's other model: the likeliest pieces, bytes for the rest; its special tokens are pieces, too."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [(name, 0.0) for name in ("<unk>", "<s>", "</s>", "<pad>")] + [(f"\u2581{word}", -5.0) for word in WORDS]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)] + [(letter, -9.0) for letter in "\u2581aeinorst"]
    core = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def word_level() -> Any:
    """A word is a token and a line break is none, so that an empty step has no token at all."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", "<pad>", *WORDS]
    core = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def mistral() -> Any:
    """That of Mistral-7B, the paper's base: a space in front, bytes for the rest, no pad. It comes along with vLLM."""
    from transformers import LlamaTokenizer

    return shipped("tokenizer.model.v1", "tokenizer.model", LlamaTokenizer)


def mistral_common() -> Any:
    """The same file read by Mistral's own library, which is not of transformers' own kind."""
    from transformers.tokenization_mistral_common import MistralCommonBackend

    return shipped("tokenizer.model.v1", "tokenizer.model.v1", MistralCommonBackend)


def shipped(file: str, name: str, kind: Any) -> Any:
    """A tokenizer out of the files of `mistral_common`."""
    import mistral_common

    with TemporaryDirectory() as folder:
        shutil.copy(Path(mistral_common.__file__).parent / "data" / file, Path(folder) / name)
        return kind.from_pretrained(folder)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "byte-level": lambda: byte_level(eos_token="</s>", pad_token="<pad>"),
    "byte-level-bos": lambda: byte_level(bos_token="<s>", eos_token="</s>", pad_token="<pad>"),
    "byte-level-pad-is-eos": lambda: byte_level(eos_token="</s>", pad_token="</s>"),
    "sentencepiece-prefix": lambda: metaspace("always", bos_token="<s>", eos_token="</s>", pad_token="<pad>"),
    "sentencepiece-plain": lambda: metaspace("never", bos_token="<s>", eos_token="</s>", pad_token="<pad>"),
    "byte-level-says-bos": adds_bos,
    "single-digits": single_digits,
    "byte-fallback": byte_fallback,
    "unigram": unigram,
    "word-level": word_level,
    "mistral-7b": mistral,
}

# Every text can be written with these and read back.
COMPLETE = (
    "byte-level",
    "byte-level-bos",
    "byte-level-pad-is-eos",
    "byte-level-says-bos",
    "single-digits",
    "byte-fallback",
    "mistral-7b",
)

# These put a space in front of a text, unless it begins with one: both read back without it.
SPACED = ("byte-fallback", "mistral-7b")
