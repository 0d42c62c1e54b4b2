"""A verifier as reward: the scores of `minos rank`, wrong data raises, and TRL's own trainer takes steps with it."""

import json
import logging
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from datasets import Dataset

from minos_ray import rewards
from minos_ray.config.resources import Scoring
from minos_ray.config.schema import Model
from minos_ray.errors import UserError
from minos_ray.rewards import VerifierReward, verl_score
from minos_ray.scoring.verifier import load
from minos_ray.steps.encoding import question_text
from minos_ray.store.model_files import locate
from minos_ray.store.run import Run
from tests.scoring.test_parity import saved

QUESTIONS = ["Tom has 3 apples and buys 4. How many?", "Ann has 9 pens and loses 2. How many?"]
TEXTS = ["Step 1: 3 + 4 = 7\nThe answer is: 7", "Step 1: 9 - 2 = 8\nStep 2: 8 + 0 = 8\nThe answer is: 8"]


@pytest.fixture(scope="module")
def verifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny ORM and a tiny PRM as training saves them."""
    names = ("orm", "prm", "prm in chat")
    return {name: saved(tmp_path_factory.mktemp(name.replace(" ", "-")), name) for name in names}


def chats(role: str, texts: list[str]) -> list[list[dict[str, str]]]:
    """Each text as a turn."""
    return [[{"role": role, "content": text}] for text in texts]


@pytest.mark.parametrize("name", ["orm", "prm", "prm in chat"])
def test_plain_chats_and_columns_are_rewarded_alike_and_as_the_scorer_scores(
    verifiers: dict[str, str], name: str
) -> None:
    reward = VerifierReward(verifiers[name])
    scorer = load(verifiers[name], False, Scoring())
    solutions = [(question, text.split("\n")) for question, text in zip(QUESTIONS, TEXTS, strict=True)]
    expected = [min(scores) for scores in scorer.score(solutions)[0]]
    plain = reward([question_text(question) for question in QUESTIONS], TEXTS)
    system = [[{"role": "system", "content": "Think."}, *chat] for chat in chats("user", QUESTIONS)]
    for values in (
        plain,
        reward(system, chats("assistant", TEXTS), completion_ids=[[1], [2]]),
        reward(["anything", "at all"], TEXTS, question=QUESTIONS, trainer_state=None),
        [
            verl_score("gsm8k", text, "7", {"question": question, "num_turns": None}, verifier=verifiers[name])
            for question, text in zip(QUESTIONS, TEXTS, strict=True)
        ],
    ):
        assert values == pytest.approx(expected, abs=1e-5)
    assert reward.__name__ == "verifier"


def test_the_lowest_step_and_the_scores_of_all_steps(verifiers: dict[str, str]) -> None:
    prompts = [question_text(question) for question in QUESTIONS]
    outcome = VerifierReward(verifiers["prm"], aggregation="last")
    _, steps = outcome.scores(prompts, TEXTS)
    assert [len(scores) for scores in steps] == [2, 3]
    assert outcome(prompts, TEXTS) == [scores[-1] for scores in steps]
    assert VerifierReward(verifiers["prm"], "lowest")(prompts, TEXTS) == pytest.approx(
        [min(s) for s in steps], abs=1e-6
    )
    with pytest.raises(UserError, match="needs a verifier with a score for each step"):
        VerifierReward(verifiers["orm"], "lowest")(prompts, TEXTS)


def test_what_cannot_be_scored_gets_the_reward_that_was_asked_for(verifiers: dict[str, str]) -> None:
    prompts = [question_text(question) for question in QUESTIONS]
    texts = ["", "1 + 1 = 2\n" * 900]
    assert VerifierReward(verifiers["prm"])(prompts, texts) == [0.0, 0.0]
    assert VerifierReward(verifiers["prm"], unscored=-1.0)(prompts, [*texts[:1], TEXTS[1]])[0] == -1.0


@pytest.mark.parametrize(
    ("prompts", "completions", "columns", "words"),
    [
        (["What is 3 + 4?"], TEXTS[:1], {}, "give the data set a column 'question'"),
        ([[{"role": "system", "content": "x"}]], TEXTS[:1], {}, "no turn of a user"),
        ([[{"role": "user", "content": None}]], TEXTS[:1], {}, "content of a turn is None"),
        (["x"], [None], {"question": QUESTIONS[:1]}, "neither a text nor a chat"),
        (["x"], [[{"role": "user", "content": "x"}]], {"question": QUESTIONS[:1]}, "no turn of an assistant"),
        (["x"], [[{"role": "assistant", "content": []}]], {"question": QUESTIONS[:1]}, r"content of a turn is \[\]"),
        (["x"], [["7"]], {"question": QUESTIONS[:1]}, "neither a text nor a chat"),
        (["x"], TEXTS[:1], {"question": [" "]}, "question 0 is ' '"),
        (["x"], TEXTS[:1], {"question": [7]}, "question 0 is 7"),
        (["x"], TEXTS[:1], {"question": []}, "0 questions for 1 completions"),
    ],
)
def test_wrong_data_raises_and_is_never_a_reward(
    verifiers: dict[str, str], prompts: list[Any], completions: list[Any], columns: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        VerifierReward(verifiers["prm"])(prompts, completions, **columns)


def test_wrong_requests_are_named(verifiers: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no directory"):
        VerifierReward(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="read = 'best'"):
        VerifierReward(verifiers["prm"], "best")
    with pytest.raises(ValueError, match="extra_info of data source 'gsm8k' has no text 'question'"):
        verl_score("gsm8k", TEXTS[0], "7", {"index": 3}, verifier=verifiers["prm"])


def test_threads_and_other_processes_get_the_same(verifiers: dict[str, str]) -> None:
    reward, prompts = VerifierReward(verifiers["prm"]), [question_text(question) for question in QUESTIONS]
    first = reward(prompts, TEXTS)
    with ThreadPoolExecutor(4) as pool:
        assert all(rewards == first for rewards in pool.map(lambda _: reward(prompts, TEXTS), range(8)))
    assert pickle.loads(pickle.dumps(reward))(prompts, TEXTS) == pytest.approx(first, abs=1e-6)


def test_scores_that_are_not_finite_raise(verifiers: dict[str, str]) -> None:
    reward, prompts = VerifierReward(verifiers["prm"]), [question_text(QUESTIONS[0])]
    reward(prompts, TEXTS[:1])
    for weight in reward.score.scorer.backbone.model.parameters():
        weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="scores of verifier are not finite"):
        reward(prompts, TEXTS[:1])


def test_threads_that_come_at_once_load_one_verifier(
    verifiers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counted(VerifierReward):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            made.append(1)
            time.sleep(0.05)
            super().__init__(*arguments, **options)

    made: list[int] = []
    monkeypatch.setattr(rewards, "VerifierReward", Counted)
    rewards.shared.cache_clear()
    info = {"question": QUESTIONS[0]}
    with ThreadPoolExecutor(16) as pool:
        values = list(pool.map(lambda _: verl_score("x", TEXTS[0], "7", info, verifier=verifiers["prm"]), range(16)))
    rewards.shared.cache_clear()
    assert len(made) == 1 and len(set(values)) == 1


class Scripted(ThreadingHTTPServer):
    """A server that answers with these statuses, then with 200 and a score; `keys` are the headers that came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ScriptedHandler)
        self.statuses: list[int] = []
        self.keys: list[str | None] = []
        self.reason: str | None = None


class ScriptedHandler(BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.keys.append(self.headers["Authorization"])
        status, score = (
            self.server.statuses.pop(0) if self.server.statuses else 200,
            None if self.server.reason else 0.5,
        )
        body = {"scores": [score], "step_scores": [[0.5]], "reasons": [self.server.reason], "by_step": True}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    """A scripted server; retries come at once."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(rewards, "SERVER_RETRY_S", 0.0)
    with Scripted() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def test_what_a_server_says_is_asked_again_only_when_it_may_change(scripted: Scripted) -> None:
    reward, prompts = VerifierReward(server=f"http://127.0.0.1:{scripted.server_port}/"), [question_text(QUESTIONS[0])]
    scripted.statuses = [429, 502, 503, 504]
    assert reward(prompts, TEXTS[:1]) == [0.5] and len(scripted.keys) == 5
    for status in (400, 401, 422, 500):
        scripted.statuses = [status]
        with pytest.raises(UserError, match=f"answers {status}"):
            reward(prompts, TEXTS[:1])
    assert len(scripted.keys) == 9
    scripted.reason = "not_finite"
    with pytest.raises(UserError, match="not finite"):
        reward(prompts, TEXTS[:1])
    scripted.reason = "over_max_length"
    assert reward(prompts, TEXTS[:1]) == [0.0]


def test_a_key_is_stripped_and_never_shown(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompts, address = [question_text(QUESTIONS[0])], f"127.0.0.1:{scripted.server_port}"
    monkeypatch.setenv("REWARD_KEY", "s3cret\n")
    with caplog.at_level(logging.DEBUG):
        assert VerifierReward(server=f"http://{address}", api_key_env="REWARD_KEY")(prompts, TEXTS[:1]) == [0.5]
        reward = VerifierReward(server=f"http://any:s3cret@{address}")
        assert reward(prompts, TEXTS[:1]) == [0.5] and reward.__name__ == address
        assert scripted.keys == ["Bearer s3cret", "Basic YW55OnMzY3JldA=="]
        scripted.statuses = [500]
        with pytest.raises(UserError) as failed:
            reward(prompts, TEXTS[:1])
        monkeypatch.setenv("REWARD_KEY", "s3cret\nand more")
        with pytest.raises(UserError, match="api_key_env = 'REWARD_KEY'") as unfit:
            VerifierReward(server=f"http://{address}", api_key_env="REWARD_KEY")
        with monkeypatch.context() as patch, pytest.raises(UserError, match="LocalProtocolError") as broken:
            patch.setattr(httpx.Client, "post", Mock(side_effect=httpx.LocalProtocolError("s3cret")))
            reward(prompts, TEXTS[:1])
    assert (
        "s3cret" not in f"{failed.value} {unfit.value} {broken.value} {caplog.text}"
        and broken.value.__suppress_context__
    )
    for wrong in ("127.0.0.1:8000", "ftp://any:s3cret@x", "http://any:s3cret@x:port", "http://", "unix:///s3cret"):
        with pytest.raises(UserError, match="server= is no address") as error:
            VerifierReward(server=wrong)
        assert "s3cret" not in str(error.value)


@pytest.mark.slow
def test_trl_takes_steps_with_it(verifiers: dict[str, str], tmp_path: Path) -> None:
    """GRPO on the miniature's generator: rewards are logged, lie within 0 and 1, and the weights move."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    path = locate(Model(model="package:miniature/model"), Run("."))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    config = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        num_generations=4,
        per_device_train_batch_size=4,
        max_completion_length=40,
        learning_rate=1e-3,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
    )
    trainer = GRPOTrainer(
        model,
        reward_funcs=VerifierReward(verifiers["prm"]),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [question_text(question) for question in QUESTIONS] * 4}),
        processing_class=tokenizer,
    )
    trainer.train()
    logged = [entry["rewards/verifier/mean"] for entry in trainer.state.log_history if "rewards/verifier/mean" in entry]
    assert len(logged) == 2 and all(0 <= value <= 1 for value in logged)
    assert any(not torch.equal(before[name], weight.cpu()) for name, weight in trainer.model.named_parameters())
