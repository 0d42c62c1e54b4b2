"""The miniature's critic: a small OpenAI-compatible server on 127.0.0.1 that knows the gold chain of every problem.

It writes as a good teacher would: what the step should be, how it compares, a verdict.

It asks for a key, answers now and then with 429, and like a real critic is sometimes careless (a verdict that
contradicts the labels) or malformed; where it sees neither labels nor a reference, it may misread the problem. Every
answer is a function of the seed and the content of the request alone.
"""

import argparse
import json
import os
import random
import re
import secrets
import select
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from minos_ray.miniature import Clause, Problem, read, reading
from minos_ray.miniature.step_labels import Verdict, judged, labels_of, parse_step
from minos_ray.steps.critique_text import critique_text

CARE = 0.25
"""Of the critic who sees no labels, as in `noise`: about 75 % of its critiques agree with them, as published pipelines
found with large models (docs/critics.md)."""
_QUOTES = 0.25
"""Share of steps for which the clause is quoted; the others name it by one word, as solutions do."""
_AGREE = (".", ", the same.", ", yes.")
_CALCULATION = (", not {result}.", ", {result} is wrong.")
_LOGICAL = (", but it takes {given}.", ", not {given}.")
_ACCUMULATION = (", it follows the earlier mistake.", ", it inherits a wrong value.")
_UNRELATED = ("nothing in the problem says {given}.", "the problem has no such {given}.")
_NEEDLESS = ("the answer does not need {given}.", "{given} is not part of this.")
_OTHER = ("this cannot be read.", "no calculation here.")
MODEL = "miniature-critic-1"
KEY_ENV = "MINOS_OFFLINE_CRITIC_KEY"
READY_S, END_S = 60.0, 5.0
BUSY, CARELESS, MALFORMED = 0.01, 0.01, 0.005

# A reference that the prompt shows is skipped: who has one, or some label, knows the gold chain.
REFERENCE = r"(?:\n\n\[Reference\]\n.*?)?"
BLOCKS = re.compile(rf"\[Question\]\n(.*?){REFERENCE}\n\n\[Solution\]\n(.*?)\n\n\[Task\]\n", re.DOTALL)
LABEL = re.compile(r" Label: (True|False)$")


def short(clause: Clause) -> str:
    """A clause without its subject and full stop, as a critique quotes it."""
    subject = clause.words.get("n" if clause.phrase.text.startswith("{n}") else "m", "")
    return clause.text.removeprefix(f"{subject} ").removeprefix("Then ").removeprefix("The ").rstrip(".")


def misread(problem: Problem, rng: random.Random) -> Problem:
    """The problem as a careful reader takes it who sees no labels: some clauses mean something else to them."""
    read_as = [replace(clause.phrase, right=reading(clause.phrase, CARE, rng)) for clause in problem.clauses]
    pairs = zip(problem.clauses, read_as, strict=True)
    return replace(problem, clauses=tuple(replace(clause, phrase=phrase) for clause, phrase in pairs))


def _explanation(step: str, verdict: Verdict, rng: random.Random) -> str:
    calculation = parse_step(step)
    if calculation is None:
        return rng.choice(_OTHER)
    expression = f"{calculation.left} {calculation.op} {calculation.right}"
    if verdict.gold is None:
        return rng.choice(_UNRELATED if verdict.error == "unrelated" else _NEEDLESS).format(given=expression)
    gold = verdict.gold
    ending = {
        "": _AGREE,
        "calculation": _CALCULATION,
        "logical": _LOGICAL,
        "unrelated": _LOGICAL,
        "accumulation": _ACCUMULATION,
    }[verdict.error]
    skips = "".join(f"first {gold.calculation}, then " for gold in verdict.skipped)
    sentence = rng.choice(ending).format(given=expression, result=calculation.result)
    clause_text = short(gold.clause) if rng.random() < _QUOTES and not gold.continues else gold.clause.phrase.word
    return f"{skips}{clause_text}: {gold.calculation}{sentence}"


def write_critique(question: str, steps: list[str], labels: list[int] | None, rng: random.Random) -> str:
    """A step-wise critique of a candidate whose step labels are known; ValueError when they are not the gold ones.

    Without labels the critic relies on its own reading of the problem, which may be wrong.
    """
    problem = read(question)
    verdicts = judged(problem if labels is not None else misread(problem, rng), steps)
    if labels is not None and [verdict.label for verdict in verdicts] != list(labels):
        raise ValueError(f"labels {list(labels)} are not those of the gold chain for {question!r}")
    explanations = []
    for step, verdict in zip(steps, verdicts, strict=True):
        if verdict.answer is None:
            explanations.append(_explanation(step, verdict, rng))
        else:
            skips = "".join(f"first {gold.calculation}, then " for gold in verdict.skipped)
            explanations.append(f"{skips}{rng.choice(('the answer is', 'it should be'))} {verdict.answer}.")
    final = bool(verdicts) and verdicts[-1].answer is not None and verdicts[-1].label == 1
    return critique_text(zip(explanations, (bool(verdict.label) for verdict in verdicts), strict=True), final)


_REASONS = {
    "unrelated": "the problem says nothing of this.",
    "accumulation": "it only carries on an earlier mistake.",
    "calculation": "the operation is right, its result is not.",
    "logical": "that is not what the problem asks to do.",
    "other": "no calculation can be read.",
}


def write_error_types(wrong: list[int], errors: list[str], rng: random.Random, careless: float) -> str:
    """One line per wrong step (indices from 0) with its type; now and then a careless or an unknown one."""
    lines = []
    for step in wrong:
        kind = rng.choice(list(_REASONS)) if rng.random() < careless else errors[step] or "other"
        lines.append(f"Step {step + 1}: {kind}: {_REASONS[kind]}")
    return "\n".join(lines).replace("logical:", "wrong:") if rng.random() < careless / 2 else "\n".join(lines)


def read_prompt(text: str) -> tuple[str, list[str], list[int]]:
    """Question, steps and labels (-1 where none is shown) out of a prompt; ValueError when it is none of ours."""
    blocks = BLOCKS.search(text)
    if not blocks:
        raise ValueError("the prompt holds no [Question] and [Solution]")
    lines = blocks[2].split("\n")
    matches = [LABEL.search(line) for line in lines]
    labels = [-1 if match is None else int(match[1] == "True") for match in matches]
    return blocks[1], [LABEL.sub("", line) for line in lines], labels


def spoil(text: str, rng: random.Random) -> str:
    """A malformed critique: without its verdict, without a step, or with a step that judges nothing."""
    lines = text.split("\n")
    kind = rng.randrange(3)
    if kind == 0:
        return "\n".join(lines[:-1])
    line = rng.randrange(max(1, len(lines) - 2))
    changed = [] if kind == 1 else [re.sub(r" This step is \w+\.$", "", lines[line])]
    return "\n".join(lines[:line] + changed + lines[line + 1 :])


def contradict(text: str, rng: random.Random) -> str:
    """A careless critique: the verdict on one step is turned round."""
    lines = text.split("\n")
    line = rng.randrange(max(1, len(lines) - 2))
    turned = {"correct": "incorrect", "incorrect": "correct"}
    lines[line] = re.sub(r"(?<=This step is )(correct|incorrect)(?=\.$)", lambda found: turned[found[1]], lines[line])
    return "\n".join(lines)


class Teacher:
    """Answers requests; remembers only which ones it has sent away once as too many."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.sent_away: set[str] = set()

    def busy(self, content: str) -> bool:
        """Whether this request gets a 429: some do, the first time."""
        if random.Random(f"{self.seed}/busy/{content}").random() >= BUSY or content in self.sent_away:
            return False
        self.sent_away.add(content)
        return True

    def critique(self, content: str) -> str:
        """The critique of the solution in the prompt."""
        rng = random.Random(f"{self.seed}/text/{content}")
        question, steps, labels = read_prompt(content)
        if "[Types]" in content:
            wrong = [k for k, label in enumerate(labels) if label == 0]
            return write_error_types(wrong, labels_of(question, steps)[1], rng, CARELESS)
        blind = "[Reference]" not in content and set(labels) == {-1}
        known_labels = labels if -1 not in labels else labels_of(question, steps)[0]
        text = write_critique(question, steps, None if blind else list(known_labels), rng)
        chance = rng.random()
        if chance < CARELESS:
            return contradict(text, rng)
        return spoil(text, rng) if chance < CARELESS + MALFORMED else text


def completion(request: dict[str, Any], text: str) -> dict[str, Any]:
    """The JSON of a chat completion; a token is a word. Cut after `max_tokens`."""
    prompt = " ".join(message["content"] for message in request["messages"])
    words = re.findall(r"\S+\s*", text)
    limit = request.get("max_tokens") or len(words)
    shortened = "".join(words[:limit]) if len(words) > limit else text
    asked, written = len(prompt.split()), min(len(words), limit)
    message = {"role": "assistant", "content": shortened, "refusal": None}
    return {
        "id": f"chatcmpl-{secrets.token_hex(8)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "length" if len(words) > limit else "stop"}],
        "usage": {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written},
    }


class Handler(BaseHTTPRequestHandler):
    """GET /v1/models and POST /v1/chat/completions, with the bearer key of the server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Server"  # ty: ignore[incompatible-mutable-override] it is the server that makes the handler

    def do_GET(self) -> None:
        """The list of models."""
        models = [{"id": MODEL, "object": "model", "created": 0, "owned_by": "minos"}]
        exists = self.path == "/v1/models"
        self._reply_if_allowed(
            200 if exists else 404, {"object": "list", "data": models} if exists else _error("no such path")
        )

    def do_POST(self) -> None:
        """A critique, 429 with Retry-After, or 400 for a request that is not understood."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != "/v1/chat/completions":
            return self._reply_if_allowed(404, _error("no such path"))
        try:
            request = json.loads(body)
            content = request["messages"][-1]["content"]
            if self.server.teacher.busy(content):
                return self._reply_if_allowed(
                    429, _error("too many requests"), {"Retry-After": "1", "retry-after-ms": "50"}
                )
            reply = completion(request, self.server.teacher.critique(content))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            return self._reply_if_allowed(400, _error(f"request not understood: {error}"))
        self._reply_if_allowed(200, reply)

    def _reply_if_allowed(self, status: int, value: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        if not secrets.compare_digest(self.headers.get("Authorization") or "", f"Bearer {self.server.key}"):
            status, value, headers = 401, _error("wrong API key"), None
        content = json.dumps(value).encode()
        head = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
        lines = [f"HTTP/1.1 {status} {self.responses[status][0]}", *(f"{k}: {v}" for k, v in head.items())]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode() + content)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": None}}


class Server(ThreadingHTTPServer):
    """A loopback server on a free port."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, teacher: Teacher, key: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.teacher, self.key = teacher, key


@contextmanager
def offline_critic(seed: int) -> Generator[tuple[str, str]]:
    """Runs the server as a process of its own; yields base_url and key. It ends in any case, with this process too."""
    key = secrets.token_urlsafe(24)
    command = [sys.executable, "-m", "minos_ray.miniature.critic_server", "--seed", str(seed)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, KEY_ENV: key}
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        ready, _, _ = select.select([process.stdout], [], [], READY_S)
        line = process.stdout.readline() if ready else ""
        if not line.startswith("ready "):
            raise RuntimeError(f"the offline critic did not start within {READY_S:.0f} s (exit code {process.poll()})")
        yield f"http://127.0.0.1:{int(line.split()[1])}/v1", key
    finally:
        process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def main() -> None:
    """Serves until standard input ends, that is until the process that started it has gone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    server = Server(Teacher(parser.parse_args().seed), os.environ[KEY_ENV])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"ready {server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
