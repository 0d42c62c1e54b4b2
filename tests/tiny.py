"""Tiny models made on the spot: a byte-level BPE tokenizer and a random Mistral, saved as transformers saves them."""

from pathlib import Path
from typing import Literal

Kind = Literal["causal", "orm", "prm"]

TEXTS = [
    "Question: Tom has 3 apples and buys 4 more. How many apples does Tom have?\nAnswer:\n",
    "Step 1: Tom has 3 + 4 = 7 apples.\nStep 2: Then 7 * 2 = 14.\nThe answer is: 14\n",
    "Critique:\nStep 1: 3 + 4 is 7. This step is correct.\nStep 2: 7 * 2 is not 15. This step is incorrect.\n",
    "The final answer is True.\nThe final answer is False.\n",
]


def tiny_tokenizer(path: Path | str, chat: bool = False) -> None:
    """Saves a tokenizer of about 400 tokens with <pad>, <s>, </s>, and a chat template when asked."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXTS * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )
    if chat:
        tokenizer.chat_template = (
            "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
            "{% if add_generation_prompt %}[assistant] {% endif %}"
        )
    tokenizer.save_pretrained(path)


def tiny_model(
    path: Path | str,
    kind: Kind = "causal",
    *,
    layers: int = 2,
    hidden: int = 64,
    seed: int = 0,
    spread: float = 0.2,
    chat: bool = False,
    tied: bool = False,
) -> str:
    """Saves a random Mistral (`layers` x `hidden`, head size 32) with its tokenizer; returns the path.

    `spread` is the standard deviation of the weights: large enough that the best token is clearly the best.
    """
    import torch
    from transformers import (
        AutoTokenizer,
        MistralConfig,
        MistralForCausalLM,
        MistralForSequenceClassification,
        MistralForTokenClassification,
    )

    tiny_tokenizer(path, chat)
    vocab = len(AutoTokenizer.from_pretrained(path))
    heads = hidden // 32
    config = MistralConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        max_position_embeddings=1024,
        sliding_window=None,
        initializer_range=spread,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        num_labels=1,
    )
    heads_of = {
        "causal": MistralForCausalLM,
        "orm": MistralForSequenceClassification,
        "prm": MistralForTokenClassification,
    }
    torch.manual_seed(seed)
    heads_of[kind](config).float().save_pretrained(path)
    return str(path)
