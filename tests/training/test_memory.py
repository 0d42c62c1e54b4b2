"""The estimate of a training's memory, against what autograd really keeps and against arithmetic."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minos_ray.cluster import nodes
from minos_ray.config.load import build
from minos_ray.config.resources import Elastic, Workers
from minos_ray.config.schema import Config
from minos_ray.config.training import Lora, Reward, Train
from minos_ray.errors import UserError
from minos_ray.store.run import Run
from minos_ray.training import models, trainer
from minos_ray.training.data import Job, Rows, as_table
from minos_ray.training.objective import Objective
from minos_ray.training.packing import pack
from minos_ray.training.trainer import check_gpu_memory
from tests.tiny import tiny_model

# Mistral-7B.
SEVEN = trainer.Shape(7_241_732_096, layers=32, hidden=4096, intermediate=14336, kv=1024, vocabulary=32000)
BF16 = Train(precision="bf16")


def rows(count: int, length: int) -> Rows:
    made: list[dict[str, Any]] = []
    for number in range(count):
        ids = np.random.default_rng(number).integers(3, 300, length).tolist()
        made.append({"problem_id": "p", "ids": ids, "positions": [length - 1], "targets": [1.0], "first": 1})
    return Rows(as_table([{**row, "correct": True} for row in made]))


def test_activations_are_about_what_autograd_keeps(tmp_path: Path) -> None:
    objective = Objective(models.load(tiny_model(tmp_path, hidden=128, layers=4), "prm", "fp32", 0, {}), "prm")
    data, kept = rows(8, 64), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and tensor.is_floating_point():
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    parameters = {p.untyped_storage().data_ptr() for p in objective.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = objective(*map(torch.from_numpy, pack(data, np.arange(8))))
    measured = sum(size for place, size in kept.items() if place not in parameters)
    shape = trainer.shape(objective.model.config)
    expected = trainer.activation_bytes(shape, Workers(micro_tokens=8 * 64), False, 4)
    assert losses.main.requires_grad
    assert 0.7 < measured / expected < 1.4


def test_parameters_are_counted_without_loading(tmp_path: Path) -> None:
    model = models.load(tiny_model(tmp_path), "lm", "fp32", 0, {})
    assert trainer.shape(model.config).parameters == sum(p.numel() for p in model.parameters())


def test_seven_billion_by_hand() -> None:
    """bf16 and Adam: 2 + 4 + 12 bytes a parameter, each divided by the ranks from its ZeRO stage on.

    With ZeRO 1 the gradients of a pass lie in bf16 beside their sums; in fp32 ZeRO 1 and 2 keep a second copy of the
    weights. ZeRO 2 and 3 copy the gradients while they are applied, ZeRO 3 keeps 1e9 weights gathered.
    """
    whole = 7.241732096
    alone = trainer.estimate(SEVEN, BF16, Workers(), "orm")
    assert (alone.parameters, alone.gradients, alone.optimizer) == pytest.approx((2 * whole, 4 * whole, 12 * whole))
    sizes = {zero: trainer.estimate(SEVEN, Train(precision="fp32"), Workers(zero=zero), "orm") for zero in (0, 1, 2, 3)}
    assert [size.optimizer for size in sizes.values()] == pytest.approx([8 * whole, 12 * whole, 12 * whole, 8 * whole])
    headless = replace(SEVEN, head=32000 * 4096)
    assert trainer.estimate(headless, BF16, Workers(zero=1), "orm").gradients == pytest.approx(6 * (whole - 0.131072))
    assert trainer.estimate(headless, BF16, Workers(zero=1), "lm").gradients == pytest.approx(6 * whole)
    shared = trainer.estimate(SEVEN, BF16, Workers(workers=8, zero=3), "orm")
    assert shared.optimizer == pytest.approx(12 * whole / 8) and shared.gradients == pytest.approx(4 * whole / 8)
    assert shared.parameters == pytest.approx(2 * whole / 8 + 2)
    shared = trainer.estimate(SEVEN, BF16, Workers(workers=2, zero=2, micro_tokens=64), "orm")
    assert shared.update == shared.gradients == pytest.approx(4 * whole / 2) and shared.update > shared.activations
    held = shared.parameters + shared.optimizer + 2 * shared.gradients
    assert shared.gpu == pytest.approx(held + trainer.OVERHEAD_GB)
    away = trainer.estimate(SEVEN, BF16, Workers(workers=8, zero=3, offload="all"), "orm")
    assert away.optimizer == away.gradients == 0 and away.host == pytest.approx((12 + 2 + 4) * whole / 8)


def test_lora_has_gradients_and_optimizer_for_its_matrices_only() -> None:
    """Rank 16 on all projections of Mistral-7B: 16 (in + out) parameters each, 41.9 million; a verifier's head 4096."""
    pairs = {"q": (4096, 4096), "k": (4096, 1024), "v": (4096, 1024), "o": (4096, 4096)}
    pairs |= {"gate": (4096, 14336), "up": (4096, 14336), "down": (14336, 4096)}
    linears = {f"layers.{n}.{name}_proj": sum(both) for n in range(32) for name, both in pairs.items()}
    seven, added, whole = replace(SEVEN, linears=linears), 41_943_040 / 1e9, 7.241732096
    section = BF16.model_copy(update={"lora": Lora(rank=16)})
    critic = trainer.estimate(seven, section, Workers(), "lm")
    found = (critic.parameters, critic.gradients, critic.optimizer)
    assert found == pytest.approx((2 * (whole + added), 4 * added, 12 * added))
    orm = trainer.estimate(seven, section, Workers(workers=8, zero=3, offload="optimizer"), "orm")
    assert orm.gradients == orm.optimizer == 0
    assert orm.host == pytest.approx((12 + 4) * (added + 4096e-9) / 8)


def test_linear_layers_are_counted_as_peft_makes_them(tmp_path: Path) -> None:
    model = models.load(tiny_model(tmp_path), "lm", "fp32", 0, {})
    section, shape = Lora(rank=4, targets=("q_proj", "mlp.down_proj")), trainer.shape(model.config)
    models.attach(Objective(model, "lm"), section, 0)
    assert models.adapter_size(section, shape.linears) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_plan_proposed_fits_and_the_given_one_is_kept_when_it_does() -> None:
    given = Workers(workers=8, zero=1, micro_tokens=16384, gpu=True)
    assert trainer.estimate(SEVEN, BF16, given, "lm").gpu > 80
    found = trainer.first_fit(SEVEN, BF16, given, "lm", 80)
    assert found is not None and trainer.estimate(SEVEN, BF16, found, "lm").gpu <= 80
    assert trainer.first_fit(SEVEN, BF16, found, "lm", 80) == found
    assert trainer.first_fit(SEVEN, BF16, given, "lm", 4) is None


def test_check_says_what_is_needed_and_proposes_what_fits(tmp_path: Path) -> None:
    """A tiny model: only the fixed overhead counts, so a GPU below it fits nothing and one above it everything."""
    base = {"model": tiny_model(tmp_path)}
    config = build({"run": str(tmp_path / "run"), "base": base, "resources": {"train": {"gpu": True}}})
    lines = list(trainer.summary(config, Run(config.run), {"sft", "reward"}))
    assert [line.split(":")[1].split()[0] for line in lines] == ["sft", "reward"] and "GB on each GPU" in lines[0]
    trainer.check_memory(config, Run(config.run), {"sft", "reward"})
    workers = config.resources.train.model_copy(update={"gpu_memory_gb": 2.0})
    small = config.model_copy(update={"resources": config.resources.model_copy(update={"train": workers})})
    with pytest.raises(UserError, match="take more workers"):
        trainer.check_memory(small, Run(config.run), {"sft", "reward"})


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose nvidia-smi speaks of two GPUs, the smaller of 24 GiB."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 81920\necho 24576\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")


def seven_billion(folder: Path) -> Config:
    """The config of a run whose base is Mistral-7B as far as can be told without its weights."""
    from transformers import AutoConfig

    base = Path(tiny_model(folder / "base"))
    mistral = AutoConfig.for_model("mistral")
    mistral.save_pretrained(base)
    return build({"run": str(folder / "run"), "base": {"model": str(base)}, "resources": {"train": {"gpu": True}}})


def test_what_the_gpu_has_is_asked_of_it(two_gpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nodes.gpu_memory_gb() == pytest.approx(25.8, abs=0.05)
    config = seven_billion(tmp_path)
    with pytest.raises(
        UserError, match=r"sft needs about \d+ GB on each GPU, which has 26 .*this fits: .*zero=3 .*offload=optimizer"
    ):
        trainer.check_memory(config, Run(config.run), {"sft", "reward"})
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    trainer.check_memory(config, Run(config.run), {"sft", "reward"})


def test_the_gpu_of_a_cluster_is_asked_before_any_worker_is_started(two_gpus: None, tmp_path: Path) -> None:
    import ray

    from minos_ray.cluster.connect import disconnect

    config = seven_billion(tmp_path)
    table = {"name": "orm", "rows": 8, "held_out_rows": 0, "train": "", "held_out": "", "dropped": {}}
    values = {"artefact": "models/orm-base", "kind": "orm", "start": config.base, "table": table, "key": "k"}
    job = Job(**values, section=Reward(precision="bf16"), workers=config.resources.train)
    disconnect()
    ray.init(address="local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(UserError, match=r"orm-base needs about .* which has 26"):
            check_gpu_memory(Run(config.run), [job], config.base, 60)
    finally:
        disconnect()


def test_advice_names_the_keys_to_change() -> None:
    given = Workers(workers=8, zero=1, micro_tokens=16384, gpu=True)
    text = trainer.advice(given, trainer.first_fit(SEVEN, BF16, given, "lm", 40))
    assert "resources.train.gradient_checkpointing=True" in text and "resources.train.zero=" in text
    assert "resources.train.workers" not in text
    following = given.model_copy(update={"workers": Elastic(min=8, max=16)})
    assert trainer.advice(following, trainer.first_fit(SEVEN, BF16, following, "lm", 40)) == text


def test_a_driver_that_hangs_tells_nothing(two_gpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(nodes, "SMI_S", 0.3)
    assert nodes.gpu_memory_gb() is None
