"""Stage 2: verifiers, from the base model or from the critic; nothing else differs between the two."""

from typing import Any

from minos_ray.config.load import Config
from minos_ray.config.schema import Model
from minos_ray.config.training import Verifier
from minos_ray.graph.specs import begin, fresh
from minos_ray.labels.checks import require_for_prms
from minos_ray.store.run import Manifest, Run
from minos_ray.training.data import base_tokenizer, require_rows, reward_data
from minos_ray.training.job import Job, Table, make_job, write_table
from minos_ray.training.trainer import finished, fit

CRITIC = Model(model="run:models/critic")


def reward(config: Config, run: Run) -> Manifest:
    """Trains every verifier of the config that is missing, in one worker group; returns the last one's manifest."""
    names = config.reward.verifiers
    require_for_prms(config, run, "reward.verifiers", names)
    missing = [name for name in names if not fresh(config, run, f"models/{name}")]
    for name in missing:
        begin(config, run, f"models/{name}")
    fit(config, run, "reward", verifier_jobs(config, run, missing))
    return finished(run, f"models/{names[-1]}")


def verifier_jobs(config: Config, run: Run, names: list[Verifier]) -> list[Job]:
    """The trainings of these verifiers; those of one kind read the same table of rows."""
    tokenizer = base_tokenizer(config, run) if names else None
    kinds = sorted({name.partition("-")[0] for name in names})
    tables = {kind: verifier_table(config, run, tokenizer, kind) for kind in kinds}
    return [verifier_job(config, run, name, tables[name.partition("-")[0]]) for name in names]


def verifier_table(config: Config, run: Run, tokenizer: Any, kind: str) -> Table:
    """Rows of all ORMs, or of all PRMs."""
    data = reward_data(run, tokenizer, config.reward, kind)
    require_rows("reward", data)
    return write_table(run, kind, data)


def verifier_job(config: Config, run: Run, name: Verifier, table: Table) -> Job:
    """The training of one verifier."""
    kind, _, start = name.partition("-")
    model = CRITIC if start == "minos" else config.base
    return make_job(run, f"models/{name}", kind, model, table, config.reward, config.resources)
