"""Settings that cannot go together: seen in the config and the run, long before the stage that they would stop."""

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress

from minos_ray.config.resources import Engine
from minos_ray.config.schema import Config, Model
from minos_ray.errors import UserError
from minos_ray.graph.lengths import require_room
from minos_ray.labels.sources import require_for_error_analysis, require_for_prms
from minos_ray.store.model_files import is_hub_id, locate
from minos_ray.store.run import Run

Tests = Iterator[Callable[[], object]]


def label_tests(config: Config, run: Run, stages: Collection[str]) -> Tests:
    """What of these stages wants labels of steps."""
    if "critique" in stages:
        yield lambda: require_for_error_analysis(config, run)
    if "reward" in stages:
        yield lambda: require_for_prms(config, run, "reward.verifiers", config.reward.verifiers)
    if "sweep" in stages:
        yield lambda: require_for_prms(config, run, "sweep.kinds", config.sweep.kinds)


def length_tests(config: Config, run: Run, artefacts: Collection[str]) -> Tests:
    """Room for what is generated, in the engines that make these artefacts and in their models."""
    sample, rollouts, judge = config.sample.max_tokens, config.label.rollouts, config.score.judge
    completer = (rollouts and rollouts.completer) or config.generator
    engines = config.resources
    if "candidates" in artefacts and config.generator:
        yield lambda: require("sample.max_tokens", sample, "sample", engines.sample, config.generator, run)
    if "rollouts" in artefacts and completer and completer != config.generator:
        yield lambda: require("sample.max_tokens", sample, "sample", engines.sample, completer, run)
    if "scores/critic" in artefacts and judge:
        yield lambda: require("score.judge.max_tokens", judge.max_tokens, "judge", engines.judge, config.base, run)


def require(key: str, max_tokens: int, pool: str, resources: Engine, model: Model, run: Run) -> None:
    """`require_room`, in the model too where it lies on this machine and is whole; else other lines say so."""
    path = None
    if not is_hub_id(model.model) and not model.model.startswith("run:"):
        with suppress(UserError):
            path = locate(model, run)
    require_room(key, max_tokens, pool, resources, path)
