"""LoRA: what is trained and what stays, the same under every layout, and one model merged or with peft."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from minos_ray.config.load import build
from minos_ray.config.schema import Config
from minos_ray.config.training import Lora, Refine
from minos_ray.errors import UserError
from minos_ray.pipeline import check
from minos_ray.store.run import Run
from minos_ray.training import engine, models
from minos_ray.training.objective import Objective
from minos_ray.training.packing import pack
from minos_ray.training.results import read_log
from minos_ray.training.reward import verifier_jobs
from tests.tiny import tiny_model
from tests.training.test_losses import rows
from tests.training.trainings import ADAPTER, KILLED, Trained
from tests.training.world import world

KINDS = {"lm": "critic-zero3", "orm": "orm-zero3", "prm": "prm"}
HEADS = {"lm": set(), "orm": {"score.weight"}, "prm": {"score.weight", "score.bias"}}


def objective(path: str, kind: Any, seed: int = 0, **changes: Any) -> Objective:
    """A model with an adapter, on this process alone."""
    made = Objective(models.load(path, kind, "fp32", seed, {}), kind)
    models.attach(made, Lora(**ADAPTER, **changes), seed)
    return made


def trained_names(made: Objective) -> list[str]:
    return [name for name, parameter in made.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("kind", ["lm", "orm", "prm"])
def test_it_begins_as_the_base(tmp_path: Path, kind: Any) -> None:
    path, data = tiny_model(tmp_path), rows(kind)
    batch = [torch.from_numpy(array) for array in pack(data, np.arange(len(data)))]
    plain = Objective(models.load(path, kind, "fp32", 0, {}), kind)
    assert torch.equal(objective(path, kind)(*batch).logits, plain(*batch).logits)


@pytest.mark.parametrize("kind", ["lm", "orm", "prm"])
def test_only_the_adapter_and_the_scalar_head_are_trained(tmp_path: Path, kind: Any) -> None:
    path = tiny_model(tmp_path)
    model = models.load(path, kind, "fp32", 0, {})
    made = Objective(model, kind, None if kind == "lm" else models.vocabulary_head(model, path))
    models.attach(made, Lora(targets=("q_proj", "mlp.up_proj")), 0)
    places = [f"model.model.layers.{n}.{layer}" for n in range(2) for layer in ("self_attn.q_proj", "mlp.up_proj")]
    matrices = {f"{place}.lora_{side}.default.weight" for place in places for side in "AB"}
    assert set(trained_names(made)) == matrices | {f"model.{name}" for name in HEADS[kind]}
    groups = engine.parameter_groups(made, 0.1)
    assert [len(group["params"]) for group in groups] == {"lm": [8], "orm": [9], "prm": [9, 1]}[kind]


def test_matrices_decay_also_when_zero_has_taken_them_apart() -> None:
    made = torch.nn.Linear(3, 2)
    made.weight.data, made.weight.ds_shape = torch.empty(0), torch.Size((2, 3))
    groups = engine.parameter_groups(made, 0.1)
    assert [(group["params"][0] is made.weight, group["weight_decay"]) for group in groups] == [(True, 0.1), (False, 0)]


def test_the_start_depends_on_seed_and_name_only(tmp_path: Path) -> None:
    def started(folder: str, seed: int, kind: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(len(folder))
        path = tiny_model(tmp_path / folder, seed=len(folder))
        return {n: p for n, p in objective(path, kind, seed).named_parameters() if ".lora_A." in n}

    one, same, other = started("a", 0, "orm"), started("bb", 0, "lm"), started("c", 1, "orm")
    assert len(one) == 14 and one.keys() == same.keys()
    assert all(torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name]) for name in one)
    assert len({tuple(matrix.flatten()[:3].tolist()) for matrix in one.values()}) == len(one)
    q = one["model.model.layers.0.self_attn.q_proj.lora_A.default.weight"]
    assert 0.9 * 64**-0.5 < q.abs().max() <= 64**-0.5


def test_merging_is_done_in_fp32() -> None:
    torch.manual_seed(0)
    weight, a, b = torch.randn(6, 5).bfloat16(), torch.randn(2, 5).bfloat16(), torch.randn(6, 2).bfloat16()
    parts = {"base_layer.weight": weight, "base_layer.bias": weight[:, 0], "lora_A.default.weight": a}
    state = {f"x.q_proj.{name}": part for name, part in {**parts, "lora_B.default.weight": b}.items()}
    found = models.merged({**state, "x.norm.weight": weight}, Lora(rank=2, alpha=6))
    expected = (weight.double() + 3 * b.double() @ a.double()).bfloat16()
    assert found.keys() == {"x.q_proj.weight", "x.q_proj.bias", "x.norm.weight"}
    assert torch.equal(found["x.q_proj.weight"], expected) and torch.equal(found["x.norm.weight"], weight)


def config_with(folder: Path, name: str, **changes: Any) -> Config:
    values = {"run": str(folder / "run"), "base": {"model": tiny_model(folder / "base")}}
    return build({**values, name: {"lora": changes}})


def test_what_is_wrong_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"sft.lora.targets: .* 'query'; it has q_proj, k_proj"):
        check(config_with(tmp_path, "sft", targets=["query"]), log=lambda line: None)
    config, run = world(tmp_path, reward={"lora": {"targets": ["q_proj", "lm_head"]}})
    with pytest.raises(UserError, match=r"reward.lora.targets: .* 'lm_head'"):
        verifier_jobs(config, run, ["orm-base"])
    preferences = config_with(tmp_path, "dpo", targets=["query"])
    check(preferences, log=lambda line: None)  # no round of the critic is planned
    rounds = preferences.model_copy(update={"refine": Refine(rounds=1, method="dpo")})
    with pytest.raises(UserError, match=r"dpo.lora.targets: .* 'query'"):
        check(rounds, log=lambda line: None)
    with pytest.raises(UserError, match=r"'pretrain.lora'.*no weights to freeze"):
        build({"run": "r", "base": {"model": "run:models/base"}, "pretrain": {"corpus": "a:b", "lora": {}}})
    monkeypatch.setitem(sys.modules, "peft", None)
    config, run = world(tmp_path / "without", reward={"lora": {}})
    for attempt in (lambda: check(config, log=lambda line: None), lambda: verifier_jobs(config, run, ["orm-base"])):
        with pytest.raises(UserError, match=r"reward.lora needs the package peft.*pip install 'peft>="):
            attempt()


def losses(run: Run, name: str) -> list[float]:
    made = run.artefact(f"models/{name}").manifest()
    assert made is not None
    return [point["loss"] for point in made.details["loss"]]


def with_peft(trained: Trained, kind: Any) -> Any:
    """The start with the adapter, put together by peft alone."""
    from peft import PeftModel

    more = {} if kind == "lm" else {"num_labels": 1}
    base = trained.config.base.model
    start = models.auto_class(kind, AutoConfig.from_pretrained(base)).from_pretrained(base, **more)
    return PeftModel.from_pretrained(start, f"{trained.run.path}/models/{KINDS[kind]}/adapter").eval()


@pytest.mark.slow
def test_every_layout_learns_the_same(trained: Trained) -> None:
    critic = losses(trained.run, "critic-alone")
    assert len(critic) > 5 and critic[-1] < critic[0] - 0.5
    for name in (*(f"critic-zero{zero}" for zero in range(4)), "critic-recomputed"):
        assert losses(trained.run, name) == pytest.approx(critic, abs=2e-5), name
    assert losses(trained.run, "orm-zero3") == pytest.approx(losses(trained.run, "orm-alone"), abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("zero", KILLED)
def test_killed_and_resumed_is_as_never_killed(trained: Trained, zero: int) -> None:
    """With dropout in the adapter, and with checkpoints that hold no frozen weight."""
    starts = [record["step"] for record in read_log(trained.run, f"killed{zero}") if record["event"] == "start"]
    assert len(starts) == 2 and starts[0] == 0 and starts[1] in (4, 8, 12)
    assert losses(trained.run, f"killed{zero}") == losses(trained.run, f"whole{zero}")
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        killed, whole = (trained.run.read_bytes(f"models/{name}{zero}/{file}") for name in ("killed", "whole"))
        assert killed == whole
    names = [name.removeprefix("model.") for name in trained.checkpointed[f"killed{zero}"]]
    assert len(names) == 29 and all(map(models.is_trained, names))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_frozen_weights_stay(trained: Trained, kind: str) -> None:
    folder = f"{trained.run.path}/models/{KINDS[kind]}"
    base, merged = (load_file(f"{path}/model.safetensors") for path in (trained.config.base.model, folder))
    adapter = load_file(f"{folder}/adapter/adapter_model.safetensors")
    assert len(adapter) == 28 + len(HEADS[kind]) and all(weight.any() for weight in adapter.values())
    for name in merged.keys() & base.keys():
        place = f"base_model.model.{name.removesuffix('.weight')}.lora"
        if f"{place}_A.weight" not in adapter:
            assert torch.equal(merged[name], base[name]), name
            continue
        change = 2 * adapter[f"{place}_B.weight"] @ adapter[f"{place}_A.weight"]
        torch.testing.assert_close(merged[name], base[name] + change, rtol=0, atol=1e-6)
    new = merged.keys() - base.keys()
    assert new == HEADS[kind] and base.keys() - merged.keys() == (set() if kind == "lm" else {"lm_head.weight"})
    assert all(torch.equal(merged[name], adapter[f"base_model.model.{name}"]) for name in new)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_merged_model_is_the_base_with_the_adapter(trained: Trained, kind: str) -> None:
    folder = f"{trained.run.path}/models/{KINDS[kind]}"
    auto, ids = models.auto_class(kind, AutoConfig.from_pretrained(folder)), torch.arange(5, 45)[None]
    merged = auto.from_pretrained(folder).eval()
    adapted = with_peft(trained, kind)
    config = adapted.peft_config["default"]
    assert config.base_model_name_or_path == trained.config.base.model
    with torch.no_grad():
        logits, start = merged(input_ids=ids).logits, adapted.get_base_model()
        torch.testing.assert_close(adapted(input_ids=ids).logits, logits, rtol=0, atol=1e-4)
        with adapted.disable_adapter():
            assert not torch.allclose(start(input_ids=ids).logits, logits, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_the_card_says_it(trained: Trained) -> None:
    text = trained.run.read_bytes("models/orm-zero3/README.md").decode()
    assert "Only a LoRA adapter was trained" in text and "| lora rank | 4 |" in text
    assert "| lora targets | q_proj, k_proj," in text
