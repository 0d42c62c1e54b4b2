"""Foreign data as artefacts of a run: `minos import FORMAT SRC RUN [option=value ...]`."""

from minos_ray.store import Manifest, Run

# format -> function (src, run, **options) -> the manifests of the artefacts it made
FORMATS = {
    "genrm": "minos_ray.imports.genrm:import_genrm",
    "gsm8k": "minos_ray.imports.tables:import_gsm8k",
    "jsonl": "minos_ray.imports.tables:import_jsonl",
    "math": "minos_ray.imports.tables:import_math",
    "math-shepherd": "minos_ray.imports.shepherd:import_shepherd",
    "prm800k": "minos_ray.imports.prm800k:import_prm800k",
    "processbench": "minos_ray.imports.processbench:import_processbench",
}


def bring(form: str, src: str, run: Run, **options: object) -> list[Manifest]:
    """Imports `src`; UserError for an unknown format or option."""
    from minos_ray.config import resolve
    from minos_ray.errors import UserError
    from minos_ray.problems.stage import refuse_unknown

    if form not in FORMATS:
        raise UserError(f"import: format '{form}' is not known; there are {', '.join(FORMATS)}")
    function = resolve(FORMATS[form])
    refuse_unknown(f"import {form}", function, {"src": src, "run": run, **options})
    return function(src, run, **options)
