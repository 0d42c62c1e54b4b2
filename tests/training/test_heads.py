"""Verifiers of families with other heads than Mistral's: what is trained is what transformers loads and we score."""

from pathlib import Path
from typing import Any

import pytest
import torch

from minos_ray.config.training import Lora
from minos_ray.errors import UserError
from minos_ray.scoring.verifier import Scorer
from minos_ray.store.model_files import load_tokenizer
from minos_ray.training import models
from minos_ray.training.base import auto_class, head_name, scalar_head
from minos_ray.training.objective import Objective
from tests.tiny import tiny_tokenizer

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GATED = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 16}
# Family -> its configuration in transformers, its sizes, the classes of its ORM and its PRM.
FAMILIES = {
    "qwen3": ("Qwen3Config", GATED, "SequenceClassification", "TokenClassification"),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 2}, "SequenceClassification", "TokenClassification"),
    "gpt_neox": (
        "GPTNeoXConfig",
        {**SIZES, "intermediate_size": 64},
        "SequenceClassification",
        "TokenClassification",
    ),
    "gemma3_text": ("Gemma3TextConfig", GATED, "SequenceClassification", "SequenceClassification"),
    "olmo2": ("Olmo2Config", GATED, "SequenceClassification", "SequenceClassification"),
    "opt": (
        "OPTConfig",
        {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32},
        "SequenceClassification",
        "SequenceClassification",
    ),
    "apertus": ("ApertusConfig", GATED, "TokenClassification", "TokenClassification"),
}
STEPS = ("What is 3 + 4 + 2?", ["Step 1: 3 + 4 = 7", "Step 2: 7 + 2 = 9", "The answer is: 9"])


def language_model(family: str, folder: Path) -> str:
    """A tiny random language model with a tokenizer, saved as transformers saves it."""
    import transformers

    name, sizes, *_ = FAMILIES[family]
    tiny_tokenizer(folder)
    config = getattr(transformers, name)(
        vocab_size=len(load_tokenizer(str(folder))), pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["orm", "prm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_verifier_is_saved_so_that_transformers_loads_it_and_scored_as_it_is(
    family: str, kind: Any, tmp_path: Path
) -> None:
    import transformers

    base = language_model(family, tmp_path / "base")
    model = models.load(base, kind, "fp32", 0, {})
    with torch.no_grad():
        scalar_head(model).weight.mul_(100)
    saved = str(tmp_path / kind)
    models.save(model, model.state_dict(), load_tokenizer(base), kind, saved)

    scorer = Scorer(saved)
    assert scorer.kind == kind
    [architecture_name] = scorer.config.architectures
    assert architecture_name.endswith(f"For{FAMILIES[family][2 if kind == 'orm' else 3]}")
    from minos_ray.steps.encoding import encode_solutions

    [solution] = encode_solutions(scorer.tokenizer, [STEPS])
    [scores], _ = scorer.score([STEPS])
    plain, info = getattr(transformers, architecture_name).from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for score, end in zip(scores, solution.positions if kind == "prm" else solution.positions[-1:], strict=True):
        logits = plain.eval()(input_ids=torch.tensor([solution.ids[: end + 1]])).logits
        assert score == pytest.approx(torch.sigmoid(logits.flatten()[-1]).item(), abs=1e-5)

    trained = Objective(model, kind).eval()
    ids, ends = torch.tensor(solution.ids), torch.tensor(solution.positions)
    nothing = torch.zeros(0, dtype=torch.long)
    rows = torch.arange(len(ends)) if kind == "prm" else torch.zeros(len(ends), dtype=torch.long)
    shared = torch.zeros(1, dtype=torch.long)
    computed = trained(ids, torch.tensor([len(ids)]), shared, ends, torch.ones(len(ends)), nothing, nothing, rows, rows)
    assert torch.sigmoid(computed.logits)[-len(scores) :].tolist() == pytest.approx(scores, abs=1e-5)


def test_an_adapter_is_trained_with_the_head_whatever_it_is_called(tmp_path: Path) -> None:
    base = language_model("gpt_neox", tmp_path)
    objective = Objective(models.load(base, "prm", "fp32", 0, {}), "prm")
    models.attach(objective, Lora(targets=("query_key_value",)), 0)
    trained = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    assert {"model.classifier.weight", "model.classifier.bias"} < trained
    assert all(".lora_" in name or ".classifier." in name for name in trained)
    assert models.peft_config(Lora(), objective.model).task_type == "TOKEN_CLS"


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("GraniteConfig", "prm", "no *ForTokenClassification and no *ForSequenceClassification for model type"),
        ("CohereConfig", "orm", "no *ForSequenceClassification and no *ForTokenClassification for model type"),
        ("T5Config", "lm", "no *ForCausalLM for model type 't5'"),
    ],
)
def test_a_family_without_a_class_is_refused_by_its_name(name: str, kind: Any, said: str) -> None:
    import transformers

    with pytest.raises(UserError) as refused:
        auto_class(kind, getattr(transformers, name)())
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "parts"),
    [("BertConfig", "pooler, classifier"), ("RobertaConfig", "classifier"), ("XLNetConfig", "sequence_summary")],
)
def test_a_head_of_several_parts_is_refused(name: str, parts: str) -> None:
    import transformers

    config = getattr(transformers, name)(num_labels=1)
    with torch.device("meta"):
        model = auto_class("orm", config).from_config(config)
    with pytest.raises(UserError, match=f"ForSequenceClassification has {parts}"):
        head_name(model)


def test_the_docs_name_the_families_that_have_one_class_or_none() -> None:
    from transformers.models.auto import modeling_auto as auto

    language = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    classes = (auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES)
    has = {name: sum(name in mapping for mapping in classes) for name in language}
    docs = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    for count, start in ((1, "| one of them |"), (0, "| neither |")):
        listed = ", ".join(f"`{name}`" for name in sorted(language) if has[name] == count)
        [row] = [line for line in docs.splitlines() if line.startswith(start)]
        assert row.endswith(f"| {listed} |"), listed
