"""Documents for a language model: question, solution and EOS, in the encoding that verifiers read."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from minos_ray.steps import encoding
from minos_ray.training.data import Row, chunks
from minos_ray.training.rows import language_row

Document = tuple[str, str, list[str]]
"""What keeps it apart from others (a problem's id), question, steps."""


def document_rows(
    tokenizer: Any, documents: Sequence[Document], max_length: int, dropped: Counter[str]
) -> Iterator[Row]:
    """Rows with the loss on every token; too long ones are left out and counted."""
    for chunk in chunks(documents):
        encoded = encoding.encode_solutions(tokenizer, [(question, steps) for _, question, steps in chunk])
        for (problem_id, _, _), solution in zip(chunk, encoded, strict=True):
            ids = [*solution.ids, tokenizer.eos_token_id]
            if len(ids) > max_length:
                dropped["over_max_length"] += 1
            else:
                yield language_row(problem_id, ids, 1)
