"""`minos search` beside its-hub, and beside sampling at equal tokens, on a run of the miniature.

python benchmarks/search.py RUN [--its FOLDER] [--methods beam particles] [--problems 24] [--n 16] [--width 4]
    [--rounds 3] [--actors 2] [--server-threads 1] [--server-options=--api-server-count=2]
    [--seeds 5] [--verifier prm-base] [--out figures.json]

RUN is a finished demo (`minos demo --out RUN`): its generator, its PRM, its test problems and its samples are taken.
FOLDER holds its-hub (`pip install --target FOLDER --no-deps its-hub==1.2.0 backoff`); without it that part is left
out.

Ours are actors of Ray with one thread each, as `minos search` starts them; each has every nth problem. its-hub gets a
vLLM server of its own (float32, prefix caching: our blocks of 16, theirs of 32), all problems at once, and our PRM
behind its interface, in this process: it reads whole texts, in one forest for each call. So both sides have the whole
machine.
Equal budget: the same n, width and token limit. Start-up is left out on both sides. Problems per minute of wall time,
CPU seconds of all processes of a side (which a busy machine changes less), and the accuracy of the best candidate by
the PRM and of the weighted vote, with the paired difference and its 95 % interval over problems. Rounds alternate.

Against sampling: every method with `--seeds` seeds. Of each problem's samples in RUN as many are drawn as have cost the
tokens that the search generated for it, 20 times for each seed. Accuracies and paired differences with 95 % intervals
over problems, by best-of-n, weighted vote and vote.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import ray
from serving import Server

from minos_ray.cluster.connect import join, joins
from minos_ray.config.load import Config
from minos_ray.config.schema import Model, Search
from minos_ray.evaluation.statistics import intervals
from minos_ray.pipeline import saved_config
from minos_ray.scoring.verifier import Scorer, aggregate
from minos_ray.search.searcher import LocalPrm, Searcher
from minos_ray.steps.split import lines
from minos_ray.store.model_files import locate
from minos_ray.store.run import Run

# What the miniature's generator is prompted with, as a chat: a turn of the assistant is continued.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ 'Question: ' + m['content'] + '\\nAnswer:\\n' }}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)
ANSWER = "The answer is"
DRAWS = 20
SELECTIONS = ("best-of-n", "weighted vote", "vote")
Scored = list[tuple[str, float]]  # texts of a problem's candidates and their scores


def main() -> None:
    """Both comparisons, printed and written."""
    arguments = parsed()
    run = Run(arguments.run)
    config = saved_config(run)
    if arguments.its and joins(config.resources):
        sys.exit("--its counts the CPU seconds of a Ray that it starts: unset RAY_ADDRESS and resources.address")
    problems = [row for row in run.artefact("problems").read().to_pylist() if row["split"] == "test"]
    problems = problems[: arguments.problems]
    scorer = Scorer(locate(Model(model=f"run:models/{arguments.verifier}"), run), False, config.resources.score)
    actors = started(config, run, arguments)
    figures: dict[str, Any] = {"arguments": vars(arguments)}
    if arguments.its:
        sys.path.append(arguments.its)
        figures["its-hub"] = beside_its_hub(actors, scorer, config, run, problems, arguments)
    if arguments.seeds:
        figures["sampling"] = beside_sampling(actors, scorer, run, problems, arguments)
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(figures, indent=1))


def parsed() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--its", metavar="FOLDER")
    parser.add_argument("--methods", nargs="+", default=["beam", "dvts", "lookahead", "particles"])
    parser.add_argument("--problems", type=int, default=24)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--server-threads", type=int, default=1, help="of torch in its-hub's server")
    parser.add_argument("--server-options", default="", help="of its-hub's vLLM, as --api-server-count=2")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--verifier", default="prm-base")
    parser.add_argument("--aggregation", default="min")
    parser.add_argument("--out")
    return parser.parse_args()


class Actor(Searcher):
    """Our worker, which also scores its candidates as its-hub does, to choose the best one."""

    def candidates(self, problems: list[dict[str, Any]], settings: dict[str, Any]) -> dict[str, tuple[int, Scored]]:
        """For each problem the tokens generated for it and its candidates."""
        self.settings = self.settings.model_copy(update=settings)
        names = {"unit_id": [p["problem_id"] for p in problems], "question": [p["question"] for p in problems]}
        rows = self(pa.table(names))[0].to_pylist()
        question = {problem["problem_id"]: problem["question"] for problem in problems}
        assert isinstance(self.scorer, LocalPrm)
        solutions = [(question[row["problem_id"]], row["text"]) for row in rows]
        scores = score(self.scorer.scorer, self.settings.aggregation, solutions)
        candidates: dict[str, tuple[int, Scored]] = {}
        for row, value in zip(rows, scores, strict=True):
            _, texts = candidates.setdefault(row["problem_id"], (row["problem_tokens"], []))
            texts.append((row["text"], value))
        return candidates


def started(config: Config, run: Run, arguments: argparse.Namespace) -> list[Any]:
    """Our actors, on the machine's Ray or one that is started."""
    assert config.generator is not None
    join(config.resources.model_copy(update={"num_cpus": arguments.actors}))
    settings = Search(n=arguments.n, width=arguments.width, temperature=config.sample.temperature)
    worker = ray.remote(Actor).options(num_cpus=1)
    return [
        worker.remote(
            run.path,
            config.generator,
            config.resources.sample,
            config.sample,
            settings.model_copy(update={"aggregation": arguments.aggregation}),
            Model(model=f"run:models/{arguments.verifier}"),
            config.resources.score,
            config.label.splitter,
        )
        for _ in range(arguments.actors)
    ]


def search(actors: list[Any], problems: list[dict[str, Any]], **settings: Any) -> dict[str, tuple[int, Scored]]:
    """For each problem the tokens that we generated for it and our candidates."""
    shares = [problems[place :: len(actors)] for place in range(len(actors))]
    work = zip(actors, shares, strict=True)
    parts = ray.get([actor.candidates.remote(share, settings) for actor, share in work if share])
    return {name: values for part in parts for name, values in part.items()}


def score(scorer: Scorer, aggregation: Any, solutions: list[tuple[str, str]]) -> list[float]:
    """The PRM's score of each text for a question."""
    steps = scorer.score([(question, lines(text)) for question, text in solutions])[0]
    flat = np.array([value for values in steps for value in values])
    return np.nan_to_num(aggregate(flat, np.array([len(values) for values in steps]), aggregation)).tolist()


def answer(text: str) -> str:
    """The answer on the last line."""
    return text.rpartition(ANSWER)[2].strip(": .\n") if ANSWER in text else ""


def choose(selection: str, candidates: Scored) -> str:
    """The answer that a way to select takes."""
    if selection == "best-of-n":
        return answer(max(candidates, key=lambda candidate: candidate[1])[0])
    votes: dict[str, float] = defaultdict(float)
    for text, value in candidates:
        votes[answer(text)] += value if selection == "weighted vote" else 1.0
    return max(votes, key=lambda name: votes[name])


class Theirs:
    """its-hub with a vLLM server and our PRM behind its interface."""

    def __init__(self, config: Config, run: Run, scorer: Scorer, folder: str, arguments: argparse.Namespace) -> None:
        from its_hub.core.algorithms.beam_search import BeamSearch
        from its_hub.core.algorithms.particle_gibbs import ParticleFiltering
        from its_hub.core.lms.openai_lm import OpenAICompatibleLanguageModel
        from its_hub.core.lms.step_generation import StepGeneration

        assert config.generator is not None
        self.server, address = vllm_server(locate(config.generator, run), folder, config, arguments)
        self.n = arguments.n
        model = OpenAICompatibleLanguageModel(
            f"{address}/v1", "none", "generator", max_completion_tokens=config.sample.max_tokens
        )
        steps = StepGeneration(32, step_token="\n", stop_token=ANSWER, temperature=config.sample.temperature)
        prm = Prm(scorer, arguments.aggregation)
        # `beam_width` is how many beams it keeps.
        self.algorithms = {
            "beam": BeamSearch(steps, prm, max(1, arguments.n // arguments.width)),
            "particles": ParticleFiltering(steps, prm),
        }
        self.model, self.address, self.prm = model, address, prm

    def search(self, method: str, problems: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
        """Its answer to each problem and the texts of its candidates, all problems at once."""
        warnings.simplefilter("ignore", DeprecationWarning)

        async def everything() -> list[Any]:
            algorithm = self.algorithms[method]
            asked = (algorithm.ainfer(self.model, problem["question"], self.n, False) for problem in problems)
            return await asyncio.gather(*asked)

        results = asyncio.run(everything())
        return [(answer(r.the_one["content"]), [message["content"] for message in r.responses]) for r in results]

    def tokens(self) -> int:
        """Tokens that its server has generated so far."""
        text = self.server.client.get(f"{self.address}/metrics").text
        values = [line.split()[-1] for line in text.splitlines() if line.startswith("vllm:generation_tokens_total")]
        return round(sum(map(float, values)))


class Prm:
    """Our PRM as its-hub calls one: whole texts of one question, scored together."""

    def __init__(self, scorer: Scorer, aggregation: str) -> None:
        self.scorer, self.aggregation = scorer, aggregation

    async def ascore(self, prompt: str, responses: list[str]) -> list[float]:
        """The score of each text."""
        return score(self.scorer, self.aggregation, [(prompt, response) for response in responses])


def vllm_server(path: str, folder: str, config: Config, arguments: argparse.Namespace) -> tuple[Server, str]:
    """vLLM's own server with the generator, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    template = Path(folder, "template.jinja")
    template.write_text(TEMPLATE)
    engine = config.resources.sample
    options = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "generator", "--enforce-eager"]
    options += ["--dtype", "float32", "--block-size", "32", "--max-model-len", str(engine.max_model_len)]
    options += ["--chat-template", str(template), "--max-num-seqs", str(engine.max_num_seqs)]
    options += ["--disable-uvicorn-access-log", "--generation-config", "vllm", *arguments.server_options.split()]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", path, *options]
    environment = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment["OMP_NUM_THREADS"] = str(arguments.server_threads)
    server = Server(command, f"{folder}/vllm.log", environment)
    server.ready(f"http://127.0.0.1:{port}")
    return server, f"http://127.0.0.1:{port}"


def beside_its_hub(
    actors: list[Any],
    scorer: Scorer,
    config: Config,
    run: Run,
    problems: list[dict[str, Any]],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Alternating rounds of both; prints and returns what they took."""
    figures = {}
    print(
        f"minos_ray: {arguments.actors} actors of 1 thread; its-hub: a server of {arguments.server_threads} threads "
        f"[{arguments.server_options}] and this process, all {len(problems)} problems at once; n = {arguments.n}, "
        f"width = {arguments.width}"
    )
    with tempfile.TemporaryDirectory() as folder:
        theirs = Theirs(config, run, scorer, folder, arguments)
        try:
            for method in [method for method in arguments.methods if method in theirs.algorithms]:
                rounds: dict[str, list[dict[str, Any]]] = {"minos_ray": [], "its-hub": []}
                search(actors, problems[:4], method=method)
                theirs.search(method, problems[:4])
                for turn in range(arguments.rounds):
                    rounds["minos_ray"].append(our_round(actors, theirs, method, turn, problems))
                    rounds["its-hub"].append(their_round(theirs, method, problems))
                figures[method] = rounds
                show(method, rounds, len(problems))
        finally:
            theirs.server.process.terminate()
            theirs.server.process.wait()
    return figures


def our_round(
    actors: list[Any], theirs: Theirs, method: str, seed: int, problems: list[dict[str, Any]]
) -> dict[str, Any]:
    """One round of ours, with the CPU seconds of this process, of Ray and of the actors."""
    wall, cpu = time.perf_counter(), cpu_of(os.getpid()) - cpu_of(theirs.server.process.pid)
    candidates = search(actors, problems, method=method, seed=seed)
    wall = time.perf_counter() - wall
    cpu = cpu_of(os.getpid()) - cpu_of(theirs.server.process.pid) - cpu
    tokens = sum(tokens for tokens, _ in candidates.values())
    texts = [candidates[problem["problem_id"]][1] for problem in problems]
    right = {name: right_of(problems, [choose(name, scored) for scored in texts]) for name in SELECTIONS[:2]}
    return {"wall": wall, "cpu": cpu, "tokens": tokens, **right}


def their_round(theirs: Theirs, method: str, problems: list[dict[str, Any]]) -> dict[str, Any]:
    """One round of its-hub, with the CPU seconds of this process and of its server."""
    before, tokens = cpu_of(theirs.server.process.pid), theirs.tokens()
    wall, cpu = time.perf_counter(), time.process_time()
    answers = theirs.search(method, problems)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    cpu += cpu_of(theirs.server.process.pid) - before
    votes = []
    for problem, (_, texts) in zip(problems, answers, strict=True):
        scores = score(theirs.prm.scorer, theirs.prm.aggregation, [(problem["question"], text) for text in texts])
        votes.append(choose("weighted vote", list(zip(texts, scores, strict=True))))
    right = {"best-of-n": right_of(problems, [a for a, _ in answers]), "weighted vote": right_of(problems, votes)}
    return {"wall": wall, "cpu": cpu, "tokens": theirs.tokens() - tokens, **right}


def right_of(problems: list[dict[str, Any]], answers: list[str]) -> list[bool]:
    """Which answers are right."""
    return [a == problem["answer"] for a, problem in zip(answers, problems, strict=True)]


def cpu_of(pid: int) -> float:
    """CPU seconds of a process and all that it started."""
    main_process = psutil.Process(pid)
    seconds = 0.0
    for process in (main_process, *main_process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            seconds += sum(process.cpu_times()[:2])
    return seconds


def show(method: str, rounds: dict[str, list[dict[str, Any]]], problems: int) -> None:
    """Prints medians of the rounds, and accuracies with intervals over problems."""
    print(f"{method}: {problems} problems, medians of {len(rounds['minos_ray'])} alternating rounds")
    medians: dict[str, dict[str, float]] = {}
    for name, turns in rounds.items():
        medians[name] = {key: statistics.median(turn[key] for turn in turns) for key in ("wall", "cpu", "tokens")}
    ours = medians["minos_ray"]
    for name, values in medians.items():
        print(
            f"  {name:10} {60 * problems / values['wall']:8.1f} problems/min   {values['cpu']:7.1f} CPU s   "
            f"{values['tokens']:8,.0f} tokens   first is {values['wall'] / ours['wall']:.2f} x in wall, "
            f"{values['cpu'] / ours['cpu']:.2f} x in CPU time",
            flush=True,
        )
    for selection in SELECTIONS[:2]:
        first, second = (np.mean([turn[selection] for turn in turns], axis=0) for turns in rounds.values())
        mean, low, high = intervals(np.stack([first, second, first - second], axis=1), 2000, 0)
        print(
            f"  {selection:14} minos_ray {mean[0]:.3f}   its-hub {mean[1]:.3f}   "
            f"difference {mean[2]:+.3f} [{low[2]:+.3f}, {high[2]:+.3f}]",
            flush=True,
        )


def beside_sampling(
    actors: list[Any], scorer: Scorer, run: Run, problems: list[dict[str, Any]], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Every method against the run's samples of the same tokens."""
    samples = defaultdict(list)
    names = [problem["problem_id"] for problem in problems]
    for row in run.artefact("candidates").read_where("problem_id", names).to_pylist():
        samples[row["problem_id"]].append(row)
    sampled = {
        p["problem_id"]: score(
            scorer, arguments.aggregation, [(p["question"], row["text"]) for row in samples[p["problem_id"]]]
        )
        for p in problems
    }
    figures = []
    for method in arguments.methods:
        outcomes = {key: np.zeros((len(problems), arguments.seeds)) for key in keys()}
        tokens = np.zeros((len(problems), arguments.seeds))
        for seed in range(arguments.seeds):
            candidates = search(actors, problems, method=method, seed=seed)
            for place, problem in enumerate(problems):
                name = problem["problem_id"]
                tokens[place, seed], texts = candidates[name]
                draws = equal_draws(samples[name], sampled[name], tokens[place, seed], seed)
                for selection in SELECTIONS:
                    outcomes["search", selection][place, seed] = choose(selection, texts) == problem["answer"]
                    right = [choose(selection, draw) == problem["answer"] for draw in draws]
                    outcomes["samples", selection][place, seed] = np.mean(right)
        figures += compared(method, outcomes, tokens, arguments)
    return figures


def keys() -> list[tuple[str, str]]:
    """Both ways to get candidates with every way to select."""
    return [(way, selection) for way in ("search", "samples") for selection in SELECTIONS]


def equal_draws(rows: list[dict[str, Any]], scores: list[float], tokens: float, seed: int) -> list[Scored]:
    """Random samples of a problem whose tokens come nearest to `tokens`, `DRAWS` times."""
    draws = []
    for draw in range(DRAWS):
        order = random.Random(f"{seed} {draw} {rows[0]['problem_id']}").sample(range(len(rows)), len(rows))
        spent = np.cumsum([rows[place]["num_tokens"] for place in order])
        size = max(1, int(np.abs(spent - tokens).argmin()) + 1)
        draws.append([(rows[place]["text"], scores[place]) for place in order[:size]])
    return draws


def compared(
    method: str, outcomes: dict[tuple[str, str], np.ndarray], tokens: np.ndarray, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Accuracies and paired differences of one method; printed."""
    figures = []
    print(f"{method}: n = {arguments.n}, {tokens.mean():.0f} tokens a problem, {arguments.seeds} seeds")
    for selection in SELECTIONS:
        search_mean, sample_mean = (outcomes[way, selection].mean(axis=1) for way in ("search", "samples"))
        columns = np.stack([search_mean, sample_mean, search_mean - sample_mean], axis=1)
        mean, low, high = intervals(columns, 2000, 0)
        figure = {"method": method, "selection": selection, "tokens": float(tokens.mean())}
        for name, place in (("search", 0), ("samples", 1), ("difference", 2)):
            figure[name] = [float(mean[place]), float(low[place]), float(high[place])]
        figures.append(figure)
        print(
            f"  {selection:14} search {mean[0]:.3f}   samples {mean[1]:.3f}   "
            f"difference {mean[2]:+.3f} [{low[2]:+.3f}, {high[2]:+.3f}]",
            flush=True,
        )
    return figures


if __name__ == "__main__":
    main()
