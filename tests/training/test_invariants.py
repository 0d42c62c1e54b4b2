"""What must not change a training: ranks, packs, accumulation, ZeRO stages, offloading. Real DeepSpeed under Ray Train.

`pytest -s` prints the table of equalities and the largest differences that were seen.
"""

from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from minos_ray.store.run import Run
from tests.training.trainings import (
    KINDS,
    LAYOUTS,
    LAYOUTS_OF,
    OFFLOADED,
    Trained,
    layout_name,
    losses,
    records,
)

pytestmark = pytest.mark.slow

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
def seen(trained: Trained) -> dict[tuple[str, str], Seen]:
    """Every kind in its layouts."""
    return {
        (kind, layout): read(trained.run, layout_name(kind, layout)) for kind in KINDS for layout in LAYOUTS_OF[kind]
    }


def read(run: Run, name: str) -> Seen:
    """What came out."""
    return Seen(losses(run, name), load_file(f"{run.root}/models/{name}/model.safetensors"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_layout_changes_the_training(seen: dict[tuple[str, str], Seen], kind: str) -> None:
    """The whole curve and the final weights of every layout are those of one rank without accumulation."""
    for name in LAYOUTS_OF[kind]:
        precision = LAYOUTS[name][3]
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


def train_losses(trained: Trained, name: str) -> list[float]:
    return [record["loss"] for record in records(trained.run, name, "train")]


def test_offloading_and_a_language_loss_on_two_workers(trained: Trained) -> None:
    """Offloaded states change nothing; the language loss is the same for every layout and does something."""
    straight = train_losses(trained, layout_name("orm", "one rank, one pass"))
    for name in OFFLOADED:
        assert train_losses(trained, name) == pytest.approx(straight, abs=2e-5), name
    language = train_losses(trained, "language")
    assert train_losses(trained, "language-accumulated") == pytest.approx(language, abs=2e-5)
    assert language[0] == pytest.approx(straight[0], abs=2e-5) and language[-1] != pytest.approx(straight[-1], abs=2e-4)
