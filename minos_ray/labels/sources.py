"""Where step labels come from, and what cannot be done when nothing labels steps."""

from collections.abc import Collection

import pyarrow.compute as pc

from minos_ray.config.load import Config
from minos_ray.errors import UserError
from minos_ray.store.run import Run

SOURCES = "set label.steps (package.module:function) or label.rollouts, or import labels of steps"


def steps_are_labelled(config: Config, run: Run) -> bool:
    """Whether some step has, or will have, a label; labels that were imported are looked at."""
    labels = run.artefact("labels")
    manifest = labels.manifest()
    if manifest is None or "import" not in manifest.inputs:
        return bool(config.label.steps or config.label.rollouts)
    known = (pc.greater_equal(pc.list_flatten(rows["step_labels"]), 0) for rows in labels.parts(["step_labels"]))
    return any(pc.any(labelled).as_py() for labelled in known)


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
