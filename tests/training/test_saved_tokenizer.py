"""The tokenizer beside a saved model."""

from pathlib import Path
from typing import Any

import pytest

from minos_ray.models import load_tokenizer
from minos_ray.training import architecture
from tests.tiny import tiny_model


@pytest.mark.parametrize("kind", ["lm", "orm"])
def test_a_critic_has_no_chat_template(tmp_path: Path, kind: Any) -> None:
    base = tiny_model(tmp_path / "base", chat=True)
    tokenizer = load_tokenizer(base)
    model = architecture.load(base, kind, "fp32", 0, {})
    architecture.save(model, model.state_dict(), tokenizer, kind, str(tmp_path / "made"))
    saved = load_tokenizer(str(tmp_path / "made"))
    assert bool(saved.chat_template) is (kind == "orm") and tokenizer.chat_template
    assert saved("So 3 + 4 = 7.") == tokenizer("So 3 + 4 = 7.")
