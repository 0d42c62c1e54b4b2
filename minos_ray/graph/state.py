"""The state of every artefact of a run: done, stale and why, partial, or missing."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from minos_ray.config.load import Config, leaves
from minos_ray.graph.lengths import outgrown
from minos_ray.graph.specs import STAGES_WITHIN, Spec, comparable, fresh, inputs, is_fresh, significant, specs
from minos_ray.store.run import Manifest, Run


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
    unfinished = [state for state in states if state.state != "done"]
    stages = {state.stage for state in unfinished}
    within = {inner for stage in stages for inner in STAGES_WITHIN.get(stage, ())}
    return Todo(frozenset(state.artefact for state in unfinished), frozenset(stages | within))


def status(config: Config, run: Run) -> list[State]:
    """The state of every artefact of the run."""
    return [state_of(config, run, spec) for spec in specs(config)]


def state_of(config: Config, run: Run, spec: Spec) -> State:
    """done / stale / partial / missing, with the reason."""
    artefact = run.artefact(spec.artefact)
    manifest, current = artefact.manifest(), inputs(config, run, spec)
    if manifest is None:
        state, why, recorded = "missing", "", artefact.begun_inputs()
        if spec.round and not recorded and (last := fresh(config, run, "refine.json")):
            state, why = (
                ("missing", "") if spec.round <= last.counts["rounds"] else ("done", "the rounds ended before it")
            )
        if recorded:
            parts, change = len(artefact.part_names()), difference(significant(recorded), comparable(current, recorded))
            reasons = [f"{parts} parts so far"] if parts else []
            reasons += [f"begun with {change}"] if change else []
            state, why = "partial", ", ".join(reasons)
    elif not is_fresh(manifest, current):
        recorded = significant(manifest.inputs)
        state, why = "stale", difference(recorded, comparable(current, manifest.inputs))
    elif why := outgrown(config, manifest):
        state = "partial"
    else:
        state, why = "done", "imported" if "import" in manifest.inputs else ""
    return State(spec.artefact, spec.stage, state, why, manifest)


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What changed between the inputs an artefact was made from and those of now."""
    before, now = ({key: value for key, value in leaves(values) if value != {}} for values in (before, now))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    changes = []
    for key in changed[:3]:
        section, _, name = key.partition(".")
        if section == "needs":
            changes.append(f"{name} changed")
        elif section == "contents":
            changes.append(f"{name} has other content")
        else:
            changes.append(f"{key.removeprefix('config.')}: {before.get(key)} -> {now.get(key)}")
    others = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return ", ".join(changes) + others
