"""Names that configs and manifests of earlier versions use for what has another place now."""

from typing import Any

# Modules whose functions a config may name, and the model that is shipped.
MOVED = {
    "minos_ray.labels.answers:": "minos_ray.grading.graders:",
    "minos_ray.labels.miniature:": "minos_ray.miniature.step_labels:",
    "minos_ray.labels.same:": "minos_ray.grading.same:",
    "minos_ray.labels.steps:": "minos_ray.steps.split:",
    "minos_ray.labels.values:": "minos_ray.grading.values:",
    "minos_ray.problems.miniature:": "minos_ray.miniature:",
    "minos_ray.problems.miniature.tokenizer:": "minos_ray.miniature.tokenizer:",
    "minos_ray.training.corpora:": "minos_ray.training.pretrain:",
    "minos_ray.training.tokenizer:": "minos_ray.training.pretrain:",
    "package:problems/miniature/model": "package:miniature/model",
}


def with_names_of_today(value: Any) -> Any:
    """A value of a config, or all values in it, with each moved name replaced."""
    if isinstance(value, dict):
        return {key: with_names_of_today(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_names_of_today(item) for item in value]
    if isinstance(value, str):
        for former, today in MOVED.items():
            if value.startswith(former):
                return today + value.removeprefix(former)
    return value
