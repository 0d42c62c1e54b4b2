"""The lines of a model card that score a solution with transformers alone are run as they stand."""

import json
import runpy
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from minos_ray.config.resources import Scoring
from minos_ray.config.training import Kind, StepEncoding
from minos_ray.scoring.verifier import load
from minos_ray.steps.encoding import LINES, encode_solution
from minos_ray.training.results import scoring_lines
from tests.scoring.test_parity import CHAT, saved
from tests.steps.chat_tokenizers import CHATS


@pytest.mark.parametrize(
    ("name", "kind", "own_class"),
    [
        ("orm", "orm", True),
        ("prm", "prm", True),
        ("orm at every token", "orm", True),
        # Families that have one of the two classes only: both kinds are saved as that one.
        ("prm", "orm", False),
        ("orm", "prm", False),
        ("orm in chat", "orm", True),
        ("prm in chat", "prm", True),
    ],
)
def test_the_lines_of_the_card_give_the_scores_of_the_scorer(
    name: str, kind: Kind, own_class: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(saved(tmp_path, name))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "verifier_kind": kind}))
    layout = CHAT if name.endswith("in chat") else LINES
    script = tmp_path / "score.py"
    script.write_text(scoring_lines(kind, own_class, layout).removeprefix("```python\n").removesuffix("```\n"))
    monkeypatch.chdir(folder)
    variables = runpy.run_path(str(script))
    [expected] = load(str(folder), False, Scoring()).score([(variables["question"], variables["steps"])])[0]
    assert variables["scores"] == pytest.approx(expected if kind == "prm" else expected[-1:], abs=1e-5)


def test_what_a_template_reads_stands_in_the_lines_of_the_card() -> None:
    values = {"enable_thinking": False, "strftime_now": "26 Jul 2024"}
    own, layout = CHATS["headers"](), StepEncoding(name="chat", system='Be "strict".', chat_template_kwargs=values)
    lines = scoring_lines("prm", True, layout).splitlines()
    variables: dict[str, Any] = {"tokenizer": own, "question": "1?", "steps": ["2", "3"]}
    exec("\n".join(line for line in lines if line.startswith(("turns", "pieces"))), variables)
    assert [*chain.from_iterable(variables["pieces"])] == encode_solution(own, "1?", ["2", "3"], layout).ids
