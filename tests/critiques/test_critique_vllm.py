"""A critic served by vLLM's own OpenAI server: the job serves, the stage buys, everything ends with it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from minos_ray.critiques.prompts import Case, Messages
from minos_ray.critiques.reply import Cache
from minos_ray.critiques.serve import CriticServer, command, parse, served_name
from minos_ray.critiques.stage import critique
from minos_ray.errors import UserError, WorkStopped
from minos_ray.steps.encoding import question_text
from tests.critiques.scripted import KEY, MakeConfig, MakeRun

ROOT = Path(__file__).parents[2]
SMALL = ["--dtype", "float32", "--max-model-len", "512", "--enforce-eager", "--kv-cache-memory-bytes", str(1 << 28)]
MODEL = "package:miniature/model"


def question_only(case: Case) -> Messages:
    """What the shipped model was trained to go on from: it solves the problem."""
    return [{"role": "user", "content": question_text(case.question)}]


def start(*options: str, key: str = KEY, **environment: str) -> "subprocess.Popen[str]":
    """The job in a process of its own, with a Ray of its own."""
    arguments = [sys.executable, "jobs/critic_server.py", *options]
    environment = {**os.environ, "MINOS_CRITIC_KEY": key, **environment}
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def server() -> Iterator[tuple["subprocess.Popen[str]", str, str]]:
    """The job with the shipped model, and the address and the name that it printed.

    A cluster that was killed has left its address on the machine, where Ray's own `ray.init()` would look for it.
    """
    with tempfile.TemporaryDirectory(dir="/tmp") as machine:
        left = Path(machine, "ray", "ray_current_cluster")
        left.parent.mkdir()
        left.write_text("127.0.0.1:1")
        yield from served(RAY_TMPDIR=machine)


def served(**environment: str) -> Iterator[tuple["subprocess.Popen[str]", str, str]]:
    """The job while it serves; killed at the end."""
    job = start(MODEL, "--gpus", "0", "--plain", "--", *SMALL, **environment)
    line = job.stdout.readline()
    assert line.startswith("critique.base_url=http://127.0.0.1:"), job.communicate(timeout=300)
    address, model = (part.partition("=")[2] for part in line.split()[:2])
    yield job, address, model
    if job.poll() is None:
        job.kill()
    job.communicate()


def listens(address: str) -> bool:
    """Whether anybody answers there."""
    place = urlsplit(address)
    with socket.socket() as probe:
        return probe.connect_ex((place.hostname, place.port)) == 0


def engines_of(job: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes of vLLM's engine below a job."""
    below = psutil.Process(job.pid).children(recursive=True)
    return [process for process in below if process.name().startswith("VLLM::")]


@pytest.mark.slow
def test_the_stage_buys_from_it_and_every_row_ends_in_a_status(
    server: tuple["subprocess.Popen[str]", str, str], make_run: MakeRun, make_config: MakeConfig
) -> None:
    """The shipped model never learnt to criticise: what it writes is a solution, and each row says that."""
    _, address, model = server
    run = make_run(problems=10)
    prompt = "tests.critiques.test_critique_vllm:question_only"
    config = make_config(run, address, count=24, model=model, prompt=prompt, max_tokens=120)
    with pytest.raises(UserError, match="none of 24 critiques can be used"):
        critique(config, run)
    rows = run.artefact("critiques").read(partial=True).to_pylist()
    questions = {row["candidate_id"].rpartition("/")[0] for row in rows}
    assert len(rows) == 24 and len(Cache(run).answers) == len(questions), "one question is asked once"
    assert {row["status"] for row in rows} <= {"no_verdict", "truncated"}
    assert all(row["prompt_tokens"] > 10 and row["completion_tokens"] > 10 for row in rows)
    assert any("The answer is: " in row["text"] for row in rows)


@pytest.mark.slow
def test_a_prompt_too_long_for_the_model_is_a_bad_request(
    server: tuple["subprocess.Popen[str]", str, str], make_run: MakeRun, make_config: MakeConfig
) -> None:
    run = make_run()
    config = make_config(run, server[1], count=20, model=server[2], max_tokens=500)
    with pytest.raises(UserError, match=r"every request is refused: 400: .*maximum context length"):
        critique(config, run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "change", "told"),
    [
        ("sk-other", {}, r"critic refused the key in \$TEST_CRITIC_KEY \(401\)"),
        (KEY, {"mode": "batch"}, r"critique\.mode = 'batch': .* has no Batch API \(404\)"),
        (KEY, {"model": "gpt-4"}, r"critique\.model = 'gpt-4' .*every request is refused: 404"),
    ],
)
def test_wrong_requests(
    server: tuple["subprocess.Popen[str]", str, str],
    make_run: MakeRun,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    change: dict[str, str],
    told: str,
) -> None:
    run = make_run()
    monkeypatch.setenv("TEST_CRITIC_KEY", key)
    config = make_config(run, server[1], **{"count": 20, "model": server[2], "max_tokens": 8, **change})
    with pytest.raises(UserError, match=told):
        critique(config, run)


@pytest.mark.slow
def test_no_route_of_it_answers_without_the_key(server: tuple["subprocess.Popen[str]", str, str]) -> None:
    """The routes are those that the server itself lists, with the key."""
    host, lines = server[1].removesuffix("/v1"), []
    with httpx.Client(base_url=host, trust_env=False, headers={"Authorization": f"Bearer {KEY}"}) as inside:
        routes = {path: list(methods) for path, methods in inside.get("/openapi.json").json()["paths"].items()}
        assert inside.get("/health").status_code == 200
    assert {"/v1/chat/completions", "/invocations", "/tokenize", "/health", "/version"} <= routes.keys()
    routes |= {"/metrics": ["get"], "/docs": ["get"], "/openapi.json": ["get"], "/none": ["get"]}
    with httpx.Client(base_url=host, trust_env=False) as outside:
        for path, methods in routes.items():
            for method in {*methods, "options", "head"}:
                for key in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
                    lines.append(outside.request(method.upper(), path, headers=key).status_code)
    assert set(lines) == {401} and len(lines) > 60


@pytest.mark.slow
def test_the_server_ends_with_a_killed_job(server: tuple["subprocess.Popen[str]", str, str]) -> None:
    job, address, _ = server
    engines = engines_of(job)
    assert listens(address) and engines
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    until = time.monotonic() + 180
    while listens(address) or any(engine.is_running() for engine in engines):
        assert time.monotonic() < until, "the server or its engine outlives the job"
        time.sleep(0.1)


def test_without_a_key_nothing_starts() -> None:
    job = start("no/such/model", key="")
    out, err = job.communicate(timeout=300)
    assert (job.returncode, out) == (2, "") and err.startswith("minos: set MINOS_CRITIC_KEY")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["no/such/model", "--gpus", "0"], 2, "minos: model 'no/such/model': there is no directory"),
        (
            [MODEL, "--gpus", "64", "--wait-s", "1"],
            2,
            "minos: --gpus 64: not there, or its model not loaded, within 1 s; the cluster has 0 GPU",
        ),
    ],
)
def test_what_cannot_be_served_is_one_line(options: list[str], code: int, told: str) -> None:
    job = start(*options)
    _, err = job.communicate(timeout=300)
    *before, last = err.splitlines()
    assert job.returncode == code and last.startswith(told)
    assert all("RAY_BACKEND_LOG_LEVEL" in line for line in before), "Ray's own remark on the tests' log level"


def test_the_command_is_vllms_and_the_key_is_not_in_it() -> None:
    options = parse([MODEL, "--gpus", "2", "--name", "judge", "--", "--max-model-len", "4096", "--x", "a -- b"])
    made = command(options, "127.0.0.1", 8000)
    assert made[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    asked = dict(zip(made[3:-4:2], made[4:-4:2], strict=True))
    assert asked["--host"] == "127.0.0.1" and asked["--served-model-name"] == "judge"
    assert asked["--tensor-parallel-size"] == "2" and "--chat-template" not in asked
    assert made[-4:] == ["--max-model-len", "4096", "--x", "a -- b"] and not any("key" in part for part in made)


@pytest.mark.slow
def test_a_server_that_ends_says_why() -> None:
    options = parse([MODEL, "--gpus", "0", "--", "--no-such-option"])
    server = CriticServer(options, "k")
    with pytest.raises(WorkStopped, match=r"vLLM does not serve; [^~]*no-such-option"):
        server.start()
    server.end()


def test_what_is_served_by_default_is_named_by_what_it_is(tmp_path: Path) -> None:
    """A model trained again, another template or quantisation: another critic. Elsewhere, or faster: the same."""

    def name(*options: str) -> str:
        made = command(parse([str(tmp_path / "critic"), *options]), "127.0.0.1", 8000)
        return made[made.index("--served-model-name") + 1]

    shutil.copytree(ROOT / "minos_ray/miniature/model", tmp_path / "critic")
    first = name()
    assert first.startswith("critic@") and name("--gpus", "0", "--", "--max-model-len", "512") == first
    shutil.move(tmp_path / "critic", tmp_path / "away")
    shutil.copytree(tmp_path / "away", tmp_path / "critic")
    (tmp_path / "critic" / "README.md").write_text("a card")
    assert name() == first, "files are compared, not their times"
    others = {name("--plain"), name("--", "--quantization", "fp8"), name("--", "--quantization=int8")}
    weights = next((tmp_path / "critic").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert len({first, *others, name()}) == 5
    hub = parse(["Qwen/Qwen2.5-72B-Instruct", "--", "--max-model-len=512"])
    assert served_name(hub.model, "/models/x", hub.plain, hub.vllm) == "Qwen/Qwen2.5-72B-Instruct"
    assert name("--name", "judge") == "judge"
