"""The packed candidates of a problem, unpacked again by code that knows only the format."""

import base64
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from hypothesis import given, settings
from hypothesis import strategies as st

from minos_ray.evaluation.blocks import columns_of, make_block, plan_blocks, read_sources
from minos_ray.evaluation.candidates import Keys
from minos_ray.report.browser import Content, Critique, browser, columns, gallery, pack
from minos_ray.store import columns as schema
from minos_ray.store.run import Run
from tests.report.test_page import Page, page

texts = st.text(st.characters(codec="utf-8"), max_size=8)
scores = st.one_of(st.none(), st.floats(0, 1, width=32))


@st.composite
def contents(draw: st.DrawFn) -> Content:
    steps = tuple(draw(st.lists(texts, max_size=3)))
    count = len(steps)
    return Content(
        answer=draw(st.one_of(st.none(), texts)),
        cluster=draw(st.integers(-1, 3)),
        correct=draw(st.booleans()),
        status=draw(texts),
        steps=steps,
        labels=tuple(draw(st.lists(st.sampled_from([1, 0, -1]), min_size=count, max_size=count))),
        errors=draw(st.one_of(st.just(()), st.lists(texts, min_size=count, max_size=count).map(tuple))),
        scores=(draw(scores), draw(scores)),
        step_scores=(tuple(draw(st.lists(st.one_of(st.none(), st.integers(0, 1000)), max_size=3))),),
        critiques=tuple(draw(st.lists(st.builds(Critique, texts, st.booleans(), texts, texts), max_size=2))),
    )


def unpacked(text: str) -> list[tuple[int, Content]]:
    """Candidates by index."""
    c: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(text)))
    assert len(set(c["texts"])) == len(c["texts"])

    def at(place: int) -> Any:
        return None if place < 0 else c["texts"][place]

    found = []
    for row, indices in enumerate(c["indices"]):
        written = c["critiques"].get(str(row), [])
        content = Content(
            answer=at(c["answers"][row]),
            cluster=c["clusters"][row],
            correct=bool(c["correct"][row]),
            status=at(c["statuses"][row]),
            steps=tuple(map(at, c["steps"][row])),
            labels=tuple({"+": 1, "-": 0, ".": -1}[sign] for sign in c["labels"][row]),
            errors=tuple(map(at, c["errors"][row])),
            scores=tuple(None if s[row] is None else float(np.float32(s[row])) for s in c["scores"]),
            step_scores=tuple(tuple(s[row]) for s in c["step_scores"]),
            critiques=tuple(Critique(at(a), bool(b), at(s), at(t)) for a, b, s, t in written),
        )
        found += [(index, content) for index in indices]
    return sorted(found, key=lambda pair: pair[0])


@settings(max_examples=60)
@given(pool=st.lists(contents(), min_size=1, max_size=4), picks=st.lists(st.integers(0, 3), max_size=8))
def test_packing_keeps_everything_and_stores_equal_candidates_once(pool: list[Content], picks: list[int]) -> None:
    candidates = [(index, pool[pick % len(pool)]) for index, pick in enumerate(picks)]
    made = columns(candidates)
    assert unpacked(pack(made)) == candidates
    assert len(made["indices"]) == len({content for _, content in candidates})
    assert pack(made) == pack(columns(candidates))


def test_a_run_is_read_as_it_is(full: Run) -> None:
    found = browser(full, 8, 0, ("prm-base", "orm-minos", "prm-minos"))
    assert found is not None and found.total == len(found.chunks) == 8
    index = json.loads(found.index)
    assert index["verifiers"] == ["prm-base", "orm-minos", "prm-minos", "critic"]
    assert index["steps_by"] == ["prm-base", "prm-minos"] and "<" not in found.index
    labels = {row["candidate_id"]: row for row in full.artefact("labels").read().to_pylist()}
    scores = {row["candidate_id"]: row for row in full.artefact("scores/prm-minos").read().to_pylist()}
    for entry, chunk in zip(index["problems"], found.chunks, strict=True):
        candidates = unpacked(chunk)
        assert [index for index, _ in candidates] == list(range(64)) and entry["candidates"] == 64
        assert entry["right"] == sum(content.correct for _, content in candidates)
        for number, content in candidates:
            label, scored = (rows[f"{entry['id']}/{number}"] for rows in (labels, scores))
            assert (content.answer, content.correct, list(content.steps)) == (
                label["answer"],
                label["correct"],
                label["steps"],
            )
            assert content.scores[2] == scored["score"]
            assert list(content.step_scores[1]) == [round(1000 * s) for s in scored["step_scores"]]


def test_problems_are_left_out_on_request_and_unlabelled_ones_always(copy: Run) -> None:
    assert browser(copy, 0, 0, ()) is None
    kept = copy.artefact("labels").read_where("problem_id", ["test-2", "train-1", "test-5"])
    copy.delete("labels/part-0.parquet")
    copy.artefact("labels").write_part("1", kept)
    found = browser(copy, 100, 0, ())
    assert found is not None and found.total == 2
    assert [p["id"] for p in json.loads(found.index)["problems"]] == ["test-2", "test-5"]
    copy.delete("problems")
    assert browser(copy, 100, 0, ()) is None


def rewritten(run: Run, name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replaces the rows of an artefact."""
    rows = [change(row) for row in run.artefact(name).read().to_pylist()]
    run.artefact(name).write_part("0", schema.table(name.partition("/")[0], rows))


def test_steps_are_coloured_by_an_orm_that_scores_them_but_not_by_soft_labels(copy: Run) -> None:
    rewritten(copy, "labels", lambda row: row | {"step_scores": [0.125] * 4})
    rewritten(copy, "scores/orm-base", lambda row: row | {"step_scores": [0.5, 0.25]})
    unscored = copy.artefact("scores/orm-base").read().filter(pc.field("candidate_id") != "test-1/2")
    copy.artefact("scores/orm-base").write_part("0", unscored)
    found = browser(copy, 8, 0, ("orm-base",))
    assert found is not None and json.loads(found.index)["steps_by"] == ["orm-base"]
    contents = [content for chunk in found.chunks for _, content in unpacked(chunk)]
    missing = [content for content in contents if content.scores[0] is None]
    assert len(missing) == 1 and missing[0].step_scores == ((),)
    assert {content.step_scores[0] for content in contents} == {(500, 250), ()}


def test_what_was_refused_has_no_score_on_the_page(copy: Run) -> None:
    refused = {f"test-1/{index}" for index in range(64)}
    nothing = {"score": 0.0, "step_scores": []}
    for name in ("orm-base", "prm-minos"):
        rewritten(copy, f"scores/{name}", lambda row: row | (nothing if row["candidate_id"] in refused else {}))
    found = browser(copy, 8, 0, ("orm-base",))
    contents = [content for chunk in found.chunks for _, content in unpacked(chunk)]
    assert sum(content.scores[0] is None for content in contents) >= 1
    shown = gallery(copy, 40, 0).samples
    assert not refused & {sample.candidate_id for sample in shown if sample.group.endswith("low")}
    assert all(score > 0 for sample in shown for name, score in sample.scores.items() if name != "critic")


def test_answers_are_the_same_as_in_the_evaluation(copy: Run, tmp_path: Path) -> None:
    forms = {"test-1/0": "\\sqrt{16}+7", "test-1/1": "11", "test-1/2": "\\frac{22}{2}+1", "test-1/3": None}
    wrong = {"correct": False, "status": "wrong"}
    rewritten(
        copy,
        "labels",
        lambda row: row | wrong | {"answer": forms[row["candidate_id"]]} if row["candidate_id"] in forms else row,
    )
    with Keys() as keys:
        (sources,) = read_sources(copy, plan_blocks(copy, "test"), columns_of(()), tmp_path)
        block = make_block(sources, keys)
    wanted = dict(zip(block.candidates.rows["candidate_id"].to_pylist(), block.candidates.clusters, strict=True))
    found = browser(copy, 8, 0, ())
    assert found is not None
    for entry, chunk in zip(json.loads(found.index)["problems"], found.chunks, strict=True):
        candidates = unpacked(chunk)
        shown = [content.cluster for _, content in candidates]
        assert pairs(shown) == pairs([wanted[f"{entry['id']}/{number}"] for number, _ in candidates])
        if entry["id"] == "test-1":
            assert shown[0] == shown[1] != shown[2] and shown[3] == -1


def pairs(numbers: Sequence[int]) -> list[bool]:
    """Who is with whom, whatever the numbers are called."""
    return [a == b for a in numbers for b in numbers]


def test_scores_that_are_no_numbers_are_none_and_the_report_is_written(copy: Run) -> None:
    odd = [float("nan"), 0.5, float("inf"), -float("inf")]
    rewritten(copy, "scores/prm-minos", lambda row: row | {"score": float("nan"), "step_scores": odd})
    found = browser(copy, 8, 0, ("prm-minos",))
    assert found is not None
    contents = [content for chunk in found.chunks for _, content in unpacked(chunk)]
    assert {(content.scores[0], content.step_scores[0]) for content in contents} == {(None, (None, 500, None, None))}
    text = page(copy)
    assert Page(text).open == [] and "nan" not in text.partition("<main>")[2].partition("<script")[0].split()


def test_a_smaller_choice_is_seeded(full: Run) -> None:
    def chosen(seed: int) -> list[str]:
        found = browser(full, 3, seed, ())
        assert found is not None and (len(found.chunks), found.total) == (3, 8)
        return [p["id"] for p in json.loads(found.index)["problems"]]

    assert chosen(1) == chosen(1) != chosen(2)


def test_what_is_left_out_is_said_on_the_page(full: Run) -> None:
    assert "3 of 8 test problems, drawn at random (report.problems)" in Page(page(full, report={"problems": 3})).text
