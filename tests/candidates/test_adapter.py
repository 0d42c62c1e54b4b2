"""A generator with a LoRA adapter: texts as of the merged weights, what is refused, and what is made stale."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from minos_ray.candidates.engine import Generator, Request, lora_rank
from minos_ray.candidates.prompts import plain
from minos_ray.config.load import build
from minos_ray.config.resources import Engine
from minos_ray.config.schema import Config, Model
from minos_ray.errors import UserError
from minos_ray.graph import specs
from minos_ray.graph.state import model_problems
from minos_ray.store.model_files import load_tokenizer, locate_adapter
from minos_ray.store.run import Run
from tests.candidates.test_engine import GREEDY, QUESTIONS, RESOURCES, reference
from tests.tiny import tiny_model

RANK = 12  # vLLM has room for 8, 16, 32, ...


def adapt(base: Path, adapter: Path, merged: Path, seed: int = 0) -> None:
    """Saves an adapter that changes what the base says, as peft saves it, and the base with it merged."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = peft.LoraConfig(r=RANK, lora_alpha=24, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.normal_(std=0.3 if ".lora_B." in name else 0.15)
    model.save_pretrained(str(adapter))
    model.merge_and_unload().save_pretrained(merged)
    AutoTokenizer.from_pretrained(base).save_pretrained(merged)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, `adapter` and `merged`."""
    folder = tmp_path_factory.mktemp("adapted")
    tiny_model(folder / "base")
    adapt(folder / "base", folder / "adapter", folder / "merged")
    return folder


@pytest.mark.slow
def test_texts_are_those_of_the_merged_weights(folder: Path, local_ray: None) -> None:
    import ray

    model = Model(model=str(folder / "base"), adapter=str(folder / "adapter"))
    actor: Any = ray.remote(Generator).options(num_cpus=1).remote(model.model, model, RESOURCES)
    tokenizer = load_tokenizer(model.model)
    prompts = [plain(question, tokenizer) for question in QUESTIONS]
    try:
        made = ray.get(actor.generate.remote([Request(prompt, 1) for prompt in prompts], GREEDY, "0"), timeout=300)
    finally:
        ray.kill(actor)
    texts = [text.text for [text] in made]
    assert texts == reference(str(folder / "merged"), prompts, GREEDY["max_tokens"])
    assert texts != reference(str(folder / "base"), prompts, GREEDY["max_tokens"])


def test_the_rank_is_the_smallest_that_vllm_has_room_for(folder: Path) -> None:
    assert lora_rank(Model(model="x", adapter=str(folder / "adapter"))) == 16


def config_with(folder: Path, run: Path, **generator: str) -> Config:
    """A run whose generator is the base, perhaps with an adapter."""
    base = str(folder / "base")
    return build({"run": str(run), "base": {"model": base}, "generator": {"model": base, **generator}})


def test_the_bytes_of_the_adapter_are_in_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(folder / "adapter", tmp_path / "adapter")

    def inputs(**generator: str) -> dict[str, Any]:
        config = config_with(folder, tmp_path / "run", **generator)
        return specs.inputs(config, Run(config.run), specs.spec(config, "candidates"))

    plain, first = inputs(), inputs(adapter=str(adapter))
    assert set(plain["config"]["generator"]) == {"model", "revision", "trust_remote_code"}, "as before there were any"
    assert set(first["contents"]) - set(plain["contents"]) == {"generator.adapter"}
    adapt(folder / "base", adapter, tmp_path / "merged", seed=1)
    second = inputs(adapter=str(adapter))
    assert second["contents"]["generator.adapter"] != first["contents"]["generator.adapter"]
    assert {**second, "contents": None} == {**first, "contents": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "is no LoRA of peft"),
        ({"use_dora": True}, "vLLM has no use_dora; merge it"),
        ({"modules_to_save": ["lm_head"], "bias": "all"}, "vLLM has no bias, modules_to_save; merge it"),
    ],
)
def test_an_adapter_that_vllm_does_not_add_is_named(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    adapter = shutil.copytree(folder / "adapter", tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | changes))
    config = config_with(folder, tmp_path / "run", adapter=str(adapter))
    assert config.generator
    (line,) = model_problems("generator.model", config.generator, config, Run(config.run))
    assert line.startswith("generator.adapter: ") and message in line


def test_an_adapter_that_is_not_there_and_one_where_nothing_adds_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no adapter_config\.json or no adapter_model"):
        locate_adapter(Model(model="x", adapter=f"{tmp_path}/none"))
    with pytest.raises(UserError, match=r"base.adapter: merge it into the model with peft"):
        build({"run": "x", "base": {"model": "x", "adapter": "y"}})
    with pytest.raises(UserError, match=r"verifier.adapter: merge it"):
        build({"run": "x", "base": {"model": "x"}, "search": {"verifier": {"model": "x", "adapter": "y"}}})


def test_a_share_of_a_gpu_and_parts_on_several_nodes_are_arguments_of_vllm(folder: Path) -> None:
    from minos_ray.candidates.engine import arguments

    model = Model(model=str(folder / "base"))
    half = arguments(model.model, model, Engine(gpus=0.5, gpu_memory_utilization=0.8))
    assert (half["tensor_parallel_size"], half["distributed_executor_backend"]) == (1, "uni")
    assert half["gpu_memory_utilization"] == pytest.approx(0.4)
    parts = arguments(model.model, model, Engine(gpus=4, pipeline_parallel_size=2))
    assert (parts["tensor_parallel_size"], parts["pipeline_parallel_size"]) == (4, 2)
    assert (parts["distributed_executor_backend"], parts["gpu_memory_utilization"]) == ("ray", 0.9)
    assert "pipeline_parallel_size" not in half and "enable_lora" not in half
