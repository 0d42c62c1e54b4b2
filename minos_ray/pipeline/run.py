"""All stages in order: what is missing or stale is made, and the log says why."""

import os
import time
from collections.abc import Callable, Mapping, Sequence

from minos_ray.config.load import Config, build, leaves, resolve
from minos_ray.errors import StorageFailed, UserError
from minos_ray.graph.specs import APART, FUNCTIONS, specs
from minos_ray.graph.state import state_of
from minos_ray.observe.failure import reported
from minos_ray.observe.progress import duration
from minos_ray.store.filesystem import require_no_key
from minos_ray.store.run import Manifest, Run

# What brings a stage about that a config may lack.
SWITCHES = {
    "pretrain": "a section 'pretrain' and base.model: run:models/base",
    "refine": "refine.rounds, such as 1",
    "study": "study.seeds, such as [1, 2, 3, 4, 5]",
    "teach": "teach.rounds, such as 3",
}
ORDER = tuple(name for name in FUNCTIONS if name not in APART)


def open_run(config: Config) -> Run:
    """The run directory of a config, with the resolved config written into it."""
    import yaml

    require_lasting_folder(config)
    run = Run(config.run)
    values = config.model_dump(mode="json")
    for key, value in leaves(values):
        for text in value if isinstance(value, list) else [value]:
            require_no_key(key, str(text))
    try:
        run.write_bytes("config.yaml", yaml.safe_dump(values, sort_keys=False).encode())
    except StorageFailed as error:
        raise UserError(f"run: {error}") from error
    return run


def require_lasting_folder(config: Config) -> None:
    """A job's working directory is a copy that Ray deletes: no place for a run."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and "://" not in config.run and not os.path.isabs(config.run):
        raise UserError(f"run = '{config.run}' would be lost with the job's working directory; give an absolute path")


def run_stage(config: Config, run: Run, stage: str, function: Callable[..., Manifest] | None = None) -> Manifest:
    """Runs one stage, by its own function or another; UserError with all that would stop it, before it begins."""
    from minos_ray.pipeline.check import require

    planned = [s for s in specs(config) if s.stage == stage]
    if not planned:
        remedy = f"; give {SWITCHES[stage]}" if stage in SWITCHES else ""
        raise UserError(f"this config has nothing for stage '{stage}' to make{remedy}")
    own = {spec.artefact for spec in planned}  # what this stage makes itself
    needed = {n for spec in planned if state_of(config, run, spec).state != "done" for n in spec.needs if n not in own}
    if missing := sorted(name for name in needed if run.artefact(name).manifest() is None):
        first = next(s.stage for s in specs(config) if s.artefact in missing)
        raise UserError(f"stage '{stage}' needs {', '.join(missing)}; run `minos {first}` first")
    require(config, run, {stage})
    with reported(run, stage):
        return (function or resolve(FUNCTIONS[stage]))(config, run)


def run_all(
    config: Config,
    run: Run,
    log: Callable[[str], None] = print,
    stages: Sequence[str] = ORDER,
    functions: Mapping[str, Callable[..., Manifest]] = {},
) -> dict[str, float]:
    """Every stage (of `stages`) that is missing or stale, in order; returns seconds by stage.

    `functions` do stages in place of the stages' own.
    """
    seconds = {}
    for stage in stages:
        states = [state_of(config, run, s) for s in specs(config) if s.stage == stage]
        todo = [s for s in states if s.state != "done"]
        if not todo:
            if states:
                log(f"[{stage}] up to date")
            continue
        log(f"[{stage}] " + "; ".join(f"{s.artefact}: {s.state}{f' ({s.why})' if s.why else ''}" for s in todo))
        start = time.monotonic()
        run_stage(config, run, stage, functions.get(stage))
        seconds[stage] = time.monotonic() - start
        log(f"[{stage}] done in {duration(seconds[stage])}")
    return seconds


def saved_config(run: Run) -> Config:
    """The resolved config that lies in a run directory."""
    import yaml

    if not run.exists("config.yaml"):
        raise UserError(f"'{run.path}' is no run directory: it has no config.yaml")
    return build(yaml.safe_load(run.read_bytes("config.yaml")))
