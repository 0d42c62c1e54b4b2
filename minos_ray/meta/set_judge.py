"""Critics that minos_ray trained, as verifiers of a labelled set: actors write critiques as `score.judge` says.

The share of the critiques that accept a solution is its score. With `score.judge.soft` the same critiques make a second
verifier, NAME-soft, by how likely their verdicts are.
"""

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from minos_ray.config.load import Config
from minos_ray.config.schema import Judge, Model
from minos_ray.errors import UserError
from minos_ray.graph.lengths import require_room
from minos_ray.meta.critics import solutions
from minos_ray.scoring import soft
from minos_ray.scoring.judge import UNITS, CriticJudge, finish, judge_missing, soft_scores
from minos_ray.store.model_files import load_tokenizer
from minos_ray.store.run import Artefact, Manifest, Run

SOFT = "-soft"
# A solution, the number of steps that it has without an answer line that was added, and its one row of scores.
SOLUTIONS = pa.schema([*UNITS, ("own_steps", pa.int32()), ("rows", pa.int32())])


class SetJudge(CriticJudge):
    """Judges units of the schema `SOLUTIONS`; an answer line that was added gets no score."""

    def __call__(self, batch: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Rows of scores and counts, as of `CriticJudge`."""
        scores, numbers = super().__call__(batch)
        lists = [name for name in ("step_scores", "steps_right") if name in scores.column_names]
        rows = [
            {**row, **{name: row[name][:count] for name in lists}}
            for row, count in zip(scores.to_pylist(), batch["own_steps"].to_pylist(), strict=True)
        ]
        return pa.Table.from_pylist(rows, schema=scores.schema), numbers

    @staticmethod
    def failed(units: pa.Table, judge: Judge, **kwargs: Any) -> tuple[pa.Table, dict[str, float]]:
        """As of `CriticJudge`."""
        return CriticJudge.failed(units, judge)


def check_critic(key: str, config: Config, model: Model, path: str) -> None:
    """UserError when it is no language model, nothing says how it writes, or it lacks room or words to judge in."""
    section = config.score.judge
    kinds = json.loads((Path(path) / "config.json").read_text()).get("architectures") or []
    if not any(name.endswith("ForCausalLM") for name in kinds):
        raise UserError(f"{key}.model = '{model.model}' is {kinds}; kind critic needs a language model (*ForCausalLM)")
    if section is None:
        raise UserError(f"{key}.kind = critic: it judges as score.judge says, which is empty; set score.judge={{}}")
    require_room("score.judge.max_tokens", section.max_tokens, "judge", config.resources.judge, path)
    if section.soft:
        soft.wording_of(load_tokenizer(path, model.trust_remote_code))


def judge(config: Config, run: Run, model: Model, labelled: Run, artefact: Artefact, by_likelihood: bool) -> Manifest:
    """Fills an artefact of `run` with one row of scores per solution of the set; a rerun judges what is missing.

    The votes' artefact has the likelihoods, too; `by_likelihood` takes them from there.
    """
    if by_likelihood:
        votes = run.artefact(artefact.name.removesuffix(SOFT)).manifest()
        assert votes is not None, "the votes come first"
        return soft_scores(run, votes, artefact)
    start = time.monotonic()
    rows = [
        {
            "unit_id": row["candidate_id"],
            "candidate_ids": [row["candidate_id"]],
            "problem_id": row["problem_id"],
            "question": row["question"],
            "steps": row["lines"] if row["steps"] else [],
            "own_steps": len(row["steps"]),
            "rows": 1,
        }
        for row in solutions(labelled)
    ]
    units = pa.Table.from_pylist(rows, schema=SOLUTIONS)
    judge_missing(config, run, artefact, units, SetJudge, {"run": run.path, "model": model})
    return finish(artefact, units, time.monotonic() - start)
