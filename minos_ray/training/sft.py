"""Stage 1: the base model learns to write critiques."""

from minos_ray.config.load import Config
from minos_ray.graph.specs import begin, fresh
from minos_ray.store.run import Manifest, Run
from minos_ray.training.controls import CONTROLS, plain_text
from minos_ray.training.data import base_tokenizer, critique_data, held_out_problems, require_rows
from minos_ray.training.job import Job, make_job, write_table
from minos_ray.training.trainer import finished, fit

CRITIC = "models/critic"


def sft(config: Config, run: Run) -> Manifest:
    """Trains `models/critic` on critiques that agree with the labels and on inserted errors; the prompt has no loss.

    As a control it is trained on plain text instead (see `controls`).
    """
    if done := fresh(config, run, CRITIC):
        fit(config, run, "sft", [])
        return done
    begin(config, run, CRITIC)
    fit(config, run, "sft", [critic_job(config, run)])
    return finished(run, CRITIC)


def critic_job(config: Config, run: Run) -> Job:
    """The training of a critic on at most `sft.rows` critiques; fewer rows are a subset of more."""
    inserted = config.inserted.count > 0
    tokenizer = base_tokenizer(config, run, critic=True)
    kept_out = held_out_problems(run, config.reward)
    data = critique_data(run, tokenizer, config.sft, config.sft.rows, inserted, kept_out)
    if config.sft.source in CONTROLS:
        data = plain_text(run, tokenizer, config.sft, data, kept_out)
    require_rows("sft", data)
    return make_job(run, CRITIC, "lm", config.base, write_table(run, "critiques", data), config.sft, config.resources)
