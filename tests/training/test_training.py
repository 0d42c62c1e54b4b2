"""Whole trainings under Ray Train and DeepSpeed: the stages as a user runs them."""

from pathlib import Path
from typing import NamedTuple

import pytest

from minos_ray.config.schema import Config
from minos_ray.store.run import Manifest, Run
from minos_ray.training.results import read_log
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
def stages(tmp_path_factory: pytest.TempPathFactory, end_of_ray: None) -> Trained:
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


def test_models_learn(stages: Trained) -> None:
    for made in (stages.base, stages.critic):
        curve = made.details["curve"]
        assert curve[0]["step"] == 0 and curve[-1]["step"] == made.details["steps"]
        assert curve[-1]["loss"] < curve[0]["loss"] - 1


def test_base_and_minos_differ_in_the_start_only(stages: Trained) -> None:
    base, minos = (manifest(stages.run, name) for name in ("orm-base", "orm-minos"))
    assert base.details["data"] == minos.details["data"]
    assert base.counts == minos.counts and base.dropped == minos.dropped
    rates = [[r["lr"] for r in read_log(stages.run, n) if r["event"] == "train"] for n in ("orm-base", "orm-minos")]
    assert rates[0] == rates[1]
    assert (base.details["start"], minos.details["start"]) == ("run:models/base", "run:models/critic")
    assert losses(base)[0] != losses(minos)[0]


def test_convergence_curve_is_on_held_out_rows(stages: Trained) -> None:
    made = manifest(stages.run, "prm-base")
    steps = [point["step"] for point in made.details["curve"]]
    assert steps == [0, 4, *([] if made.details["steps"] == 4 else [made.details["steps"]])]
    for point in made.details["curve"]:
        assert {"loss", "accuracy", "f1", "auc", "solution_accuracy", "solution_f1", "solution_auc"} <= set(point)
    assert made.counts["held_out"] > 20
    assert any((Path(stages.run.path) / "logs/tb/prm-base").iterdir())
