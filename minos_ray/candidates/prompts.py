"""What a generator is asked, as token ids. Named in the config as `sample.prompt`; each takes (question, tokenizer)."""

from typing import Any

from minos_ray.errors import UserError
from minos_ray.training import encoding

INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that fulfils it.\n\n"
    "### Instruction:\n{question}\n\n### Response: Let's think step by step.\n"
)

# Stands for a question where the template's own words are wanted.
PLACE = "[[QUESTION]]"


def plain(question: str, tokenizer: Any) -> list[int]:
    """The very ids that a verifier's input begins with: `Question: ...`, then `Answer:`."""
    return encoding.prompt_ids(tokenizer, question)


def alpaca(question: str, tokenizer: Any) -> list[int]:
    """Instruction and response headings, as generators fine-tuned on MetaMath-like data expect them."""
    text = INSTRUCTION.format(question=question)
    return [*encoding.bos(tokenizer), *encoding.token_ids(tokenizer, [text])[0]]


def chat(question: str, tokenizer: Any) -> list[int]:
    """The tokenizer's own chat template with the question as the user's turn.

    A special token that a question spells out is plain text: it must not end the turn.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "sample.prompt = minos_ray.candidates.prompts:chat: the generator's tokenizer has no chat template; "
            "use minos_ray.candidates.prompts:plain or :alpaca"
        )

    def rendered(words: str) -> str:
        turns = [{"role": "user", "content": words}]
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    text = rendered(question)
    if not any(name in question for name in tokenizer.all_special_tokens):
        return template_ids(text, tokenizer)
    before, _, after = rendered(PLACE).partition(PLACE)
    middle = text.removeprefix(before).removesuffix(after)
    own = encoding.token_ids(tokenizer, [middle])[0]
    return [*template_ids(before, tokenizer), *own, *template_ids(after, tokenizer)]


def template_ids(text: str, tokenizer: Any) -> list[int]:
    """Token ids of a template's words, its special tokens among them."""
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
