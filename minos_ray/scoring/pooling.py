"""vLLM as the engine that scores: its pooling runner gives raw logits; equal solutions are scored once.

An ORM runs as `classify` (prompts in order, so that the prefix cache holds the question), a model that is read at every
step as `token_classify`, for which vLLM computes every token: it does not read its prefix cache there.
"""

from typing import Any, Literal

import numpy as np

from minos_ray.candidates.engine import (
    arguments,
    dead_engine,
    die,
    import_vllm,
    kill_engine_with_parent,
    shut_down,
)
from minos_ray.config.resources import Scoring
from minos_ray.config.schema import Model
from minos_ray.scoring.verifier import Verifier, free_memory


class Pooling(Verifier):
    """A verifier in vLLM; with GPUs, `resources.gpus` is the tensor-parallel size."""

    def __init__(self, model: str, trust_remote_code: bool, resources: Scoring) -> None:
        super().__init__(model, trust_remote_code, resources.max_model_len)
        import_vllm(resources)
        from vllm import LLM, PoolingParams
        from vllm.config import PoolerConfig

        # An ORM with a logit at every token (a calibrated one) is read at the last by `classify`, too.
        self.task: Literal["token_classify", "classify"] = "token_classify" if self.every_step else "classify"
        self.raw = PoolingParams(use_activation=False)
        settings = arguments(model, Model(model=model, trust_remote_code=trust_remote_code), self.fitted(resources))
        self.llm = LLM(model, runner="pooling", pooler_config=PoolerConfig(task=self.task), **settings)
        self.guards = kill_engine_with_parent(self.llm)

    def close(self) -> None:
        """Shuts the engine down: vLLM keeps it, and its GPU memory, after its `LLM` is deleted."""
        shut_down(self.llm, self.guards)
        del self.llm
        free_memory()

    def fitted(self, resources: Scoring) -> Scoring:
        """Resources with the length and the precision of the model: vLLM's `auto` turns float32 into half precision."""
        saved = str(self.config.dtype or "float32").removeprefix("torch.")
        dtype = saved if resources.dtype == "auto" else resources.dtype
        return resources.model_copy(update={"max_model_len": self.max_length, "dtype": dtype})

    def compute(self, sequences: list[list[int]], read: list[list[int]]) -> tuple[list[list[float]], int]:
        """Every distinct sequence once, those with a shared prefix after one another."""
        distinct = sorted({tuple(ids) for ids in sequences})
        try:
            outputs = self.outputs([{"prompt_token_ids": list(ids)} for ids in distinct])
        except dead_engine() as error:
            die(error)
        # The sigmoid in double precision, without overflow.
        logits = (np.clip(self.logits(output).astype(np.float64), -80, 80) for output in outputs)
        scores = {ids: 1 / (1 + np.exp(-values)) for ids, values in zip(distinct, logits, strict=True)}
        tokens = sum(len(ids) - (output.num_cached_tokens or 0) for ids, output in zip(distinct, outputs, strict=True))
        positions = read if self.task == "token_classify" else [[0]] * len(read)
        return [scores[tuple(ids)][places].tolist() for ids, places in zip(sequences, positions, strict=True)], tokens

    def outputs(self, prompts: list[Any]) -> list[Any]:
        """vLLM's outputs, in order."""
        if self.task == "classify":
            return self.llm.classify(prompts, pooling_params=self.raw, use_tqdm=False)
        return self.llm.encode(prompts, pooling_task=self.task, pooling_params=self.raw, use_tqdm=False)

    def logits(self, output: Any) -> np.ndarray:
        """Raw logits: [1] of `classify`, else [tokens]."""
        if self.task == "classify":
            return np.asarray(output.outputs.probs, np.float32)
        return output.outputs.data[:, 0].float().cpu().numpy()
