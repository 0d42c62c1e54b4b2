"""Methods and aggregations that the paper does not have: tables of their own, and nothing where there are none."""

import pytest

from minos_ray.report.figures import accuracy_over_n
from minos_ray.report.results import aggregation_rows, further_rows, gains, largest_error, rows
from minos_ray.report.statement import results_table, state
from minos_ray.store.run import Run
from tests.report.synthetic import evaluation, pair, point, put_evaluation
from tests.report.test_page import Page, page

METHODS = ("weighted-vote-mean", "weighted-vote-log-odds", "critic-filtered-weighted-vote", "critic-filtered-best-of-n")


def extended(n: int = 64) -> dict:
    """An evaluation with everything that may be there."""
    values = evaluation(n, 50)
    for method in METHODS:
        for at, name in enumerate(("orm-base", "orm-minos")):
            values["methods"] += [{**point(method, name, k, 0.9 + at / 100, 50), "se": 0.0012 / k} for k in (1, n)]
        values["paired"] += [
            pair(f"{method}:orm-minos", "self-consistency:", n, 0.123),
            pair(f"{method}:orm-minos", f"{method}:orm-base", n, 0.077),
        ]
    entry = {"verifier": "prm-minos", "ci_low": 0.511, "ci_high": 0.713, "problems": 50}
    values["aggregations"] = [
        {**entry, "aggregation": aggregation, "method": method, "n": k, "accuracy": 0.6 + at / 100}
        for at, aggregation in enumerate(("product", "min", "mean", "last"))
        for method in ("best-of-n", "weighted-vote")
        for k in (8, n)
    ]
    return values | {"groups": {"count": 3}}


def test_the_main_rows_the_statement_and_the_picture_stay_the_papers() -> None:
    plain, more = evaluation(64, 50), extended()
    assert rows(plain) == rows(more) and gains(plain) == gains(more) and state(plain) == state(more)
    assert results_table(plain) == results_table(more)
    assert str(accuracy_over_n(plain)) == str(accuracy_over_n(more))


def test_further_methods_in_the_order_of_their_names_base_first() -> None:
    found = further_rows(extended())
    assert [(r.method, r.verifier) for r in found] == [(m, v) for m in METHODS for v in ("orm-base", "orm-minos")]
    assert found[0].n == 64 and found[0].error == pytest.approx(0.0012 / 64)
    assert found[0].lead is None and found[1].lead is not None and found[1].lead.value == 0.123
    assert largest_error(extended()) == 0.0012 and largest_error(evaluation(64, 50)) is None
    assert further_rows(evaluation(64, 50)) == []


def test_aggregations_at_the_largest_n() -> None:
    found = aggregation_rows(extended())
    assert [r.aggregation for r in found] == ["min", "product", "last", "mean"]
    assert found[0].accuracies == dict.fromkeys(("best-of-n", "weighted-vote"), (0.61, 0.511, 0.713))
    assert aggregation_rows(evaluation(64, 50)) == []


def test_the_page_has_the_tables_where_there_is_something_to_show(copy: Run) -> None:
    put_evaluation(copy, evaluation(64, 50))
    plain = Page(page(copy, report={"problems": 0})).text
    for words in ("Other ways to choose", "One score from a PRM", "Monte Carlo standard"):
        assert words not in plain
    values = extended()
    values["aggregations"] = [
        e for e in values["aggregations"] if (e["aggregation"], e["method"]) != ("product", "weighted-vote")
    ]
    put_evaluation(copy, values)
    found = Page(page(copy, report={"problems": 0}))
    assert found.open == []
    for words in ("Other ways to choose", "Highest mean score", "+12.3 [6.3, 18.3]", "over 3 groups"):
        assert words in found.text
    assert "product of steps 60.0[51.1, 71.3] \u2013" in found.text
    assert "standard error is at most 0.12 points" in found.text
