"""What a user gets for a mistake: one clear line, exit code 2, before any costly work; or a counted row."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from minos_ray.cli import main
from minos_ray.store.columns import table
from minos_ray.store.run import Run

GOOD = {"question": "Ann has 2 pens and buys 3. How many?", "answer": "2+3=<<2+3=5>>5\n#### 5"}


def minos(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as a user does."""
    command = [sys.executable, "-m", "minos_ray", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and one line on stderr that holds all the words; no traceback.

    Several mistakes at once are lines below one that counts them.
    """
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("minos: ") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert any(all(word in line for word in words) for line in done.stderr.splitlines()), done.stderr


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config over two jsonl files with one good row each."""
    for split in ("train", "test"):
        question = f"{split}: {GOOD['question']}"
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({**GOOD, "question": question}) + "\n")
    values = {
        "run": str(tmp_path / "run"),
        "problems": {split: {"path": str(tmp_path / f"{split}.jsonl")} for split in ("train", "test")},
        "generator": {"model": str(tmp_path / "model")},
        "base": {"model": str(tmp_path / "model")},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_unknown_key(config: Path) -> None:
    refused(minos("check", str(config), "sample.temprature=1"), "sample.temprature", "temperature")


def test_bad_value(config: Path) -> None:
    refused(minos("check", str(config), "sample.n_test=0"), "sample.n_test", "0", "greater than or equal to 1")


def test_missing_config() -> None:
    refused(minos("run", "nowhere.yaml"), "nowhere.yaml", "miniature")


def test_missing_file(config: Path) -> None:
    refused(minos("problems", str(config), "problems.test.path=missing.jsonl"), "missing.jsonl")


def test_empty_file(config: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("")
    refused(minos("problems", str(config)), "train.jsonl", "empty")


def test_missing_column(config: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"question": "x", "gold": "5"}) + "\n")
    refused(minos("problems", str(config)), "answer", "train.jsonl")


def test_malformed_row_is_counted(config: Path, tmp_path: Path) -> None:
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"question": "torn')
    done = minos("problems", str(config))
    assert done.returncode == 0, done.stderr
    manifest = Run(str(tmp_path / "run")).artefact("problems").manifest()
    assert manifest is not None
    assert sum(manifest.dropped.values()) == 1
    assert sum(manifest.counts.values()) >= 2


def test_duplicate_ids(config: Path, tmp_path: Path) -> None:
    rows = [{"id": "a", "q": "one?", "a": "1"}, {"id": "a", "q": "two?", "a": "2"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = "{columns: {question: q, answer: a, id: id}}"
    override = [f"problems.train.options={columns}", "problems.train.loader=minos_ray.problems.loaders:table"]
    refused(minos("problems", str(config), *override), "'a'", "id")


def test_unknown_function(config: Path) -> None:
    refused(minos("check", str(config), "label.grader=minos_ray.grading.graders:nothing"), "graders:nothing")


def test_model_without_tokenizer(config: Path, tmp_path: Path) -> None:
    from tests.tiny import tiny_model

    model = Path(tiny_model(tmp_path / "model"))
    for file in model.glob("tokenizer*"):
        file.unlink()
    done = minos("check", str(config), OPENAI_API_KEY="none")
    assert done.returncode == 2
    assert "tokenizer" in done.stderr and str(model) in done.stderr and "Traceback" not in done.stderr


def labelled_run(path: Path) -> None:
    """A run whose problems, candidates and labels are complete, so that only the critic is missing."""
    run = Run(str(path))
    problem = {"problem_id": "p", "dataset": "d", "split": "train", "question": "1 + 1?", "answer": "2"}
    candidate = {"candidate_id": "p/0", "problem_id": "p", "index": 0, "text": "Step 1: 1 + 1 = 2\nThe answer is: 2"}
    candidate |= {"finish_reason": "stop", "num_tokens": 9, "model": "m"}
    label = {"candidate_id": "p/0", "problem_id": "p", "answer": "2", "correct": True, "status": "correct"}
    label |= {
        "steps": candidate["text"].split("\n"),
        "step_labels": [1, 1],
        "step_source": "gold",
        "error_types": ["", ""],
    }
    for name, row in (("problems", problem), ("candidates", candidate), ("labels", label)):
        artefact = run.artefact(name)
        artefact.begin({"import": {"made": "by hand"}})
        artefact.write_part("0", table(name, [row]))
        artefact.complete({"rows": 1})


class Refusing(http.server.BaseHTTPRequestHandler):
    """An endpoint that knows no key."""

    def answer(self) -> None:
        body = b'{"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}'
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture
def refusing() -> Iterator[str]:
    """Base URL of an endpoint that answers 401 to everything."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_no_key(config: Path, tmp_path: Path) -> None:
    labelled_run(tmp_path / "run")
    refused(minos("critique", str(config), OPENAI_API_KEY=""), "OPENAI_API_KEY")


def test_wrong_key(config: Path, tmp_path: Path, refusing: str) -> None:
    labelled_run(tmp_path / "run")
    done = minos("critique", str(config), f"critique.base_url={refusing}", OPENAI_API_KEY="sk-not-the-key")
    refused(done, "401", "OPENAI_API_KEY")
    kept = [f for f in (tmp_path / "run").rglob("*") if f.is_file() and b"sk-not-the-key" in f.read_bytes()]
    assert not kept and "sk-not-the-key" not in done.stderr + done.stdout
    assert Run(str(tmp_path / "run")).artefact("critiques").manifest() is None


def test_unreachable_critic(config: Path, tmp_path: Path) -> None:
    labelled_run(tmp_path / "run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        done = minos("critique", str(config), f"critique.base_url={url}", OPENAI_API_KEY="k")
    refused(done, "critique.base_url", url)


def test_stage_before_its_inputs(config: Path) -> None:
    refused(minos("evaluate", str(config)), "evaluate", "minos problems")


def test_status_of_no_run(tmp_path: Path) -> None:
    refused(minos("status", str(tmp_path)), "config.yaml")


def test_a_working_directory_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["status", str(tmp_path)]) == 2


def test_help_is_quick_and_light() -> None:
    """Nothing heavy may be imported for --help: that is what makes it answer at once."""
    code = "import sys; from minos_ray.cli import parser; parser().format_help(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "ray", "vllm", "transformers", "pyarrow", "pydantic"} & set(loaded)
