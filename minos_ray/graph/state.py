"""The state of every artefact of a run: done, stale and why, partial, or missing."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from minos_ray.config.load import Config, leaves
from minos_ray.graph.lengths import outgrown
from minos_ray.graph.specs import STAGES_WITHIN, Spec, comparable, inputs, is_fresh, specs, still_telling
from minos_ray.store.run import Artefact, Manifest, Run


@dataclass(frozen=True)
class State:
    """State of one artefact: done, stale (and why), partial (parts so far) or missing."""

    artefact: str
    stage: str
    state: str
    why: str
    manifest: Manifest | None


class Todo(NamedTuple):
    """What is still to be done: artefacts, and stages, with those that a sweep or a study does in its trials."""

    artefacts: frozenset[str]
    stages: frozenset[str]


def todo_of(states: Iterable[State]) -> Todo:
    """What of these artefacts is not done."""
    left = [state for state in states if state.state != "done"]
    stages = {state.stage for state in left}
    within = {inner for stage in stages for inner in STAGES_WITHIN.get(stage, ())}
    return Todo(frozenset(state.artefact for state in left), frozenset(stages | within))


def status(config: Config, run: Run) -> list[State]:
    """The state of every artefact of the run."""
    return [state_of(config, run, s) for s in specs(config)]


def state_of(config: Config, run: Run, made: Spec) -> State:
    """done / stale / partial / missing, with the reason."""
    artefact = run.artefact(made.artefact)
    manifest = artefact.manifest()
    wanted = inputs(config, run, made)
    if manifest is None:
        begun = artefact.begun_inputs()
        why = halfway(artefact, begun, comparable(wanted, begun))
        return State(made.artefact, made.stage, "partial" if begun else "missing", why, None)
    if is_fresh(manifest, wanted):
        if why := outgrown(config, manifest):
            return State(made.artefact, made.stage, "partial", why, manifest)
        return State(made.artefact, made.stage, "done", "imported" if "import" in manifest.inputs else "", manifest)
    return State(
        made.artefact,
        made.stage,
        "stale",
        difference(still_telling(manifest.inputs), comparable(wanted, manifest.inputs)),
        manifest,
    )


def halfway(artefact: Artefact, begun: dict[str, Any] | None, wanted: dict[str, Any]) -> str:
    """What is there of an artefact that is not complete, and whether it was begun with other inputs."""
    parts = len(artefact.part_names()) if begun else 0
    other = difference(still_telling(begun), wanted) if begun else ""
    return ", ".join([*([f"{parts} parts so far"] if parts else []), *([f"begun with {other}"] if other else [])])


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What changed between the inputs an artefact was made from and those of now."""
    before, now = ({key: value for key, value in leaves(values) if value != {}} for values in (old, new))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    shown = [describe(key, before.get(key), now.get(key)) for key in changed[:3]]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return ", ".join(shown) + more


def describe(key: str, before: Any, now: Any) -> str:
    """One change in words."""
    if key.startswith("needs."):
        return f"{key.removeprefix('needs.')} changed"
    if key.startswith("contents."):
        return f"{key.removeprefix('contents.')} has other content"
    return f"{key.removeprefix('config.')}: {before} -> {now}"
