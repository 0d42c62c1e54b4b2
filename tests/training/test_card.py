"""The lines of a model card that score a solution with transformers alone are run as they stand."""

import json
import runpy
from pathlib import Path

import pytest

from minos_ray.config.resources import Scoring
from minos_ray.scoring.scorer import load
from minos_ray.training.job import Kind, scoring_lines
from tests.scoring.test_parity import saved


@pytest.mark.parametrize(
    ("name", "kind", "own_class"),
    [
        ("orm", "orm", True),
        ("prm", "prm", True),
        ("orm at every token", "orm", True),
        # Families that have one of the two classes only: both kinds are saved as that one.
        ("prm", "orm", False),
        ("orm", "prm", False),
    ],
)
def test_the_lines_of_the_card_give_the_scores_of_the_scorer(
    name: str, kind: Kind, own_class: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(saved(tmp_path, name))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "verifier_kind": kind}))
    script = tmp_path / "score.py"
    script.write_text(scoring_lines(kind, own_class).removeprefix("```python\n").removesuffix("```\n"))
    monkeypatch.chdir(folder)
    variables = runpy.run_path(str(script))
    [expected] = load(str(folder), False, Scoring()).score([(variables["question"], variables["steps"])])[0]
    assert variables["scores"] == pytest.approx(expected if kind == "prm" else expected[-1:], abs=1e-5)
