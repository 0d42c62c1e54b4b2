"""The name under which a model is served as critic: it tells models apart, since what was bought is kept by it."""

import re
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from minos_ray.models import TOKENIZERS, WEIGHTS, is_hub_id

FILES = (*WEIGHTS, *TOKENIZERS, "config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja")
CHANGES_TEXTS = re.compile(r"quant|dtype|lora|override|rope|template|revision|tokenizer|speculative|load.format|config")
"""In the name of an option of vLLM that says how the model writes, not how fast."""
WHOLE, SAMPLES, SAMPLE = 1 << 26, 256, 1 << 16
"""Bytes up to which a file is read whole; of a larger one so many samples of so many bytes are."""


def served_name(model: str, path: str, plain: bool, options: Sequence[str]) -> str:
    """A hub id as it is; a directory by its name and a digest of its files, so that a model trained again is another.

    Options of vLLM that change the texts are in the digest too.
    """
    changes = [str(plain), *changing(options)] if plain or changing(options) else []
    if is_hub_id(model):
        return f"{model}@{blake2b(repr(changes).encode(), digest_size=5).hexdigest()}" if changes else model
    total = blake2b(repr(changes).encode(), digest_size=5)
    for file in sorted({file for pattern in FILES for file in Path(path).glob(pattern)}):
        total.update(f"{file.name} {file.stat().st_size} ".encode())
        for piece in pieces(file):
            total.update(piece)
    return f"{Path(path).name}@{total.hexdigest()}"


def changing(options: Sequence[str]) -> list[str]:
    """The options, with their values, that change what is written."""
    found: list[str] = []
    taken = False
    for option in options:
        if option.startswith("-"):
            taken = CHANGES_TEXTS.search(option.partition("=")[0]) is not None
        found += [option] if taken else []
    return found


def pieces(file: Path) -> list[bytes]:
    """All of a small file, evenly spread samples of a large one: training changes weights everywhere."""
    size = file.stat().st_size
    if size <= WHOLE:
        return [file.read_bytes()]
    found = []
    with file.open("rb") as content:
        for number in range(SAMPLES):
            content.seek(number * (size - SAMPLE) // (SAMPLES - 1))
            found.append(content.read(SAMPLE))
    return found
