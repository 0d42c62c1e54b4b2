"""The worker of the searching actors: a vLLM engine that proposes steps, and the PRM that scores them.

Many problems are in flight in one engine. Each proposes a step for all of its beams, waits for the last one, has them
scored, selects, and proposes again. Meanwhile the steps of other problems keep the engine full.
"""

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from minos_ray.candidates.engine import (
    ENGINE_DIED,
    Generator,
    Text,
    candidates,
    cpu_dtype,
    dead_engine,
    die,
    import_vllm,
    numbers,
    stable_seed,
)
from minos_ray.candidates.prompts import prompt_of, sampling_of
from minos_ray.cluster.room import on_nodes
from minos_ray.config.load import resolve
from minos_ray.config.resources import Engine, Scoring
from minos_ray.config.schema import Model, Sample, Search
from minos_ray.graph.lengths import PROMPT_TOO_LONG
from minos_ray.scoring.prefix_cache import Branch, Growing, StepScorer
from minos_ray.scoring.verifier import Scorer, aggregate
from minos_ray.search.beams import Beam, ProblemSearch
from minos_ray.steps.split import own_solution
from minos_ray.store.model_files import load_tokenizer, locate
from minos_ray.store.run import Run
from minos_ray.units.actor import Finished, sum_stats

# Beams in flight, as a multiple of those that the engine works on at once: the others wait in its queue, or are scored.
IN_FLIGHT = 2
# Columns behind those of other candidates, by what is counted.
COSTS = {"problem_tokens": "tokens", "dropped_tokens": "dropped_tokens", "verifier_tokens": "verifier_tokens"}
# Beams that the PRM refuses: they have no step yet, or are too long.
WITHOUT_SCORE = "beams_without_score"
# Tokens of a prompt before a text, which some tokenizers need to tell whether the text begins with a blank.
CONTEXT = 8


class Searcher:
    """Searches the candidates of problems with its own engine and, where beams are selected, its own PRM.

    A unit is a problem, and brings its `question`. Its rows have all columns of candidates, and behind them the tokens
    that were generated for the problem, those of them that no candidate has, and the tokens that the PRM computed.
    """

    def __init__(
        self,
        run: str,
        model: Model,
        resources: Engine,
        sample: Sample,
        settings: Search,
        verifier: Model | None,
        scoring: Scoring,
        splitter: str,
        pools: int = 1,
        wait_s: float = 600,
    ) -> None:
        path = locate(model, Run(run))
        self.generator = Generator(path, model, for_steps(resources))
        self.tokenizer, self.prompt = load_tokenizer(path, model.trust_remote_code), prompt_of(sample)
        self.model, self.settings, self.splitter = model.model, settings, resolve(splitter)
        self.sampling, self.stops = sampling_of(sample, self.tokenizer), sample.stop
        self.scorer: LocalPrm | RemotePrm | None = None
        if verifier is not None and pools == 2:
            self.scorer = RemotePrm(run, verifier, scoring, wait_s)
        elif verifier is not None:  # on the GPUs of this actor, if it has any
            self.scorer = LocalPrm(run, verifier, scoring.model_copy(update={"gpus": min(1, resources.gpus)}))

    def __call__(self, units: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Candidates of all units, and their numbers."""
        finished = list(self.stream(units, lambda names: True))
        return pa.concat_tables([unit.rows for unit in finished]), sum_stats(unit.stats for unit in finished)

    def stream(self, batch: pa.Table, starting: Callable[[list[str]], bool]) -> Iterator[Finished]:
        """The candidates of each problem as it is finished, and their numbers."""
        from ray.exceptions import RayActorError

        try:
            yield from self.search(batch.to_pylist(), starting)
        except (*dead_engine(), RayActorError) as error:  # the engine or the PRM: this actor starts again with both
            die(error)

    def search(self, units: list[dict[str, Any]], starting: Callable[[list[str]], bool]) -> Iterator[Finished]:
        """Steps the engine, keeps it full, and selects when it is about to run empty."""
        from vllm import RequestOutput

        engine, width, since = self.generator.llm.llm_engine, self.generator.width, time.monotonic()
        waiting, active, ready = units[::-1], {}, []
        requests: dict[str, tuple[OneProblem, int]] = {}
        try:
            while waiting or active:
                while waiting and len(active) * self.settings.n < IN_FLIGHT * width:
                    unit = waiting.pop()
                    if not starting([unit["unit_id"]]):
                        waiting = []
                        break
                    problem = OneProblem(unit, self.prompt(unit["question"], self.tokenizer), self.settings)
                    if len(problem.prompt) + self.sampling["max_tokens"] > self.generator.max_model_len:
                        yield self.finished(unit, [Text("", PROMPT_TOO_LONG, 0)] * self.settings.n, {})
                    else:
                        active[problem.name] = problem
                        requests |= self.propose([problem])
                for output in engine.step() if requests else ():
                    if isinstance(output, RequestOutput) and output.finished:
                        problem, slot = requests.pop(output.request_id)
                        if self.receive(problem, slot, output.outputs[0]):
                            ready.append(problem)
                if ready and engine.get_num_unfinished_requests() < width:
                    requests |= self.propose(self.advance(ready))
                    for problem in ready:
                        if problem.search.done:
                            del active[problem.name]
                            seconds, since = time.monotonic() - since, time.monotonic()
                            yield self.finished(problem.unit, problem.texts(), {"seconds": seconds, **problem.costs()})
                    ready = []
        finally:
            if requests:
                engine.abort_request(list(requests))
            if self.scorer:
                for name in active:
                    self.scorer.close(name)

    def advance(self, problems: list["OneProblem"]) -> list["OneProblem"]:
        """Selects beams of problems that have all of their steps; returns those that go on."""
        decided = [problem for problem in problems if not problem.search.look_ahead()]
        self.rate(decided)
        for problem in decided:
            problem.search.select()
            if self.scorer and problem.search.done:
                self.scorer.close(problem.name)
            elif self.scorer:
                goes_on = problem.search.pending.values()
                self.scorer.keep(problem.name, [beam.cached for beam in goes_on if beam.cached])
        return [problem for problem in problems if not problem.search.done]

    def propose(self, problems: Iterable["OneProblem"]) -> dict[str, tuple["OneProblem", int]]:
        """Asks the engine for a step of every pending beam; returns problem and slot by the id of each request."""
        from vllm import SamplingParams

        asked, prompts, parameters = [], [], []
        temperature = self.settings.temperature
        for problem in problems:
            search = problem.search
            for slot, beam in search.pending.items():
                values: dict[str, Any] = {
                    **self.sampling,
                    "max_tokens": self.sampling["max_tokens"] - len(beam.ids),
                    "stop": [*self.stops, self.settings.step_end],
                    "skip_clone": True,  # they are of this request alone
                }
                if search.ahead:
                    values["temperature"] = 0.0
                elif temperature:
                    values["seed"] = stable_seed(f"{self.settings.seed} {problem.name} {slot} {len(beam.steps)}")
                asked.append((problem, slot))
                prompts.append({"prompt_token_ids": [*problem.prompt, *beam.ids]})
                parameters.append(SamplingParams(**values))
        if not asked:
            return {}
        names = self.generator.llm.enqueue(prompts, parameters, self.generator.adapter, use_tqdm=False)
        return {name.partition("-")[0]: place for name, place in zip(names, asked, strict=True)}

    def receive(self, problem: "OneProblem", slot: int, output: Any) -> bool:
        """Adds a step to its beam; whether it was the last one that the problem waited for."""
        beam = problem.search.pending[slot]
        ids = [*beam.ids, *output.token_ids]
        goes_on = output.finish_reason == "stop" and output.stop_reason == self.settings.step_end
        # EOS and other stop tokens are no text.
        by_token = output.finish_reason == "stop" and not isinstance(output.stop_reason, str)
        # The text of all steps at once, since a token may reach beyond the end of a step.
        options = {"skip_special_tokens": self.sampling.get("skip_special_tokens", True)}
        options["clean_up_tokenization_spaces"] = False
        context = problem.prompt[-CONTEXT:]
        before = self.tokenizer.decode(context, **options)
        text = self.tokenizer.decode([*context, *(ids[:-1] if by_token else ids)], **options)[len(before) :]
        reason = "" if goes_on else str(output.finish_reason)
        ends = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if ends:
            text, reason = text[: min(ends)], "stop"
        elif goes_on and (len(ids) >= self.sampling["max_tokens"] or len(beam.steps) + 1 >= self.settings.max_steps):
            reason = "length"
        return problem.search.extend(slot, output.token_ids, text, reason)

    def rate(self, problems: list["OneProblem"]) -> None:
        """Scores the new steps of all these problems in common passes."""
        if self.scorer is None:
            return
        asked = [(problem, slot, beam) for problem in problems for slot, beam in problem.search.unscored().items()]
        before, end, growing = self.scorer.tokens, self.settings.step_end, []
        for problem, _, beam in asked:  # the PRM reads complete steps, and all of a beam once it has ended
            text = beam.text if beam.reason else beam.text[: beam.text.rfind(end) + len(end)]
            steps = self.splitter(own_solution(text))
            growing.append(Growing(problem.name, problem.unit["question"], steps, beam.cached or Branch()))
        scored = self.scorer(growing)
        lengths = np.array([len(scores) for scores, _ in scored], np.int64)
        flat = np.array([score for scores, _ in scored for score in scores])
        totals = aggregate(flat, lengths, self.settings.aggregation or "min")
        for (problem, slot, beam), (_, branch), total in zip(asked, scored, totals.tolist(), strict=True):
            score = 0.0 if np.isnan(total) else total
            problem.without_score += bool(np.isnan(total))
            problem.search.rate(slot, replace(beam, score=score, cached=branch))
        for problem in problems:  # a pass is shared: its tokens count by beams
            share = sum(of is problem for of, _, _ in asked) / max(len(asked), 1)
            problem.verified += (self.scorer.tokens - before) * share

    def finished(self, unit: dict[str, Any], texts: list[Text], costs: dict[str, float]) -> Finished:
        """The rows of a problem, with its costs in each of them."""
        stats = {**numbers(texts, 0.0), **costs}
        return Finished([unit["unit_id"]], rows_of(unit, texts, self.model, costs), stats)

    @staticmethod
    def failed(units: pa.Table, model: Model, settings: Search, **kwargs: Any) -> tuple[pa.Table, dict[str, float]]:
        """Empty candidates of poisoned problems, so that every (problem, index) has a row."""
        empty = [Text("", ENGINE_DIED, 0)] * settings.n
        rows = pa.concat_tables([rows_of(unit, empty, model.model, {}) for unit in units.to_pylist()])
        return rows, {ENGINE_DIED: rows.num_rows}


class LocalPrm(StepScorer):
    """A PRM in this process."""

    def __init__(self, run: str, verifier: Model, scoring: Scoring) -> None:
        super().__init__(Scorer(locate(verifier, Run(run)), verifier.trust_remote_code, scoring))

    def score(self, solutions: Sequence[Growing]) -> tuple[list[tuple[list[float], Branch]], int]:
        """What a call gives, and the tokens computed so far."""
        return self(solutions), self.tokens


class RemotePrm:
    """A PRM in an actor of its own, which ends with the one that made it. Calls are done in their order."""

    def __init__(self, run: str, verifier: Model, scoring: Scoring, wait_s: float) -> None:
        import ray

        device = {"num_gpus": scoring.gpus} if scoring.gpus else {"num_cpus": scoring.cpus}
        self.actor: Any = ray.remote(LocalPrm).options(**device, **on_nodes(scoring)).remote(run, verifier, scoring)
        self.tokens = 0
        ray.get(self.actor.score.remote([]), timeout=wait_s)

    def __call__(self, solutions: Sequence[Growing]) -> list[tuple[list[float], Branch]]:
        """As `StepScorer`."""
        import ray

        results, self.tokens = ray.get(self.actor.score.remote(solutions))
        return results

    def keep(self, name: str, branches: list[Branch]) -> None:
        """As `StepScorer`."""
        self.actor.keep.remote(name, branches)

    def close(self, name: str) -> None:
        """As `StepScorer`."""
        self.actor.close.remote(name)


class OneProblem:
    """A problem in work: its prompt, its search, the tokens that the PRM computed for it, and how many beams the PRM
    could not score (as too long): these had score 0."""

    def __init__(self, unit: dict[str, Any], prompt: list[int], settings: Search) -> None:
        self.unit, self.name, self.prompt = unit, unit["unit_id"], prompt
        self.search = ProblemSearch(settings, self.name, Beam())
        self.verified = 0.0
        self.without_score = 0

    def texts(self) -> list[Text]:
        """Its candidates, by slot."""
        beams = (self.search.ended[slot] for slot in sorted(self.search.ended))
        return [Text(beam.text, beam.reason, len(beam.ids)) for beam in beams]

    def costs(self) -> dict[str, float]:
        """What the search has taken."""
        search = self.search
        return {
            "tokens": search.tokens,
            "dropped_tokens": search.dropped_tokens,
            "verifier_tokens": self.verified,
            "requests": search.requests,
            "levels": search.level,
            WITHOUT_SCORE: self.without_score,
        }


def for_steps(resources: Engine) -> Engine:
    """The engine's settings for requests of one step each, which matter on CPUs.

    A request with a seed of its own must be prefilled at once there: vLLM 0.32 fails where it is split. And the smaller
    the blocks of its cache, the less of a beam is computed again at each step (`small_blocks`).
    """
    if resources.gpus:
        return resources
    extra = {"enable_chunked_prefill": False, "max_num_batched_tokens": max(resources.max_model_len, 8192)}
    dtype = cpu_dtype() if resources.dtype == "auto" else resources.dtype
    import_vllm(resources)  # sets the environment
    # `small_blocks` tells this process alone, and its kernel takes them in float32 alone.
    engine = {"dtype": dtype, "distributed_executor_backend": "uni", "kv_cache_dtype": "auto", **resources.extra}
    in_process = os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0" and engine["distributed_executor_backend"] == "uni"
    plain = engine["dtype"] == "float32" and engine["kv_cache_dtype"] == "auto" and "block_size" not in engine
    if in_process and plain and platform.machine() in ("x86_64", "AMD64"):
        from minos_ray.search import small_blocks

        extra["block_size"] = small_blocks.TOKENS
    return resources.model_copy(update={"extra": {**extra, **resources.extra}})


def rows_of(unit: dict[str, Any], texts: list[Text], model: str, costs: dict[str, float]) -> pa.Table:
    """The rows of a problem, and in each of them what the problem has taken."""
    rows = candidates({"problem_id": unit["unit_id"], "first": 0}, texts, model)
    for name, key in COSTS.items():
        rows = rows.append_column(name, pa.array([round(costs.get(key, 0))] * len(texts), pa.int64()))
    return rows
