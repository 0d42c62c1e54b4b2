"""The critic against a hostile server, beside bespokelabs-curator: rate used, rows that end well, kill -9 and rerun.

    python benchmarks/critic.py [--rows 3000] [--per-minute 6000] [--actors 2] [--curator PYTHON] [--out FILE.json]

`--actors` multiplies the 64 requests that ours has in flight.

`--curator` names the interpreter of an environment that has bespokelabs-curator; without it only ours runs. Each
contender is a process of its own, is told the server's rate, and gets the same rows: once in peace, once killed with
SIGKILL at a random moment and run again.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LONGEST_S = 240.0


def prompts(rows: int) -> list[str]:
    """Different prompts of the label-aware kind, about 1,500 bytes each."""
    from minos_ray.critiques.prompts import Case, label_aware

    steps = ["Step 1: 2 + 2 = 4", "The answer is: 4"]
    cases = (Case(f"Tom has 2 apples and gets 2. Case {i}?", steps, [1, 1], True, "4", None) for i in range(rows))
    return [label_aware(case)[0]["content"] for case in cases]


@contextmanager
def hostile(per_minute: float) -> Iterator[str]:
    """The server as a process; yields its address."""
    command = [sys.executable, str(HERE / "hostile.py"), str(per_minute)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def stats(url: str) -> dict[str, Any]:
    """What the server did so far."""
    with urllib.request.urlopen(f"{url}/stats") as response:
        return json.load(response)


def start(command: list[str], url: str, folder: str, arguments: argparse.Namespace) -> "subprocess.Popen[str]":
    """A contender's process."""
    given = {"url": f"{url}/v1", "folder": folder, **{k: vars(arguments)[k] for k in ("rows", "per_minute", "actors")}}
    (Path(folder) / "prompts.json").write_text(json.dumps(prompts(arguments.rows)))
    environment = {**os.environ, "OPENAI_API_KEY": "sk-benchmark", "CURATOR_CACHE_DIR": f"{folder}/curator"}
    environment |= {"CURATOR_DISABLE_RICH_DISPLAY": "1", "TELEMETRY_ENABLED": "false", "HF_HUB_OFFLINE": "1"}
    log = open(f"{folder}/log.txt", "a")  # noqa: SIM115
    return subprocess.Popen([*command, json.dumps(given)], stdout=log, stderr=log, text=True, env=environment)


def in_peace(command: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """One undisturbed run."""
    with tempfile.TemporaryDirectory() as folder, hostile(arguments.per_minute) as url:
        begin = time.monotonic()
        code = wait(start(command, url, folder, arguments), folder)
        seconds = time.monotonic() - begin
        did = stats(url)
        let_in = did["let_in"]
        if not let_in:
            return {"exit code": code, "seconds": round(seconds, 1)}
        span = max(let_in[-1] - let_in[0], 1e-9)
        # The last requests are those of rows that met several faults: too few to use any rate.
        most = let_in[: round(0.99 * len(let_in))]
        used, steady = (share(moments, arguments.per_minute) for moments in (let_in, most))
        found = {"exit code": code, "seconds": round(seconds, 1), "seconds of requests": round(span, 1)}
        found |= {"share of the rate": used, "until 99 % were let in": steady, "server": did["did"]}
        found["let in per second"] = " ".join(str(n) for n in per_second(let_in))
        return found | ended(folder, arguments, seconds)


def per_second(moments: list[float]) -> list[int]:
    """How many came in each second."""
    counts = Counter(int(moment - moments[0]) for moment in moments)
    return [counts[second] for second in range(max(counts) + 1)]


def share(moments: list[float], per_minute: float) -> float:
    """The share of the allowed rate at which requests were let in."""
    return round((len(moments) - 1) / max(moments[-1] - moments[0], 1e-9) / (per_minute / 60), 3)


def ended(folder: str, arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """How the rows ended, as the contender says."""
    path = Path(folder) / "result.json"
    states = json.loads(path.read_text()) if path.exists() else {}
    good = states.get("answered", 0)
    return {"states": states, "ended well": round(good / arguments.rows, 4), "rows/s": round(good / seconds, 1)}


def killed(command: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """A run killed at a random moment, and its rerun."""
    with tempfile.TemporaryDirectory() as folder, hostile(arguments.per_minute) as url:
        process = start(command, url, folder, arguments)
        wanted = random.Random(arguments.seed).uniform(0.2, 0.8) * arguments.rows
        limit = time.monotonic() + LONGEST_S
        while len(stats(url)["answered"]) < wanted and time.monotonic() < limit:
            time.sleep(0.1)
        at_kill = stats(url)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        moment = time.time()
        code = wait(start(command, url, folder, arguments), folder)
        did = stats(url)
    twice = [name for name, moments in did["answered"].items() if len(moments) > 1]
    flying = [name for name in twice if name in at_kill["in_flight"] or 0 <= did["answered"][name][0] - moment + 1 <= 4]
    return {
        "answered at the kill": len(at_kill["answered"]),
        "in flight at the kill": len(at_kill["in_flight"]),
        "exit code of the rerun": code,
        "bought twice": len(twice),
        "of them in flight at the kill": len(flying),
        "rows the server never answered": arguments.rows - len(did["answered"]),
        "answers in all": sum(map(len, did["answered"].values())),
    }


def wait(process: "subprocess.Popen[str]", folder: str) -> int | str:
    """The exit code; a contender that takes too long is ended."""
    try:
        code: int | str = process.wait(LONGEST_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        code = f"ended after {LONGEST_S:.0f} s"
    if code:
        print(Path(folder, "log.txt").read_text()[-2000:], file=sys.stderr)
    return code


def ours(given: dict[str, Any]) -> None:
    """The contender: `ask`, as `minos critique` calls it."""
    from minos_ray.config.load import Config
    from minos_ray.critiques.client import ask
    from minos_ray.critiques.prompts import Request, content_key
    from minos_ray.critiques.reply import Cache
    from minos_ray.critiques.stage import critique_status
    from minos_ray.store.run import Run

    run = Run(f"{given['folder']}/run")
    client = {"actors": given["actors"], "concurrency": 64, "timeout_s": 20}
    critique = {"base_url": given["url"], "model": "gpt-4o-mini", "max_tokens": 200}
    limits = {"requests_per_minute": given["per_minute"]}
    resources = {"num_cpus": 2, "client": client | limits}
    config = Config(run=run.path, base={"model": "none"}, critique=critique, resources=resources)
    texts = json.loads(Path(given["folder"], "prompts.json").read_text())
    messages = [[{"role": "user", "content": text}] for text in texts]
    requests = [Request(content_key("gpt-4o-mini", m, 0.0, 200), m, expected=(1,)) for m in messages]
    answers, _ = ask(config, config.critique, requests, Cache(run), critique_status)
    states: dict[str, Any] = Counter(answers[request.key].outcome for request in requests)
    states["cpu_seconds"] = round(time.process_time(), 1)
    Path(given["folder"], "result.json").write_text(json.dumps(states))


CURATOR = """
import importlib.util, json, os, sys
from pathlib import Path
# The tokenizer that curator estimates with is fetched from the network; litellm, which it needs, carries a copy.
bundled = Path(importlib.util.find_spec("litellm").origin).parent / "litellm_core_utils" / "tokenizers"
os.environ["TIKTOKEN_CACHE_DIR"] = str(bundled)
from bespokelabs import curator
given = json.loads(sys.argv[1])
class Critic(curator.LLM):
    def prompt(self, row): return row["prompt"]
    def parse(self, row, response): return {"prompt": row["prompt"], "text": response}
parameters = {"base_url": given["url"], "max_requests_per_minute": int(given["per_minute"]),
    "max_tokens_per_minute": 10**8,
    "max_concurrent_requests": 128, "max_retries": 8, "request_timeout": 20, "require_all_responses": False,
    "seconds_to_pause_on_rate_limit": 1}
critic = Critic(model_name="gpt-4o-mini", backend="openai", backend_params=parameters,
    generation_params={"temperature": 0.0, "max_tokens": 200})
texts = json.loads(Path(given["folder"], "prompts.json").read_text())
answers = critic([{"prompt": text} for text in texts])
answers = getattr(answers, "dataset", answers)
Path(given["folder"], "result.json").write_text(json.dumps({"answered": len(set(answers["prompt"]))}))
"""


def main() -> None:
    """Runs all contenders and prints what was found."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=3000)
    options.add_argument("--per-minute", type=float, default=6000)
    options.add_argument("--actors", type=int, default=2)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--curator", metavar="PYTHON")
    options.add_argument("--skip-ours", action="store_true")
    options.add_argument("--out", type=Path)
    arguments = options.parse_args()
    contenders = {} if arguments.skip_ours else {"minos": [sys.executable, __file__, "ours"]}
    if arguments.curator:
        contenders["bespokelabs-curator"] = [arguments.curator, "-c", CURATOR]
    results = {}
    for name, command in contenders.items():
        results[name] = {"in peace": in_peace(command, arguments), "killed": killed(command, arguments)}
        print(name, json.dumps(results[name], indent=1), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "ours":
        ours(json.loads(sys.argv[2]))
    else:
        main()
