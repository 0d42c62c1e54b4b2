import pytest

from minos_ray.evaluation.stage import evaluate
from minos_ray.graph.specs import specs
from minos_ray.report.stage import report
from minos_ray.store.run import Run
from tests.report.synthetic import config, put_sweep


def test_the_report_is_made_anew_only_when_what_it_shows_changes(copy: Run) -> None:
    chosen = config(copy.path, report={"title": "Baker's <rolls>"})
    first = report(chosen, copy)
    assert b"Baker&#39;s &lt;rolls&gt;" in copy.read_bytes("report.html")
    assert first.counts["candidates"] == 40
    copy.write_bytes("report.html", b"untouched")
    assert report(chosen, copy) == first
    assert copy.read_bytes("report.html") == b"untouched"
    sweep = copy.artefact(next(s.artefact for s in specs(chosen) if s.stage == "sweep"))
    sweep.begin({"synthetic": True})
    put_sweep(copy)
    sweep.complete({"rows": 12})
    assert report(chosen, copy).counts["trials"] == 12
    assert b"all 12 trials" in copy.read_bytes("report.html")
    other = config(copy.path, evaluate={"ns": [2, 8]})
    evaluate(other, copy)
    report(other, copy)
    assert b"Results at n = 8, 8 problems<" in copy.read_bytes("report.html")


def test_policies_that_were_taught_are_shown(copy: Run) -> None:
    chosen = config(copy.path, teach={"rounds": 1})
    report(chosen, copy)
    assert b"Policies that were taught" not in copy.read_bytes("report.html")
    columns = {"gold": 0.25, "gold_low": 0.2, "gold_high": 0.3, "proxy": 0.625, "proxy_low": 0.6, "proxy_high": 0.65}
    policies = [{"round": r, **columns, "tokens": 41.0, "rows": 77 * r, "right": 0.5 if r else None} for r in (0, 1)]
    results = copy.artefact("teach/results.parquet")
    results.begin({"synthetic": True})
    results.complete({"rounds": 1}, {"over_most": 123}, {"policies": policies})
    report(chosen, copy)
    page = copy.read_bytes("report.html").decode()
    assert "Policies that were taught" in page and "25.0" in page and "0.625" in page and ">77<" in page
    assert "gold accuracy" in page and "over most" in page


@pytest.mark.parametrize("name", ["critiques", "scores/critic"])
def test_the_report_is_made_anew_when_what_it_only_shows_changes(copy: Run, name: str) -> None:
    chosen = config(copy.path, reward={"verifiers": ["orm-base"]}, score={"judge": None}, report={"problems": 0})
    report(chosen, copy)
    rows = copy.artefact(name).read()
    copy.write_bytes("report.html", b"old")
    target = copy.artefact(name)
    target.begin({"synthetic": "anew"})
    target.write_part("0", rows.slice(0, 20))
    target.complete({"rows": 20})
    report(chosen, copy)
    assert copy.read_bytes("report.html") != b"old"
