"""Whole trainings under Ray Train and DeepSpeed: the stages as a user runs them, and what must be equal is equal."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from minos_ray.config.resources import Workers
from minos_ray.config.schema import Config
from minos_ray.store.run import Manifest, Run
from minos_ray.training.job import Job
from minos_ray.training.log import read_log
from minos_ray.training.trainer import fit
from tests.training.world import world

pytestmark = pytest.mark.slow

VERIFIERS = ["orm-base", "orm-minos", "prm-base"]
SFT = {"batch_rows": 4, "eval_every": 30}


class Trained(NamedTuple):
    config: Config
    run: Run
    base: Manifest
    critic: Manifest


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, end_of_ray: None) -> Trained:
    """A base model, a critic and three verifiers, each stage run as a user runs it."""
    from minos_ray.training.pretrain import pretrain
    from minos_ray.training.reward import reward
    from minos_ray.training.sft import sft

    corpus = {"corpus": "minos_ray.miniature:corpus", "options": {"count": 300}, "vocab_size": 400}
    small = {"layers": 2, "hidden": 64, "intermediate": 128, "heads": 2, "kv_heads": 1, "lr": 3e-3, "precision": "fp32"}
    config, run = world(
        tmp_path_factory.mktemp("trained"),
        base={"model": "run:models/base"},
        pretrain={**corpus, **small, "batch_rows": 16, "max_length": 256},
        sft=SFT,
        reward={"verifiers": VERIFIERS},
        resources={"num_cpus": 2},
    )
    manifests = pretrain(config, run), sft(config, run)
    reward(config, run)
    return Trained(config, run, *manifests)


def losses(manifest: Manifest) -> list[float]:
    return [point["loss"] for point in manifest.details["loss"]]


def manifest(run: Run, name: str) -> Manifest:
    made = run.artefact(f"models/{name}").manifest()
    assert made is not None
    return made


def job_of(run: Run, name: str, config: Config) -> Job:
    """The job that the reward stage would run."""
    from minos_ray.training.reward import verifier_jobs

    run.artefact(f"models/{name}").begin({"for": name})
    return verifier_jobs(config, run, [name])[0]


def trained_copy(trained: Trained, folder: Path) -> Run:
    """A run with the same inputs and no models but the base."""
    run = Run(str(folder))
    for name in ("problems", "candidates", "labels", "critiques", "models/base"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(Path(trained.run.path) / name)
    return run


def test_models_learn(trained: Trained) -> None:
    for made in (trained.base, trained.critic):
        curve = made.details["curve"]
        assert curve[0]["step"] == 0 and curve[-1]["step"] == made.details["steps"]
        assert curve[-1]["loss"] < curve[0]["loss"] - 1


def test_base_and_minos_differ_in_the_start_only(trained: Trained) -> None:
    base, minos = (manifest(trained.run, name) for name in ("orm-base", "orm-minos"))
    assert base.details["data"] == minos.details["data"]
    assert base.counts == minos.counts and base.dropped == minos.dropped
    rates = [[r["lr"] for r in read_log(trained.run, n) if r["event"] == "train"] for n in ("orm-base", "orm-minos")]
    assert rates[0] == rates[1]
    assert (base.details["start"], minos.details["start"]) == ("run:models/base", "run:models/critic")
    assert losses(base)[0] != losses(minos)[0]


def test_convergence_curve_is_on_held_out_rows(trained: Trained) -> None:
    made = manifest(trained.run, "prm-base")
    steps = [point["step"] for point in made.details["curve"]]
    assert steps == [0, 4, *([] if made.details["steps"] == 4 else [made.details["steps"]])]
    for point in made.details["curve"]:
        assert {"loss", "accuracy", "f1", "auc", "solution_accuracy", "solution_f1", "solution_auc"} <= set(point)
    assert made.counts["held_out"] > 20
    assert any((Path(trained.run.path) / "logs/tb/prm-base").iterdir())


def test_offloading_and_a_language_loss_on_two_workers(trained: Trained, tmp_path: Path) -> None:
    """Offloaded states change nothing; the language loss is the same for every layout and does something."""
    run = trained_copy(trained, tmp_path)
    job, jobs = job_of(run, "orm-base", trained.config), []
    variants: dict[str, dict[str, Any]] = {
        "offloaded": {"zero": 2, "offload": "optimizer"},
        "all-offloaded": {"zero": 3, "offload": "all"},
        "language": {"zero": 3},
        "language-accumulated": {"zero": 3, "micro_tokens": 128},
    }
    for name, settings in variants.items():
        run.artefact(f"models/{name}").begin({"for": name})
        workers = Workers(**{"workers": 2, "micro_tokens": 512, **settings})
        section = job.section.model_copy(update={"lm_weight": 0.5 if "language" in name else 0.0})
        changes = {"artefact": f"models/{name}", "workers": workers, "section": section, "key": name}
        jobs.append(job.model_copy(update=changes))
    fit(trained.config, run, "reward", jobs)
    straight = losses(manifest(trained.run, "orm-base"))
    for name in ("offloaded", "all-offloaded"):
        assert losses(manifest(run, name)) == pytest.approx(straight, abs=2e-5), name
    language = losses(manifest(run, "language"))
    assert losses(manifest(run, "language-accumulated")) == pytest.approx(language, abs=2e-5)
    assert language[0] == pytest.approx(straight[0], abs=2e-5) and language[-1] != pytest.approx(straight[-1], abs=2e-4)
