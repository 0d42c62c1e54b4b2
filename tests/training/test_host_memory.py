"""What trainings on CPUs take of the machine's memory."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from minos_ray.config.load import build
from minos_ray.config.schema import Config
from minos_ray.errors import UserError
from minos_ray.store.run import Run
from minos_ray.training import checks
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("base"), tied=True)


def config(folder: Path, base: str, **train: object) -> Config:
    return build({"run": str(folder / "run"), "base": {"model": base}, "resources": {"train": train}})


def test_the_estimate_is_what_a_training_was_seen_to_take(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peak of a critic of 10 layers x 576 with 49,152 tied words in fp32, in passes of 2,048 tokens."""
    values = {"hidden_size": 576, "num_hidden_layers": 10, "num_attention_heads": 9, "num_key_value_heads": 3}
    folder = Path(shutil.copytree(base, tmp_path / "llama"))
    (folder / "config.json").write_text(json.dumps({**values, "intermediate_size": 1536, "vocab_size": 49152}))
    monkeypatch.setattr(checks, "parameters", lambda model, run: 63_713_088)
    for checkpointing, peak in ((False, 3.22), (True, 2.42)):
        made = config(tmp_path, str(folder), workers=2, micro_tokens=2048, gradient_checkpointing=checkpointing)
        made = made.model_copy(update={"sft": made.sft.model_copy(update={"precision": "fp32"})})
        (need,) = checks.needs(made, Run(made.run), {"sft"})
        assert need.model == pytest.approx(16 * 0.063713 + checks.PROCESS_GB, abs=0.01)
        assert need.full == pytest.approx(peak, rel=0.1)
    (line,) = checks.memory_estimates(made, Run(made.run), {"sft"})
    assert "GB of memory for each of 2 workers on CPUs" in line


def test_what_this_machine_cannot_hold_is_refused(tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More workers than fit: each has the whole model unless ZeRO divides it."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(checks, "parameters", lambda model, run: 7 * 10**8)
    monkeypatch.setattr(checks, "machine_gb", lambda: 24.0)
    run = Run(str(tmp_path / "run"))
    checks.require_memory(config(tmp_path, base, workers=1), run, {"sft"})
    with pytest.raises(
        UserError, match=r"sft needs at least 26\.8 GB of memory for 2 workers.* has 24\.0; set .*zero: 3"
    ):
        checks.require_memory(config(tmp_path, base, workers=2), run, {"sft"})
    checks.require_memory(config(tmp_path, base, workers=2, zero=3), run, {"reward"})
    checks.require_memory(config(tmp_path, base, workers=2, gpu=True), run, {"sft"})
    checks.require_memory(config(tmp_path, base, workers=2), run, {"score"})
    following = config(tmp_path, base, workers={"min": 1, "max": 2})
    for cpus in (1, 2):
        resources = following.resources.model_copy(update={"num_cpus": cpus})
        so_large = following.model_copy(update={"resources": resources})
        with nullcontext() if cpus == 1 else pytest.raises(UserError, match="for 2 workers"):
            checks.require_memory(so_large, run, {"sft"})
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    checks.require_memory(config(tmp_path, base, workers=2), run, {"sft"})


def test_a_base_whose_sizes_are_not_told_has_no_line(tmp_path: Path) -> None:
    made = config(tmp_path, "org/name")
    assert not list(checks.memory_estimates(made, Run(made.run), {"sft", "reward"}))


def test_memory_of_a_container_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CGROUP", tmp_path / "memory.max")
    whole = checks.machine_gb()
    (tmp_path / "memory.max").write_text("max\n")
    assert checks.machine_gb() == whole > 0
    (tmp_path / "memory.max").write_text("1000000000\n")
    assert checks.machine_gb() == 1.0
