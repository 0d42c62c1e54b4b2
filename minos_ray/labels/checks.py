"""What would stop the stage `label`, and what other stages cannot do when nothing labels steps."""

from collections.abc import Collection, Iterator, Set

import pyarrow.compute as pc

from minos_ray.candidates.checks import length_problems
from minos_ray.config.load import Config, NamedFunction
from minos_ray.config.schema import Model
from minos_ray.errors import UserError, errors_of
from minos_ray.grading.graders import Grader
from minos_ray.graph.state import Todo
from minos_ray.store.run import Run

SOURCES = "set label.steps (package.module:function) or label.rollouts, or import labels of steps"
EXAMPLE = "Step 1: 1 + 1 = 2\nThe answer is: 2"


def functions(config: Config, stages: Set[str]) -> Iterator[NamedFunction]:
    """The grader, the splitter and what labels steps."""
    if "label" not in stages:
        return
    label = config.label
    yield NamedFunction("label.grader", label.grader, "a minos_ray.grading.graders.Grader", kind=Grader)
    yield NamedFunction(
        "label.splitter", label.splitter, "(text) -> list of steps", (EXAMPLE,), is_right=is_list_of_texts
    )
    if label.steps:
        form = "(question, solution, steps) -> labels and error types"
        yield NamedFunction("label.steps", label.steps, form, ("1 + 1?", None, EXAMPLE.split("\n")))


def is_list_of_texts(value: object) -> bool:
    """What a splitter gives."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def models(config: Config, stages: Set[str]) -> Iterator[tuple[str, Model]]:
    """The model that completes rollouts, where it is not the generator, with its key."""
    rollouts = config.label.rollouts if "label" in stages else None
    if rollouts and rollouts.completer:
        yield "label.rollouts.completer", rollouts.completer


def problems_of(config: Config, run: Run, todo: Todo) -> Iterator[str]:
    """One line for each thing wrong with the rollouts."""
    if "rollouts" not in todo.artefacts or config.label.rollouts is None:
        return
    from minos_ray.labels.rollouts import completer, settings

    model = config.label.rollouts.completer
    if model and model != config.generator:
        tokens, engine = config.sample.max_tokens, config.resources.sample
        yield from length_problems("sample.max_tokens", tokens, "sample", engine, model, run)
    yield from errors_of(settings, config)
    yield from errors_of(completer, config)


def steps_are_labelled(config: Config, run: Run) -> bool:
    """Whether some step has, or will have, a label; labels that were imported are looked at."""
    labels = run.artefact("labels")
    manifest = labels.manifest()
    if manifest is None or "import" not in manifest.inputs:
        return bool(config.label.steps or config.label.rollouts)
    parts = labels.parts(["step_labels"])
    return any(pc.any(pc.greater_equal(pc.list_flatten(rows["step_labels"]), 0)).as_py() for rows in parts)


def require_for_prms(config: Config, run: Run, key: str, names: Collection[str]) -> None:
    """UserError when there are PRMs among the verifiers (or kinds) of a key and no step labels to learn from."""
    prms = [name for name in names if name.startswith("prm")]
    if prms and not steps_are_labelled(config, run):
        orms = ", ".join(name.replace("prm", "orm") for name in prms)
        raise UserError(
            f"{key}: {', '.join(prms)} need step labels to learn from, and nothing labels steps: {SOURCES}, or train "
            f"ORMs alone ({key}=[{orms}])"
        )


def require_for_error_analysis(config: Config, run: Run) -> None:
    """UserError when wrong steps are to be sorted and none will be known."""
    count = config.error_analysis.count
    if count and not config.inserted.count and not steps_are_labelled(config, run):
        raise UserError(
            f"error_analysis.count = {count}: only steps that are labelled wrong are sorted, and nothing labels steps: "
            f"{SOURCES}; or set inserted.count, or error_analysis.count=0"
        )
