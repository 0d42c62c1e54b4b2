"""An OpenAI-compatible server that treats its clients badly, and counts what it did to them.

Beyond the allowed rate (a bucket of one second's worth) it answers 429 with Retry-After. Of what it lets in, some get a
500, a cut connection, no JSON, a truncated answer, or wait ten times as long. What happens to a request is a function
of its content and of how often it came, so that every contender meets the same. `GET /stats` tells all.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter, defaultdict
from hashlib import blake2b
from typing import Any

FAULTS = {"500": 0.03, "cut": 0.01, "no_json": 0.005, "truncated": 0.01, "slow": 0.01}
DELAY_S, SLOW = 0.25, 10
TEXT = "Step 1: two and two make four, as it says. This step is correct.\nThe final answer is True."


class Hostile:
    """The server's state."""

    def __init__(self, per_minute: float) -> None:
        self.rate = per_minute / 60
        self.level, self.filled = self.rate, time.monotonic()
        self.came: Counter[str] = Counter()
        self.answered: dict[str, list[float]] = defaultdict(list)
        self.in_flight: dict[str, int] = defaultdict(int)
        self.did: Counter[str] = Counter()
        self.let_in: list[float] = []

    def allowed(self) -> bool:
        """Takes one from the bucket, if there is one."""
        now = time.monotonic()
        self.level = min(self.rate, self.level + (now - self.filled) * self.rate)
        self.filled = now
        if self.level < 1:
            return False
        self.level -= 1
        self.let_in.append(time.time())
        return True

    def fate(self, name: str) -> str:
        """What happens to this attempt."""
        chance = random.Random(f"{name}/{self.came[name]}").random()
        for fault, share in FAULTS.items():
            chance -= share
            if chance < 0:
                return fault
        return "answered"

    def stats(self) -> bytes:
        """Everything, as JSON."""
        flying = [name for name, count in self.in_flight.items() if count]
        return json.dumps(
            {"did": self.did, "answered": self.answered, "in_flight": flying, "let_in": self.let_in}
        ).encode()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hostile: Hostile) -> None:
    """One connection, kept alive."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0")
            body = await reader.readexactly(int(length.split(b":")[1]))
            if not await answer(head.split(b" ", 2)[:2], body, writer, hostile):
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        hostile.did["client left"] += 1
    finally:
        writer.close()


async def answer(line: list[bytes], body: bytes, writer: asyncio.StreamWriter, hostile: Hostile) -> bool:
    """Answers one request; False when the connection is to be cut."""
    if line[0] == b"GET":
        await send(writer, 200, hostile.stats() if line[1] == b"/stats" else b'{"object": "list", "data": []}')
        return True
    messages = json.loads(body)["messages"]
    if not messages:
        await send(writer, 400, b'{"error": {"message": "messages must not be empty", "code": null}}')
        return True
    content = messages[-1]["content"]
    name = blake2b(content.encode(), digest_size=8).hexdigest()
    if not hostile.allowed():
        hostile.did["429"] += 1
        await send(writer, 429, b'{"error": {"message": "slow down", "code": null}}', "Retry-After: 1\r\n")
        return True
    fate = hostile.fate(name)
    hostile.came[name] += 1
    hostile.in_flight[name] += 1
    try:
        return await suffer(fate, name, writer, hostile)
    finally:
        hostile.in_flight[name] -= 1


async def suffer(fate: str, name: str, writer: asyncio.StreamWriter, hostile: Hostile) -> bool:
    """What the fate of a request means."""
    await asyncio.sleep(DELAY_S * (SLOW if fate == "slow" else random.uniform(0.5, 1.5)))
    hostile.did[fate] += 1
    if fate == "cut":
        return False
    if fate == "500":
        await send(writer, 500, b'{"error": {"message": "oh no", "code": null}}')
    elif fate == "no_json":
        await send(writer, 200, b'{"id": "x", "choices": [{"mess')
    else:
        hostile.answered[name].append(time.time())
        await send(writer, 200, json.dumps(completion("length" if fate == "truncated" else "stop")).encode())
    return True


def completion(finish: str) -> dict[str, Any]:
    """A chat completion."""
    message = {"role": "assistant", "content": TEXT, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
    usage = {"prompt_tokens": 350, "completion_tokens": 40, "total_tokens": 390}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "gpt-4o-mini",
        "choices": [choice],
        "usage": usage,
    }


async def send(writer: asyncio.StreamWriter, status: int, content: bytes, more: str = "") -> None:
    """A whole response."""
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n{more}\r\n"
    writer.write(head.encode() + content)
    await writer.drain()


async def main(per_minute: float) -> None:
    """Serves until it is killed; says its port first."""
    hostile = Hostile(per_minute)
    server = await asyncio.start_server(lambda r, w: serve(r, w, hostile), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
