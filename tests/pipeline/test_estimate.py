"""Bytes of a run: parameters as transformers counts them, sizes that follow the config."""

import shutil
from pathlib import Path

import pytest

from minos_ray.config.schema import Config, Model
from minos_ray.errors import UserError
from minos_ray.graph.state import State, Todo, require_model, todo_of
from minos_ray.pipeline import bytes_to_write, check, findings, in_words, models
from minos_ray.store.model_files import engine_bytes, parameters, weight_files
from minos_ray.store.run import Run
from minos_ray.training import checks as training
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
    assert parameters(Model(model=base), run) == sum(p.numel() for p in loaded.parameters())
    assert parameters(Model(model="org/name"), run) is None
    assert parameters(Model(model=str(tmp_path / "nowhere")), run) is None


def to_make(*artefacts: str) -> Todo:
    """These artefacts and nothing else, by the names of the stages that make them."""
    stages = {"candidates": "sample", "models/critic": "sft", "scores/orm-base": "score"}
    return todo_of(State(name, stages.get(name, "reward"), "missing", "", None) for name in artefacts)


def test_sizes_follow_the_config(tmp_path: Path, base: str) -> None:
    run, size = Run(str(tmp_path)), parameters(Model(model=base), Run(str(tmp_path)))
    sample = {"n_train": 2, "n_test": 8, "max_tokens": 100}
    made = config(tmp_path, base, sample=sample, sft={"precision": "fp32"}, reward={"precision": "fp32"})
    sizes = bytes_to_write(made, run, to_make("candidates", "models/critic", "models/orm-base", "models/prm-base"))
    assert sizes == {"candidates": (10 * 2 + 20 * 8) * 100, "models": 3 * size * 4, "checkpoints": 3 * size * 12}
    half = config(tmp_path, base, sft={"precision": "bf16"}, reward={"precision": "bf16", "lora": {}})
    assert bytes_to_write(half, run, to_make("models/critic")) == {"models": size * 2, "checkpoints": 3 * size * 14}
    assert bytes_to_write(half, run, to_make("models/orm-base")) == {"models": size * 2}
    assert bytes_to_write(half, run, to_make("scores/orm-base")) == {}


@pytest.mark.parametrize(
    ("section", "workers", "count"),
    [
        ({"rows": 24, "batch_rows": 8}, {}, 0),  # three steps
        ({"rows": 24, "batch_rows": 8}, {"save_every": 1}, 2),
        ({"rows": 24, "batch_rows": 8, "pick": "best", "eval_every": 2}, {}, 1),
        ({"rows": 1600, "batch_rows": 8, "epochs": 1}, {}, 0),  # 200 steps, and none is saved after the last
        ({"rows": 1601, "batch_rows": 8, "epochs": 1}, {}, 1),
        ({"rows": 80000, "batch_rows": 8}, {"keep": 4}, 6),
        ({}, {}, 3),
    ],
)
def test_no_more_checkpoints_are_counted_than_a_training_writes(
    tmp_path: Path, base: str, section: dict[str, object], workers: dict[str, object], count: int
) -> None:
    made = config(tmp_path, base, sft={"precision": "fp32", "epochs": 1, **section}, resources={"train": workers})
    run, size = Run(made.run), parameters(Model(model=base), Run(made.run))
    assert bytes_to_write(made, run, to_make("models/critic")).get("checkpoints", 0) == count * size * 12
    aside = training.node_bytes(made, run, {"sft"})({"CPU": 1.0})
    assert aside == training.TEMPORARY_BYTES + (size * 12 if count else 0)


def test_a_run_that_the_disk_cannot_hold_is_refused(tmp_path: Path, base: str) -> None:
    made = config(tmp_path, base, sample={"n_test": 10**9, "max_tokens": 10**6})
    [line] = [line for line in findings(made, Run(made.run), {"sample"}) if "GB" in line]
    assert "GB free, about 20000" in line and "candidates 2000" in line
    assert in_words({"models": 3.21e6, "candidates": 5e9}) == "5.00 GB (models 3 MB, candidates 5.00 GB)"


def test_a_run_that_cannot_be_written_is_refused(tmp_path: Path, base: str) -> None:
    (tmp_path / "file").write_text("")
    made = config(tmp_path, base, run=f"{tmp_path}/file/run")
    [line] = findings(made, Run(made.run), {"sample"})
    assert line.startswith(f"run: {made.run}/") and "Not a directory" in line
    with pytest.raises(UserError, match="Not a directory"):
        check(made)


def test_what_a_stopped_run_has_written_is_not_asked_for_again(tmp_path: Path, base: str) -> None:
    made = config(tmp_path, base, sample={"n_train": 2, "n_test": 8, "max_tokens": 100}, sft={"precision": "bf16"})
    run = Run(made.run)
    states = [State("candidates", "sample", "partial", "", None), State("models/critic", "sft", "missing", "", None)]
    whole = bytes_to_write(made, run, todo_of(states))
    run.write_bytes("checkpoints/sft/critic/step-1/shard", b"0" * 1000)
    run.write_bytes("candidates/part-a.parquet", b"0" * 10**6)
    run.write_bytes("models/orm-base/model.safetensors", b"0" * 1000)  # made, and none of those to be made
    left = bytes_to_write(made, run, todo_of(states))
    assert set(whole) == {"candidates", "models", "checkpoints"}
    assert left == {"models": whole["models"], "checkpoints": whole["checkpoints"] - 1000}


def test_only_nodes_with_workers_write_their_share_of_a_checkpoint(tmp_path: Path, base: str) -> None:
    workers = {"train": {"workers": 4, "gpu": True}}
    made = config(tmp_path, base, sft={"precision": "bf16"}, resources=workers)
    needs = training.node_bytes(made, Run(made.run), {"sft"})
    shard = 14 * parameters(made.base, Run(made.run)) / 4
    assert needs({"CPU": 64.0}) == needs({}) == training.TEMPORARY_BYTES
    assert needs({"CPU": 8.0, "GPU": 3.0}) == training.TEMPORARY_BYTES + 3 * shard
    assert needs({"CPU": 8.0, "GPU": 8.0}) == training.TEMPORARY_BYTES + 4 * shard


def test_a_sweep_needs_what_its_trainings_need(tmp_path: Path, base: str) -> None:
    todo = todo_of([State("sweep/results.parquet", "sweep", "missing", "", None)]).stages
    assert todo == {"sweep", "sft", "reward"}
    assert [key for key, _ in models(config(tmp_path, base), todo)] == ["base.model"]


@pytest.mark.parametrize("weights", [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"", None])
def test_weights_that_are_none_are_named(tmp_path: Path, base: str, weights: bytes | None) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    file, run, model = folder / "model.safetensors", Run(str(tmp_path)), Model(model=str(folder))
    require_model("base.model", model, run)
    file.write_bytes(file.read_bytes()[:-1] if weights is None else weights)
    with pytest.raises(UserError, match=r"base\.model: .*model\.safetensors is no safetensors file"):
        require_model("base.model", model, run)
    assert parameters(model, run) is None


def test_weights_of_an_engine_are_counted_as_they_are_saved(tmp_path: Path, base: str) -> None:
    import torch
    from safetensors.torch import save_file

    folder = Path(shutil.copytree(base, tmp_path / "model"))
    parts = [torch.zeros(3, 5, dtype=kind) for kind in (torch.float32, torch.bfloat16, torch.int8)]
    save_file({str(at): part for at, part in enumerate(parts)}, folder / "model.safetensors")
    model, run = Model(model=str(folder)), Run(str(tmp_path))
    assert engine_bytes(model, run, "auto") == 15 * (2 + 2 + 1)
    assert engine_bytes(model, run, "float32") == 15 * 12
    assert engine_bytes(Model(model="org/name"), run, "auto") == 0


def test_only_what_is_loaded_counts(tmp_path: Path, base: str) -> None:
    """Some models lie on the hub twice, the second time as one file that no index names."""
    from transformers import AutoModelForCausalLM

    folder, run = Path(shutil.copytree(base, tmp_path / "model")), Run(str(tmp_path))
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1 and weight_files(str(folder)) == shards
    assert parameters(Model(model=str(folder)), run) == parameters(Model(model=base), run)
    shards[1].unlink()
    with pytest.raises(UserError, match=rf"base\.model: .*{shards[1].name} is no safetensors file"):
        require_model("base.model", Model(model=str(folder)), run)
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(UserError, match=r"base\.model: .*is no index"):
        require_model("base.model", Model(model=str(folder)), run)


def test_gpus_smaller_than_declared_are_told(tmp_path: Path, base: str) -> None:
    workers = {"train": {"workers": 1, "gpu": True, "gpu_memory_gb": 80}}
    made = config(tmp_path, base, resources=workers)
    assert [*training.gpu_problems(made, Run(made.run), {"sft"}, 80)] == []
    [line] = training.gpu_problems(made, Run(made.run), {"sft"}, 0.5)
    assert "sft needs about" in line
