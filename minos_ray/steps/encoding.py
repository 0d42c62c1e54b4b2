"""The step encodings: question and steps to token ids and the position of each step's last token.

`question-answer-lines` is plain text; `chat-lines` puts the question into the tokenizer's chat template, and the steps
behind it as the assistant's answer. Every piece is tokenised on its own and the token lists are concatenated, so
positions are known by construction. A verifier's input is a prefix of the critic's input. Used by training, scoring
and evaluation alike; a saved model names its encoding in its config.json (`step_encoding`).
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from minos_ray.config.training import StepEncoding
from minos_ray.errors import UserError
from minos_ray.graph.specs import CHAT_ENCODING, VERSIONS
from minos_ray.steps import tokens
from minos_ray.steps.tokens import bos, pieces, token_ids

NAME = "question-answer-lines"
VERSION = VERSIONS["step_encoding"]
CHAT = "chat-lines"
CHAT_VERSION = CHAT_ENCODING
LINES = StepEncoding()
CRITIQUE = "Critique:\n"

# Position of a step whose text gives no token at all; `refusal` names it.
NO_TOKEN = -1


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
        return tokens.fill(tokenizer, tokens.turns_of(question, layout.system), layout.chat_template_kwargs)

    return {question: tokens.question_ids(tokenizer, question, render) for question in distinct}


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
    text = tokens.request_text(tokenizer, layout.system, layout.chat_template_kwargs)
    return tokens.template_ids(tokenizer, text)


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
    return {"name": CHAT, "version": CHAT_VERSION, **values, "template": tokens.digest(tokenizer)}


def layout_of(saved: dict[str, Any] | None, tokenizer: Any, model: str) -> StepEncoding:
    """The encoding of a saved model; UserError where it is of another version, or the template beside it another."""
    if saved is None or (saved["name"], saved.get("version", VERSION)) == (NAME, VERSION):
        return LINES
    if (saved["name"], saved.get("version")) != (CHAT, CHAT_VERSION):
        raise UserError(
            f"model '{model}' reads step encoding {saved['name']} version {saved.get('version')}; this version of "
            f"minos_ray knows {NAME} version {VERSION} and {CHAT} version {CHAT_VERSION}"
        )
    if saved["template"] != tokens.digest(tokenizer):
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


def require_layout(tokenizer: Any, layout: StepEncoding, key: str, critic: bool = False) -> None:
    """UserError, beginning with `key`, when the tokenizer cannot be used with an encoding (`require_template`)."""
    if layout.name == "chat":
        tokens.require_template(tokenizer, layout.system, layout.chat_template_kwargs, key, critic)
