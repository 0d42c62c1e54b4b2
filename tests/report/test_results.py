from minos_ray.report.results import difference, gains, paper_gains, rows
from minos_ray.report.statement import results_table
from tests.report.synthetic import evaluation


def test_rows_stand_in_the_order_of_the_paper_between_one_sample_and_perfection() -> None:
    names = [r.name for r in rows(evaluation(64, 50))]
    assert names == [
        "One sample",
        "Self-consistency",
        "ORM",
        "PRM",
        "SC + ORM",
        "SC + PRM",
        "Minos ORM",
        "Minos PRM",
        "SC + Minos ORM",
        "SC + Minos PRM",
        "Critic-filtered vote",
        "Perfect selection",
    ]


def test_rows_of_foreign_verifiers_are_kept() -> None:
    values = evaluation(4, 50)
    values["methods"].append({**values["methods"][0], "method": "best-of-n", "verifier": "qwen-prm", "n": 4})
    assert "qwen-prm" in [r.name for r in rows(values)]


def test_the_papers_gains_are_those_it_reports() -> None:
    expected = {"best-of-n:orm-minos": 1.1, "best-of-n:prm-minos": 0.5, "weighted-vote:orm-minos": 1.6}
    assert paper_gains("gsm8k") == {**expected, "weighted-vote:prm-minos": 1.0}
    assert paper_gains("math")["weighted-vote:prm-minos"] == 0.8


def test_a_difference_is_found_either_way_round() -> None:
    values = evaluation(64, 50)
    there = difference(values, "best-of-n:orm-minos", "best-of-n:orm-base", 64)
    back = difference(values, "best-of-n:orm-base", "best-of-n:orm-minos", 64)
    assert there is not None and back is not None
    assert (there.value, there.low, there.high) == (-back.value, -back.high, -back.low)
    assert difference(values, "best-of-n:orm-minos", "pass@1", 64) is None


def test_gains_hold_each_method_and_kind_once_at_the_largest_n() -> None:
    values = evaluation(64, 50)
    values["paired"].append({**values["paired"][0], "n": 2})
    assert [d.a for d in gains(values)] == [
        "best-of-n:orm-minos",
        "best-of-n:prm-minos",
        "weighted-vote:orm-minos",
        "weighted-vote:prm-minos",
    ]


def test_the_terminal_table_has_every_number_and_the_statement() -> None:
    values = evaluation(64, 50)
    text = results_table(values)
    for m in values["methods"]:
        if m["n"] == 64:
            assert f"{100 * m['accuracy']:.1f} %" in text
    assert "50 test problems, n = 64" in text
    assert "Best at n = 64" in text
    assert text.isascii()


def test_the_title_says_how_many_problems_are_compared() -> None:
    values = evaluation(64, 50)
    values["counts"]["problems"] = 52
    few = [{**m, "n": 128, "accuracy": 1.0, "problems": 1} for m in values["methods"] if m["n"] == 64]
    values["methods"] += few
    text = results_table(values)
    assert "50 of 52 test problems, n = 64" in text and "128" not in text
    assert {r.problems for r in rows(values)} == {50}
