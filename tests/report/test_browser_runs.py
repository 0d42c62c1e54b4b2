"""The candidate browser on small runs that lack something or have something odd, and its keys."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from minos_ray.evaluation.kernels import TIE
from minos_ray.report.figures import TINT
from minos_ray.report.stage import gather, heat, render
from minos_ray.store.run import Run
from tests.report.synthetic import config, evaluation, put, put_evaluation

Open = Callable[..., Page]
Problem = list[tuple[str, float]]  # answers (right: 0) and scores of the candidates


def small_run(path: str, problems: list[Problem], verifiers: tuple[str, ...] = ("orm-base",)) -> Run:
    """Candidates of two steps with these answers and scores."""
    run, labels, scores = Run(path), [], []
    base = {"dataset": "small", "split": "test", "question": "How many?", "answer": "0", "solution": None}
    put(run, "problems", [{"problem_id": f"p{at}"} | base for at in range(len(problems))])
    for at, problem in enumerate(problems):
        for index, (answer, score) in enumerate(problem):
            ids = {"candidate_id": f"p{at}/{index}", "problem_id": f"p{at}"}
            right = answer == "0"
            labels.append(
                ids
                | {"answer": answer, "correct": right, "status": "correct" if right else "wrong", "steps": ["a", "b"]}
                | {"step_labels": [1, int(right)], "step_scores": None, "step_source": "gold", "error_types": []}
            )
            scores.append(ids | {"score": score, "step_scores": [score, float("nan")] if at == 0 else []})
    put(run, "labels", labels)
    for name in verifiers:
        put(run, f"scores/{name}", scores)
    put_evaluation(run, evaluation(4, len(problems)))
    return run


@pytest.fixture
def opened(chromium: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens the report of a run, with a script run before if wanted; afterwards no error was thrown."""
    pages, errors = [], []

    def open_run(problems: list[Problem], before: str = "", **options: Any) -> Page:
        run = small_run(str(tmp_path / "run"), problems, **options)
        (tmp_path / "report.html").write_text(render(gather(config(run.path), run)), encoding="utf-8")
        page = chromium.new_page(viewport={"width": 1300, "height": 900})
        pages.append(page)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.add_init_script(before)
        page.goto((tmp_path / "report.html").as_uri())
        return page

    yield open_run
    for page in pages:
        page.close()
    assert errors == []


def clusters(page: Page) -> dict[str, list[str]]:
    """The visible cells of the answers by answer."""
    rows = page.eval_on_selector_all(
        "#browser-clusters tr", "rows => rows.map(r => [...r.cells].map(c => c.textContent))"
    )
    return {row[1]: row for row in rows}


def test_the_first_problem_shown_has_both_kinds_and_without_verifiers_nothing_speaks_of_weights(opened: Open) -> None:
    page = opened([[("0", 0), ("0", 0)], [("0", 0), ("7", 0), ("7", 0), ("0", 0)], [("7", 0)]], verifiers=())
    expect(page.locator("#browser-problem")).to_have_value("1")
    assert {answer: row[4:] for answer, row in clusters(page).items()} == {"0": ["vote (tie)"], "7": ["vote (tie)"]}
    seen = page.locator("#browser").inner_text().lower()
    assert "weight" not in seen and "coloured" not in seen and "lowest" not in seen
    expect(page.locator("#browser .scale").first).to_be_hidden()
    page.press("body", "n")
    expect(page.locator("#browser-problem")).to_have_value("1")  # out of view
    page.locator("#browser-rows").scroll_into_view_if_needed()
    page.press("body", "n")
    expect(page.locator("#browser-problem")).to_have_value("2")
    expect(page.locator("#browser-clusters tr")).to_have_count(1)
    assert clusters(page)["7"][4:] == ["vote"]


def winners(problem: Problem) -> dict[str, set[str]]:
    """Who wins each vote, by the rules of the evaluation."""
    weights: dict[str, list[np.float64]] = defaultdict(list)
    for answer, score in problem:
        weights[answer].append(np.float64(np.float32(score)))
    found = {}
    sums = {answer: sum(values) for answer, values in weights.items()}
    counts = {answer: len(values) for answer, values in weights.items()}
    for name, totals in (("vote", counts), ("weighted vote", sums if any(sums.values()) else counts)):
        best = max(totals.values())
        found[name] = {answer for answer, total in totals.items() if total >= best - TIE * abs(best)}
    return found


def test_votes_and_their_ties_are_those_of_the_evaluation(opened: Open) -> None:
    rng = random.Random(0)
    problems = [[("0", 0.1), ("0", 0.2), ("7", 0.3)], [("0", 0.0), ("7", 0.0), ("8", 0.0), ("7", 0.0)]]
    drawn = [[(rng.choice("078"), rng.choice([0.1, 0.2, 0.3, 0.6])) for _ in range(6)] for _ in range(10)]
    page = opened(problems + drawn)
    for at, problem in enumerate(problems + drawn):
        page.select_option("#browser-problem", str(at))
        expect(page.locator("#browser-rows tr")).to_have_count(len(problem))
        expect(page.locator("#browser-gold")).to_contain_text(f"{sum(a == '0' for a, _ in problem)} of")
        wanted = winners(problem)
        for answer, row in clusters(page).items():
            names = [n + " (tie)" * (len(won) > 1) for n, won in wanted.items() if answer in won]
            assert row[5] == ", ".join(names)


def test_scores_are_coloured_within_the_problem_and_what_is_no_number_is_a_dash(opened: Open) -> None:
    page = opened([[("0", 0.46), ("7", 0.54), ("7", 0.5)], [("0", 0.5), ("7", 0.5)]])
    cells = page.locator("#browser-rows td:last-child")
    expect(cells).to_have_text(["0.54", "0.50", "0.46"])
    colours = cells.evaluate_all("nodes => nodes.map(n => getComputedStyle(n).backgroundColor.replaceAll(' ', ''))")
    assert (colours[0], colours[2]) == (f"rgba({heat(1)},{TINT})", f"rgba({heat(0)},{TINT})")
    expect(page.locator("#browser-detail .score")).to_have_text(["0.540", "\u2013"])
    expect(page.locator("#browser-detail .lowest")).to_have_text("0.540")
    page.select_option("#browser-problem", "1")
    expect(cells).to_have_text(["0.50", "0.50"])
    assert page.locator("#browser-rows td[style]").count() == 0


def test_keys_work_wherever_the_focus_is_but_not_while_typing(opened: Open) -> None:
    page = opened([[("0", 0.5), ("7", 0.4)]] * 3)
    problem = page.locator("#browser-problem")
    expect(problem).to_have_value("0")
    page.locator("#browser-rows").scroll_into_view_if_needed()
    page.keyboard.press("n")
    expect(problem).to_have_value("1")
    page.click("#browser-next")
    expect(problem).to_have_value("2")
    expect(page.locator("#browser-previous")).to_be_focused()  # Next can do no more
    page.keyboard.press("p")
    expect(problem).to_have_value("1")
    page.click("#browser-previous")
    expect(page.locator("#browser-next")).to_be_focused()
    page.focus("#browser-search")
    page.keyboard.type("p1n")
    expect(page.locator("#browser-matches")).to_have_text("0 of 3 match")
    expect(problem).to_have_count(1)
    assert page.input_value("#browser-search") == "p1n"


def test_a_browser_that_cannot_unpack_says_so(opened: Open) -> None:
    page = opened([[("0", 0.5), ("7", 0.4)]], before="delete window.DecompressionStream")
    expect(page.locator("#browser p")).to_contain_text(
        "Chrome has from version 80, Firefox from 113 and Safari from 16.4"
    )
    assert page.locator("#browser > *").count() == 2


def test_long_answers_do_not_widen_the_page(opened: Open) -> None:
    page = opened([[("0", 0.5), ("7" * 4000, 0.9)]])
    expect(page.locator("#browser-rows tr")).to_have_count(2)
    page.locator("#browser-clusters button").last.click()
    expect(page.locator("#browser-clear")).to_be_visible()
    for node in page.locator("#candidates details").all():
        node.evaluate("node => { node.open = true; }")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1300
    widths = page.eval_on_selector_all(".pane, #candidates", "nodes => nodes.map(n => n.scrollWidth - n.clientWidth)")
    assert max(widths[1:]) <= 1
