"""What would stop the stage `sample`, and what it will write."""

import math
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress

from minos_ray.candidates.prompts import prompt_of
from minos_ray.cluster.bundles import Bundles
from minos_ray.config.load import NamedFunction
from minos_ray.config.resources import Engine
from minos_ray.config.schema import Config, Model
from minos_ray.errors import UserError, errors_of
from minos_ray.graph.lengths import require_room
from minos_ray.graph.state import Todo
from minos_ray.store.model_files import engine_bytes, is_hub_id, locate
from minos_ray.store.run import Run

# Stored bytes for each token of the limit: about half of it is used, a token is four characters, zstd halves them.
TOKEN_BYTES = 1


def functions(config: Config, stages: Set[str]) -> Iterator[NamedFunction]:
    """The prompt of the generator, which rollouts need too."""
    if "sample" in stages or ("label" in stages and config.label.rollouts):
        form = "(question, tokenizer) -> token ids"
        yield NamedFunction("sample.prompt", config.sample.prompt, form, ("1 + 1?", None))


def models(config: Config, stages: Set[str]) -> Iterator[tuple[str, Model]]:
    """The generator, with its key; it completes the rollouts that name no completer."""
    rollouts = config.label.rollouts if "label" in stages else None
    if config.generator and ("sample" in stages or (rollouts and not rollouts.completer)):
        yield "generator.model", config.generator


def problems_of(config: Config, run: Run, todo: Todo) -> Iterator[str]:
    """One line for each thing wrong with the prompt or the lengths."""
    if "sample" in todo.stages or "rollouts" in todo.artefacts:
        yield from errors_of(prompt_of, config.sample)
    if "candidates" in todo.artefacts and config.generator:
        yield from length_problems(
            "sample.max_tokens", config.sample.max_tokens, "sample", config.resources.sample, config.generator, run
        )


def length_problems(key: str, tokens: int, pool: str, engine: Engine, model: Model, run: Run) -> list[str]:
    """No room for a prompt beside `tokens`, in the engine or in a model that lies on this machine."""
    path = None
    if not is_hub_id(model.model) and not model.model.startswith("run:"):
        with suppress(UserError):  # `graph.models` names what is wrong with the model
            path = locate(model, run)
    return errors_of(require_room, key, tokens, pool, engine, path)


def gpu_problems(config: Config, run: Run, pools: Mapping[str, Bundles], gpu_gb: float) -> Iterator[str]:
    """The generator, when GPUs of `gpu_gb` cannot hold its weights."""
    if "sample" in pools and config.generator:
        yield from weight_problems("sample", config.resources.sample, config.generator, run, gpu_gb)


def weight_problems(pool: str, engine: Engine, model: Model, run: Run, gpu_gb: float) -> Iterator[str]:
    """An engine whose weights do not fit on its GPUs."""
    usable = gpu_gb * engine.gpu_memory_utilization * min(1, engine.gpus)
    gpus = math.ceil(engine.gpus) * engine.pipeline_parallel_size
    weights = engine_bytes(model, run, engine.dtype) / 1e9 / max(1, gpus)
    if gpus and weights > usable:
        yield (
            f"resources.{pool}: the weights of '{model.model}' take {weights:.2f} GB on each of "
            f"{gpus} GPUs, which offer {usable:.2f}; raise resources.{pool}.gpus"
        )


def bytes_of_candidates(config: Config, run: Run) -> float:
    """Bytes of all candidates; 0 when it is not known how many problems there are."""
    counts = {"train": config.sample.n_train, "test": config.sample.n_test}
    rows = sum(count * problems_in(config, run, split) for split, count in counts.items())
    return rows * config.sample.max_tokens * TOKEN_BYTES


def problems_in(config: Config, run: Run, split: str) -> int:
    """Problems of a split: counted, else the limit of the config, else 0."""
    manifest = run.artefact("problems").manifest()
    if manifest is not None:
        return manifest.counts.get(split, 0)
    return (getattr(config.problems, split).limit or 0) if config.problems else 0
