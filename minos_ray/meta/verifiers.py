"""What `minos meta` judges: the run's own verifiers, published reward models, critics; and their scores of a set."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minos_ray.config.load import Config
from minos_ray.config.schema import ForeignModel, MetaCritic, Model
from minos_ray.errors import UserError
from minos_ray.evaluation.candidates import Candidates, Scores, read_scores
from minos_ray.graph.specs import VERSIONS, fingerprint_of
from minos_ray.meta import critics as meta_critics
from minos_ray.meta.formats import VERSION
from minos_ray.meta.sets import LabelledSet
from minos_ray.scoring import stage as scoring
from minos_ray.scoring.solutions import read_pieces
from minos_ray.store.model_files import WEIGHTS, absolute, is_hub_id, locate
from minos_ray.store.run import Artefact, Run, fingerprint

FOREIGN = "minos_ray.meta.foreign"


class Verifier(NamedTuple):
    """Something that scores solutions: `section` says what and where it is, `inputs` what its scores depend on.

    `by_step`: it has a score for every step of a solution that it can score.
    """

    name: str
    kind: str
    section: Model | MetaCritic
    inputs: dict[str, Any]
    by_step: bool

    @property
    def worker(self) -> str | None:
        """What scores with it in actors; None for a critic, which is asked."""
        if isinstance(self.section, MetaCritic):
            return None
        ours = not isinstance(self.section, ForeignModel) or self.kind == "minos"
        return scoring.WORKER if ours else f"{FOREIGN}:ForeignScorers"


def verifiers(config: Config, run: Run) -> list[Verifier]:
    """All that are to be judged; UserError when there is none, or when one cannot be used."""
    found = [*trained(config, run), *foreign(config, run), *critics(config)]
    if not found:
        names = ", ".join(config.reward.verifiers)
        raise UserError(f"meta: {run.path} has none of the verifiers {names}; meta.models and meta.critics are empty")
    return found


def trained(config: Config, run: Run) -> list[Verifier]:
    """The verifiers that this run has."""
    made = []
    for name in config.reward.verifiers:
        if model := fingerprint_of(run, f"models/{name}"):
            section = Model(model=f"run:models/{name}", trust_remote_code=config.base.trust_remote_code)
            kind = name[:3]
            made.append(Verifier(name, kind, section, {"model": model, **ours(config)}, kind == "prm"))
    return made


def ours(config: Config) -> dict[str, Any]:
    """What scores of a model in our step encoding depend on, beside the model."""
    return {"aggregation": config.score.aggregation, "step_encoding": VERSIONS["step_encoding"]}


def foreign(config: Config, run: Run) -> list[Verifier]:
    """Published models, looked at before any work."""
    made = []
    for name, section in config.meta.models.items():
        path = locate(section, run)
        if section.kind != "minos":
            from minos_ray.meta.foreign import refuse

            refuse(section, path)
        version = ours(config) if section.kind == "minos" else {"aggregation": config.score.aggregation}
        there = absolute(section)
        model = {"model": there.model_dump(mode="json"), "weights": state(section, path, run)}
        made.append(
            Verifier(name, section.kind, there, {**model, "format": VERSION, **version}, by_step(section, path))
        )
    return made


def by_step(section: ForeignModel, path: str) -> bool:
    """Whether a published model scores every step; a verifier of ours says so by its architecture."""
    if section.kind != "minos":
        return section.kind != "sequence"
    architectures = json.loads((Path(path) / "config.json").read_text()).get("architectures") or []
    return any(name.endswith("ForTokenClassification") for name in architectures)


def state(section: Model, path: str, run: Run) -> str | None:
    """Tells a model from a later one of the same name: by its artefact, its commit on the hub, or its files."""
    if section.model.startswith("run:"):
        return fingerprint_of(run, section.model.removeprefix("run:"))
    folder = Path(path)
    if is_hub_id(section.model):
        return folder.name
    weights = sorted({file for pattern in WEIGHTS for file in folder.glob(pattern)})
    found = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in weights]
    by_files = fingerprint({"config": (folder / "config.json").read_text(), "weights": found})
    return fingerprint_of(Run(str(folder.parent)), folder.name) or by_files


def critics(config: Config) -> list[Verifier]:
    """Critics, whose prompts must not give away what they are judged by."""
    for name, section in config.meta.critics.items():
        meta_critics.refuse_told(name, section.prompt)
    return [Verifier(n, "critic", s, meta_critics.inputs(s), True) for n, s in config.meta.critics.items()]


def score_set(config: Config, run: Run, labelled: LabelledSet, judged: Sequence[Verifier]) -> dict[str, str]:
    """The artefact with each verifier's scores of the set; what is missing is scored, critics last."""
    paths = {verifier.name: f"meta/{labelled.key}/{verifier.name}" for verifier in judged}
    todo = [(v, artefact) for v in judged if (artefact := begun(run.artefact(paths[v.name]), v.inputs))]
    workers = sorted({v.worker for v, _ in todo if v.worker})
    pieces = read_pieces(labelled.run, "test") if workers else None
    for worker in workers:
        own = {artefact.name: (v.section, artefact) for v, artefact in todo if v.worker == worker}
        models = {name: section for name, (section, _) in own.items()}
        scoring.score_artefacts(config, run, [a for _, a in own.values()], models, labelled.run, pieces, worker)
    for verifier, artefact in todo:
        if isinstance(verifier.section, MetaCritic):
            meta_critics.judge(config, run, verifier.name, verifier.section, labelled.run, artefact)
    return paths


def begun(artefact: Artefact, inputs: dict[str, Any]) -> Artefact | None:
    """The artefact ready to be filled; None when it is complete, made from the same, and lacks no critique."""
    manifest = artefact.manifest()
    if manifest and manifest.fingerprint == fingerprint(inputs) and not meta_critics.unanswered(manifest):
        return None
    artefact.begin(inputs)
    return artefact


def scores_of(run: Run, artefacts: dict[str, str], part: Candidates) -> dict[str, Scores]:
    """The scores of some solutions by verifier."""
    found = {name: read_scores(run, artefact, part) for name, artefact in artefacts.items()}
    return {name: scores for name, scores in found.items() if scores}
