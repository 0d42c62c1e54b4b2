"""The verifiers that `minos meta` judges (the run's own, published reward models, critics), and their scores."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minos_ray.config.load import Config
from minos_ray.config.schema import ForeignModel, MetaCritic, Model
from minos_ray.errors import UserError
from minos_ray.evaluation.candidates import Candidates, Scores, read_scores
from minos_ray.evaluation.stage import platts_of
from minos_ray.graph.specs import VERSIONS, fingerprint_of
from minos_ray.meta import critics as meta_critics
from minos_ray.meta.sets import LabelledSet
from minos_ray.scoring import stage as scoring
from minos_ray.store.model_files import WEIGHTS, absolute, is_hub_id, locate
from minos_ray.store.run import Run, fingerprint
from minos_ray.training.calibration import Platt, platt_of

# Dotted, so that torch is imported only where a model is loaded.
FOREIGN_WORKER = "minos_ray.meta.foreign:ForeignScorers"
# Raise it when `foreign` changes what a published model reads: scores made with the old formats are then made anew.
FORMATS_VERSION = 2


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
        """The class that scores with it in actors; None for a critic, which is asked over HTTP."""
        if isinstance(self.section, MetaCritic):
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
        if not fresh or meta_critics.unanswered(manifest):  # it may lack critiques
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
    return names


def scores_of(run: Run, artefacts: dict[str, str], part: Candidates) -> dict[str, Scores]:
    """The scores of some solutions by verifier; `artefacts` as `score_set` gives them."""
    scores = {name: read_scores(run, artefact, part) for name, artefact in artefacts.items()}
    return {name: of_verifier for name, of_verifier in scores.items() if of_verifier}
