"""A verifier trained in the base's chat template: its rows, and the same scores from every side, plain or as chats."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForTokenClassification

from minos_ray.config.schema import Config
from minos_ray.config.training import StepEncoding
from minos_ray.errors import UserError
from minos_ray.rewards import VerifierReward
from minos_ray.steps import encoding
from minos_ray.store.model_files import load_tokenizer
from minos_ray.store.run import Run
from minos_ray.training.base import base_tokenizer
from minos_ray.training.reward import reward, verifier_jobs
from minos_ray.training.sft import critique_data
from tests.tiny import tiny_model
from tests.training.world import world

LAYOUT = StepEncoding(name="chat", system="Be strict.")
QUESTION, STEPS = "What is the sum of set 3?", ["Step 1: 3 + 4 = 7", "Step 2: 7 + 1 = 8", "The answer is: 8"]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Run]:
    """A config whose base has a chat template, and is asked in it."""
    folder = tmp_path_factory.mktemp("chat")
    base = {"model": tiny_model(folder / "instruct", spread=0.05, chat=True), "encoding": LAYOUT.model_dump()}
    return world(folder, base=base, reward={"verifiers": ["prm-base"]}, resources={"num_cpus": 2})


def test_the_critic_reads_what_a_verifier_reads_and_the_request(asked: tuple[Config, Run]) -> None:
    config, run = asked
    tokenizer = base_tokenizer(config, run, critic=True)
    row = critique_data(run, tokenizer, config.sft, layout=LAYOUT).train[0]
    text = tokenizer.decode(row["ids"][: row["first"]])
    assert text.startswith("<s>[system] Be strict.\n[user] What is the sum") and text.endswith("answer.\n[assistant] ")
    assert row["ids"][-1] == tokenizer.eos_token_id


def test_a_critic_of_lines_is_no_start_of_a_verifier_in_chat(asked: tuple[Config, Run]) -> None:
    config, run = asked
    critic = run.artefact("models/critic")
    critic.begin({"import": "test"})
    saved = {"step_encoding": encoding.saved_form(None, encoding.LINES)}
    run.write_bytes("models/critic/config.json", json.dumps(saved).encode())
    critic.complete({"rows": 1})
    with pytest.raises(UserError, match="models/critic was trained with step encoding question-answer-lines"):
        verifier_jobs(config, run, ["prm-minos"])


@pytest.mark.slow
def test_a_trained_verifier_scores_texts_and_chats_alike(
    asked: tuple[Config, Run], end_of_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = asked
    details = reward(config, run).details
    assert details["steps"] > 2 and all(point["loss"] > 0 for point in details["loss"])
    path = Path(run.at("models/prm-base"))
    tokenizer = load_tokenizer(str(path))
    saved = json.loads((path / "config.json").read_text())["step_encoding"]
    assert saved == encoding.saved_form(tokenizer, LAYOUT) and saved["system"] == "Be strict."
    solution = encoding.encode_solution(tokenizer, QUESTION, STEPS, LAYOUT)
    with torch.inference_mode():
        logits = AutoModelForTokenClassification.from_pretrained(path).eval()(torch.tensor([solution.ids])).logits
    expected = logits[0, solution.positions, 0].sigmoid().tolist()

    chat: list[list[dict[str, Any]]] = [[{"role": "user", "content": QUESTION}]]
    answer = [[{"role": "assistant", "content": "\n".join(STEPS)}]]
    rewards = VerifierReward(str(path))
    for prompts, completions in ((chat, answer), ([encoding.question_text(QUESTION)], ["\n".join(STEPS)])):
        assert rewards.scores(prompts, completions)[1][0] == pytest.approx(expected, abs=1e-4)

    lines = (path / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    question, steps = (json.dumps(part) for part in (QUESTION, STEPS))
    given = lines.replace(lines.split("\n")[3], f'folder, question, steps = ".", {question}, {steps}')
    (path.parent / "lines.py").write_text(given)
    monkeypatch.chdir(path)
    assert runpy.run_path(str(path.parent / "lines.py"))["scores"] == pytest.approx(expected, abs=1e-4)
