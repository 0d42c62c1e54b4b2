"""What must not change a training: ranks, packs, accumulation, ZeRO stages. Real DeepSpeed under Ray Train.

`pytest -s` prints the table of equalities and the largest differences that were seen.
"""

from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from minos_ray.config.resources import Workers
from minos_ray.config.schema import Config
from minos_ray.store.run import Run
from minos_ray.training.job import Job
from minos_ray.training.log import read_log
from minos_ray.training.reward import verifier_jobs
from minos_ray.training.sft import critic_job
from minos_ray.training.trainer import fit
from tests.training.world import world

pytestmark = pytest.mark.slow

KINDS = ("lm", "orm", "prm")
# Name, workers, ZeRO stage, tokens of a pass (512 holds a quarter of a step), precision.
LAYOUTS: dict[str, tuple[int, int, int, str]] = {
    "one rank, one pass": (1, 0, 8192, "fp32"),
    "accumulated": (1, 0, 512, "fp32"),
    "one rank, one pass, bf16": (1, 0, 8192, "bf16"),
    "accumulated, bf16": (1, 0, 128, "bf16"),
    "two ranks": (2, 0, 8192, "fp32"),
    "two ranks, ZeRO 1": (2, 1, 8192, "fp32"),
    "two ranks, ZeRO 2": (2, 2, 8192, "fp32"),
    "two ranks, ZeRO 3": (2, 3, 8192, "fp32"),
    "two ranks, ZeRO 3, accumulated": (2, 3, 512, "fp32"),
    "two ranks, bf16": (2, 0, 8192, "bf16"),
    "two ranks, ZeRO 2, bf16": (2, 2, 8192, "bf16"),
    "two ranks, ZeRO 3, bf16": (2, 3, 8192, "bf16"),
}
# Largest difference of the loss of a step; largest and mean difference of a weight, where training moves it by 2e-3 on
# average. fp32 differs by the order of sums, bf16 by its 8 bits: 2**-7 is one step of a weight near 1.
LOSS = {"fp32": 5e-6, "bf16": 3e-3}
LARGEST = {"fp32": 2e-5, "bf16": 2**-7}
MEAN = {"fp32": 1e-8, "bf16": 5e-5}


class Seen(NamedTuple):
    """The loss of every step and on held-out rows, and the weights."""

    losses: list[float]
    weights: dict[str, Any]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, end_of_ray: None) -> dict[tuple[str, str], Seen]:
    """Every kind trained in every layout, one group of workers for each number of workers."""
    section = {"batch_rows": 32, "epochs": 1.5, "lr": 1e-3}
    config, run = world(tmp_path_factory.mktemp("seen"), sft=section, reward=section, resources={"num_cpus": 2})
    starts = {kind: start(config, run, kind) for kind in KINDS}
    for workers in (1, 2):
        jobs = [job(run, starts[k], k, name) for name, layout in LAYOUTS.items() for k in KINDS if layout[0] == workers]
        fit(config, run, "reward", jobs)
    return {(kind, name): read(run, artefact(kind, name)) for kind in KINDS for name in LAYOUTS}


def start(config: Config, run: Run, kind: str) -> Job:
    """The training of that kind, from the base model."""
    name = "critic" if kind == "lm" else f"{kind}-base"
    run.artefact(f"models/{name}").begin({"for": "test"})
    return critic_job(config, run) if kind == "lm" else verifier_jobs(config, run, [name])[0]


def artefact(kind: str, layout: str) -> str:
    return f"models/{kind}-{layout.replace(' ', '-').replace(',', '')}"


def job(run: Run, like: Job, kind: str, layout: str) -> Job:
    """The same training in another layout."""
    workers, zero, micro_tokens, precision = LAYOUTS[layout]
    name = artefact(kind, layout)
    run.artefact(name).begin({"for": "test"})
    settings = Workers(workers=workers, zero=zero, micro_tokens=micro_tokens)
    section = like.section.model_copy(update={"precision": precision})
    return like.model_copy(update={"artefact": name, "workers": settings, "section": section, "key": name})


def read(run: Run, name: str) -> Seen:
    """What came out."""
    records = read_log(run, name.removeprefix("models/"))
    losses = [record["loss"] for event in ("train", "eval") for record in records if record["event"] == event]
    return Seen(losses, load_file(f"{run.root}/{name}/model.safetensors"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_layout_changes_the_training(seen: dict[tuple[str, str], Seen], kind: str) -> None:
    """The whole curve and the final weights of every layout are those of one rank without accumulation."""
    for name, (_, _, _, precision) in LAYOUTS.items():
        straight = seen[kind, "one rank, one pass, bf16" if precision == "bf16" else "one rank, one pass"]
        other = seen[kind, name]
        loss, largest, mean = differences(straight, other)
        print(f"| {kind} | {name} | {loss:.1e} | {largest:.1e} | {mean:.1e} |")
        assert len(other.losses) == len(straight.losses) > 10
        assert loss <= LOSS[precision], name
        assert largest <= LARGEST[precision] and mean <= MEAN[precision], name


def differences(a: Seen, b: Seen) -> tuple[float, float, float]:
    """The largest difference of two losses, the largest and the mean of two weights."""
    assert a.weights.keys() == b.weights.keys()
    apart = torch.cat([(a.weights[name].float() - b.weights[name].float()).abs().flatten() for name in a.weights])
    return max(abs(x - y) for x, y in zip(a.losses, b.losses, strict=True)), apart.max().item(), apart.mean().item()


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_learns_what_fp32_learns(seen: dict[tuple[str, str], Seen], kind: str) -> None:
    loss, largest, mean = differences(seen[kind, "one rank, one pass"], seen[kind, "one rank, one pass, bf16"])
    print(f"| {kind} | fp32 against bf16 | {loss:.1e} | {largest:.1e} | {mean:.1e} |")
    assert 0 < loss < 0.015 and 0 < mean < 2e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_trainings_do_something(seen: dict[tuple[str, str], Seen], kind: str) -> None:
    """Equalities of trainings that do not move would say nothing."""
    losses = seen[kind, "one rank, one pass"].losses
    assert abs(losses[0] - losses[-1]) > 0.01 and len(set(losses)) == len(losses)
