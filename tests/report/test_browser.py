"""The candidate browser in a real Chromium, with 100 problems of 256 candidates."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from minos_ray.evaluation.candidates import clusters
from minos_ray.report.stage import gather, heat, render
from minos_ray.store.run import Run
from tests.report.browsing import HOSTILE_AT, NO_ANSWER, TWIN_OF, make_browsing_run
from tests.report.synthetic import HOSTILE, VERIFIERS, config

EVERY = (*VERIFIERS, "critic")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_browsing_run(str(tmp_path_factory.mktemp("browsing")))


@pytest.fixture(scope="module")
def file(run: Run, chromium: Browser) -> Path:
    path = Path(run.root) / "report.html"
    path.write_text(render(gather(config(run.path, report={"candidates": 4}), run)), encoding="utf-8")
    return path


@pytest.fixture
def page(chromium: Browser, file: Path) -> Iterator[Page]:
    """The page with its first problem open; afterwards nothing was complained about and nothing was fetched."""
    page = chromium.new_page(viewport={"width": 1300, "height": 900})
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    expect(page.locator("#browser-rows tr")).to_have_count(256)
    yield page
    page.close()
    assert (said, asked) == ([], [file.as_uri()])


@pytest.fixture(scope="module")
def labels(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Labels by problem, with every verifier's row under `scores`."""
    scores = {name: {r["candidate_id"]: r for r in run.artefact(f"scores/{name}").read().to_pylist()} for name in EVERY}
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in run.artefact("labels").read().to_pylist():
        row["scores"] = {name: rows[row["candidate_id"]] for name, rows in scores.items()}
        row["index"] = int(row["candidate_id"].rpartition("/")[2])
        found[row["problem_id"]].append(row)
    return found


def cells(page: Page, selector: str) -> list[list[str]]:
    """The text of every cell of a table body."""
    return page.eval_on_selector_all(f"{selector} tr", "rows => rows.map(r => [...r.cells].map(c => c.textContent))")


def numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


def open_problem(page: Page, identity: str) -> None:
    """Picks a problem in the list of all."""
    value = page.locator("#browser-problem option", has_text=re.compile(f"^{identity} ")).get_attribute("value")
    page.select_option("#browser-problem", value)
    expect(page.locator("#browser-question")).to_contain_text(f"Question {identity.removeprefix('test-')}:")


@pytest.mark.parametrize("verifier", EVERY)
def test_candidates_sorted_by_each_verifier(page: Page, labels: dict[str, Any], verifier: str) -> None:
    open_problem(page, "test-17")
    if verifier != "prm-minos":
        page.click(f"#browser-head [data-by={verifier}]")
    wanted = sorted(labels["test-17"], key=lambda r: (-r["scores"][verifier]["score"], r["index"]))
    shown = cells(page, "#browser-rows")
    assert [row[1] for row in shown] == [f"#{r['index']}" for r in wanted]
    assert [row[0] for row in shown] == [str(k + 1) for k in range(256)]
    assert [row[2] for row in shown] == ["✓" if r["correct"] else "✗" for r in wanted]
    assert [row[3] for row in shown] == ["no answer" if r["answer"] is None else r["answer"] for r in wanted]
    expected = [[r["scores"][name]["score"] for name in EVERY] for r in wanted]
    assert all(row[4:] == [f"{s:.2f}" for s in scores] for row, scores in zip(shown, expected, strict=True))
    expect(page.locator(f"th:has([data-by={verifier}])")).to_have_attribute("aria-sort", "descending")
    page.click(f"#browser-head [data-by={verifier}]")
    assert [row[1] for row in cells(page, "#browser-rows")] == [row[1] for row in reversed(shown)]


def test_sorted_by_number_and_by_agreement(page: Page, labels: dict[str, Any]) -> None:
    page.click("#browser-head [data-by=index]")
    assert [row[1] for row in cells(page, "#browser-rows")] == [f"#{k}" for k in range(256)]
    page.click("#browser-head [data-by=agreement]")
    answers = [row[3] for row in cells(page, "#browser-rows")]
    counts = Counter(a for a in answers if a != "no answer")
    assert [counts[a] for a in answers if a in counts] == sorted(
        (counts[a] for a in answers if a in counts), reverse=True
    )
    assert answers[-1] == "no answer"


def test_clusters_count_weigh_and_filter(page: Page, labels: dict[str, Any]) -> None:
    open_problem(page, "test-23")
    rows = labels["test-23"]
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row, cluster in zip(rows, clusters([r["answer"] for r in rows], [r["correct"] for r in rows]), strict=True):
        groups[cluster].append(row)
    shown = {row[1]: row for row in cells(page, "#browser-clusters")}
    assert len(shown) == len(groups)
    for number, members in groups.items():
        row = shown[members[0]["answer"] or "no answer"]
        assert row[0] == ("✓" if number == 0 else "✗") and row[2] == str(len(members))
        assert row[3].strip() == ("\u2013" if number < 0 else f"{100 * len(members) / 255:.1f} %")
        assert abs(float(row[4]) - sum(m["scores"]["prm-minos"]["score"] for m in members)) < 0.006
    page.select_option("#browser-weight", label="orm-base")
    heaviest = max(groups.values(), key=lambda members: sum(m["scores"]["orm-base"]["score"] for m in members))
    assert "weighted" in next(r for r in cells(page, "#browser-clusters") if r[1] == heaviest[0]["answer"])[5]
    wrong = max((g for number, g in groups.items() if number > 0), key=len)
    pick = page.locator("#browser-clusters button", has_text=re.compile(f"^{wrong[0]['answer']}$"))
    pick.click()
    expect(pick).to_have_attribute("aria-pressed", "true")
    assert {row[3] for row in cells(page, "#browser-rows")} == {wrong[0]["answer"]}
    expect(page.locator("#browser-status")).to_have_text(f"{len(wrong)} of 256 candidates, by prm-minos")
    page.click("#browser-sides [data-side=right]")
    expect(page.locator("#browser-detail")).to_have_text("No candidate passes the filters.")
    page.click("#browser-clear")
    expect(page.locator("#browser-rows tr")).to_have_count(len(groups[0]))


@pytest.mark.parametrize("verifier", ["prm-base", "prm-minos"])
def test_steps_have_the_colours_of_their_scores_and_the_marks_of_their_labels(
    page: Page, labels: dict[str, Any], verifier: str
) -> None:
    page.select_option("#browser-colour", label=verifier)
    first = page.locator("#browser-problem").input_value()
    problem = page.locator(f"#browser-problem option[value='{first}']").inner_text().partition(" ")[0]
    by_index = {row["index"]: row for row in labels[problem]}
    for index in (11, 30, 31, 32):  # the first is unlabelled
        page.click(f"#browser-rows button:text-is('#{index}')")
        row, items = by_index[index], page.locator("#browser-detail li")
        expect(items.locator(".text")).to_have_text(row["steps"])
        signs = [{1: "✓", 0: "✗", -1: "·"}[v] for v in row["step_labels"]]
        expect(items.locator(".mark")).to_have_text(signs)
        expect(items.locator(".type")).to_have_text(row["error_types"])
        steps = [round(1000 * s) / 1000 for s in row["scores"][verifier]["step_scores"]]
        colours = items.locator(".step").evaluate_all("nodes => nodes.map(n => getComputedStyle(n).borderLeftColor)")
        for colour, share in zip(colours, steps, strict=True):  # halves round otherwise in JavaScript
            pairs = zip(numbers(colour), numbers(heat(share)), strict=True)
            assert all(abs(shown - wanted) <= 1 for shown, wanted in pairs)
        expect(page.locator("#browser-detail .lowest")).to_have_count(1)
        values = page.locator("#browser-detail dd").all_inner_texts()
        assert values == [f"{row['scores'][name]['score']:.3f}" for name in EVERY]
    page.select_option("#browser-colour", label="nothing")
    assert page.locator("#browser-detail li .score").all_inner_texts() == [""] * len(row["steps"])
    expect(page.locator("#browser-scale")).to_be_hidden()


def test_the_list_fits_its_pane(page: Page) -> None:
    assert page.eval_on_selector("#browser-list", "pane => pane.scrollWidth - pane.clientWidth") <= 0


def test_what_is_known_of_a_candidate(page: Page) -> None:
    detail = page.locator("#browser-detail")
    page.click("#browser-rows button:text-is('#7')")
    expect(detail.locator("h4")).to_have_text("Critique")
    expect(detail.locator(".critique")).to_be_hidden()
    detail.locator("summary", has_text="disagree with the labels, so it was set aside").click()
    expect(detail.locator(".critique")).to_contain_text("Step 1: Checking")
    page.click(f"#browser-rows button:text-is('#{TWIN_OF}')")
    expect(detail).to_contain_text(f"the same as #{TWIN_OF + 1}")
    page.click(f"#browser-rows button:text-is('#{NO_ANSWER}')")
    expect(detail).to_contain_text("(no answer)")


def test_hostile_texts_stay_texts(page: Page) -> None:
    expect(page.locator("#browser-question")).to_contain_text(HOSTILE)
    page.click(f"#browser-rows button:text-is('#{HOSTILE_AT}')")
    expect(page.locator("#browser-detail .text").first).to_have_text(HOSTILE)
    assert page.locator("#browser img, #browser script").count() == 0


def test_the_policy_of_the_page_lets_no_other_script_run_and_nothing_load(chromium: Browser, file: Path) -> None:
    page = chromium.new_page()
    page.goto(file.as_uri())
    tried = page.evaluate("""() => {
      const script = document.createElement("script");
      script.textContent = "window.foreign = true";
      document.body.append(script);
      return fetch("https://example.org/").then(() => "loaded", () => window.foreign === true);
    }""")
    policy = page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content") or ""
    page.close()
    assert tried is False
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe-eval" not in policy


def test_keys_lead_through_candidates_and_problems(page: Page) -> None:
    page.locator("#browser-rows button").first.focus()
    for key, place in (
        ("ArrowDown", 1),
        ("ArrowDown", 2),
        ("ArrowUp", 1),
        ("End", 255),
        ("ArrowDown", 255),
        ("Home", 0),
    ):
        page.keyboard.press(key)
        row = page.locator("#browser-rows tr").nth(place)
        expect(row.locator("button")).to_be_focused()
        expect(row.locator("button")).to_have_attribute("aria-current", "true")
        expect(page.locator("#browser-detail h3")).to_contain_text(row.locator("button").inner_text())
    assert page.locator("#browser-rows [aria-current=true]").count() == 1
    expect(page.locator("#browser-previous")).to_be_disabled()
    before = page.locator("#browser-question").inner_text()
    page.keyboard.press("n")
    expect(page.locator("#browser-question")).not_to_have_text(before)
    page.locator("#browser-next").focus()
    page.keyboard.press("p")
    expect(page.locator("#browser-question")).to_have_text(before)


def test_search_narrows_the_problems_and_previous_and_next_stay_inside(page: Page) -> None:
    page.fill("#browser-search", "QUESTION 4")
    assert page.locator("#browser-problem option").count() == 11
    expect(page.locator("#browser-question")).to_contain_text("Question 4:")
    page.click("#browser-next")
    expect(page.locator("#browser-question")).to_contain_text("Question 40:")
    page.fill("#browser-search", "no such question")
    assert page.locator("#browser-problem option").count() == 0
    expect(page.locator("#browser-matches")).to_have_text("0 of 100 match")
    expect(page.locator("#browser-next")).to_be_disabled()
    page.fill("#browser-search", "")
    expect(page.locator("#browser-matches")).to_have_text("")
    expect(page.locator("#browser-status")).to_have_text("256 of 256 candidates, by prm-minos")
    assert page.locator("#browser-problem option").count() == 100


def test_the_page_does_not_grow(page: Page) -> None:
    sizes = []
    for problem in range(12):
        page.select_option("#browser-problem", str(problem))
        expect(page.locator("#browser-question")).to_contain_text(f"Question {problem}:")
        sizes.append(page.locator("#browser *").count())
    assert max(sizes) < 5000


def test_every_control_has_a_name_and_is_a_real_one(page: Page) -> None:
    nameless = page.eval_on_selector_all(
        "#browser button, #browser select, #browser input",
        "nodes => nodes.filter(n => !n.hidden && !(n.textContent.trim() || n.labels?.length || n.ariaLabel)).length",
    )
    assert nameless == 0
    assert page.locator("#browser [onclick], #browser [role=button]").count() == 0


def test_without_scripts_and_on_paper_only_the_sample_is_there(chromium: Browser, file: Path, page: Page) -> None:
    page.emulate_media(media="print")
    expect(page.locator("#browser")).to_be_hidden()
    expect(page.locator("#candidates")).to_be_visible()
    plain = chromium.new_context(java_script_enabled=False).new_page()
    plain.goto(file.as_uri())
    expect(plain.locator("#browser")).to_be_hidden()
    expect(plain.locator("nav [href='#browser']")).to_be_hidden()
    expect(plain.locator("#candidates details").first).to_be_visible()
    plain.context.close()


def test_more_candidates_than_fit_are_shown_in_parts(chromium: Browser, tmp_path: Path) -> None:
    run = make_browsing_run(str(tmp_path / "run"), problems=2, n=700)
    (tmp_path / "report.html").write_text(render(gather(config(run.path), run)), encoding="utf-8")
    page = chromium.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    for shown, rows in (("1\u2013300", 300), ("301\u2013600", 300), ("601\u2013700", 100)):
        expect(page.locator("#browser-range")).to_have_text(f"{shown} of 700")
        expect(page.locator("#browser-rows tr")).to_have_count(rows)
        if rows == 300:
            page.click("#browser-forth")
    expect(page.locator("#browser-forth")).to_be_disabled()
    page.keyboard.press("ArrowUp")
    expect(page.locator("#browser-range")).to_have_text("301\u2013600 of 700")
    expect(page.locator("#browser-rows tr").last.locator("button")).to_be_focused()
    page.close()
