"""PRMScore worked out by hand."""

from typing import Any

import pytest

from minos_ray.evaluation.verdicts import f1
from minos_ray.meta.measures import CLASSES, groups, prmbench, prmbench_lines


def row(kind: str, tp: int, fp: int, tn: int, fn: int, level: str = "step") -> dict[str, Any]:
    confusion = {"confusion": {"tp": tp, "fp": fp, "tn": tn, "fn": fn}} if level == "step" else {}
    return {"set": f"prmbench-{kind}", "verifier": "prm", "level": level, **confusion}


def test_prmscore_by_hand() -> None:
    # NR: F1 = 16 / (16 + 2 + 2) = .8, F1_neg = 4 / (4 + 2 + 2) = .5. NCL: 8 / 12 = 2/3 and 8 / 12 = 2/3.
    rows = [row("redundency", 8, 2, 2, 2), row("circular", 4, 2, 4, 2), row("correct", 99, 0, 0, 9)]
    found = prmbench([*rows, row("circular", 0, 0, 0, 0, "outcome")])["prm"]
    assert found["classes"] == {"NR": pytest.approx(0.65), "NCL": pytest.approx(2 / 3)}
    assert found["simplicity"] == pytest.approx((0.65 + 2 / 3) / 2)
    assert found["soundness"] is None and found["overall"] is None


def test_overall_pools_the_steps_of_all_classes_and_multi_solutions_is_f1() -> None:
    rows = [row(kind, 8, 2, 2, 2) for kind in CLASSES if kind != "multi_solutions"]
    found = prmbench([*rows, row("multi_solutions", 9, 0, 0, 2)])["prm"]
    assert found["classes"]["MS"] == pytest.approx(18 / 20)
    assert found["sensitivity"] == pytest.approx((0.65 + 0.65 + 0.9) / 3)
    tp, fp, tn, fn = 8 * 8 + 9, 16, 16, 16 + 2
    expected = (2 * tp / (2 * tp + fp + fn) + 2 * tn / (2 * tn + fp + fn)) / 2
    assert found["overall"] == pytest.approx(expected)
    table = prmbench_lines({"prm": found})
    assert f"{100 * expected:.1f}" in table[1] and "65.0" in table[1]


def test_published_groups_are_the_means_of_published_classes() -> None:
    """Math-Minos's row of PRMBench's own table."""
    classes = {
        "NR": 48.8,
        "NCL": 54.0,
        "ES": 57.0,
        "SC": 52.1,
        "DC": 50.7,
        "CI": 57.8,
        "PS": 52.8,
        "DR": 55.8,
        "MS": 91.1,
    }
    published = {"simplicity": 51.4, "soundness": 54.4, "sensitivity": 66.5}
    assert groups(classes) == pytest.approx(published, abs=0.1)


def test_nothing_of_prmbench_gives_nothing() -> None:
    assert prmbench([{"set": "processbench-math", "verifier": "prm", "level": "step", "confusion": {}}]) == {}
    assert prmbench_lines({}) == []


def test_a_class_of_which_nothing_is_said_or_true_is_zero() -> None:
    assert f1(0, 0, 0) == 0.0
    assert prmbench([row("deception", 0, 0, 0, 0)])["prm"]["classes"] == {"DR": 0.0}


def test_a_class_in_two_sets_is_counted_as_one() -> None:
    both = prmbench([row("circular", 4, 2, 1, 0), row("circular", 0, 0, 3, 2)])
    assert both == prmbench([row("circular", 4, 2, 4, 2)])
