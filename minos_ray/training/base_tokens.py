"""The tokenizer beside a base model: every token that a row can have must have an embedding there."""

from typing import Any

from minos_ray.errors import UserError
from minos_ray.store.model_files import load_tokenizer


def tokenizer_of(path: str, trust_remote_code: bool, critic: bool) -> Any:
    """The tokenizer at `path`; UserError when the model there has no embedding for some of its tokens, or when a
    `critic` is to be trained and no token ends a critique."""
    from transformers import AutoConfig

    tokenizer = load_tokenizer(path, trust_remote_code)
    if critic and tokenizer.eos_token_id is None:
        raise UserError(f"base.model: the tokenizer in {path} has no EOS token, which would end a critique; name one")
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    embeddings = config.get_text_config().vocab_size
    if tokens := without_embedding(tokenizer, embeddings, critic):
        raise UserError(
            f"base.model: the tokenizer in {path} has {len(tokens)} tokens (the first is '{tokens[0]}') without one of "
            f"the model's {embeddings} embeddings: another model's, or some were added without resizing the model"
        )
    return tokenizer


def without_embedding(tokenizer: Any, embeddings: int, critic: bool) -> list[str]:
    """Tokens that texts are made of, or that begin and end rows, behind the last embedding. Other special tokens (of
    padding, of images) are in no row."""
    numbers = {number: token for token, number in tokenizer.get_vocab().items() if number >= embeddings}
    special = {number for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    unused = special - {tokenizer.bos_token_id, tokenizer.eos_token_id if critic else None}
    return [numbers[number] for number in sorted(numbers) if number not in unused]
