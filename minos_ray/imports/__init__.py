"""Foreign data as artefacts of a run: `minos import FORMAT SRC RUN [option=value ...]`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minos_ray.store.run import Manifest, Run

# format -> function (src, run, *, options) -> the manifests of the artefacts it made
FORMATS = {
    "genrm": "minos_ray.imports.genrm:import_genrm",
    "gsm8k": "minos_ray.imports.tables:import_gsm8k",
    "hard2verify": "minos_ray.imports.labelled_sets:import_hard2verify",
    "jsonl": "minos_ray.imports.tables:import_jsonl",
    "math": "minos_ray.imports.tables:import_math",
    "math-minos": "minos_ray.imports.steps:import_minos",
    "math-shepherd": "minos_ray.imports.steps:import_shepherd",
    "pairs": "minos_ray.imports.steps:import_pairs",
    "prm800k": "minos_ray.imports.labelled_sets:import_prm800k",
    "prmbench": "minos_ray.imports.labelled_sets:import_prmbench",
    "processbench": "minos_ray.imports.labelled_sets:import_processbench",
    "steps": "minos_ray.imports.steps:import_steps",
}


def bring(form: str, src: str, run: "Run", /, **options: object) -> list["Manifest"]:
    """Imports `src`; UserError for an unknown format or option."""
    from minos_ray.config.load import checked_options, function_of

    function = function_of("import", FORMATS, form)
    return function(src, run, **checked_options(f"import {form}", function, options))
