"""What training saves: whole, and the same in transformers, vLLM and our scorer, also out of ZeRO 3 and of bf16."""

import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from minos_ray.config.resources import Engine
from minos_ray.scoring.verifier import Scorer
from minos_ray.serving.scorer import SolutionScorer, Task, verifier_of
from minos_ray.steps import encoding
from minos_ray.store.model_files import load_tokenizer
from minos_ray.training import models
from minos_ray.training.base import by_token
from tests.training.trainings import KINDS, WAYS, Trained, layout_name
from tests.training.world import candidate

pytestmark = pytest.mark.slow

SOLUTIONS = [(f"What is the sum of set {p}?", candidate(p, 1)["steps"] * (1 + p % 3)) for p in range(6)]
CALIBRATED = ("orm-calibrated", "prm-calibrated")
# Text that spells out EOS, also at the very end, where a model that pools before the last pad would look elsewhere.
SOLUTIONS += [("Is it </s>?", ["Step 1: </s>", "it is </s>"])]


@pytest.fixture(scope="module")
def made(trained: Trained) -> Path:
    """A folder of the models `KIND-WAY`: of a layout, or `padded` with EOS and `sharded` after their bases."""
    folder = trained.folder / "by way"
    folder.mkdir()
    for kind in KINDS:
        for way, layout in WAYS.items():
            (folder / f"{kind}-{way}").symlink_to(f"{trained.run.root}/models/{layout_name(kind, layout)}")
        for way, base in {"padded": "pad-is-eos", "sharded": "sharded"}.items():
            (folder / f"{kind}-{way}").symlink_to(f"{trained.run.root}/models/{kind}-{base}")
    for name in CALIBRATED:
        (folder / name).symlink_to(f"{trained.run.root}/models/{name}")
    return folder


def encoded(path: Path | str) -> list[encoding.Encoded]:
    return encoding.encode_solutions(load_tokenizer(str(path)), SOLUTIONS)


def loaded(path: Path, kind: Any) -> Any:
    """As transformers loads it."""
    config = AutoConfig.from_pretrained(path)
    return models.auto_class(kind, config, by_token(config)).from_pretrained(path).eval()


@pytest.mark.parametrize("way", ["zero3", "bf16", "padded", "sharded"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_whole(made: Path, kind: Any, way: str) -> None:
    """Named and shaped as the config says, and those that were trained without ZeRO."""
    path = made / f"{kind}-{way}"
    config = AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        empty = models.auto_class(kind, config).from_config(config)
    found, plain = load_file(path / "model.safetensors"), load_file(made / f"{kind}-plain" / "model.safetensors")
    assert {name: weight.shape for name, weight in found.items()} == {n: p.shape for n, p in empty.named_parameters()}
    assert {weight.dtype for weight in found.values()} == {torch.bfloat16 if way == "bf16" else torch.float32}
    if way != "bf16":
        for name, weight in found.items():
            torch.testing.assert_close(weight, plain[name], rtol=0, atol=1e-5)


def moved(made: Path, name: str) -> torch.Tensor:
    """How training moved the matrices of the base."""
    base, found = (load_file(folder / "model.safetensors") for folder in (made.parent / "base", made / name))
    return torch.cat([(found[n].float() - base[n]).flatten() for n in sorted(base) if base[n].ndim > 1 and n in found])


@pytest.fixture(scope="module")
def from_vllm(made: Path) -> dict[str, Any]:
    """What vLLM says of each model: logits at the step ends, or the tokens of a critic."""
    import ray

    asked = ["lm-zero3", "orm-zero3", "prm-zero3", "orm-padded", "prm-padded", "orm-bf16", "orm-calibrated"]
    return ray.get(ray.remote(vllm_answers).options(num_cpus=1).remote(made, asked))


def vllm_answers(made: Path, names: list[str]) -> dict[str, Any]:
    """In a process of its own, one model after the other."""
    from minos_ray.candidates.engine import set_environment

    set_environment(Engine())
    return {name: vllm_answer(str(made / name), name.partition("-")[0]) for name in names}


def vllm_answer(path: str, kind: str) -> Any:
    """Of one model."""
    from vllm import LLM, PoolingParams, SamplingParams
    from vllm.config import PoolerConfig

    options: dict[str, Any] = {
        "distributed_executor_backend": "uni",
        "block_size": 32,
        "kv_cache_memory_bytes": 1 << 26,
    }
    if kind == "orm":  # a calibrated one has a class that vLLM would read at every token
        options |= {"runner": "pooling", "pooler_config": PoolerConfig(task="classify")}
    llm = LLM(path, dtype="float32", max_model_len=512, enforce_eager=True, **options)
    if kind == "lm":
        greedy = SamplingParams(temperature=0, max_tokens=24)
        asked = [{"prompt_token_ids": prompt} for prompt in critic_prompts(path)]
        return [list(out.outputs[0].token_ids) for out in llm.generate(asked, greedy, use_tqdm=False)]
    prompts, raw = (
        [{"prompt_token_ids": solution.ids} for solution in encoded(path)],
        PoolingParams(use_activation=False),
    )
    if kind == "orm":
        return [out.outputs.probs for out in llm.classify(prompts, pooling_params=raw, use_tqdm=False)]
    outputs = llm.encode(prompts, pooling_task="token_classify", pooling_params=raw, use_tqdm=False)
    return [out.outputs.data[one.positions, 0].tolist() for out, one in zip(outputs, encoded(path), strict=True)]


def critic_prompts(path: Path | str) -> list[list[int]]:
    return [encoding.critic_prompt_ids(load_tokenizer(str(path)), *solution) for solution in SOLUTIONS]


def one_by_one(path: Path, kind: str) -> list[list[float]]:
    """The logits at the step ends of each solution alone, from the model's own forward in fp32."""
    model = loaded(path, kind).float()
    assert model.config.step_encoding == {"name": encoding.NAME, "version": encoding.VERSION}
    assert model.config.id2label == {0: "correct"}
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([solution.ids])).logits[0] for solution in encoded(path)]
    of_token = "prm" if by_token(model.config) else kind
    pairs = zip(logits, encoded(path), strict=True)
    return [read(found, solution, of_token, kind == "orm") for found, solution in pairs]


def read(logits: torch.Tensor, solution: encoding.Encoded, kind: str, only_last: bool = False) -> list[float]:
    """An ORM has one logit, a PRM one at each token; so has an ORM that was calibrated, read at the last step."""
    positions = solution.positions[-1:] if only_last else solution.positions
    return logits.tolist() if kind == "orm" else logits[positions, 0].tolist()


def assert_near(found: list[list[float]], expected: list[list[float]], tolerance: float) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=tolerance)


@pytest.mark.parametrize("name", ["orm-zero3", "prm-zero3", "orm-padded", "prm-padded", "orm-bf16", "orm-calibrated"])
def test_transformers_vllm_and_our_scorer_agree(made: Path, from_vllm: dict[str, Any], name: str) -> None:
    expected = one_by_one(made / name, name[:3])
    distinct = {round(logit, 5) for logits in expected for logit in logits}
    assert len(distinct) >= len(SOLUTIONS) and max(distinct) - min(distinct) > 0.02, expected
    assert_near(from_vllm[name], expected, 1e-4)
    scores, _ = Scorer(str(made / name)).score(SOLUTIONS)
    chances = [[1 / (1 + math.exp(-logit)) for logit in logits] for logits in expected]
    assert_near(scores, chances, 1e-2 if "bf16" in name else 1e-4)


@pytest.mark.parametrize("kind", ["orm", "prm"])
@pytest.mark.parametrize("way", ["zero3", "padded"])
def test_rows_padded_to_one_length_are_as_alone(made: Path, kind: str, way: str) -> None:
    """A model that takes the first pad for the end, or EOS for a pad, would read an ORM elsewhere."""
    path = made / f"{kind}-{way}"
    tokenizer, solutions, model = load_tokenizer(str(path)), encoded(path), loaded(path, kind)
    assert (tokenizer.pad_token_id == tokenizer.eos_token_id) == (way == "padded")
    assert model.config.pad_token_id == tokenizer.pad_token_id
    batch = tokenizer.pad({"input_ids": [s.ids for s in solutions]}, padding_side="right", return_tensors="pt")
    assert (batch["attention_mask"] == 0).any()
    with torch.no_grad():
        logits = model(**batch).logits
    found = [read(row, solution, kind) for row, solution in zip(logits, solutions, strict=True)]
    assert_near(found, one_by_one(path, kind), 1e-4)


def test_the_critic_writes_the_same_in_transformers_and_vllm(made: Path, from_vllm: dict[str, Any]) -> None:
    model, eos = loaded(made / "lm-zero3", "lm"), load_tokenizer(str(made / "lm-zero3")).eos_token_id
    for prompt, theirs in zip(critic_prompts(made / "lm-zero3"), from_vllm["lm-zero3"], strict=True):
        ids = torch.tensor([prompt])
        written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)[0]
        mine = written[len(prompt) :].tolist()
        assert len(mine) == 24 or mine[-1] == eos
        assert mine == theirs


def test_bf16_is_near_fp32(made: Path) -> None:
    for kind in KINDS:
        same, whole = (moved(made, f"{kind}-{way}") for way in ("bf16", "plain"))
        assert whole.abs().mean() > 1e-4 and torch.cosine_similarity(same, whole, 0) > 0.95
    for kind in ("orm", "prm"):
        assert_near(one_by_one(made / f"{kind}-bf16", kind), one_by_one(made / f"{kind}-plain", kind), 0.05)
    assert json.loads((made / "lm-bf16" / "config.json").read_text())["dtype"] == "bfloat16"
    ids = torch.tensor(critic_prompts(made / "lm-bf16")[:1])
    with torch.no_grad():
        logits = [loaded(made / f"lm-{way}", "lm").float()(input_ids=ids).logits for way in ("bf16", "plain")]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=0.05)


@pytest.mark.parametrize("name", CALIBRATED)
def test_the_card_and_rank_say_the_calibrated_score(made: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = json.loads((made / name / "manifest.json").read_text())["details"]["calibration"]
    assert facts["scale"] > 0 and facts["rows"] > 20
    # The fit minimises the loss of smoothed targets.
    assert facts["log_loss"][1] <= facts["log_loss"][0] + 0.01 and facts["method"] == "platt"
    card = (made / name / "README.md").read_text()
    assert f"a logit is {facts['scale']:.4g} times the trained one" in card
    script = made / f"{name}.py"
    script.write_text(card.split("```python\n")[1].split("```")[0])
    monkeypatch.chdir(made / name)
    variables = runpy.run_path(str(script))
    question, steps = variables["question"], variables["steps"]
    (expected,), _ = Scorer(str(made / name)).score([(question, steps)])
    assert variables["scores"] == pytest.approx(expected, abs=1e-4)
    task = Task(verifier_of(str(made / name)), "question", "text", "gsm8k", aggregation="last")
    (score,), _ = SolutionScorer(task)([question], [steps])
    assert score == pytest.approx(expected[-1], abs=1e-4)


def test_a_calibrated_head_is_the_line_of_the_trained_one(made: Path) -> None:
    """The PRM was trained as the plain one in everything else."""
    plain, found = (load_file(made / name / "model.safetensors") for name in ("prm-plain", "prm-calibrated"))
    facts = json.loads((made / "prm-calibrated" / "manifest.json").read_text())["details"]["calibration"]
    assert AutoConfig.from_pretrained(made / "prm-calibrated").calibration == facts
    torch.testing.assert_close(found["score.weight"], plain["score.weight"] * facts["scale"])
    torch.testing.assert_close(found["score.bias"], plain["score.bias"] * facts["scale"] + facts["shift"])
    others = plain.keys() - {"score.weight", "score.bias"}
    assert all(torch.equal(found[name], plain[name]) for name in others)
