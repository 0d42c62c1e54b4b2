"""`minos serve`, one real server: every contract against transformers, every error, death of a replica, the end."""

import asyncio
import errno
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import aiohttp
import numpy as np
import psutil
import pytest
import torch

from minos_ray.errors import UserError
from minos_ray.rewards import VerifierReward, verl_score
from minos_ray.steps.encoding import encode_solutions, question_text
from minos_ray.store.model_files import load_tokenizer
from tests.scoring.test_parity import at, padded, saved, whole
from tests.serving.server import KEY, Server, alive, wait_for

pytestmark = pytest.mark.slow

QUESTION = "Tom has 3 apples and buys 4. How many?"
SOLUTIONS = ["Step 1: 3 + 4 = 7\nThe answer is: 7", "Step 1: 3 + 4 = 8\nStep 2: 8 + 0 = 8\nThe answer is: 8"]
# Enough work for what must come while a request is in flight.
MANY = [f"Step {number}: 3 + 4 = {number}\nThe answer is: {number}" for number in range(6000)]


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny PRM as training saves it."""
    return saved(tmp_path_factory.mktemp("prm"), "prm")


@pytest.fixture(scope="module")
def server(verifier: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of all tests but the last one, which ends it."""
    options = ["--max-replicas", "2", "--cpus", "1", "--max-queue", "16", "--max-body-mb", "0.5", "--max-length", "512"]
    server = Server(tmp_path_factory.mktemp("server"), verifier, *options)
    yield server
    if server.process.poll() is None:
        server.end()


@pytest.fixture(scope="module")
def by_transformers(verifier: str) -> list[list[float]]:
    """The step scores of `SOLUTIONS` from one padded batch of transformers."""
    pairs = [(QUESTION, text.split("\n")) for text in SOLUTIONS]
    encoded = encode_solutions(load_tokenizer(verifier), pairs)
    with torch.inference_mode():
        return at(padded(whole(verifier), encoded), encoded, True)


def test_while_the_model_loads_it_says_so(server: Server) -> None:
    for reply in server.early:
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert "loading" in reply.json()["error"]["message"]


def test_a_second_replica_comes_under_load(server: Server) -> None:
    """Serve starts it, both work, and all answers are right."""
    with_two_replicas(server)


def with_two_replicas(server: Server) -> list[psutil.Process]:
    """Clients that compare all answers ask until two replicas have worked for them, which come back."""
    parts = [MANY[start : start + 400] for start in range(0, 4000, 400)]
    expected, working = [server.score(QUESTION, part)["scores"] for part in parts], Event()

    def client(number: int) -> None:
        while not working.is_set():
            scores = server.score(QUESTION, parts[number])["scores"]
            assert np.abs(np.subtract(scores, expected[number])).max() < 1e-5

    def worked(before: dict[int, float]) -> list[psutil.Process]:
        assert not any(asked.done() and asked.exception() for asked in clients)
        replicas = server.replicas() if server.metric("replicas") == 2 else []
        seconds = {replica.pid: replica.cpu_times().user for replica in replicas}
        grown = [pid for pid in seconds if seconds[pid] > before.setdefault(pid, seconds[pid]) + 0.2]
        return replicas if len(grown) == 2 else []

    with ThreadPoolExecutor(10) as pool:
        clients = [pool.submit(client, number) for number in range(10)]
        try:
            replicas = wait_for(partial(worked, {}))
        finally:
            working.set()
    return replicas


def test_own_contract(server: Server, by_transformers: list[list[float]]) -> None:
    reply = server.score(QUESTION, [*SOLUTIONS, SOLUTIONS[0].split("\n"), "", "1 + 1 = 2\n" * 200])
    expected = [*by_transformers, by_transformers[0]]
    for steps, theirs in zip(reply["step_scores"], expected, strict=False):
        assert steps == pytest.approx(theirs, abs=1e-4)
    assert reply["scores"][:3] == pytest.approx([min(steps) for steps in expected], abs=1e-4)
    assert reply["scores"][3:] == [None, None]
    assert reply["reasons"] == [None, None, None, "no_steps", "over_max_length"]
    assert reply["by_step"] is True and reply["model"] == "verifier"


def test_contract_of_openrlhf(server: Server, by_transformers: list[list[float]]) -> None:
    """By its own kind of client, which sends no header: the key stands in the address, and prompts may be missing."""
    prompt = question_text(QUESTION)
    texts = [prompt + text for text in SOLUTIONS]
    address = server.address.replace("//", f"//any:{KEY.replace(' ', '%20')}@")

    async def ask(body: dict[str, Any]) -> Any:
        async with aiohttp.ClientSession() as session, session.post(f"{address}/get_reward", json=body) as reply:
            assert reply.status == 200, await reply.text()
            return await reply.json()

    for body in (
        {"query": texts, "prompts": [prompt] * 2, "labels": ["7", "7"]},
        {"query": [f"<s>{texts[0]}", texts[1]], "prompts": [prompt] * 2, "labels": [None, 3]},
        {"query": texts},
        {"query": [f"{text}<|im_end|>\n" for text in texts], "prompts": [prompt] * 2},
    ):
        reply = asyncio.run(ask(body))
        assert set(reply) == {"rewards", "scores", "extra_logs"}
        assert reply["rewards"] == reply["scores"] == pytest.approx([min(s) for s in by_transformers], abs=1e-4)
        assert reply["extra_logs"] == {"unscored": [0.0, 0.0]}
    reply = asyncio.run(ask({"query": [prompt + "1 + 1 = 2\n" * 200], "prompts": [prompt], "labels": [""]}))
    assert (reply["rewards"], reply["extra_logs"]) == ([0.0], {"unscored": [1.0]})


def test_contract_of_vllm(server: Server, by_transformers: list[list[float]]) -> None:
    """The replies pass as vLLM's own class of replies."""
    from vllm.entrypoints.pooling.classify.protocol import ClassificationResponse

    texts = [question_text(QUESTION) + text for text in SOLUTIONS]
    chat = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": SOLUTIONS[0]}]
    for body, count in (({"input": texts, "model": "verifier"}, 2), ({"input": texts[0]}, 1), ({"messages": chat}, 1)):
        reply = server.post("/classify", body).json()
        parsed = ClassificationResponse.model_validate(reply)
        assert not parsed.model_extra and set(reply) == set(ClassificationResponse.model_fields)
        assert [item.probs[0] for item in parsed.data] == pytest.approx(
            [min(steps) for steps in by_transformers][:count], abs=1e-4
        )
        assert [(item.index, item.label, item.num_classes) for item in parsed.data] == [
            (number, "LABEL_0", 1) for number in range(count)
        ]
        assert parsed.usage.prompt_tokens > 0


def test_rewards_through_the_server_are_those_in_process(
    server: Server, verifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVE_KEY", f"{KEY}\n")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    prompts = [question_text(QUESTION), question_text("Ann has 9 pens. How many?")]
    options: Any = {"server": server.address, "api_key_env": "SERVE_KEY"}
    for read in ("outcome", "lowest"):
        here, there = VerifierReward(verifier, read), VerifierReward(read=read, **options)
        assert there(prompts, SOLUTIONS) == pytest.approx(here(prompts, SOLUTIONS), abs=1e-5)
        assert there(prompts, ["", SOLUTIONS[0]]) == pytest.approx(here(prompts, ["", SOLUTIONS[0]]), abs=1e-5)
    info = {"question": QUESTION}
    rewards = [verl_score("gsm8k", text, "7", info, **options) for text in SOLUTIONS]
    assert rewards == pytest.approx([verl_score("gsm8k", text, "7", info, verifier=verifier) for text in SOLUTIONS])
    monkeypatch.setenv("SERVE_KEY", "another")
    with pytest.raises(UserError, match="answers 401"):
        VerifierReward(**options)(prompts, SOLUTIONS)


@pytest.mark.parametrize("path", ["/score", "/get_reward", "/classify", "/metrics"])
@pytest.mark.parametrize("key", [None, "", "Bearer wrong", KEY, "Basic !", f"Digest {KEY}"])
def test_a_wrong_key_is_401(server: Server, path: str, key: str | None) -> None:
    client = server.client.__class__(trust_env=False)
    method = "GET" if path == "/metrics" else "POST"
    reply = client.request(method, server.address + path, headers={"Authorization": key} if key is not None else {})
    assert reply.status_code == 401 and reply.json()["error"]["code"] == 401
    assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/score", b"{", ""),
        ("/score", b"\xff", ""),
        ("/score", {"question": QUESTION}, "solutions"),
        ("/score", {"question": QUESTION, "solutions": []}, "solutions"),
        ("/score", {"question": QUESTION, "solutions": ["a", 3]}, "solutions.1"),
        ("/score", {"question": QUESTION, "solutions": [["a", None]]}, "solutions.0.1"),
        ("/score", {"question": 3, "solutions": ["a"]}, "question"),
        ("/score", {"question": QUESTION, "solutions": ["a"], "step": 1}, "step"),
        ("/get_reward", {"query": []}, "query"),
        ("/get_reward", {"query": ["What is 3 + 4?"]}, "query.0"),
        ("/get_reward", {"query": [question_text("1") + "2"], "prompts": []}, "prompts"),
        ("/get_reward", {"query": [question_text("1") + "2"], "prompts": ["Question: 1\n"]}, "query.0"),
        ("/classify", {}, "input"),
        ("/classify", {"input": []}, "input"),
        ("/classify", {"input": [[1, 2]]}, "input.0"),
        ("/classify", {"input": [question_text(QUESTION)]}, "input.0"),
        ("/classify", {"input": [question_text(QUESTION) + "1 + 1 = 2\n" * 200]}, "input.0"),
        ("/classify", {"input": question_text("1") + "2", "use_activation": False}, "use_activation"),
        ("/classify", {"messages": [{"role": "user", "content": "1"}]}, "messages"),
    ],
)
def test_a_wrong_body_is_422_and_names_the_field(server: Server, path: str, body: Any, field: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = server.client.post(server.address + path, content=content)
    assert reply.status_code == 422, reply.text
    assert reply.json()["error"]["param"] == field


def test_other_errors(server: Server) -> None:
    assert server.post("/nothing", {}).status_code == 404
    assert server.client.get(f"{server.address}/score").status_code == 405
    large = {"question": QUESTION, "solutions": ["x" * 600_000]}
    assert server.post("/score", large).status_code == 413
    pieces = (b" " * 1000 for _ in range(1000))  # without a length that says it beforehand
    assert server.client.post(f"{server.address}/score", content=pieces).status_code == 413


def test_it_listens_on_loopback_only(server: Server) -> None:
    (own,) = (
        c
        for c in psutil.Process(server.process.pid).net_connections("tcp")
        if c.laddr.port == server.port and c.status == "LISTEN"
    )
    assert own.laddr.ip == "127.0.0.1"


def refuses(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as peer:
        return peer.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def heavy(count: int = 6000) -> dict[str, Any]:
    """A request that takes a while."""
    return {"question": QUESTION, "solutions": MANY[:count]}


def test_a_full_queue_is_429_and_nobody_else_suffers(server: Server) -> None:
    waiting = [server.half_sent("/score", heavy(500)) for _ in range(16)]
    wait_for(lambda: server.metric("requests_in_flight") == 16)
    for _ in range(3):
        reply = server.post("/score", heavy(500))
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
    for connection, rest in waiting:
        connection.send(rest)
    for connection, _ in waiting:
        reply = connection.getresponse()
        assert reply.status == 200 and len(json.load(reply)["scores"]) == 500
        connection.close()


def test_a_torn_connection_leaves_nothing_running(server: Server) -> None:
    body = json.dumps(heavy()).encode()
    head = f"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    for sent in (body, body[:-10]):
        before = server.metric("requests_total", path="/score", status="499")
        with socket.create_connection(("127.0.0.1", server.port)) as peer:
            peer.sendall(head.encode() + sent)
        wait_for(lambda before=before: server.metric("requests_total", path="/score", status="499") == before + 1)
    assert server.metric("requests_in_flight") == 0
    assert server.score(QUESTION, SOLUTIONS[:1])["scores"][0] > 0


def test_a_killed_replica_loses_no_request(server: Server) -> None:
    """Both are killed while clients ask without a pause; all answers are whole and right, before and after."""
    expected = server.score(QUESTION, MANY[:400])["scores"]
    replicas = with_two_replicas(server)
    before, killed = server.metric("solutions_total", outcome="scored"), Event()

    def client(number: int) -> None:
        part, later = slice(number * 40, (number + 1) * 40), 0
        while later < 3:
            later += killed.is_set()
            assert server.score(QUESTION, MANY[part])["scores"] == pytest.approx(expected[part], abs=1e-5)

    with ThreadPoolExecutor(10) as pool:
        clients = [pool.submit(client, number) for number in range(10)]
        try:
            wait_for(lambda: server.metric("solutions_total", outcome="scored") > before + 400)
            for replica in replicas:
                replica.kill()
        finally:
            killed.set()
        for each in clients:
            each.result()
    assert server.metric("retries_total") >= 1
    wait_for(lambda: server.metric("replicas") == 2)


def test_metrics(server: Server) -> None:
    before = server.metric("solutions_total", outcome="scored"), server.metric("tokens_total", kind="read")
    asked = server.metric("requests_total", path="/score", status="200")
    too_long = server.metric("solutions_total", outcome="over_max_length")
    server.score(QUESTION, [*SOLUTIONS, "1 + 1 = 2\n" * 200])
    assert server.metric("solutions_total", outcome="scored") == before[0] + 2
    assert server.metric("tokens_total", kind="read") > before[1]
    assert server.metric("requests_total", path="/score", status="200") == asked + 1
    assert server.metric("request_seconds_count", path="/score") >= asked + 1
    assert server.metric("solutions_total", outcome="over_max_length") == too_long + 1
    assert server.metric("tokens_total", kind="computed") < server.metric("tokens_total", kind="read")


def test_replicas_that_no_node_can_hold_are_named(verifier: str) -> None:
    command = [sys.executable, "-m", "minos_ray", "serve", verifier, "--port", "0", "--cpus", "4000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "4000 CPU" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere/at/all"], "there is no directory"),
        (["package:miniature/model"], "a verifier is"),
        (["FOREIGN"], "its kind (--kind) must be given"),
        (["VERIFIER", "--port", "TAKEN"], "Address already in use"),
        (["VERIFIER", "--host", "0.0.0.0"], "--api-key-env"),
        (["VERIFIER", "--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
        (["VERIFIER", "--replicas", "0"], "--replicas 0"),
        (["VERIFIER", "--prompt", "Question"], "--prompt"),
        (["VERIFIER", "--splitter", "nothing:here"], "nothing:here"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_2(
    server: Server, verifier: str, arguments: list[str], words: str
) -> None:
    values = {"VERIFIER": verifier, "TAKEN": str(server.port), "FOREIGN": str(Path(verifier).parent / "first")}
    command = [sys.executable, "-m", "minos_ray", "serve", *(values.get(word, word) for word in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.count("\n") <= 1) == (2, True), done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert words in line


def test_sigterm_answers_what_is_in_flight_and_leaves_nothing(server: Server) -> None:
    processes = server.processes()
    waiting = [server.half_sent("/score", heavy(1000)) for _ in range(3)]
    wait_for(lambda: server.metric("requests_in_flight") == 3)
    with ThreadPoolExecutor(1) as pool:
        code = pool.submit(server.end)
        wait_for(lambda: refuses(server.port))
        for connection, rest in waiting:
            connection.send(rest)
        assert [len(json.load(connection.getresponse())["scores"]) for connection, _ in waiting] == [1000] * 3
        assert code.result() == 0
    wait_for(lambda: not any(map(alive, processes)))
    assert server.log.read_text().count("\n") == 2 and KEY not in server.log.read_text()
