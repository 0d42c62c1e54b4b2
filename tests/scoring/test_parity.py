"""One table: padded, packed, shared beginnings, vLLM; every kind of verifier in fp32, scores within 1e-4."""

import gc
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from minos_ray.config.resources import Scoring
from minos_ray.config.training import StepEncoding
from minos_ray.scoring.verifier import load
from minos_ray.steps.encoding import LINES, Encoded, encode_solutions
from minos_ray.store.model_files import load_tokenizer
from minos_ray.training import models, packing
from minos_ray.training.base import saved_class
from tests.tiny import tiny_model

Scores = list[list[float]]
KINDS = {"orm": "orm", "prm": "prm", "orm at every token": "orm", "orm in chat": "orm", "prm in chat": "prm"}
CHAT = StepEncoding(name="chat", system="Be strict.")
ENGINE = Scoring(engine="vllm", kv_cache_gb=0.05)


def whole(path: str) -> Any:
    """The model as transformers loads it."""
    return saved_class(AutoConfig.from_pretrained(path)).from_pretrained(path).eval()


def saved(folder: Path, name: str) -> str:
    """A tiny verifier as training saves it."""
    kind, layout = KINDS[name], CHAT if name.endswith("in chat") else LINES
    first = tiny_model(folder / "first", kind, layers=3, chat=layout == CHAT)
    model, tokenizer = whole(first), load_tokenizer(first)
    target = str(folder / "verifier")
    models.save(model, model.state_dict(), tokenizer, kind, target, name == "orm at every token", layout)
    return target


def solutions() -> list[tuple[str, list[str]]]:
    """Two questions, solutions of 1 to 6 steps that share beginnings; some are the same."""
    rng = random.Random(0)
    asked = [f"Tom has {apples} apples and buys more. How many?" for apples in (3, 14) for _ in range(15)]
    return [(q, [f"Step {i}: {rng.randint(1, 3)} + {i}" for i in range(rng.randint(1, 6))]) for q in asked]


def at(logits: list[torch.Tensor], encoded: list[Encoded], every_step: bool) -> Scores:
    """Sigmoids where a verifier is read; `logits` are those of all tokens of each solution."""
    read = [e.positions if every_step else e.positions[-1:] for e in encoded]
    return [torch.sigmoid(line[places]).tolist() for line, places in zip(logits, read, strict=True)]


def padded(model: Any, encoded: list[Encoded]) -> list[torch.Tensor]:
    """One batch of transformers, with an attention mask."""
    rows = [torch.tensor(e.ids) for e in encoded]
    ids, mask = (
        torch.nn.utils.rnn.pad_sequence(part, batch_first=True) for part in (rows, [torch.ones_like(r) for r in rows])
    )
    hidden = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    return list(model.score(hidden)[..., 0])


def packed(model: Any, encoded: list[Encoded]) -> list[torch.Tensor]:
    """One packed row, as in training."""
    packing.use(model)
    rows = packing.Packed(torch.tensor([len(e.ids) for e in encoded]))
    ids = torch.tensor([[token for e in encoded for token in e.ids]])
    hidden = model.base_model(input_ids=ids, position_ids=rows.position_ids, packed=rows).last_hidden_state
    return list(model.score(hidden[0])[:, 0].split([len(e.ids) for e in encoded]))


@pytest.mark.parametrize("name", KINDS)
def test_all_ways_give_the_same_scores(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path, name)
    forest = load(path, False, Scoring())
    every_step = name not in ("orm", "orm in chat")
    assert (forest.kind, forest.every_step) == (KINDS[name], every_step)
    encoded = encode_solutions(forest.tokenizer, solutions(), CHAT if "chat" in name else LINES)
    with torch.inference_mode():
        table = {"padded": at(padded(whole(path), encoded), encoded, every_step)}
        table["packed"] = at(packed(whole(path), encoded), encoded, every_step)
    table["shared beginnings"], ours = forest.score(solutions())
    table["vLLM"], theirs = load(path, False, ENGINE).score(solutions())
    gc.collect()
    values = np.concatenate(table["padded"])
    assert values.max() - values.min() > 0.1
    for way, scores in table.items():
        assert [len(line) for line in scores] == [len(line) for line in table["padded"]], way
        assert np.concatenate(scores) == pytest.approx(values, abs=1e-4), way
    assert ours["tokens"] < theirs["tokens"] < ours["tokens_of_solutions"] == theirs["tokens_of_solutions"]
