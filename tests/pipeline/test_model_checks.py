"""`minos check` on models: names that lead nowhere, weights that are not whole, families that cannot be trained."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minos_ray.config.load import build
from minos_ray.config.schema import Config
from minos_ray.errors import UserError
from minos_ray.pipeline import findings
from minos_ray.store.model_files import load_tokenizer
from minos_ray.store.run import Run
from minos_ray.training import models
from minos_ray.training.base import Stored, check, meta_model, tokenizer_of
from minos_ray.training.checks import encoding_note
from tests.tiny import tiny_model, tiny_tokenizer

Weights = dict[str, torch.Tensor]
REWARD_MODEL = "is a reward model or classifier, whose head ('score.weight') would be thrown away"


def config(folder: Path, model: str, **sections: Any) -> Config:
    """A run that has everything still to do but candidates."""
    problems = {split: {"path": __file__} for split in ("train", "test")}
    return build({"run": str(folder / "run"), "problems": problems, "base": {"model": model}, **sections})


def said(folder: Path, model: str, stages: set[str] | None = None, **sections: Any) -> list[str]:
    """What stops training because of the base."""
    made = config(folder, model, **sections)
    lines = findings(made, Run(made.run), stages or {"sft", "reward"})
    return [line for line in lines if line.startswith("base.")]


def changed(folder: Path, change: Callable[[Weights], Any], **how: Any) -> str:
    """A tiny model whose stored weights are changed in place."""
    path = tiny_model(folder / "model", **how)
    weights = load_file(f"{path}/model.safetensors")
    change(weights)
    save_file(weights, f"{path}/model.safetensors", {"format": "pt"})
    return path


def without(part: str) -> Callable[[Weights], None]:
    """Takes out the weights with `part` in their names."""

    def change(weights: Weights) -> None:
        for name in [name for name in weights if part in name]:
            del weights[name]

    return change


def emptied(weights: Weights) -> None:
    weights["model.norm.weight"] = torch.zeros(0)


def cut(weights: Weights) -> None:
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"][:-1].contiguous()


BROKEN = {
    "no head": (without("lm_head"), {}, "has no weights for 'lm_head.weight'; they would be random"),
    "no layer": (
        without("layers.1."),
        {},
        "has no weights for 'model.layers.1.input_layernorm.weight', 'model.layers.1.mlp.down_proj.weight', "
        "'model.layers.1.mlp.gate_proj.weight' and 6 more; they would be random",
    ),
    "emptied": (
        emptied,
        {},
        "'model.norm.weight' are not those of its config.json: 'model.norm.weight' is (0,), wanted (64,)",
    ),
    "cut": (cut, {}, "'model.layers.0.mlp.up_proj.weight' is (127, 64), wanted (128, 64)"),
    "a reward model": (lambda weights: None, {"kind": "orm"}, "has no weights for 'lm_head.weight'"),
    "a tied reward model": (lambda weights: None, {"kind": "orm", "tied": True}, REWARD_MODEL),
    "tied and apart": (
        lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"] + 1}),
        {"tied": True},
        "ties 'lm_head.weight' to 'model.embed_tokens.weight' (tie_word_embeddings), yet both are stored and differ",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_weights_that_would_be_made_up_are_refused_by_the_check_and_by_the_loader(name: str, tmp_path: Path) -> None:
    change, how, expected = BROKEN[name]
    base = changed(tmp_path, change, **how)
    [line] = said(tmp_path, base)
    assert line.startswith("base.model: ") and base in line and expected in line
    with pytest.raises(UserError) as refused:
        models.load(base, "lm", "fp32", 0, {})
    assert str(refused.value) == line


def sharded(base: str, **more: str) -> None:
    """The weights in two files, of which an index names the tensors; `more` are further entries of it."""
    weights = load_file(f"{base}/model.safetensors")
    Path(base, "model.safetensors").unlink()
    names, places = sorted(weights), {}
    for file, part in (("one.safetensors", names[::2]), ("two.safetensors", names[1::2])):
        save_file({name: weights[name] for name in part}, f"{base}/{file}", {"format": "pt"})
        places |= dict.fromkeys(part, file)
    Path(base, "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {**places, **more}})
    )


def test_an_index_only_says_which_files_there_are(tmp_path: Path) -> None:
    """As in transformers: it may name a tensor that is not there, or another file, and beside a whole file it is of
    no use at all, whatever it says."""
    base, stale = tiny_model(tmp_path / "base"), tiny_model(tmp_path / "stale", seed=1)
    expected = load_file(f"{base}/model.safetensors")
    sharded(base, **{"rotary.inv_freq": "two.safetensors", "lm_head.weight": "two.safetensors"})
    for zero in (0, 3):
        assert said(tmp_path, base, resources={"train": {"zero": zero}}) == []
    with Stored(base) as weights:
        assert {*weights.files} == {*expected}
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    Path(base, "two.safetensors").unlink()
    [line] = said(tmp_path, base)
    assert line.startswith("base.model: ") and "two.safetensors" in line
    with pytest.raises(UserError, match=r"^base\.model: .* has no two\.safetensors"):
        models.load(base, "lm", "fp32", 0, {})
    Path(base, "model.safetensors.index.json").rename(f"{stale}/model.safetensors.index.json")
    assert said(tmp_path, stale, resources={"train": {"zero": 3}}) == []


def composite(folder: Path) -> str:
    """A language model with a part for images."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    tiny_tokenizer(folder)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {**small, "head_dim": 16, "vocab_size": len(load_tokenizer(str(folder)))}
    images = {**small, "image_size": 28, "patch_size": 14}
    Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=images)).save_pretrained(folder)
    return str(folder)


def test_a_language_loss_takes_the_sizes_of_the_part_for_text(tmp_path: Path) -> None:
    base = composite(tmp_path / "base")
    model = models.load(base, "orm", "fp32", 0, {})
    head = models.vocabulary_head(model, base)
    assert head.weight is model.get_input_embeddings().weight and head.in_features == 32


@pytest.mark.parametrize("part", ["whole", "text_config"])
def test_quantised_weights_are_refused(part: str, tmp_path: Path) -> None:
    """ZeRO 3 would take their numbers for the weights, GPUs would leave them as they are."""
    base = tiny_model(tmp_path / "base") if part == "whole" else composite(tmp_path / "base")
    values = json.loads(Path(base, "config.json").read_text())
    of = values if part == "whole" else values[part]
    of["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    Path(base, "config.json").write_text(json.dumps(values))
    [line] = said(tmp_path, base)
    assert line.startswith(f"base.model: {base}: its weights are quantised (fp8)")
    with pytest.raises(UserError, match=r"quantised \(fp8\)"):
        models.load(base, "orm", "fp32", 0, {})


def test_an_adapter_is_no_base_with_or_without_its_weights(tmp_path: Path) -> None:
    """transformers adds it to weights that lie beside it, vLLM does not."""
    beside, alone = tiny_model(tmp_path / "beside"), tiny_model(tmp_path / "alone")
    Path(alone, "model.safetensors").rename(f"{alone}/adapter_model.safetensors")
    for base in (beside, alone):
        Path(base, "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
        [line] = said(tmp_path, base)
        assert line.startswith("base.model: ") and "holds an adapter (adapter_config.json)" in line


def test_the_tokenizer_must_fit_the_embeddings(tmp_path: Path) -> None:
    """Special tokens that were added are in no row, but EOS ends a critique."""
    base = tiny_model(tmp_path / "base")
    tokenizer = load_tokenizer(base)
    tokenizer.add_special_tokens({"pad_token": "<more>"})
    tokenizer.save_pretrained(base)
    assert said(tmp_path, base) == []
    tokenizer.eos_token = "<more>"
    tokenizer.save_pretrained(base)
    assert "the first is '<more>'" in said(tmp_path, base)[0] and said(tmp_path, base, {"reward"}) == []
    tokenizer.eos_token = None
    tokenizer.save_pretrained(base)
    assert "has no EOS token" in said(tmp_path, base)[0] and said(tmp_path, base, {"reward"}) == []
    tokenizer.add_tokens(["<step>"])
    tokenizer.save_pretrained(base)
    assert "the first is '<step>'" in said(tmp_path, base, {"reward"})[0]
    with pytest.raises(UserError, match="without resizing the model"):
        tokenizer_of(base, False, critic=False)


def test_the_check_says_which_encoding_a_base_can_have(tmp_path: Path) -> None:
    plain, chat = tiny_model(tmp_path / "plain"), tiny_model(tmp_path / "chat", chat=True)
    asked = {"encoding": {"name": "chat", "system": "Be strict."}}
    assert said(tmp_path, plain) == said(tmp_path, chat) == said(tmp_path, chat, base={"model": chat, **asked}) == []
    [line] = said(tmp_path, plain, base={"model": plain, **asked})
    assert line == "base.encoding: the tokenizer has no chat template; use name: lines, or an instruct model"
    made = [config(tmp_path, base) for base in (plain, chat)]
    made.append(config(tmp_path, chat, base={"model": chat, **asked}))
    notes = [[*encoding_note(one, Run(one.run), {"sft"})] for one in made]
    assert notes[0] == [] and "if it is an instruct model, base.encoding.name=chat" in notes[1][0]
    assert notes[2][0].startswith("base.encoding: chat, by the base's template ")
    assert [*encoding_note(made[1], Run(made[1].run), {"score"})] == []


def test_a_foreign_head_is_no_start_of_a_verifier(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "orm", "orm")
    [line] = said(tmp_path, base, {"reward"}, reward={"verifiers": ["orm-base"]})
    assert REWARD_MODEL in line and "give the language model that it was made from" in line
    with pytest.raises(UserError, match="is a reward model or classifier"):
        models.load(base, "orm", "fp32", 0, {})


def tiny(folder: Path, name: str, **sizes: Any) -> str:
    """A tiny language model of a family, and a tokenizer."""
    import transformers

    tiny_tokenizer(folder)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    made = getattr(transformers, name)(vocab_size=len(load_tokenizer(str(folder))), **small | sizes)
    transformers.AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    return str(folder)


MOE = {"num_key_value_heads": 1, "num_experts_per_tok": 2}
OTHER_NAMES = {  # stored under names, or in pieces, that transformers turns into the model's own
    "MixtralConfig": {**MOE, "num_local_experts": 4},
    "Glm4MoeConfig": {**MOE, "head_dim": 16, "n_routed_experts": 4, "moe_intermediate_size": 16},
    "GPTNeoXConfig": {},
}


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_weights_under_other_names_are_whole_but_not_for_zero_3(name: str, tmp_path: Path) -> None:
    base = tiny(tmp_path / "base", name, **OTHER_NAMES[name])
    wanted = {"reward": {"verifiers": []}} if name != "GPTNeoXConfig" else {}
    stages = {"sft"} if wanted else {"sft", "reward"}
    assert said(tmp_path, base, stages, **wanted) == []
    [line] = said(tmp_path, base, stages, resources={"train": {"zero": 3}}, **wanted)
    assert "under other names, which resources.train.zero 3 does not know" in line


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("zero", [0, 3])
def test_a_whole_base_passes(tied: bool, zero: int, tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", tied=tied)
    assert said(tmp_path, base, resources={"train": {"zero": zero}}) == []


def test_checks_in_two_threads_leave_tied_weights_tied(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", tied=True)

    def check_often() -> None:
        for _ in range(8):
            check(base, ["lm"], {}, zero3=False, with_weights=True)

    threads = [threading.Thread(target=check_often) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = meta_model(base, "lm", {})
    assert made.lm_head.weight is made.model.embed_tokens.weight


def test_a_base_saved_without_its_prefix_passes(tmp_path: Path) -> None:
    def bare(weights: Weights) -> None:
        for name in list(weights):
            weights[name.removeprefix("model.")] = weights.pop(name)

    assert said(tmp_path, changed(tmp_path, bare, tied=True)) == []


def as_bin(base: str, drop: str = "nothing") -> None:
    """Stores the weights as older models are."""
    weights = load_file(f"{base}/model.safetensors")
    without(drop)(weights)
    torch.save(weights, f"{base}/pytorch_model.bin")
    Path(f"{base}/model.safetensors").unlink()


def test_older_files_of_weights_are_looked_into(tmp_path: Path) -> None:
    whole, broken, pointer = (tiny_model(tmp_path / name) for name in ("whole", "broken", "pointer"))
    as_bin(whole)
    as_bin(broken, "lm_head")
    as_bin(pointer)
    Path(pointer, "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert said(tmp_path, whole) == []
    assert "has no safetensors files" in said(tmp_path, whole, resources={"train": {"zero": 3}})[0]
    assert "has no weights for 'lm_head.weight'" in said(tmp_path, broken)[0]
    assert "is no file of weights" in said(tmp_path, pointer)[0]


def test_a_language_loss_needs_a_head_of_the_known_name(tmp_path: Path) -> None:
    """GPT-NeoX's is stored as `embed_out.weight`."""
    other, known = tiny(tmp_path / "other", "GPTNeoXConfig"), tiny_model(tmp_path / "known")
    section = {"lm_weight": 0.5, "verifiers": ["orm-base"]}
    made = config(tmp_path, other, reward=section)
    [line] = [line for line in findings(made, Run(made.run), {"reward"}) if "lm_weight" in line]
    assert line.startswith("reward.lm_weight: ") and "has no 'lm_head.weight' in safetensors files" in line
    assert said(tmp_path, other, {"reward"}, reward={**section, "lm_weight": 0.0}) == []
    assert said(tmp_path, known, {"reward"}, reward=section) == []


def test_a_family_without_the_class_is_refused_before_any_work(tmp_path: Path) -> None:
    base = tiny(tmp_path / "base", "GraniteConfig")
    [line] = said(tmp_path, base, {"sft", "reward"}, reward={"verifiers": ["prm-minos"]})
    assert "no *ForTokenClassification and no *ForSequenceClassification for model type 'granite'" in line
    assert said(tmp_path, base, {"sft"}) == []


def test_a_config_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    known = json.loads(Path(base, "config.json").read_text())
    Path(base, "config.json").write_text(json.dumps({**known, "model_type": "mystery"}))
    [line] = said(tmp_path, base)
    assert "makes no model of its config.json" in line and "mystery" in line and "\n" not in line


PLACES = {
    "base.model": lambda name: {"base": {"model": name}},
    "generator.model": lambda name: {"generator": {"model": name}},
    "label.rollouts.completer": lambda name: {"label": {"rollouts": {"completer": {"model": name}}}},
    "meta.models.other.model": lambda name: {"meta": {"models": {"other": {"model": name, "kind": "sequence"}}}},
}


@pytest.mark.parametrize("key", PLACES)
def test_a_directory_that_is_not_there_is_found_wherever_it_is_named(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative: it has the form of a hub id. The tests are offline and their cache is empty."""
    monkeypatch.chdir(tmp_path)
    base = tiny_model(tmp_path / "base")
    sections = {"base": {"model": base}, "critique": {"base_url": "offline"}, **PLACES[key]("checkpoints/mistyped")}
    made = config(tmp_path, sections.pop("base")["model"], **sections)
    lines = [line for line in findings(made, Run(made.run)) if line.startswith(key)]
    assert len(lines) == 1
    assert f"there is no directory {tmp_path}/checkpoints/mistyped" in lines[0]


def test_a_model_that_the_run_never_makes_is_refused(tmp_path: Path) -> None:
    [line] = said(tmp_path, "run:models/mistyped", pretrain={"corpus": "a:b"})
    assert line.startswith("base.model: 'run:models/mistyped' is not in") and "makes none of that name" in line
    assert said(tmp_path, "run:models/base", pretrain={"corpus": "a:b"}) == []


def test_a_model_of_the_run_is_made_before_it_is_needed(tmp_path: Path) -> None:
    rollouts = {"completer": {"model": "run:models/critic"}, "candidates": 1}
    made = config(tmp_path, tiny_model(tmp_path / "model"), label={"rollouts": rollouts})
    lines = [line for line in findings(made, Run(made.run), {"label"}) if line.startswith("label.rollouts.completer")]
    assert len(lines) == 1 and lines[0].endswith("makes it only after it is needed")
    judged = {f"a-{name}": {"model": f"run:models/{name}", "kind": "minos"} for name in ("orm-base", "mistyped")}
    made = config(tmp_path, tiny_model(tmp_path / "model"), critique={"base_url": "offline"}, meta={"models": judged})
    lines = [line for line in findings(made, Run(made.run)) if line.startswith("meta.models")]
    assert len(lines) == 1 and lines[0].startswith("meta.models.a-mistyped.model") and "makes none" in lines[0]


class Hub(http.server.BaseHTTPRequestHandler):
    """Gives one model's config.json; another model is gated, one does not exist, one breaks the server."""

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        self.answer(b'{"model_type": "granite", "architectures": ["GraniteForCausalLM"]}')

    def answer(self, body: bytes) -> None:
        kind = next((kind for kind in ("good", "gated", "absent", "broken") if kind in self.path), "")
        status = {"good": 200, "gated": 403, "broken": 500}.get(kind, 404)
        self.send_response(status)
        error = {"gated": "GatedRepo", "absent": "RepoNotFound"}.get(kind)
        length = {"Content-Length": "66" if status == 200 else "0"}
        found = {"X-Repo-Commit": "0" * 40, "ETag": '"abc"'} if status == 200 else {}
        for name, value in {**length, **found, **({"X-Error-Code": error} if error else {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if status == 200 else b"")

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_the_hub_is_asked_for_its_models(hub: str, tmp_path: Path) -> None:
    """In one process, since the hub's address is read at import; the last name is a directory with a typo."""
    names = ["org/good", "org/gated", "org/absent", "org/broken"]
    code = f"""
import json, os
from minos_ray.errors import UserError
from minos_ray.graph.state import require_model
from minos_ray.config.schema import Model
import minos_ray.pipeline as check
from minos_ray.store.run import Run
from minos_ray.training.checks import check_base
from tests.pipeline.test_model_checks import config
from pathlib import Path

def said(test):
    try: return test()
    except UserError as error: return str(error)

kept = Path(os.environ["HF_HOME"], "hub", "models--gated--kept")
for file, text in (("refs/main", "f" * 40), ("snapshots/" + "f" * 40 + "/config.json", "{{}}")):
    (kept / file).parent.mkdir(parents=True)
    (kept / file).write_text(text)
run = Run({str(tmp_path / "run")!r})
print(json.dumps(said(lambda: require_model("base.model", Model(model="gated/kept"), run))))
check.require, check.estimates = lambda *_: None, lambda *_: []  # other things are wrong with this config
for name in {names!r}:
    made, lines = config(Path({str(tmp_path)!r}), name), []
    said(lambda: check.check(made, lines.append))
    print(json.dumps([said(lambda: require_model("base.model", made.base, run)),
        said(lambda: check_base(made, run, {{"reward"}})), [line for line in lines if "looked up" in line]]))
"""
    where = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    env = {**os.environ, **where, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    kept, good, gated, absent, broken = map(json.loads, done.stdout.splitlines())
    assert kept is None, "a model in the cache is taken from there, whatever the hub says"
    assert good[0] is None and "for model type 'granite'" in good[1] and good[2] == []
    assert "granted access" in gated[0] and gated[1] is None
    assert "there is no directory" in absent[0] and "the model hub has none of that name" in absent[0]
    assert broken[:2] == [None, None] and "could not be looked up" in broken[2][0]


def test_without_a_network_only_what_is_surely_wrong_is_refused(tmp_path: Path) -> None:
    """A relative path into a directory that is there is a typo; another name may be the hub's."""
    (tmp_path / "checkpoints").mkdir()
    code = """
from minos_ray.graph.state import hub_config
from minos_ray.errors import UserError
for name in ("checkpoints/mistyped", "org/name"):
    try: print(hub_config(name, None))
    except UserError as error: print(error)
"""
    where = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    env = {**os.environ, **where, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=env, cwd=tmp_path
    )
    mistyped, unknown = done.stdout.splitlines()
    assert f"there is no directory {tmp_path}/checkpoints/mistyped" in mistyped
    assert unknown == "None", done.stderr


def test_a_base_of_its_own_needs_no_pretraining(tmp_path: Path) -> None:
    from minos_ray.graph.specs import specs

    pretrain = {"pretrain": {"corpus": "a:b"}}
    base = tiny_model(tmp_path / "base")

    def planned(made: Config) -> bool:
        return "models/base" in [spec.artefact for spec in specs(made)]

    assert not planned(config(tmp_path, base, **pretrain))
    assert planned(config(tmp_path, "run:models/base", **pretrain))
    generated = config(tmp_path, base, generator={"model": "run:models/base"}, **pretrain)
    assert planned(generated)
    assert "models/base" in next(spec.needs for spec in specs(generated) if spec.artefact == "candidates")
    completer = {"rollouts": {"completer": {"model": "run:models/base"}}}
    assert planned(config(tmp_path, base, label=completer, **pretrain))
