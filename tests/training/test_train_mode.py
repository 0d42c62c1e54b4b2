"""A training that was stopped goes on in the mode for training; the base model's own dropout is off in all of it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minos_ray.config.resources import Workers
from minos_ray.store.run import Run
from minos_ray.training import data, objective
from minos_ray.training.data import Job
from minos_ray.training.reward import verifier_jobs
from tests.tiny import tiny_tokenizer
from tests.training.world import world

STEPS, STOP = 12, 7
# Held-out rows, precision, ZeRO.
CASES = [(False, "fp32", 0), (True, "fp32", 0), (True, "bf16", 0), (True, "bf16", 1)]


def tiny_phi(path: Path) -> str:
    """A Phi with dropout of its own wherever that family has one."""
    from transformers import AutoTokenizer, PhiConfig, PhiForCausalLM

    tiny_tokenizer(path)
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(path)),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        resid_pdrop=0.1,
        embd_pdrop=0.2,
        attention_dropout=0.3,
    )
    PhiForCausalLM(config).save_pretrained(path)
    return str(path)


def jobs(folder: Path, held_out: bool, precision: str, zero: int) -> list[tuple[str, dict[str, Any]]]:
    """The same training in two runs; evaluations are far apart, checkpoints are not."""
    base = tiny_phi(folder / "base")
    made = []
    for name in ("straight", "stopped"):
        section = {"batch_rows": 16, "eval_every": 10, "precision": precision, "verifiers": ["orm-base"]}
        config, run = world(folder / name, reward=section, base={"model": base})
        run.artefact("models/orm-base").begin({"for": "test"})
        (job,) = verifier_jobs(config, run, ["orm-base"])
        if not held_out:
            data.write_rows(run, "orm-held-out", data.as_table([]))
        table = job.table.model_copy(update={"rows": 16 * STEPS})
        workers = Workers(micro_tokens=512, gradient_checkpointing=True, save_every=4, zero=zero)
        made.append((run.path, job.model_copy(update={"workers": workers, "table": table}).model_dump()))
    return made


def in_process(_: int, folder: str, pairs: list[tuple[str, dict[str, Any]]]) -> None:
    """One training to its end, the other stopped at a step and begun again; modes and layers computed again by step."""
    from minos_ray.training import engine, loop

    os.environ["LOCAL_RANK"] = "0"
    engine.prepare(gpu=False)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    seen: list[list[tuple[int, bool, int]]] = []
    for path, values in pairs:
        run, job = Run(path), Job.model_validate(values)
        for stop in (None,) if path.endswith("straight/run") else (STOP, None):
            seen.append([])
            training = loop.Training(run, "checkpoints", job)
            training.step = watched(training, stop, seen[-1])
            try:
                training.fit()
            except InterruptedError:
                training.checkpoints.wait()
    Path(folder, "seen.json").write_text(json.dumps(seen))


def watched(training: Any, stop: int | None, seen: list[tuple[int, bool, int]]) -> Callable[[int], None]:
    """`step` of a training, which stops before one of them."""
    from transformers import modeling_layers

    plain, calls = training.step, []
    for layer in training.model.modules():
        if isinstance(layer, modeling_layers.GradientCheckpointingLayer):
            again = layer._gradient_checkpointing_func
            layer._gradient_checkpointing_func = lambda *a, _f=again, **k: (calls.append(1), _f(*a, **k))[1]

    def step(number: int) -> None:
        if number == stop:
            raise InterruptedError
        calls.clear()
        plain(number)
        seen.append((number, training.engine.module.training, len(calls)))

    return step


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train-mode")
    pairs = [pair for number, case in enumerate(CASES) for pair in jobs(folder / str(number), *case)]
    torch.multiprocessing.spawn(in_process, (str(folder), pairs))
    return folder


@pytest.mark.parametrize("case", range(len(CASES)))
def test_stopped_and_resumed_trains_as_never_stopped(folder: Path, case: int) -> None:
    straight, first, second = json.loads((folder / "seen.json").read_text())[3 * case :][:3]
    assert [row[0] for row in first] == list(range(STOP)) and [row[0] for row in second] == list(range(4, STEPS))
    assert first == straight[:STOP] and second == straight[4:]
    assert all(training and calls >= 2 for _, training, calls in straight), "two layers a pass, from the first step on"
    models = [folder / str(case) / name / "run" / "models" / "orm-base" for name in ("straight", "stopped")]
    assert (models[0] / "model.safetensors").read_bytes() == (models[1] / "model.safetensors").read_bytes()
    saved = json.loads((models[0] / "config.json").read_text())
    assert (saved["resid_pdrop"], saved["embd_pdrop"], saved["attention_dropout"]) == (0.1, 0.2, 0.3)


# Families by where their shares are: modules, numbers of modules, configs that are read at each call, layer drop, and
# experts that are drawn.
FAMILIES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2},
    "opt": {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "dropout": 0.2, "layerdrop": 0.5},
    "falcon": {"hidden_size": 32, "hidden_dropout": 0.2, "attention_dropout": 0.2},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8, "attn_pdrop": 0.2, "resid_pdrop": 0.2},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2, "hidden_dropout": 0.2, "attention_dropout": 0.2},
    "mixtral": {"hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 2, "router_jitter_noise": 0.3},
    "llama": {"hidden_size": 32, "intermediate_size": 64, "attention_dropout": 0.5},
    "phimoe": {"hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 2, "initializer_range": 0.2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_in_training_a_model_computes_what_it_computes_in_evaluation(family: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    common = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(family, **{**common, **FAMILIES[family]})
    torch.manual_seed(0)
    model, ids, before = AutoModelForCausalLM.from_config(config), torch.arange(3, 40)[None], config.to_dict()
    expected = model.eval()(ids, use_cache=False).logits
    model.train()
    assert not torch.allclose(model(ids, use_cache=False).logits, expected, atol=1e-4), "it has dropout of its own"
    had = objective.disable_dropout(model)
    torch.testing.assert_close(model(ids, use_cache=False).logits, expected, rtol=0, atol=1e-6)
    objective.restore_dropout(had)
    assert config.to_dict() == before
