"""The labelled sets of `minos meta`, the verifiers that it judges on them (also critics that minos_ray trained), and
their scores.

Sets are run directories with problems and labels, as `minos import` makes them. Verifiers are the run's own, published
reward models and critics.

Critics that minos_ray trained write critiques in actors, as `score.judge` says. The share of the critiques that accept
a solution is its score. With `score.judge.soft` the same critiques make a second verifier, NAME-soft, by how likely
their verdicts are.
"""

import json
import time
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.config.load import Config
from minos_ray.config.schema import ForeignModel, Judge, MetaCritic, Model
from minos_ray.errors import UserError
from minos_ray.evaluation.candidates import Candidates, Scores, group_candidates, read_candidates, read_scores
from minos_ray.evaluation.stage import platts_of
from minos_ray.evaluation.verdicts import any_label
from minos_ray.graph.lengths import limit, require_room
from minos_ray.graph.specs import VERSIONS, fingerprint_of
from minos_ray.meta import critics as meta_critics
from minos_ray.meta.critics import solutions
from minos_ray.problems.split import problems_by_id, read_problems
from minos_ray.scoring import soft
from minos_ray.scoring import stage as scoring
from minos_ray.scoring.judge import UNITS, CriticJudge, finish, judge_missing, soft_scores
from minos_ray.store.model_files import WEIGHTS, absolute, is_hub_id, load_tokenizer, locate
from minos_ray.store.run import Artefact, Manifest, Run, fingerprint
from minos_ray.training.heads import Platt, platt_of

SOFT = "-soft"
# A solution, the number of steps that it has without an answer line that was added, and its one row of scores.
SOLUTIONS = pa.schema([*UNITS, ("own_steps", pa.int32()), ("rows", pa.int32())])
# The columns that scores of a set depend on: what a verifier or a critic is shown, and which solutions are scored.
SCORED = {
    "problems": ["problem_id", "split", "question", "answer", "solution"],
    "labels": ["candidate_id", "answer", "steps"],
}
# Dotted, so that torch is imported only where a model is loaded.
FOREIGN_WORKER = "minos_ray.meta.foreign:ForeignScorers"
# Raise it when `foreign` changes what a published model reads: scores made with the old formats are then made anew.
FORMATS_VERSION = 2
# The input of a critic's scores that are no votes.
BY = "by"


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


class LabelledSet(NamedTuple):
    """One run directory: its solutions in order of problems, and the data set of each, [solutions] of str."""

    run: Run
    candidates: Candidates
    datasets: np.ndarray

    @property
    def key(self) -> str:
        """The name of the folder with the set's scores."""
        return set_key(self.run)

    @property
    def by_step(self) -> bool:
        """Whether any step is labelled."""
        return bool(pc.any(any_label(self.candidates.rows["step_labels"])).as_py())

    def parts(self) -> Iterator[tuple[str, Candidates]]:
        """The solutions of each data set."""
        for dataset in np.unique(self.datasets).tolist():
            yield dataset, group_candidates(self.candidates.rows.filter(pa.array(self.datasets == dataset)))

    def questions(self) -> set[str]:
        """The questions whose solutions are judged, with white space normalised."""
        problems = read_problems(self.run, None, ["problem_id", "question"])
        judged = pc.is_in(problems["problem_id"], value_set=self.candidates.rows["problem_id"].combine_chunks())
        return {" ".join(question.split()) for question in problems.filter(judged)["question"].to_pylist()}


def set_key(labelled: Run) -> str:
    """A digest of all that scores of the set depend on: the same for the same data in another place."""
    digest = blake2b(digest_size=8)
    for name, columns in SCORED.items():
        rows = labelled.artefact(name).read(columns).sort_by(columns[0])
        digest.update(json.dumps(rows.to_pylist()).encode())
    return digest.hexdigest()


def read_set(path: str, key: str) -> LabelledSet:
    """The set at `path`, named by the config key `key`; UserError when there is none."""
    run = Run(path)
    missing = [name for name in ("problems", "labels") if run.artefact(name).manifest() is None]
    if missing:
        raise UserError(f"{key}: '{path}' has no complete {missing[0]}; make one with `minos import`")
    candidates = read_candidates(run)
    if not candidates.problems:
        raise UserError(f"{key}: '{path}' has no labelled solution in split test; import it with split=test")
    problems = problems_by_id(run, None, ["problem_id", "dataset"])
    datasets = [problems[name]["dataset"] for name in candidates.rows["problem_id"].to_pylist()]
    return LabelledSet(run, candidates, np.array(datasets))


def check_overlap(other: LabelledSet, judged: Sequence[LabelledSet]) -> None:
    """UserError when the set that thresholds come from shares a question with one that is judged."""
    questions = other.questions()
    for labelled in judged:
        shared = sorted(questions & labelled.questions())
        if shared:
            raise UserError(
                f"meta.threshold_from: '{other.run.path}' shares {len(shared)} questions with the judged set "
                f"'{labelled.run.path}', such as {shared[0][:60]!r}; choose the threshold on other problems"
            )


class Verifier(NamedTuple):
    """Something that scores solutions: its config `section`, and `inputs`, all that its scores depend on.

    `by_step`: it has a score for every step of a solution that it can score.
    """

    name: str
    kind: str
    section: Model | MetaCritic
    inputs: dict[str, Any]
    by_step: bool
    platt: Platt | None = None  # of a calibrated one

    @property
    def worker(self) -> str | None:
        """The class that scores with it in actors; None for critics, which write critiques."""
        if self.kind == "critic":
            return None
        return FOREIGN_WORKER if isinstance(self.section, ForeignModel) and self.kind != "minos" else scoring.WORKER


def verifiers(config: Config, run: Run) -> list[Verifier]:
    """All that are to be judged; UserError when there is none, or when one cannot be used."""
    verifiers = [*trained(config, run), *foreign(config, run)]
    for name, section in config.meta.critics.items():
        meta_critics.check_prompt(name, section.prompt)
        verifiers.append(Verifier(name, "critic", section, meta_critics.inputs(section), True))
    if not verifiers:
        names = ", ".join(config.reward.verifiers)
        raise UserError(f"meta: {run.path} has none of the verifiers {names}; meta.models and meta.critics are empty")
    return verifiers


def trained(config: Config, run: Run) -> list[Verifier]:
    """The verifiers that this run has trained."""
    verifiers, platts = [], platts_of(run, config.reward.verifiers)
    for name in config.reward.verifiers:
        if model := fingerprint_of(run, f"models/{name}"):
            section = Model(model=f"run:models/{name}", trust_remote_code=config.base.trust_remote_code)
            kind = name[:3]
            inputs = {"model": model, **own_inputs(config)}
            verifiers.append(Verifier(name, kind, section, inputs, kind == "prm", platts.get(name)))
    return verifiers


def own_inputs(config: Config) -> dict[str, Any]:
    """Inputs of scores by a model in our step encoding, beside the model."""
    return {"aggregation": config.score.aggregation, "step_encoding": VERSIONS["step_encoding"]}


def foreign(config: Config, run: Run) -> list[Verifier]:
    """Published models, checked before any work."""
    verifiers = []
    for name, section in config.meta.models.items():
        path = locate(section, run)
        if section.kind == "critic":
            verifiers += trained_critic(config, run, name, section, path)
            continue
        if section.kind != "minos":
            from minos_ray.meta.foreign import check_model

            check_model(section, path)
        located = absolute(section)
        inputs = {
            "model": located.model_dump(mode="json"),
            "weights": weights_id(section, path, run),
            "format": FORMATS_VERSION,
            **(own_inputs(config) if section.kind == "minos" else {"aggregation": config.score.aggregation}),
        }
        settings = json.loads((Path(path) / "config.json").read_text()) if section.kind == "minos" else {}
        platt = platt_of(settings.get("calibration"))
        verifiers.append(Verifier(name, section.kind, located, inputs, by_step(section, settings), platt))
    return verifiers


def trained_critic(config: Config, run: Run, name: str, section: ForeignModel, path: str) -> list[Verifier]:
    """A critic that minos_ray trained, by its verdicts; with `score.judge.soft` also by how likely these are."""
    check_critic(f"meta.models.{name}", config, section, path)
    assert config.score.judge is not None, "checked"
    located = absolute(section)
    inputs = {
        "model": located.model_dump(mode="json"),
        "weights": weights_id(section, path, run),
        "judge": config.score.judge.model_dump(mode="json"),
        "max_model_len": limit(config.resources.judge, path),
        "versions": {key: VERSIONS[key] for key in ("judge", "step_encoding")} | {"shown": meta_critics.VERSION},
    }
    verifiers = [Verifier(name, "critic", located, inputs, True)]
    if config.score.judge.soft:
        verifiers.append(Verifier(f"{name}{SOFT}", "critic", located, {**inputs, BY: "P(True)"}, True))
    return verifiers


def by_step(section: ForeignModel, settings: dict[str, Any]) -> bool:
    """Whether a model scores every step; of one that minos_ray saved, its config tells by the kind or the class."""
    if section.kind != "minos":
        return section.kind != "sequence"
    is_prm = any(name.endswith("ForTokenClassification") for name in settings.get("architectures") or [])
    return settings["verifier_kind"] == "prm" if settings.get("verifier_kind") else is_prm


def weights_id(section: Model, path: str, run: Run) -> str | None:
    """Distinguishes a model from a later one of the same name: by its artefact, its commit on the hub, or its files."""
    if section.model.startswith("run:"):
        return fingerprint_of(run, section.model.removeprefix("run:"))
    folder = Path(path)
    if is_hub_id(section.model):
        return folder.name
    weights = sorted({file for pattern in WEIGHTS for file in folder.glob(pattern)})
    stats = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in weights]
    by_files = fingerprint({"config": (folder / "config.json").read_text(), "weights": stats})
    return fingerprint_of(Run(str(folder.parent)), folder.name) or by_files


def score_set(config: Config, run: Run, labelled: LabelledSet, judged: Sequence[Verifier]) -> dict[str, str]:
    """The name of the artefact with each verifier's scores of the set; missing ones are scored, critics last."""
    names = {verifier.name: f"meta/{labelled.key}/{verifier.name}" for verifier in judged}
    todo = []
    for verifier in judged:
        artefact = run.artefact(names[verifier.name])
        manifest = artefact.manifest()
        fresh = manifest and manifest.fingerprint == fingerprint(verifier.inputs)
        asked = isinstance(verifier.section, MetaCritic)
        if not fresh or (asked and meta_critics.unanswered(manifest)):  # it may lack critiques
            artefact.begin(verifier.inputs)
            todo.append((verifier, artefact))
    workers = sorted({v.worker for v, _ in todo if v.worker})
    pieces = scoring.read_pieces(labelled.run, "test") if workers else None
    for worker in workers:
        of_worker = [(v.section, artefact) for v, artefact in todo if v.worker == worker]
        models = {artefact.name: section for section, artefact in of_worker if isinstance(section, Model)}
        artefacts = [artefact for _, artefact in of_worker]
        scoring.score_artefacts(config, run, artefacts, models, labelled.run, pieces, worker)
    for verifier, artefact in todo:
        if isinstance(verifier.section, MetaCritic):
            meta_critics.judge(config, run, verifier.name, verifier.section, labelled.run, artefact)
        elif verifier.kind == "critic":
            judge(config, run, verifier.section, labelled.run, artefact, BY in verifier.inputs)
    return names


def scores_of(run: Run, artefacts: dict[str, str], part: Candidates) -> dict[str, Scores]:
    """The scores of some solutions by verifier; `artefacts` as `score_set` gives them."""
    scores = {name: read_scores(run, artefact, part) for name, artefact in artefacts.items()}
    return {name: of_verifier for name, of_verifier in scores.items() if of_verifier}
