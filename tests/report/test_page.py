import json
import re
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from minos_ray.report.figures import TINT
from minos_ray.report.results import MAIN, categories, rows
from minos_ray.report.stage import Strips, gather, heat, number, render, typeset
from minos_ray.report.statement import NOT_ADJUSTED
from minos_ray.store.run import Run
from tests.report.synthetic import CALIBRATED, HOSTILE, config, evaluation, put_evaluation

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects what tests ask about and insists on balanced tags."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "srcset", "data"}]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def page(run: Run, **sections: object) -> str:
    return render(gather(config(run.path, **sections), run))


@pytest.fixture(scope="module")
def html(full: Run) -> str:
    return page(full)


def test_the_page_is_whole_small_and_needs_nothing_from_outside(html: str) -> None:
    found = Page(html)
    assert found.open == []
    assert len(html.encode()) < 3_000_000
    assert all(link.startswith("#") for link in found.links)
    assert {link[1:] for link in found.links} <= set(found.ids)
    assert [i for i, times in Counter(found.ids).items() if times > 1] == []
    assert found.tags["script"] == 8 + 2  # the problems; the index of the browser and our script
    assert found.tags["img"] == found.tags["link"] == found.tags["iframe"] == 0
    assert "@import" not in html and "url(http" not in html


def test_every_category_has_its_accuracies_and_says_that_intervals_are_not_adjusted(html: str, full: Run) -> None:
    text = Page(html).text
    assert "By category of problem" in text and NOT_ADJUSTED in text
    tables = categories(json.loads(full.read_bytes("evaluation.json")))
    assert {name: [c.value for c in values] for name, values in tables.items()} == {
        "level": ["1", "2", "3"], "subject": ["Algebra", "Counting & Probability"]
    }  # fmt: skip
    for values in tables.values():
        for c in values:
            assert f"{c.value}{c.problems} problem" in text
            for r in c.rows:
                assert f"{100 * r.accuracy:.1f}[{100 * r.low:.1f}, {100 * r.high:.1f}]" in text


def test_a_calibrated_verifier_is_shown_before_and_after(html: str, full: Run) -> None:
    text = Page(html).text
    for row in json.loads(full.read_bytes("evaluation.json"))["meta"]:
        names = ("ece", "ece_equal_mass", "brier", "log_loss")
        numbers = [f"{of[name]:.3f}" for name in names for of in (row.get("uncalibrated", row), row)]
        level = {"step": "steps", "outcome": "solutions"}[row["level"]]
        assert (f"{row['verifier']}{level}{''.join(numbers)}" in text) == (row["verifier"] == CALIBRATED)


def test_hostile_text_is_shown_as_text(html: str) -> None:
    assert "<script>alert" not in html
    assert "<img src" not in html
    assert HOSTILE in Page(html).text


def test_every_accuracy_and_interval_of_the_largest_n_is_on_the_page(html: str, full: Run) -> None:
    text = Page(html).text
    values = json.loads(full.read_bytes("evaluation.json"))
    for r in rows(values):
        assert f"{100 * r.accuracy:.1f}[{100 * r.low:.1f}, {100 * r.high:.1f}]" in text
    for p in values["paired"]:
        further = p["a"].partition(":")[0] not in MAIN
        if p["n"] < 64 or (further and p["b"] != "self-consistency"):
            continue  # of methods that the paper does not have, only what they gain over the vote is shown
        ends = f"[{100 * p['ci_low']:.1f}, {100 * p['ci_high']:.1f}]".replace("-", "\u2212")
        assert ends in text


def test_the_papers_column_is_the_one_asked_for_and_marked(copy: Run) -> None:
    text = Page(page(copy, report={"paper": "math"})).text
    assert "Mistral-7BMATH500" in text and "its level does not compare" in text
    assert "38.6" in text and "88.2" not in text


def test_all_parts_are_there(html: str) -> None:
    text = Page(html).text
    for heading in ("Results at n = 64", "Minos minus base", "Convergence", "How many critiques", "Everything dropped"):
        assert heading in text
    assert Page(html).tags["svg"] == 9
    assert "disagrees with the labels" in text and "longer than max length" in text
    assert "first has it at step" in text


def test_what_stricter_grading_says_and_how_many_critiques_were_kept(html: str) -> None:
    assert "says 1,234." in html and "61.3 % (prompt <code>blind</code>)" in html and "about 78.0 %" in html


def test_figures_follow_the_pages_colours(html: str) -> None:
    assert "#010203" not in html and "#fdfcfb" not in html
    assert html.count("currentColor") > 20


def test_missing_pieces_leave_a_line_and_the_rest(copy: Run) -> None:
    gone = ("problems", "critiques", "models/orm-base", "scores/critic")
    for name in (*gone, "sweep"):
        copy.delete(name)
    text = Page(page(copy)).text
    assert "Results at n = 64" in text
    assert "No sweep in this run" in text
    missing = text.partition("not in this run: ")[2]
    assert all(name in missing[:120] for name in gone)
    assert "Training candidates with their critiques" not in text


def test_a_run_with_nothing_but_an_evaluation(copy: Run) -> None:
    for name in ("problems", "candidates", "labels", "critiques", "models", "scores", "sweep"):
        copy.delete(name)
    values = evaluation(64, 8)
    values |= {"paired": [], "meta": [], "errors": {}, "methods": [m for m in values["methods"] if m["n"] == 64]}
    put_evaluation(copy, values)
    text = Page(page(copy)).text
    lines = (
        "Only one n was evaluated",
        "No verifier of this run recorded",
        "No candidates to show",
        "no paired interval",
    )
    assert [line for line in lines if line not in text] == []


def test_without_a_prm_steps_have_no_colour(copy: Run) -> None:
    for kind in ("base", "minos"):
        copy.delete(f"scores/prm-{kind}")
        copy.delete(f"models/prm-{kind}")
    text = page(copy, report={"problems": 0})
    assert "No PRM scored these candidates" in text
    assert "rgba(" not in text.partition("<main>")[2]


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance of a colour in 0..255 (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_stays_readable_on_the_tints_in_light_in_dark_and_on_paper() -> None:
    css = files("minos_ray.report").joinpath("style.css").read_text(encoding="utf-8")
    themes = zip(*(re.findall(rf"--{name}: #([0-9a-f]+);", css) for name in ("ink", "card")), strict=True)
    found = [tuple(bytes.fromhex(c if len(c) == 6 else "".join(2 * d for d in c)) for c in pair) for pair in themes]
    assert len(found) == 3
    for ink, card in found:
        for share in range(101):
            tint = [int(c) for c in heat(share / 100).split(",")]
            ground = [TINT * t + (1 - TINT) * c for t, c in zip(tint, card, strict=True)]
            dark, light = sorted((luminance(ink), luminance(ground)))
            assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_places_on_the_strip_stay_inside_it() -> None:
    found = rows(evaluation(256, 60))
    strips = Strips(found)
    assert all(0 <= strips.at(share) <= 100 for r in found for share in (r.low, r.accuracy, r.high))


def test_small_filters() -> None:
    assert typeset("best-of-256: -1.5 points [-2.0, 1.0]") == "best-of-256: \u22121.5 points [\u22122.0, 1.0]"
    assert (heat(0), heat(1)) == ("217,122,30", "36,118,200")
    assert (number(12345), number(1.25), number(None)) == ("12,345", "1.25", "\u2013")
