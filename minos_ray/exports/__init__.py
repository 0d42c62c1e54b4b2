"""Artefacts and models of a run in others' formats: `minos export FORMAT RUN OUT [option=value ...]`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minos_ray.exports.training_sets import Exported
    from minos_ray.store.run import Run

# format -> function (run, out, *, options) -> what was written
FORMATS = {
    "huggingface": "minos_ray.exports.hub:export_huggingface",
    "hub": "minos_ray.exports.hub:export_hub",
    "math-shepherd": "minos_ray.exports.training_sets:export_shepherd",
    "orm": "minos_ray.exports.training_sets:export_orm",
    "trl-prompt-completion": "minos_ray.exports.training_sets:export_prompt_completion",
    "trl-stepwise": "minos_ray.exports.training_sets:export_stepwise",
}


def send(form: str, run: "Run", out: str, /, **options: object) -> "Exported":
    """Exports to `out`; UserError for an unknown format or option, or a run without the artefacts."""
    from minos_ray.config.load import checked_options, function_of

    function = function_of("export", FORMATS, form)
    return function(run, out, **checked_options(f"export {form}", function, options))
