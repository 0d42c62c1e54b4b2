"""Text as token ids: plain text that is nothing but text, and turns in a tokenizer's chat template.

Where a text lies in a template is known by construction: the template is filled with a placeholder, whose place says
what stands before and behind. What a template writes must be the same on every day and machine.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import chain
from typing import Any

from minos_ray.errors import UserError

# They take the places of a question and of a solution, to find the words of the template around them.
QUESTION, SOLUTION = "[[QUESTION]]", "[[SOLUTION]]"
# The user's second turn, which the critic answers.
REQUEST = "Critique this solution: judge each step, then the final answer."
# What opens and closes a model's thinking in the templates of the field.
THINKING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))

Render = Callable[[str], str]
Turn = dict[str, str]


def bos(tokenizer: Any) -> list[int]:
    """The BOS token, or nothing."""
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def pieces(tokenizer: Any, texts: Iterable[str]) -> dict[str, list[int]]:
    """Token ids of each distinct text on its own."""
    distinct = list(dict.fromkeys(texts))
    return dict(zip(distinct, token_ids(tokenizer, distinct), strict=True)) if distinct else {}


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, never a special token: one that a text spells out is plain text.

    Some tokenizers (Unigram) find special tokens as words: in texts with such ones their names are cut in two.
    """
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    token_lists = plain_ids(tokenizer, texts)
    if not special.isdisjoint(chain.from_iterable(token_lists)):
        names = sorted({*tokenizer.all_special_tokens} - {tokenizer.unk_token})
        cuts = "|".join(f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in names)
        for place, text in enumerate(texts):
            if not special.isdisjoint(token_lists[place]):
                token_lists[place] = list(chain.from_iterable(plain_ids(tokenizer, re.split(cuts, text))))
    return token_lists


def plain_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text; a special token is not looked for."""
    # Mistral's own tokenizer never does, and refuses to be told so.
    options = {} if type(tokenizer).__name__ == "MistralCommonBackend" else {"split_special_tokens": True}
    return tokenizer(list(texts), add_special_tokens=False, **options)["input_ids"]


def fill(tokenizer: Any, turns: Sequence[Turn], values: Mapping[str, Any]) -> str:
    """The turns in the tokenizer's template, with the start of the assistant's next one.

    `values` are names that the template reads. A text for `strftime_now` takes the place of today's date.
    jinja2.TemplateError when the template refuses the turns.
    """
    if isinstance(date := values.get("strftime_now"), str):
        values = {**values, "strftime_now": lambda _: date}
    return tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True, **values)


def turns_of(question: str, system: str | None) -> list[Turn]:
    """A system turn, if there is one, and the question as the user's."""
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": question}]


def critic_turns(question: str, solution: str, system: str | None = None) -> list[Turn]:
    """The conversation that a critic answers: question, solution, and the request for a critique of it."""
    asked = turns_of(question, system)
    return [*asked, {"role": "assistant", "content": solution}, {"role": "user", "content": REQUEST}]


def question_ids(tokenizer: Any, question: str, render: Render) -> list[int]:
    """Token ids of the template that `render` fills with a question.

    They are those of `apply_chat_template`, unless the question spells out a special token: that is plain text, and
    must not end the turn.
    """
    text = render(question)
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
    if not any(name in question for name in special):
        return template_ids(tokenizer, text)
    before, _, behind = render(QUESTION).partition(QUESTION)
    middle = text.removeprefix(before).removesuffix(behind)
    return [*template_ids(tokenizer, before), *token_ids(tokenizer, [middle])[0], *template_ids(tokenizer, behind)]


def request_text(tokenizer: Any, system: str | None, values: Mapping[str, Any]) -> str:
    """What the template writes from the end of a solution to the start of its critique: the request for it."""
    return fill(tokenizer, critic_turns(QUESTION, SOLUTION, system), values).partition(SOLUTION)[2]


def template_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a template's words; special tokens in them are special."""
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def digest(tokenizer: Any) -> str | None:
    """Names the tokenizer's template; None where it has none."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    return blake2b(tokenizer.get_chat_template().encode(), digest_size=8).hexdigest()


def require_template(tokenizer: Any, system: str | None, values: Mapping[str, Any], key: str, critic: bool) -> None:
    """UserError, beginning with `key`, when solutions cannot be put into the tokenizer's template.

    For a `critic` the template must also take the turns behind a solution.
    """
    from jinja2 import TemplateError

    try:
        if digest(tokenizer) is None:
            raise UserError(f"{key}: the tokenizer has no chat template; use name: lines, or an instruct model")
        text = fill(tokenizer, turns_of(QUESTION, system), values)
        request = request_text(tokenizer, system, values) if critic else QUESTION
        dates = {fill(tokenizer, turns_of(QUESTION, system), {"strftime_now": date, **values}) for date in ("1", "2")}
    except (TemplateError, TypeError, ValueError) as error:
        turn = f"{key}.system" if system else key
        remedy = "leave it empty" if system else "use name: lines"
        reason = str(error).partition("\n")[0]
        raise UserError(f"{turn}: the chat template refuses the turns: {reason}; {remedy}") from error
    before, place, behind = text.partition(QUESTION)
    if not place or (system and system.strip() not in before):
        raise UserError(f"{key}: the chat template does not show {'the system turn' if place else 'the question'}")
    if not request:
        raise UserError(f"{key}: the chat template leaves out the assistant's turns before the last; use name: lines")
    if len(dates) > 1:
        raise UserError(
            f"{key}: the chat template writes today's date, so scores would change from day to day; set it in "
            f"{key}.chat_template_kwargs, as {{strftime_now: 26 Jul 2024}}"
        )
    for start, end in THINKING:
        if start in behind and end not in behind.rpartition(start)[2]:
            raise UserError(
                f"{key}: the chat template begins the answer inside {start}, where no solution stands; set "
                f"{key}.chat_template_kwargs, as {{enable_thinking: false}}, or use name: lines"
            )
