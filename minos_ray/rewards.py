"""A verifier as reward function: for TRL's `reward_funcs`, and for verl's `custom_reward_function`.

    from minos_ray.rewards import VerifierReward

    trainer = GRPOTrainer(model, reward_funcs=VerifierReward("runs/my/models/prm-minos"), ...)
    trainer = GRPOTrainer(model, reward_funcs=VerifierReward(server="http://127.0.0.1:8000"), ...)  # `minos serve`

verl: `reward.custom_reward_function.path=pkg://minos_ray.rewards`, `name=verl_score`, and `reward_kwargs.verifier`.
"""

import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import PurePath
from threading import Lock
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from minos_ray.config.resources import Scoring
from minos_ray.config.schema import Aggregation
from minos_ray.errors import UserError
from minos_ray.serving.scorer import SPLITTER, Scores, SolutionScorer, Task, verifier_of

Read = Literal["outcome", "lowest"]
# What minos_ray's plain prompt puts around a question (`steps.encoding.question_text`).
BEFORE, BEHIND = "Question: ", "\nAnswer:\n"
# What verl hands to reward functions that ask a reward model behind its router.
IGNORED = ("reward_router_address", "reward_model_tokenizer")
# A server that is starting, full or being replaced is asked again for so long.
SERVER_WAIT_S, SERVER_RETRY_S = 600.0, 1.0
BUSY = (429, 502, 503, 504)
AT_ONCE = 16  # requests of one process, one for each question
ONCE = Lock()  # threads that come at the same time make one


class VerifierReward:
    """Rewards in 0..1 from a verifier: `outcome`, its score of the solution, or `lowest`, that of its worst step.

    `unscored` is the reward of a completion that cannot be scored, since it has no step or is too long. What is wrong
    with the data raises: a reward of zero would be learnt from.
    """

    def __init__(
        self,
        verifier: str | None = None,
        read: Read = "outcome",
        *,
        server: str | None = None,
        api_key_env: str | None = None,
        question: str = "question",
        unscored: float = 0.0,
        kind: str | None = None,
        separator: str | None = None,
        splitter: str = SPLITTER,
        aggregation: Aggregation = "min",
        max_length: int = 4096,
        gpus: int = 0,
    ) -> None:
        if read not in ("outcome", "lowest"):
            raise UserError(f"VerifierReward: read = {read!r}; it is 'outcome' or 'lowest'")
        if (verifier is None) == (server is None):
            raise UserError("VerifierReward: give either a verifier or server=, the address of `minos serve`")
        self.read, self.question, self.unscored = read, question, unscored
        self.score: SolutionScorer | ServerScorer
        if verifier is None:
            if (kind, separator, splitter, aggregation, max_length, gpus) != (None, None, SPLITTER, "min", 4096, 0):
                raise UserError("VerifierReward: with server=, options of the model are those of `minos serve`")
            self.score = ServerScorer(server or "", api_key_env)
        else:
            resources = Scoring(gpus=gpus, max_model_len=max_length)
            task = Task(verifier_of(verifier, kind, separator), "", "", "", splitter, aggregation, resources)
            self.score = SolutionScorer(task)
        address = self.score.address if isinstance(self.score, ServerScorer) else verifier or ""
        self.__name__ = PurePath(address).name  # what TRL calls the reward in its metrics

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """A reward for each completion. Prompts and completions are texts or chats.

        The question is the column `question` of the data set if it has one, else the last user turn of a chat, else
        what minos_ray's plain prompt holds; ValueError for a prompt that is none of them.
        """
        scores, step_scores = self.scores(prompts, completions, **columns)
        return [self.reward(*pair) for pair in zip(scores, step_scores, strict=True)]

    def scores(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> tuple[list[float | None], Scores]:
        """The score of each completion and those of its steps, for rewards of your own."""
        asked = columns.get(self.question)
        questions = [question_of(prompt, self.question) for prompt in prompts] if asked is None else list(asked)
        if len(questions) != len(completions):
            raise ValueError(f"VerifierReward: {len(questions)} questions for {len(completions)} completions")
        for number, question in enumerate(questions):
            if not isinstance(question, str) or not question.strip():
                raise ValueError(f"VerifierReward: question {number} is {question!r}, not a text")
        scores, step_scores, counts = self.score.scored(questions, [text_of(completion) for completion in completions])
        if counts.get("refused_not_finite"):
            raise UserError(f"VerifierReward: scores of {self.__name__} are not finite numbers; its weights are broken")
        return scores, step_scores

    def reward(self, score: float | None, step_scores: Sequence[float]) -> float:
        """The reward of one completion."""
        if score is None:
            return self.unscored
        if self.read == "outcome":
            return score
        if not self.score.by_step():
            raise UserError("VerifierReward: read = 'lowest' needs a verifier with a score for each step (a PRM)")
        return min(step_scores)


class ServerScorer:
    """Scores solutions by a server (`minos serve`), with `SolutionScorer`'s arguments and results.

    The key is what the variable `api_key_env` holds, else the password in the address, which is never shown. A server
    that is loading, full or out of reach is asked again for `SERVER_WAIT_S`, then UserError; what it rejects raises at
    once.
    """

    def __init__(self, server: str, api_key_env: str | None) -> None:
        self.api_key_env, self.every_step = api_key_env, False
        try:
            parts = urlsplit(server.strip())
            parts.port  # noqa: B018 - raises for one that is no number
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError("VerifierReward: server= is no address such as http://127.0.0.1:8000 (http or https)")
        login, _, host = parts.netloc.rpartition("@")
        user, _, password = login.partition(":")
        self.login = (unquote(user), unquote(password)) if login else None
        self.address = f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
        if api_key_env:
            self.key(api_key_env)

    def scored(
        self, questions: Sequence[str], solutions: Sequence[Any]
    ) -> tuple[list[float | None], Scores, dict[str, float]]:
        """Score and step scores of each solution, and counts of why others have none; one request for each question,
        so that the server shares it."""
        rows_of: dict[str, list[int]] = {}
        for row, question in enumerate(questions):
            rows_of.setdefault(question, []).append(row)
        scores: list[float | None] = [None] * len(solutions)
        step_scores: Scores = [[] for _ in solutions]
        reasons: Counter[str] = Counter()

        def ask(question: str) -> None:
            rows = rows_of[question]
            reply = self.reply({"question": question, "solutions": [solutions[row] for row in rows]})
            self.every_step = reply["by_step"]
            for row, score, steps in zip(rows, reply["scores"], reply["step_scores"], strict=True):
                scores[row], step_scores[row] = score, steps
            with ONCE:
                reasons.update(f"refused_{reason}" for reason in reply["reasons"] if reason)

        with ThreadPoolExecutor(min(AT_ONCE, max(1, len(rows_of)))) as pool:
            list(pool.map(ask, rows_of))
        return scores, step_scores, dict(reasons)

    def reply(self, request: dict[str, Any]) -> dict[str, Any]:
        """The server's answer."""
        import httpx

        options: dict[str, Any] = {"auth": self.login} if self.login else {}
        if self.api_key_env:
            options = {"headers": {"Authorization": f"Bearer {self.key(self.api_key_env)}".encode()}}
        with ONCE:
            client = http_client()
        until = time.monotonic() + SERVER_WAIT_S
        while True:
            try:
                response = client.post(f"{self.address}/score", json=request, **options)
                wrong = "" if response.is_success else f"{response.status_code}: {response.text[:300]}"
                again = response.status_code in BUSY
            except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:  # whose texts may hold the key
                raise UserError(f"VerifierReward: server {self.address}: {type(error).__name__}") from None
            except httpx.TransportError as error:
                wrong, again = f"{type(error).__name__}: {error}", True
            if not wrong:
                return response.json()
            if not again or time.monotonic() > until:
                raise UserError(f"VerifierReward: server {self.address} answers {wrong}")
            time.sleep(SERVER_RETRY_S)

    def key(self, name: str) -> str:
        """The key in the environment. Clients put one that no header can hold into their errors and logs."""
        key = os.environ.get(name, "").strip()
        if not key or not key.isprintable():
            raise UserError(f"VerifierReward: api_key_env = '{name}': the environment has no such variable, or no key")
        return key

    def by_step(self) -> bool:
        """Whether the answers had a score for every step."""
        return self.every_step


@lru_cache(maxsize=1)
def http_client() -> Any:
    """One for all threads of a process, which keeps connections."""
    import httpx

    return httpx.Client(timeout=SERVER_WAIT_S)


def verl_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    *,
    verifier: str | None = None,
    read: Read = "outcome",
    question: str = "question",
    **options: Any,
) -> float:
    """The reward of one solution, with verl 0.9's signature; the question is `extra_info["question"]`.

    `verifier`, or `server`, and the other options come from `reward_kwargs`. The verifier is loaded once in each
    process.
    """
    info = extra_info or {}
    if not isinstance(info.get(question), str):
        raise ValueError(
            f"verl_score: extra_info of data source {data_source!r} has no text '{question}'; it has {sorted(info)}"
        )
    passed = {name: value for name, value in options.items() if name not in IGNORED}
    with ONCE:
        reward = shared(verifier, read, tuple(sorted(passed.items())))
    return reward([None], [solution_str], question=[info[question]])[0]


@lru_cache(maxsize=4)
def shared(verifier: str | None, read: Read, options: tuple[tuple[str, Any], ...]) -> VerifierReward:
    """One reward for all calls of a process."""
    return VerifierReward(verifier, read, **dict(options))


def question_of(prompt: Any, column: str) -> str:
    """The question in a prompt."""
    if isinstance(prompt, str):
        if prompt.startswith(BEFORE) and prompt.endswith(BEHIND):
            return prompt.removeprefix(BEFORE).removesuffix(BEHIND)
        raise ValueError(
            f"VerifierReward: prompt {prompt[:60]!r} is no chat and not minos_ray's plain prompt; give the data set a "
            f"column '{column}'"
        )
    turns = [turn for turn in prompt if turn.get("role") == "user"] if isinstance(prompt, list) else []
    if not turns:
        raise ValueError(f"VerifierReward: a prompt has no turn of a user: {prompt!r:.100}")
    return content_of(turns[-1])


def text_of(completion: Any) -> str:
    """The text of a completion, or of the turns of one."""
    if isinstance(completion, str):
        return completion
    if isinstance(completion, list) and completion and all(isinstance(turn, dict) for turn in completion):
        turns = [content_of(turn) for turn in completion if turn.get("role") == "assistant"]
        if not turns:
            raise ValueError(f"VerifierReward: a completion has no turn of an assistant: {completion!r:.100}")
        return "\n".join(turns)
    raise ValueError(f"VerifierReward: a completion is {completion!r:.100}, neither a text nor a chat")


def content_of(turn: dict[str, Any]) -> str:
    """The text of a turn, which may come in parts."""
    content = turn.get("content")
    if isinstance(content, list) and any(part.get("type") == "text" for part in content):
        content = "".join(part.get("text", "") for part in content if part.get("type") == "text")
    if not isinstance(content, str):
        raise ValueError(f"VerifierReward: the content of a turn is {content!r:.100}, not a text")
    return content
