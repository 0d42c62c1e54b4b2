"""`minos meta`: verifiers, published reward models and critics judged on labelled sets, without a generator:
the sets, the verifiers, their scores, and what is written to meta.json.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.config.load import Config
from minos_ray.config.schema import ForeignModel, MetaCritic, Model
from minos_ray.errors import UserError
from minos_ray.evaluation import verdicts
from minos_ray.evaluation.candidates import Candidates, Scores, group_candidates, read_candidates, read_scores
from minos_ray.evaluation.stage import platts_of
from minos_ray.evaluation.verdicts import any_label
from minos_ray.graph.lengths import limit
from minos_ray.graph.specs import VERSIONS, fingerprint_of
from minos_ray.meta import critics as meta_critics
from minos_ray.meta import measures
from minos_ray.meta.critics import SOFT, check_critic
from minos_ray.meta.measures import Threshold, best_first_error, best_outcome, outcome_intervals, step_intervals
from minos_ray.problems.split import problems_by_id, read_problems
from minos_ray.scoring import stage as scoring
from minos_ray.store.model_files import WEIGHTS, absolute, is_hub_id, locate
from minos_ray.store.run import Run, fingerprint
from minos_ray.training.results import Platt, platt_of

NAME = "meta.json"
GIVEN = "given"
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


class LabelledSet(NamedTuple):
    """One run directory: its solutions in order of problems, and the data set of each, [solutions] of str."""

    run: Run
    candidates: Candidates
    datasets: np.ndarray

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


def meta(config: Config, run: Run) -> dict[str, Any]:
    """Scores every set of `meta.sets` with every verifier; prints and writes how good their scores are.

    First errors are counted as in ProcessBench. Thresholds are given, or come from the set `meta.threshold_from`.
    UserError when a set or a verifier cannot be used, or when both sets share a question.
    """
    sets = [read_set(path, "meta.sets") for path in config.meta.sets or (run.path,)]
    other = None
    if config.meta.threshold_from is not None:
        other = read_set(config.meta.threshold_from, "meta.threshold_from")
        check_overlap(other, sets)
    judged = verifiers(config, run)
    configured = Threshold(config.meta.threshold, config.meta.threshold, GIVEN)
    thresholds = {verifier.name: configured for verifier in judged}
    if other is not None:  # the best on that set
        by_step = any(labelled.by_step for labelled in sets)
        scores = scores_of(run, score_set(config, run, other, judged), other.candidates)
        thresholds = {name: best_thresholds(name, values, other, by_step) for name, values in scores.items()}
    rows = [row for labelled in sets for row in judge_set(config, run, labelled, judged, thresholds)]
    content = {
        "threshold": None if other else config.meta.threshold,
        "threshold_from": other.run.path if other else None,
        "rows": rows,
        **measures.means(rows),
        "prmbench": measures.prmbench(rows),
    }
    run.write_bytes(NAME, json.dumps(content, indent=1, allow_nan=False).encode())
    print("\n".join([*measures.as_text(content), f"written to {run.at(NAME)}"]))
    return content


def best_thresholds(name: str, scores: Scores, other: LabelledSet, by_step: bool) -> Threshold:
    """The best thresholds of one verifier on a set.

    UserError when steps are to be judged and the set's step labels do not determine a threshold.
    """
    usable = other.candidates.graded & ~np.isnan(scores.score)
    outcome = best_outcome(scores.score[usable], other.candidates.correct[usable])
    step = best_first_error(verdicts.align_steps(scores.step_scores, other.candidates.rows["step_labels"]))
    if step is None and by_step and verdicts.flat(scores.step_scores).lengths.any():
        raise UserError(
            f"meta.threshold_from: '{other.run.path}' has no right or no wrong solution with step labels to choose "
            f"the threshold of {name} for steps by; take a set that has both"
        )
    return Threshold(outcome if step is None else step, outcome, other.run.path)


def judge_set(
    config: Config, run: Run, labelled: LabelledSet, judged: Sequence[Verifier], thresholds: Mapping[str, Threshold]
) -> Iterator[dict[str, Any]]:
    """One row per data set of a labelled set, verifier and level."""
    artefacts = score_set(config, run, labelled, judged)
    by_name = {verifier.name: verifier for verifier in judged}
    for dataset, part in labelled.parts():
        for name, scores in scores_of(run, artefacts, part).items():
            head = {"set": dataset, "verifier": name, "kind": by_name[name].kind}
            for row in judge(config, by_name[name], scores, part, thresholds[name]):
                yield head | row | {"threshold_from": thresholds[name].source}


def judge(
    config: Config, verifier: Verifier, scores: Scores, part: Candidates, threshold: Threshold
) -> Iterator[dict[str, Any]]:
    """The rows of both levels, with intervals. Solutions whose grading ended in a timeout have no known outcome."""
    problem = np.repeat(np.arange(part.problems), np.diff(part.starts))
    score, correct = scores.score[part.graded], part.correct[part.graded]
    row = verdicts.outcome_row(verifier.name, score, correct, threshold.outcome)
    if verifier.platt:
        before = scores.before(verifier.platt, config.score.aggregation if verifier.by_step else "last")
        row["uncalibrated"] = verdicts.probabilities(before[part.graded], correct)
    yield row | outcome_intervals(score, correct, threshold.outcome, problem[part.graded], config.evaluate)
    labels = part.rows["step_labels"]
    row = verdicts.step_row(verifier.name, scores.step_scores, labels, threshold.step, verifier.by_step, verifier.platt)
    if row:
        steps = verdicts.align_steps(scores.step_scores, labels)
        yield row | step_intervals(steps, threshold.step, problem, config.evaluate)


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
        platt, by_step = platt_of(settings.get("calibration")), section.kind != "sequence"
        if section.kind == "minos":  # its config tells by the kind or the class
            is_prm = any(name.endswith("ForTokenClassification") for name in settings.get("architectures") or [])
            by_step = settings["verifier_kind"] == "prm" if settings.get("verifier_kind") else is_prm
        verifiers.append(Verifier(name, section.kind, located, inputs, by_step, platt))
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
    key, todo = set_key(labelled.run), []
    names = {verifier.name: f"meta/{key}/{verifier.name}" for verifier in judged}
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
            meta_critics.judge_by_endpoint(config, run, verifier.name, verifier.section, labelled.run, artefact)
        elif verifier.kind == "critic":
            meta_critics.judge_by_model(config, run, verifier.section, labelled.run, artefact, BY in verifier.inputs)
    return names


def scores_of(run: Run, artefacts: dict[str, str], part: Candidates) -> dict[str, Scores]:
    """The scores of some solutions by verifier; `artefacts` as `score_set` gives them."""
    scores = {name: read_scores(run, artefact, part) for name, artefact in artefacts.items()}
    return {name: of_verifier for name, of_verifier in scores.items() if of_verifier}
