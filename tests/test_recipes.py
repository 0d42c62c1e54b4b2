"""The blocks of docs/recipes.md, run as they stand; hub ids become tiny models, endpoints the servers of the tests."""

import importlib
import json
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from minos_ray.cli import main
from tests.critiques.scripted import KEY, Reply, Script, ScriptedServer, completion, scripted_servers
from tests.imports.files import jsonl
from tests.meta.foreign_models import make
from tests.scoring.test_parity import saved
from tests.serving.test_rank_critic import verdict
from tests.test_docs import BLOCK, anchors, text_of
from tests.tiny import tiny_model
from tests.training.world import candidate

PAGE = "docs/recipes.md"
MODEL, PRM = "Qwen/Qwen2.5-Math-1.5B", "runs/my/models/prm-minos"
ADDRESS = "http://10.0.0.7:8000/v1"
# Recipes whose commands others run: the test that does, with a config of its own.
ELSEWHERE = {
    "the-whole-pipeline": "tests.e2e.test_jobs",
    "step-labels-from-questions-and-answers": "tests.labels.test_rollouts",
    "a-verifier-from-an-instruct-model": "tests.steps.test_chat_encoding",
    "an-orm-without-step-labels": "tests.training.test_artefacts",
    "candidates-of-your-own": "tests.imports.test_formats",
    "a-prm-from-labelled-steps": "tests.imports.test_step_labels",
    "an-orm-from-pairs": "tests.training.test_verifier_losses",
    "a-reward-in-openrlhf": "tests.serving.test_serve",
    "critiques-for-free": "tests.labels.test_inserted",
    "a-critic-of-your-own": "tests.critiques.test_critique_stage",
    "critiques-at-half-the-price": "tests.critiques.test_critique_batch",
    "do-critiques-help-on-my-data": "tests.study.test_study",
    "how-many-critiques-are-worth-it": "tests.study.test_sweep",
    "change-a-run": "tests.candidates.test_resampled",
    "resume": "tests.faults.test_kills",
    "export-to-trl-or-the-hub": "tests.exports.test_exports",
    "one-gpu": "tests.training.test_lora",
    "a-run-in-an-object-store": "tests.remote.test_whole_run",
    "on-a-cluster": "tests.e2e.test_jobs",
    "functions-of-your-own": "tests.pipeline.test_settings",
}

Play = Callable[..., dict[str, Any]]
Start = Callable[[Script], ScriptedServer]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Runs the blocks of a recipe in a folder of its own, in their order; returns the names of its Python blocks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minos_ray.cli.leaving_ray", nullcontext)  # the Ray of the tests stays

    def play(heading: str, swaps: dict[str, str] | None = None, skip: str = "\0") -> dict[str, Any]:
        text, names = section(heading), {}
        for written, there in (swaps or {}).items():
            assert written in text, f"{written!r} is no longer in the recipe"
            text = text.replace(written, there)
        blocks = [block for block in BLOCK.findall(text) if skip not in block[1]]
        for language, body in blocks:
            if language == "yaml":
                (config,) = {word for word in re.findall(r"\S+\.yaml", text) if not word.startswith("`")}
                Path(config).write_text(body)
        for language, body in blocks:
            if language == "bash":
                for line in body.replace("\\\n", " ").splitlines():
                    command, *words = shlex.split(line, comments=True)
                    assert command == "minos", line
                    assert main(words) == 0, line
            elif language == "python":
                exec(compile(body, f"{PAGE}#{heading}", "exec"), names)
        return names

    return play


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a server with the keys that recipes name."""
    monkeypatch.setenv("MINOS_CRITIC_KEY", KEY)
    monkeypatch.setenv("MINOS_MODEL_KEY", KEY)
    with scripted_servers() as start:
        yield start


@pytest.fixture(scope="module")
def verifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny ORM and a tiny PRM as training saves them."""
    return {name: saved(tmp_path_factory.mktemp(name), name) for name in ("orm", "prm")}


def section(heading: str) -> str:
    """The text below a heading that has this anchor."""
    for part in re.split(r"^## ", text_of(PAGE), flags=re.M)[1:]:
        if heading in anchors(f"## {part}"):
            return part
    raise AssertionError(f"{PAGE} has no recipe '{heading}'")


def samples(path: Path) -> list[dict[str, Any]]:
    """Three solutions each of two questions, written to a file."""
    rows = [
        {"question": f"{a} + 4?", "solution": f"Step 1: {a} + 4 = {answer}\nThe answer is: {answer}"}
        for a in (1, 3)
        for answer in (5, 7, 5)
    ]
    jsonl(path, *rows)
    return rows


def test_every_recipe_is_run_here_or_by_the_test_that_is_named() -> None:
    page = text_of(PAGE)
    headings = {anchor for part in re.findall(r"^## .*$", page, re.M) for anchor in anchors(part)}
    source = Path(__file__).read_text()
    played = set(re.findall(r'\bplay\(\s*"([a-z-]+)"', source))
    assert headings == played | set(ELSEWHERE) and not played & set(ELSEWHERE)
    for module in ELSEWHERE.values():
        assert importlib.util.find_spec(module), module
    assert {f"#{heading}" for heading in headings} <= set(re.findall(r"\]\((#[a-z-]+)\)", page)), "in the table"


def test_score_a_file(play: Play, tmp_path: Path, verifiers: dict[str, str]) -> None:
    rows = samples(tmp_path / "samples.jsonl")
    best = play("score-a-file", {PRM: verifiers["prm"]})["best"].to_pylist()
    ranked = pq.read_table("ranked.parquet").to_pylist()
    assert [row["solution"] for row in ranked] == [row["solution"] for row in rows]
    assert [row["score"] for row in best] == [max(row["score"] for row in ranked[k : k + 3]) for k in (0, 3)]


def test_score_a_file_with_a_critic(play: Play, tmp_path: Path, start: Start) -> None:
    samples(tmp_path / "samples.jsonl")
    server = start(verdict)
    play("score-a-file-with-a-critic-on-my-vllm", {ADDRESS: server.url})
    ranked = pq.read_table("ranked.parquet").to_pylist()
    assert [row["score"] for row in ranked] == [1.0, 0.5, 1.0] * 2 and {row["vote"] for row in ranked} == {"5"}
    assert set(server.times().values()) == {4}


def test_the_best_answer(
    play: Play, tmp_path: Path, verifiers: dict[str, str], start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"Step 1: 3 * 4 = {answer}\nThe answer is: {answer}" for answer in range(16)]
    choices = [choice for text in texts for choice in completion(text)["choices"]]
    server = start(lambda *_: Reply(body=json.dumps({**completion(""), "choices": choices}).encode()))
    names = play("the-best-answer-of-my-model", {ADDRESS: server.url, PRM: verifiers["prm"]})
    scores = dict(zip(texts, names["rewards"], strict=True))
    assert names["best"] == max(texts, key=scores.__getitem__) and len(set(scores.values())) > 1
    assert names["best"] in capsys.readouterr().out and server.bodies[0]["n"] == 16


def test_use_a_verifier_in_your_code(play: Play, verifiers: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    from minos_ray.rewards import VerifierReward

    names = play("use-a-verifier-in-your-code", {"runs/my/models/orm-minos": verifiers["orm"]})
    (score,) = VerifierReward(verifiers["orm"])([""], ["\n".join(names["steps"])], question=[names["question"]])
    assert float(capsys.readouterr().out) == pytest.approx(score, abs=1e-5)


def test_grade_a_file(play: Play, tmp_path: Path) -> None:
    jsonl(tmp_path / "answers.jsonl", *({"gold": "7", "response": f"The answer is: {n}"} for n in (7, 8)))
    play("grade-a-file")
    assert pq.read_table("graded.parquet")["correct"].to_pylist() == [True, False]


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_prm_from_step_labels_is_a_reward_in_trl(play: Play, tmp_path: Path) -> None:
    """Training with the miniature's sizes, then GRPO with what was trained."""
    solutions = [(n, candidate(n, index)) for n in range(24) for index in (1, 2, 3, 4)]
    labels = [{"question": f"{n}?", "steps": row["steps"], "labels": row["step_labels"]} for n, row in solutions]
    jsonl(tmp_path / "steps.jsonl", *labels)
    samples(tmp_path / "samples.jsonl")
    small = ("batch_rows: 32", "epochs: 1", "max_length: 256", "eval_rows: 16", "precision: fp32", "soft_labels: true")
    swaps = {MODEL: tiny_model(tmp_path / "base", spread=0.05), "soft_labels: true ": "\n  ".join(small)}
    play("a-prm-on-my-step-labels", {**swaps, "gpu: true": "gpu: false"})
    assert None not in pq.read_table("ranked.parquet")["score"].to_pylist()
    trained = str(tmp_path / "runs/steps/models/prm-base")
    jsonl(tmp_path / "questions.jsonl", *({"prompt": [{"role": "user", "content": f"{n}?"}]} for n in range(4)))
    sizes = (
        "num_generations=2, per_device_train_batch_size=2, max_completion_length=8, max_steps=1, logging_steps=1, "
        "use_cpu=True, bf16=False, report_to='none', save_strategy='no'"
    )
    policy = tiny_model(tmp_path / "policy-model", chat=True)
    swaps = {f"{MODEL}-Instruct": policy, PRM: trained, "gpus=1": "gpus=0"}
    swaps["num_generations=8, max_completion_length=1024"] = sizes
    trainer = play("a-reward-in-trl-or-verl", swaps, skip="python -m verl")["trainer"]
    (mean,) = [row["rewards/prm-base/mean"] for row in trainer.state.log_history if "rewards/prm-base/mean" in row]
    assert 0 <= mean <= 1


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_judge_a_published_prm(play: Play, tmp_path: Path, verifiers: dict[str, str], start: Start) -> None:
    url = start(verdict).url
    steps = ["3 + 4 = 7", "So 7 * 2 = 15.", "The answer is \\boxed{15}."]
    rows = [
        {"id": f"gsm8k-{n}", "problem": f"Twice {n} + 4?", "steps": steps, "label": label, "generator": "g"}
        for n, label in enumerate((1, -1, 1, -1))
    ]
    bench, classes = tmp_path / "bench", tmp_path / "classes"
    for folder in (bench, classes):
        folder.mkdir()
    (bench / "gsm8k.json").write_text(json.dumps([{**row, "final_answer_correct": row["label"] < 0} for row in rows]))
    names = ("original_question", "modified_question"), ("original_process", "modified_process")
    texts = [dict.fromkeys(names[0], f"Twice {n} + 4?") | dict.fromkeys(names[1], steps) for n in range(2)]
    made = [{**row, "idx": f"c{n}", "classification": "circular", "error_steps": [2]} for n, row in enumerate(texts)]
    jsonl(classes / "circular.jsonl", *made)
    play(
        "judge-a-published-prm",
        {
            "PATH/TO/processbench": str(bench),
            "PATH/TO/prmtest_classified/data": str(classes),
            "Qwen/Qwen2.5-Math-PRM-7B": make("qwen", tmp_path / "qwen"),
            "peiyi9979/math-shepherd-mistral-7b-prm": make("shepherd", tmp_path / "shepherd"),
            PRM: verifiers["prm"],
            "{model: gpt-4.1, ": f"{{model: gpt-4.1, base_url: '{url}', api_key_env: MINOS_CRITIC_KEY, ",
            "score: {gpus: 1}": "score: {actors: 1, cpus: 1}",
        },
    )
    judged = json.loads((tmp_path / "runs/meta/meta.json").read_text())["rows"]
    assert {row["verifier"] for row in judged} == {"qwen-prm-7b", "math-shepherd", "mine", "gpt"}
    assert {row["set"] for row in judged} == {"processbench-gsm8k", "prmbench-circular"}
