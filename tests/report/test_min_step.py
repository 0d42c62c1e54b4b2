"""Where the lowest step score falls, counted by hand."""

import json

import pytest

from minos_ray.report.figures import where_min_falls
from minos_ray.report.statement import last_shares, min_rows
from minos_ray.store.run import Run

META = [
    {"verifier": "orm-base", "level": "outcome"},
    {
        "verifier": "prm-base",
        "level": "step",
        "min": {"by_step": [3, 0, 1], "first_error": {"before": 1, "at": 1, "after": 0}},
    },
    {
        "verifier": "prm-minos",
        "level": "step",
        "min": {"by_step": [1] * 12, "first_error": {"before": 0, "at": 0, "after": 0}},
    },
]


def test_shares_and_what_is_not_known() -> None:
    base, minos = min_rows(META, {"prm-base": 0.25})
    assert (base.solutions, base.first, base.last) == (4, 0.75, 0.25)
    assert [base.side(name) for name in ("before", "at", "after")] == [0.5, 0.5, 0.0]
    assert (minos.last, minos.side("at")) == (None, None)
    assert min_rows(META[:1], {}) == [] and where_min_falls([]) is None


def test_the_picture_puts_late_steps_together() -> None:
    drawn = str(where_min_falls(min_rows(META, {})))
    assert ">9+<" in drawn and ">12<" not in drawn and "Against the first wrong step" in drawn


def test_the_share_on_the_last_step_is_counted_over_all_parts(copy: Run) -> None:
    artefact = copy.artefact("scores/prm-base")
    rows = artefact.read()
    copy.delete("scores/prm-base/part-0.parquet")
    artefact.write_part("0", rows.slice(0, 100))
    artefact.write_part("1", rows.slice(100))
    steps = [s for s in rows["step_scores"].to_pylist() if s]
    found = last_shares(copy, ["orm-base", "prm-base", "absent"])
    assert found == {"prm-base": pytest.approx(sum(s.index(min(s)) == len(s) - 1 for s in steps) / len(steps))}
    by_step = next(
        m
        for m in json.loads(copy.read_bytes("evaluation.json"))["meta"]
        if m["verifier"] == "prm-base" and m["level"] == "step"
    )["min"]["by_step"]
    assert found["prm-base"] == pytest.approx(by_step[3] / sum(by_step))  # every solution has four steps
