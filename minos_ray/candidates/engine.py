"""vLLM inside an actor: how the engine is built on CPU and GPU, and one call that turns requests into texts."""

import json
import os
import tempfile
import time
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from minos_ray.sections import Engine, Model

PROMPT_TOO_LONG = "prompt_too_long"
DEATHS_ALLOWED = 3
NATIVE_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


class Request(NamedTuple):
    """A prompt and how many texts are wanted for it."""

    prompt: list[int]
    count: int


class Text(NamedTuple):
    """One generated text, without EOS; `reason` is stop, length or prompt_too_long."""

    text: str
    reason: str
    tokens: int


class Reseed:
    """Added to vLLM's worker, so that the random stream can be chosen before each batch on every device."""

    def minos_reseed(self, seed: int) -> None:
        """Seeds every generator that sampling without per-request seeds draws from."""
        from vllm.utils.torch_utils import set_random_seed

        set_random_seed(seed)


class Generator:
    """A vLLM engine. Engines all start from one seed, so each batch brings its own: no two draw the same stream."""

    def __init__(self, path: str, model: Model, resources: Engine) -> None:
        set_environment(resources)
        from vllm import LLM

        self.llm = LLM(path, **arguments(path, model, resources))
        self.max_model_len = self.llm.model_config.max_model_len

    def generate(self, requests: Sequence[Request], sampling: dict[str, Any], seed: str) -> list[list[Text]]:
        """`count` texts for every request, in order. `sampling` goes to vLLM's SamplingParams; temperature 0 is greedy.

        Greedy texts of one prompt are all the same, so one is made and repeated. A prompt that leaves no room for
        `max_tokens` gives empty texts with the reason prompt_too_long.
        """
        fits = [len(r.prompt) + sampling["max_tokens"] <= self.max_model_len for r in requests]
        fitting = [r for r, fit in zip(requests, fits, strict=True) if fit]
        try:
            made = iter(self._generate(fitting, sampling, seed))
        except dead_engine() as error:
            die(error)
        return [
            next(made) if fit else [Text("", PROMPT_TOO_LONG, 0)] * r.count
            for r, fit in zip(requests, fits, strict=True)
        ]

    def _generate(self, requests: list[Request], sampling: dict[str, Any], seed: str) -> list[list[Text]]:
        from vllm import SamplingParams

        if not requests:
            return []
        greedy = sampling["temperature"] == 0
        self.llm.collective_rpc("minos_reseed", args=(stable_seed(seed),))
        outputs = self.llm.generate(
            [{"prompt_token_ids": r.prompt} for r in requests],
            [SamplingParams(n=1 if greedy else r.count, **sampling) for r in requests],
            use_tqdm=False,
        )
        texts = [[Text(o.text, str(o.finish_reason), len(o.token_ids)) for o in out.outputs] for out in outputs]
        return [made * r.count if greedy else made for made, r in zip(texts, requests, strict=True)]


def arguments(path: str, model: Model, resources: Engine) -> dict[str, Any]:
    """Arguments of `vllm.LLM`; `resources.extra` wins."""
    common = {
        "dtype": resources.dtype,
        "max_model_len": min(resources.max_model_len, longest(path)),
        "max_num_seqs": resources.max_num_seqs,
        "enforce_eager": resources.eager,
        "enable_prefix_caching": True,
        "trust_remote_code": model.trust_remote_code,
        "tokenizer_mode": "hf",
        "worker_extension_cls": f"{Reseed.__module__}.{Reseed.__name__}",
        "disable_log_stats": True,
    }
    device = gpu_arguments(resources) if resources.gpus else cpu_arguments(resources)
    return {**common, **device, **resources.extra}


def cpu_arguments(resources: Engine) -> dict[str, Any]:
    """The engine in the actor's own process. Prompts are shared block by block, and 32 is the smallest block."""
    return {
        "dtype": cpu_dtype() if resources.dtype == "auto" else resources.dtype,
        "distributed_executor_backend": "uni",
        "block_size": 32,
        "kv_cache_memory_bytes": int(resources.kv_cache_gb * 2**30),
    }


def gpu_arguments(resources: Engine) -> dict[str, Any]:
    """Tensor parallel over the actor's own GPUs, which are all on one node."""
    return {
        "tensor_parallel_size": resources.gpus,
        "distributed_executor_backend": "mp" if resources.gpus > 1 else "uni",
        "gpu_memory_utilization": resources.gpu_memory_utilization,
    }


def set_environment(resources: Engine) -> None:
    """vLLM reads these when it is imported; a value set by the user wins."""
    values = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    if not resources.gpus:
        values |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    for name, value in values.items():
        os.environ.setdefault(name, value)


def cpu_dtype() -> str:
    """bfloat16 where the CPU computes with it; elsewhere it is emulated and float32 is more than twice as fast."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        words = set()
    return "bfloat16" if words & NATIVE_BF16 else "float32"


def longest(path: str) -> int:
    """The number of positions that a model's config allows; no limit when it names none."""
    config = json.loads((Path(path) / "config.json").read_text())
    return int(config.get("max_position_embeddings") or 2**31)


def stable_seed(text: str) -> int:
    """31 bits that depend on the text only."""
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big") >> 1


def dead_engine() -> tuple[type[BaseException], ...]:
    """Errors after which an engine does not recover."""
    import torch
    from vllm.v1.engine.exceptions import EngineDeadError

    return EngineDeadError, torch.OutOfMemoryError


def die(error: BaseException) -> NoReturn:
    """Ends the process, so that Ray restarts the actor with a new engine and repeats the batch.

    An actor that keeps losing its engine fails the job instead: Ray would restart it for ever.
    """
    import ray

    actor = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
    if actor is None:
        raise error
    ledger = Path(tempfile.gettempdir()) / f"minos-engine-deaths-{actor}"
    with ledger.open("a") as deaths:
        deaths.write(f"{time.time()}\n")
    if len(ledger.read_text().splitlines()) >= DEATHS_ALLOWED:
        raise RuntimeError(f"the engine died {DEATHS_ALLOWED} times in one actor") from error
    os._exit(1)
