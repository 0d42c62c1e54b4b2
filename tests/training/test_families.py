"""Every causal family of transformers: trained and scored as transformers computes it, or named with the reason.

For each a tiny random model is made. Its loss and gradients in the way that the trial takes (packed or padded), and the
scores of an ORM and a PRM of it, are compared with transformers on each row alone. What came is the table of
`docs/models.md`; `MINOS_WRITE_DOCS=1` writes it anew.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from minos_ray.errors import UserError
from minos_ray.scoring.verifier import Scorer
from minos_ray.training.data import Rows
from minos_ray.training.objective import Losses, Objective, choose_way, short_rows
from minos_ray.training.packing import pack
from tests.families import tiny, tiny_model
from tests.tiny import tiny_tokenizer

pytestmark = pytest.mark.slow
DOCS = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- families: begin -->\n", "<!-- families: end -->"
CLOSE = 1e-5
NO_CLASS = "no class of its own"
# Not tried, and why.
NOT_MADE = {
    "dbrx": "transformers 5.19 cannot make it from its config",
    "gemma3n": "needs the package timm; its text model is gemma3n_text",
    "gemma4_assistant": "drafts for another model, whose hidden states it reads",
    "gemma4_unified_assistant": "drafts for another model, whose hidden states it reads",
    "musicgen": "reads and writes sound",
    "musicgen_melody": "reads and writes sound",
    "reformer": "takes lengths that fit its axial positions only",
}
# Refused by the trial before training: what is behind it.
REFUSED = {
    "cpmant": "its attention sees a prompt in both directions",
    "prophetnet": "its logits are of n-gram streams that depend on the length of the row",
}
# Their attention scores are not divided by the width of a head, so that rounding in fp32 grows to 1e-5 in gradients
# (and in fp64, where the loss alone is fp32, to 1.5e-6).
IN_DOUBLE = {"gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"}
# The scorer's own refusals.
HEADS = {
    "reads more": "refused: its head reads more than a token's hidden state",
    "behind its decoder": "refused: more than one linear layer behind its decoder",
}


class Verdict(NamedTuple):
    """A line of the table."""

    family: str
    rows: str
    orm: str
    prm: str


def families() -> dict[str, str]:
    from transformers.models.auto import modeling_auto

    return dict(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def run(objective: Objective, rows: Rows, few: np.ndarray) -> Losses:
    return objective(*map(torch.from_numpy, pack(rows, few)))


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def trained(family: str) -> str:
    """How rows of a family are trained; fails when loss or gradients are not those of transformers."""
    from transformers import AutoModelForCausalLM

    model = tiny_model(family, AutoModelForCausalLM)
    if family in IN_DOUBLE:
        model = model.double()
    objective = Objective(model, "lm").eval()
    reason = choose_way(partial(run, objective), objective, "auto", family)
    rows = short_rows(objective)
    loss = run(objective, rows, np.arange(len(rows))).main
    loss.backward()
    found = gradients(model)
    model.set_attn_implementation("eager")
    expected = torch.zeros(())
    for row in range(len(rows)):
        ids = torch.from_numpy(rows.ids[rows.starts[row] : rows.starts[row + 1]].astype(np.int64))
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
        expected = expected + torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
    expected.backward()
    right = gradients(model)
    whole = torch.cat([gradient.flatten() for gradient in right.values()])
    off = (torch.cat([found[name].flatten() for name in right]) - whole).norm().item() / whole.norm().item()
    assert loss.item() == pytest.approx(expected.item(), rel=CLOSE), family
    assert off <= CLOSE, f"{family}: gradients differ by {off} of their length"
    why = (reason or "").partition("packed: ")[2]
    # Windows are tiny here: a family that packed rows would change only beyond its window must be named as such.
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    assert window is None or "differ" not in why, f"{family}: {why}"
    own = ", its own logits" if objective.way.by_model else ""
    return "packed" if objective.way.packed else f"padded{own}: {plain(why)}"


def plain(why: str) -> str:
    """Without numbers, which may differ by machine."""
    return "rows see one another or a state" if "differ" in why else why


def scored(family: str, kind: str, folder: Path) -> str:
    """Whether our scores of a verifier are those of transformers for each sequence alone, or why there are none."""
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    auto = AutoModelForSequenceClassification if kind == "orm" else AutoModelForTokenClassification
    if type(tiny(family)) not in auto._model_mapping:
        return NO_CLASS
    model = tiny_model(family, auto, num_labels=1)
    model.save_pretrained(folder)
    tiny_tokenizer(folder)
    try:
        scorer = Scorer(str(folder))
    except UserError as error:
        return next((told for part, told in HEADS.items() if part in str(error)), str(error))
    sequences = [[5, 6, 7, 8], [5, 6, 7, 8, *range(20, 29)], [5, 6, 9, *range(30, 40)], [*range(40, 52)]]
    read = [[len(ids) - 1] if kind == "orm" else [1, len(ids) - 1] for ids in sequences]
    found, _ = scorer.compute(sequences, read)
    model.set_attn_implementation("eager")
    for ids, places, scores in zip(sequences, read, found, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits.flatten()
        expected = torch.sigmoid(logits if kind == "orm" else logits[places])
        assert scores == pytest.approx(expected.tolist(), abs=CLOSE), f"{family}: {kind}"
    return "equal"


def verdict(family: str, folder: Path) -> Verdict:
    if family in NOT_MADE:
        return Verdict(family, f"refused: {NOT_MADE[family]}", "", "")
    if family in REFUSED:
        with pytest.raises(UserError, match="is not trained as transformers computes it"):
            trained(family)
        return Verdict(family, f"refused: {REFUSED[family]}", "", "")
    return Verdict(
        family, trained(family), *(scored(family, kind, folder / f"{family}-{kind}") for kind in ("orm", "prm"))
    )


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> list[Verdict]:
    folder = tmp_path_factory.mktemp("families")
    return [verdict(family, folder) for family in sorted(families())]


def test_every_family_is_equal_or_named(verdicts: list[Verdict]) -> None:
    refused = [verdict.family for verdict in verdicts if verdict.rows.startswith("refused")]
    assert set(refused) == {*NOT_MADE, *REFUSED}
    assert len(verdicts) - len(refused) >= 160
    for kind in ("orm", "prm"):
        assert sum(getattr(verdict, kind) == "equal" for verdict in verdicts) >= 40


def test_the_docs_have_this_table(verdicts: list[Verdict]) -> None:
    lines = ["| family | training | ORM scores | PRM scores |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(verdict)} |" for verdict in verdicts]
    before, _, rest = DOCS.read_text().partition(BEGIN)
    told, _, after = rest.partition(END)
    table = "\n".join(lines) + "\n"
    if os.environ.get("MINOS_WRITE_DOCS"):
        DOCS.write_text(before + BEGIN + table + END + after)
    assert table == told or os.environ.get("MINOS_WRITE_DOCS"), "MINOS_WRITE_DOCS=1 writes the table anew"
