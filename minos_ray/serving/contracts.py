"""What the server reads and answers: its own `/score`, OpenRLHF's `/get_reward` and vLLM's `/classify`.

OpenRLHF: `_fetch_rewards_via_http` of openrlhf/utils/agent.py and openrlhf/cli/serve_rm.py, 0.11.0. vLLM:
vllm/entrypoints/pooling/classify/protocol.py, 0.32.0.
"""

import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from minos_ray.steps.encoding import question_text

PLAIN_PROMPT = question_text("{}")
# Of English and formulas, a little less than most tokenizers have.
CHARACTERS_OF_A_TOKEN = 3
# Names of union members, which pydantic puts into the place of an error.
TYPES = ("str", "list[str]")

# OpenRLHF decodes with special tokens: a response ends in the end of its turn, some in several. Begins with a token,
# not with spaces, so that a search is linear.
END_TOKEN = r"(?:<\|[A-Za-z_]+\|>|</s>|<eos>|<end_of_turn>|<turn\|>|<\uff5cend\u2581of\u2581sentence\uff5c>)"
END_TOKENS = re.compile(rf"{END_TOKEN}(?:\s*{END_TOKEN})*\s*")

# One error is told of: those of a million elements would take gigabytes. (`FailFast()`
# has no hash, which unions need.)
Texts = Annotated[list[str], Field(fail_fast=True)]
Solution = str | Texts
Pairs = tuple[list[str], list[Solution]]  # a question and a solution each


class Reply(NamedTuple):
    """What a replica answers: for each solution its score, those of its steps, or why it has none.

    `by_step` says whether there is a score for every step; `tokens` are those of all solutions, `computed` those that
    were left when shared prefixes were computed once.
    """

    scores: list[float | None]
    step_scores: list[list[float]]
    reasons: list[str | None]
    by_step: bool
    tokens: int
    computed: int


def joined(replies: Sequence[Reply]) -> Reply:
    """The reply to the parts of one request, in order."""
    scores, step_scores, reasons = (list(chain.from_iterable(part)) for part in list(zip(*replies, strict=True))[:3])
    tokens, computed = sum(reply.tokens for reply in replies), sum(reply.computed for reply in replies)
    return Reply(scores, step_scores, reasons, replies[0].by_step, tokens, computed)


def tokens_of(solution: Solution) -> int:
    """About how many tokens a solution has, at least one."""
    characters = len(solution) if isinstance(solution, str) else sum(map(len, solution))
    return characters // CHARACTERS_OF_A_TOKEN + 1


def size_of(questions: Sequence[str], solutions: Sequence[Solution]) -> int:
    """About how many tokens these are, without what they share."""
    return sum(map(tokens_of, solutions)) + sum(map(tokens_of, set(questions)))


@dataclass(frozen=True)
class Served:
    """What answers depend on: the model's name and label, the prompt around a question (`{}`), the reward of a
    solution that cannot be scored."""

    model: str
    label: str = "LABEL_0"
    prompt: str = PLAIN_PROMPT
    unscored: float = 0.0


class BadField(ValueError):
    """What is wrong with a request's body: `field` names where."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class ScoreRequest(BaseModel):
    """`/score`: solutions of one question, each a text or a list of steps."""

    model_config = ConfigDict(extra="forbid")
    question: str = Field(min_length=1)
    solutions: Annotated[list[Solution], Field(fail_fast=True)] = Field(min_length=1)

    def pairs(self, served: Served) -> Pairs:
        """Question and solution of each."""
        return [self.question] * len(self.solutions), list(self.solutions)

    def answer(self, reply: Reply, served: Served) -> dict[str, Any]:
        """Scores in order; null with a reason where a solution has none."""
        return {
            "model": served.model,
            "scores": reply.scores,
            "step_scores": reply.step_scores,
            "reasons": reply.reasons,
            "by_step": reply.by_step,
            "tokens": reply.tokens,
        }


class RewardRequest(BaseModel):
    """`/get_reward`: texts of prompt and response; `prompts` (the prompts alone) tells where responses begin."""

    query: Texts = Field(min_length=1)
    prompts: Texts | None = None
    labels: Any = None

    @model_validator(mode="after")
    def as_many_prompts(self) -> "RewardRequest":
        """A prompt for each query."""
        if self.prompts is not None and len(self.prompts) != len(self.query):
            raise BadField("prompts", f"{len(self.prompts)} prompts for {len(self.query)} queries")
        return self

    def pairs(self, served: Served) -> Pairs:
        """Question and response of each query."""
        prompts: Sequence[str | None] = self.prompts or [None] * len(self.query)
        pairs = [
            read_query(query, served.prompt, f"query.{number}", prompt)
            for number, (query, prompt) in enumerate(zip(self.query, prompts, strict=True))
        ]
        return [question for question, _ in pairs], [solution for _, solution in pairs]

    def answer(self, reply: Reply, served: Served) -> dict[str, Any]:
        """OpenRLHF makes tensors of all values: numbers everywhere, and `extra_logs` says what was not scored."""
        rewards = [served.unscored if score is None else score for score in reply.scores]
        logs = {"unscored": [float(score is None) for score in reply.scores]}
        return {"rewards": rewards, "scores": rewards, "extra_logs": logs}


class Message(BaseModel):
    """A turn of a chat."""

    role: str
    content: str


class ClassifyRequest(BaseModel):
    """`/classify`: texts of prompt and solution, or one chat that ends with the solution."""

    model: str | None = None
    input: str | Texts | None = None
    messages: Annotated[list[Message], Field(fail_fast=True)] | None = None
    use_activation: bool | None = None

    @model_validator(mode="after")
    def one_input(self) -> "ClassifyRequest":
        """Texts or a chat; scores, not logits."""
        if (self.input is None) == (self.messages is None):
            raise BadField("input", "give either 'input' (texts) or 'messages' (a chat)")
        if self.input == []:
            raise BadField("input", "no texts")
        if self.use_activation is False:
            raise BadField("use_activation", "scores are probabilities; logits are not given")
        return self

    def pairs(self, served: Served) -> Pairs:
        """Question and solution of each input."""
        if self.messages is not None:
            *before, last = self.messages or [Message(role="", content="")]
            questions = [turn.content for turn in before if turn.role == "user"]
            if last.role != "assistant" or not questions:
                raise BadField("messages", "a chat holds the question (user) and ends with the solution (assistant)")
            return [questions[-1]], [last.content]
        texts = [self.input] if isinstance(self.input, str) else self.input or []
        pairs = [read_query(text, served.prompt, f"input.{number}") for number, text in enumerate(texts)]
        return [question for question, _ in pairs], [solution for _, solution in pairs]

    def answer(self, reply: Reply, served: Served) -> dict[str, Any]:
        """As vLLM answers for a model with one label; like vLLM, nothing when an input cannot be scored."""
        for number, reason in enumerate(reply.reasons):
            if reason is not None:
                raise BadField(f"input.{number}", f"has no score: {reason}")
        return {
            "id": f"classify-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": served.model,
            "data": [
                {"index": number, "label": served.label, "probs": [score], "num_classes": 1}
                for number, score in enumerate(reply.scores)
            ],
            "usage": {
                "prompt_tokens": reply.tokens,
                "total_tokens": reply.tokens,
                "completion_tokens": 0,
                "prompt_tokens_details": None,
            },
        }


Request = ScoreRequest | RewardRequest | ClassifyRequest
CONTRACTS: dict[str, type[Request]] = {
    "/score": ScoreRequest,
    "/get_reward": RewardRequest,
    "/classify": ClassifyRequest,
}


def parse(contract: type[Request], body: bytes) -> Request:
    """The request in a body; BadField names the first field that is wrong, in an element of a list the deepest."""
    try:
        return contract.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        places = [[str(part) for part in line["loc"] if part not in TYPES] for line in errors]
        number = max(range(len(errors)), key=lambda number: len(places[number]))
        cause = errors[number].get("ctx", {}).get("error")
        if isinstance(cause, BadField):
            raise cause from None
        raise BadField(".".join(places[number]), errors[number]["msg"]) from None


def read_query(text: str, prompt_format: str, field: str, prompt: str | None = None) -> tuple[str, str]:
    """Question and solution in a text that begins with a prompt of this format (`{}` stands for the question).

    The prompt may hold more before the question, such as a system's turn. With `prompt`, the prompt alone, there may be
    examples and earlier turns too: its last question counts, and the solution stands behind it; a decoded text need not
    begin with it to the letter. Without, a text that holds several frames is rejected: nobody knows which are examples.
    The solution comes without the end tokens behind it.
    """
    before, _, behind = prompt_format.partition("{}")
    ends = prompt.count(behind) if prompt is not None else 1
    head, *parts = text.split(behind, max(ends, 1))
    begin = head if prompt is None else prompt.removesuffix(behind)
    if prompt is None and any(before in part for part in text.split(behind)[1:-1]):
        raise BadField(field, f"holds {prompt_format!r} several times; only 'prompts' says where the solution begins")
    _, framed, question = begin.rpartition(before) if before else ("", "{}", begin)
    if prompt is not None and begin.startswith(before) and behind not in begin:
        question = begin.removeprefix(before)  # which may hold `before` itself
    if not parts or not framed or not question.strip() or (prompt is not None and not prompt.endswith(behind)):
        raise BadField(field, f"is not of the form {prompt_format!r} and a solution (--prompt)")
    solution = parts[-1]
    for run in END_TOKENS.finditer(solution):
        if run.end() == len(solution):
            solution = solution[: run.start()].rstrip()
    return question, solution
