"""The tokenizer beside a saved model."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from minos_ray.store.model_files import load_tokenizer
from minos_ray.training import models
from tests.tiny import tiny_model


@pytest.mark.parametrize("kind", ["lm", "orm"])
def test_a_critic_has_no_chat_template(tmp_path: Path, kind: Any) -> None:
    base = tiny_model(tmp_path / "base", chat=True)
    tokenizer = load_tokenizer(base)
    model = models.load(base, kind, "fp32", 0, {})
    models.save(model, model.state_dict(), tokenizer, kind, str(tmp_path / "made"))
    saved = load_tokenizer(str(tmp_path / "made"))
    assert bool(saved.chat_template) is (kind == "orm") and tokenizer.chat_template
    assert saved("So 3 + 4 = 7.") == tokenizer("So 3 + 4 = 7.")


def test_a_padding_token_without_an_embedding_is_not_saved(tmp_path: Path) -> None:
    """One was added to the tokenizer alone: transformers would refuse to load the verifier, and so would scoring."""
    base = tiny_model(tmp_path / "base")
    tokenizer = load_tokenizer(base)
    tokenizer.add_special_tokens({"pad_token": "<more>"})
    model = models.load(base, "orm", "fp32", 0, {})
    assert tokenizer.pad_token_id == model.config.vocab_size
    models.save(model, model.state_dict(), tokenizer, "orm", str(tmp_path / "made"))
    made = AutoModelForSequenceClassification.from_pretrained(tmp_path / "made")
    assert made.config.pad_token_id == tokenizer.eos_token_id
