"""The scale-up study on the page: with trends, and as earlier versions left it."""

import json
import re

import numpy as np
import pytest

from minos_ray.evaluation.statistics import curve
from minos_ray.report.budget import trend_rows
from minos_ray.report.results import PAPER_SCALE
from minos_ray.report.stage import gather, leading, render, trial_metrics
from minos_ray.store.run import Run
from tests.report.synthetic import config

AMOUNTS = (0, 2000, 4000, 8000)


def put_trend(run: Run, seeds: int = 3) -> dict:
    """trend.json of a study whose best-of-n rises."""
    rng = np.random.default_rng(0)
    goal = 0.6 + 0.1 * np.array(AMOUNTS) / 8000
    values = (rng.random((seeds, 4, 60)) < goal[:, None]).astype(float)
    numbers = {"seeds": seeds, "seeds_left_out": 0, "problems": 60, "problems_left_out": 0}
    curves = [
        {"kind": "orm", "measure": "best_of_n", **numbers, **curve(values, AMOUNTS, 200, 0)},
        {"kind": "orm", "measure": "auc", **numbers, **curve(values[:1, :, :1], AMOUNTS, 200, 0)},
        {"kind": "orm", "measure": "f1", **numbers, "points": [], "trend": None},
    ]
    found = {"amounts": list(AMOUNTS), "seeds": list(range(seeds)), "n": 64, "bootstrap": 200, "curves": curves}
    run.write_bytes("sweep/trend.json", json.dumps(found).encode())
    return found


def section(run: Run) -> str:
    """The sweep's part of the page."""
    html = render(gather(config(run.path), run))
    return html.partition('<section id="scale">')[2].partition("</section>")[0]


def words(html: str) -> str:
    """Its text."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def test_slope_interval_p_and_the_name_of_the_test_are_beside_the_picture(copy: Run) -> None:
    slope = put_trend(copy)["curves"][0]["trend"]
    text = words(section(copy))
    assert f"{100 * slope['slope']:+.2f}" in text
    assert f"[{100 * slope['ci_low']:.2f}, {100 * slope['ci_high']:.2f}]".replace("-", "\u2212") in text
    assert "One-sided permutation test of the slope" in text
    assert "13,824" in text and "Minus 0 critiques" in text
    assert "With one seed" not in text


def test_the_papers_points_go_through_the_same_test(copy: Run) -> None:
    row = trend_rows(put_trend(copy))[-1]
    assert row.name.startswith("Paper") and (row.low, row.p_problems) == (None, None)
    amounts, accuracies = zip(*PAPER_SCALE[1:], strict=True)
    assert 100 * row.slope == pytest.approx(10_000 * np.polyfit(amounts, accuracies, 1)[0])
    assert row.exchanges == 720
    assert row.p_trials == pytest.approx(2 / 720)  # one tie among points that never fall


def test_a_measure_without_a_trend_has_no_row(copy: Run) -> None:
    assert [row.name for row in trend_rows(put_trend(copy))][:-1] == ["Best of n, ORM", "AUC, ORM"]


def test_with_one_seed_the_page_says_what_the_intervals_leave_out(copy: Run) -> None:
    put_trend(copy, seeds=1)
    assert "With one seed the intervals, too, are over problems only" in words(section(copy))


def test_a_sweep_without_trends_still_has_its_picture(copy: Run) -> None:
    html = section(copy)
    assert "<svg" in html and "all 12 trials" in words(html)
    assert "permutation test" not in html and "Minus 0 critiques" not in html


def test_ends_of_intervals_are_no_measures_of_their_own() -> None:
    rows = [{"critiques": 0, "best_of_n": 0.5, "best_of_n_low": 0.4, "best_of_n_high": 0.6, "f1": 0.5}]
    assert trial_metrics(rows) == ["best_of_n", "f1"]
    assert leading(trial_metrics(rows)) == ["best_of_n", "f1"]
