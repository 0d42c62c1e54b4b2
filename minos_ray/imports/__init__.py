"""Foreign data as artefacts of a run: `minos import FORMAT SRC RUN [option=value ...]`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minos_ray.store.run import Manifest, Run

# format -> function (src, run, *, options) -> the manifests of the artefacts it made
FORMATS = {
    "genrm": "minos_ray.imports.genrm:import_genrm",
    "gsm8k": "minos_ray.imports.tables:import_gsm8k",
    "hard2verify": "minos_ray.imports.hard2verify:import_hard2verify",
    "jsonl": "minos_ray.imports.tables:import_jsonl",
    "math": "minos_ray.imports.tables:import_math",
    "math-minos": "minos_ray.imports.minos:import_minos",
    "math-shepherd": "minos_ray.imports.shepherd:import_shepherd",
    "pairs": "minos_ray.imports.steps:import_pairs",
    "prm800k": "minos_ray.imports.prm800k:import_prm800k",
    "prmbench": "minos_ray.imports.prmbench:import_prmbench",
    "processbench": "minos_ray.imports.processbench:import_processbench",
    "steps": "minos_ray.imports.steps:import_steps",
}


def bring(form: str, src: str, run: "Run", /, **options: object) -> list["Manifest"]:
    """Imports `src`; UserError for an unknown format or option."""
    from minos_ray.config.load import resolve
    from minos_ray.imports.options import checked, chosen

    function = resolve(chosen("import", FORMATS, form))
    return function(src, run, **checked(f"import {form}", function, options))
