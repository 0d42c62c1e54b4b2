"""Bytes of a run: parameters as transformers counts them, sizes that follow the config."""

from pathlib import Path

import pytest

from minos_ray.check import check, findings
from minos_ray.errors import UserError
from minos_ray.preflight import disk, estimate
from minos_ray.sections import Config, Model
from minos_ray.store import Run
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model with a vocabulary head of its own."""
    return tiny_model(tmp_path_factory.mktemp("base"))


def config(tmp_path: Path, base: str, **sections: object) -> Config:
    """A run of 10 train and 20 test problems."""
    splits = {"train": {"path": base, "limit": 10}, "test": {"path": base, "limit": 20}}
    return Config(
        **{"run": str(tmp_path / "run"), "problems": splits, "base": {"model": base}, "generator": {"model": base}}
        | sections
    )


def test_parameters_are_those_of_the_loaded_model(tmp_path: Path, base: str) -> None:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(base)
    run = Run(str(tmp_path))
    assert estimate.parameters(Model(model=base), run) == sum(p.numel() for p in loaded.parameters())
    assert estimate.parameters(Model(model="org/name"), run) is None
    assert estimate.parameters(Model(model=str(tmp_path / "nowhere")), run) is None


def test_sizes_follow_the_config(tmp_path: Path, base: str) -> None:
    run, size = Run(str(tmp_path)), estimate.parameters(Model(model=base), Run(str(tmp_path)))
    sample = {"n_train": 2, "n_test": 8, "max_tokens": 100}
    made = config(tmp_path, base, sample=sample, sft={"precision": "fp32"}, reward={"precision": "fp32"})
    sizes = estimate.run_bytes(made, run, {"sample", "sft", "reward"}, models=3)
    assert sizes == {"candidates": (10 * 2 + 20 * 8) * 100, "models": 3 * size * 4, "checkpoints": 3 * size * 12}
    half = config(tmp_path, base, sft={"precision": "bf16"}, reward={"precision": "bf16", "lora": {}})
    assert estimate.run_bytes(half, run, {"sft"}, models=1) == {"models": size * 2, "checkpoints": 3 * size * 14}
    assert estimate.run_bytes(half, run, {"reward"}, models=1) == {"models": size * 2}
    assert estimate.run_bytes(half, run, {"score"}, models=0) == {}


def test_a_run_that_the_disk_cannot_hold_is_refused(tmp_path: Path, base: str) -> None:
    made = config(tmp_path, base, sample={"n_test": 10**9, "max_tokens": 10**6})
    [line] = [line for line in findings(made, Run(made.run), {"sample"}) if "GB" in line]
    assert "GB free, about 20000" in line and "candidates 2000" in line
    assert disk.told({"models": 3.21e6, "candidates": 5e9}) == "5.00 GB (models 3 MB, candidates 5.00 GB)"


def test_a_run_that_cannot_be_written_is_refused(tmp_path: Path, base: str) -> None:
    (tmp_path / "file").write_text("")
    made = config(tmp_path, base, run=f"{tmp_path}/file/run")
    [line] = findings(made, Run(made.run), {"sample"})
    assert line.startswith(f"run: {made.run}/") and "Not a directory" in line
    with pytest.raises(UserError, match="Not a directory"):
        check(made)
