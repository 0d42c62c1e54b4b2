"""The step encodings: question and steps to token ids and the position of each step's last token.

`question-answer-lines` is plain text; `chat-lines` puts the question into the tokenizer's chat template, and the steps
behind it as the assistant's answer. Every piece is tokenised on its own and the token lists are concatenated, so
positions are known by construction. A verifier's input is a prefix of the critic's input. Used by training, scoring
and evaluation alike; a saved model names its encoding in its config.json (`step_encoding`).

Plain text is nothing but text: no special token is looked for in it. Where a text lies in a chat template is known by
construction: the template is filled with a placeholder, whose place says what stands before and behind. What a
template writes must be the same on every day and machine.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import chain
from typing import Any, NamedTuple

from minos_ray.config.training import StepEncoding
from minos_ray.errors import UserError
from minos_ray.graph.specs import CHAT_ENCODING, VERSIONS

# They take the places of a question and of a solution, to find the words of the template around them.
QUESTION, SOLUTION = "[[QUESTION]]", "[[SOLUTION]]"
# The user's second turn, which the critic answers.
REQUEST = "Critique this solution: judge each step, then the final answer."
# What opens and closes a model's thinking in the templates of the field.
THINKING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))

Render = Callable[[str], str]
Turn = dict[str, str]
NAME = "question-answer-lines"
VERSION = VERSIONS["step_encoding"]
CHAT = "chat-lines"
CHAT_VERSION = CHAT_ENCODING
LINES = StepEncoding()
CRITIQUE = "Critique:\n"

# Position of a step whose text gives no token at all; `refusal` names it.
NO_TOKEN = -1


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


class Encoded(NamedTuple):
    """Token ids of a solution, the index of each step's last token, and that of the first step's first token."""

    ids: list[int]
    positions: list[int]
    first: int


def question_text(question: str) -> str:
    """What comes before the first step; also the plain prompt of a generator."""
    return f"Question: {question}\nAnswer:\n"


def step_text(step: str) -> str:
    """A step is a line."""
    return f"{step}\n"


def prompt_ids(tokenizer: Any, question: str, layout: StepEncoding = LINES) -> list[int]:
    """What stands before the first step: BOS, if the tokenizer has one, and the question; or the filled template."""
    return prompts_of(tokenizer, [question], layout)[question]


def prompts_of(tokenizer: Any, questions: Iterable[str], layout: StepEncoding) -> dict[str, list[int]]:
    """`prompt_ids` of each distinct question."""
    distinct = list(dict.fromkeys(questions))
    if layout.name == "lines":
        ids_of = pieces(tokenizer, map(question_text, distinct))
        return {question: bos(tokenizer) + ids_of[question_text(question)] for question in distinct}

    def render(question: str) -> str:
        return fill(tokenizer, turns_of(question, layout.system), layout.chat_template_kwargs)

    return {question: question_ids(tokenizer, question, render) for question in distinct}


def encode_solution(tokenizer: Any, question: str, steps: Sequence[str], layout: StepEncoding = LINES) -> Encoded:
    """The input of a verifier: an ORM is read at the last position, a PRM at every position."""
    return encode_solutions(tokenizer, [(question, steps)], layout)[0]


def encode_solutions(
    tokenizer: Any, solutions: Sequence[tuple[str, Sequence[str]]], layout: StepEncoding = LINES
) -> list[Encoded]:
    """`encode_solution` of many (question, steps) at once, which is many times faster."""
    prompts = prompts_of(tokenizer, (question for question, _ in solutions), layout)
    ids_of = pieces(tokenizer, chain.from_iterable(map(step_text, steps) for _, steps in solutions))
    return [join(prompts[question], [ids_of[step_text(step)] for step in steps]) for question, steps in solutions]


def request_ids(tokenizer: Any, layout: StepEncoding = LINES) -> list[int]:
    """What stands between a solution and its critique: a line, or the user's next turn, which asks for it."""
    if layout.name == "lines":
        return token_ids(tokenizer, [CRITIQUE])[0]
    text = request_text(tokenizer, layout.system, layout.chat_template_kwargs)
    return template_ids(tokenizer, text)


def critic_prompt_ids(tokenizer: Any, question: str, steps: Sequence[str], layout: StepEncoding = LINES) -> list[int]:
    """The solution, then the request after which the critic writes."""
    return encode_solution(tokenizer, question, steps, layout).ids + request_ids(tokenizer, layout)


def encode_critiques(
    tokenizer: Any, rows: Sequence[tuple[str, Sequence[str], str]], layout: StepEncoding = LINES
) -> list[tuple[list[int], int]]:
    """Of each (question, steps, critique) the critic's sequence with EOS, and the index of the first trained token."""
    request, ids_of = request_ids(tokenizer, layout), pieces(tokenizer, (critique for _, _, critique in rows))
    encoded = []
    for solution, row in zip(encode_solutions(tokenizer, [r[:2] for r in rows], layout), rows, strict=True):
        prompt = solution.ids + request
        encoded.append(([*prompt, *ids_of[row[2]], tokenizer.eos_token_id], len(prompt)))
    return encoded


def join(prompt: list[int], steps: Iterable[list[int]]) -> Encoded:
    """Prompt and steps as one list, with the position of each step's end."""
    ids, positions = list(prompt), []
    for step in steps:
        ids.extend(step)
        positions.append(len(ids) - 1 if step else NO_TOKEN)
    return Encoded(ids, positions, len(prompt))


def refusal(encoded: Encoded, max_length: int) -> str | None:
    """Why a solution cannot be used, None when it fits. Nothing is ever cut off: the caller counts the reason."""
    if not encoded.positions:
        return "no_steps"
    if NO_TOKEN in encoded.positions:
        return "step_without_tokens"
    return "over_max_length" if len(encoded.ids) > max_length else None


def saved_form(tokenizer: Any, layout: StepEncoding) -> dict[str, Any]:
    """The encoding as a saved model's config.json has it; a chat template by its digest."""
    if layout.name == "lines":
        return {"name": NAME, "version": VERSION}
    values = layout.model_dump(mode="json", exclude={"name"})
    return {"name": CHAT, "version": CHAT_VERSION, **values, "template": digest(tokenizer)}


def layout_of(saved: dict[str, Any] | None, tokenizer: Any, model: str) -> StepEncoding:
    """The encoding of a saved model; UserError where it is of another version, or the template beside it another."""
    if saved is None or (saved["name"], saved.get("version", VERSION)) == (NAME, VERSION):
        return LINES
    if (saved["name"], saved.get("version")) != (CHAT, CHAT_VERSION):
        raise UserError(
            f"model '{model}' reads step encoding {saved['name']} version {saved.get('version')}; this version of "
            f"minos_ray knows {NAME} version {VERSION} and {CHAT} version {CHAT_VERSION}"
        )
    if saved["template"] != digest(tokenizer):
        raise UserError(f"model '{model}': its chat template is not the one of its training; restore the file")
    return StepEncoding(name="chat", system=saved["system"], chat_template_kwargs=saved["chat_template_kwargs"])


def require_same(
    saved: Mapping[str, Any] | None, tokenizer: Any, layout: StepEncoding, model: str, critic: bool = False
) -> None:
    """UserError when a model was trained with another encoding than `base.encoding` says.

    A base that was trained on lines, as one of `minos pretrain`, may go on with chat; a `critic` may not.
    """
    if saved is None or (saved["name"] == NAME and (layout.name == "lines" or not critic)):
        return
    if saved != (form := saved_form(tokenizer, layout)):
        differing = next(key for key in [*form, *saved] if saved.get(key) != form.get(key))
        raise UserError(
            f"{model} was trained with step encoding {saved['name']}, and base.encoding now says {form['name']} "
            f"({differing}: {saved.get(differing)}, now {form.get(differing)}); train it again (minos sft), or set "
            "base.encoding as it was"
        )
