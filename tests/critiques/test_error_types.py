"""Sorting wrong steps into types: prompt, strict reading, and the whole way against the real offline critic."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.config.load import Config
from minos_ray.config.schema import ERROR_TYPES
from minos_ray.critiques.error_types import DEFINITIONS, classify, error_types, parse_types, wrong_steps
from minos_ray.critiques.prompts import Case
from minos_ray.errors import UserError
from minos_ray.evaluation.verdicts import by_critic
from minos_ray.labels.inserted import inserted
from minos_ray.miniature.critic_server import MODEL, read_prompt
from minos_ray.store.columns import validate
from minos_ray.store.run import Run
from tests.critiques.scripted import MakeConfig, MakeRun, Reply, Serve

STEPS = ["Step 1: third: 12 / 3 = 4", "Step 2: gift: 4 - 5 = 1", "The answer is: 1"]
CASE = Case("Tom has 12 apples.", STEPS, [1, 0, 0], False, "13", None)
GOOD = "Step 2: logical: it subtracts."


def test_the_prompt_defines_every_type_and_marks_only_wrong_steps() -> None:
    [message] = classify(CASE)
    text = message["content"]
    assert all(f"{kind}: {words}" in text for kind, words in DEFINITIONS.items()) and set(DEFINITIONS) == set(
        ERROR_TYPES
    )
    assert read_prompt(text) == ("Tom has 12 apples.", STEPS, [-1, 0, -1])
    assert "13" not in text.partition("[Question]")[2], "the critic is not told the answer"
    plain = classify(Case("Q", ["4 + 4 = 9", "The answer is: 9"], [0, 0], False, "8", None))[0]["content"]
    assert "\nStep 1: 4 + 4 = 9 Label: False\nThe answer is: 9\n" in plain


def test_a_good_answer_is_read() -> None:
    assert parse_types(GOOD, [1]) == ([("logical", "it subtracts.")], "ok")
    assert parse_types(f"<think>\nStep 1: other: or not?\n</think>\n\n{GOOD}", [1]) == parse_types(GOOD, [1])
    text = "\n**Step 1:** Calculation: 4 + 4 is 8.\n\n- Step 3: **accumulation**: from Step 1.\n"
    assert parse_types(text, [0, 2]) == ([("calculation", "4 + 4 is 8."), ("accumulation", "from Step 1.")], "ok")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", "empty"),
        (" \n\n", "empty"),
        ("Sure!\n" + GOOD, "unreadable_line"),
        ("Step 2: logical", "unreadable_line"),
        ("Step 2: logical and calculation: both", "unreadable_line"),
        ("Step 1: logical: no", "wrong_steps"),
        (GOOD + "\n" + GOOD, "wrong_steps"),
        ("Step 2: arithmetic: slip", "unknown_type"),
    ],
)
def test_anything_else_is_quarantined(text: str, status: str) -> None:
    assert parse_types(text, [1]) == ([], status)


@given(st.text(alphabet=st.sampled_from("Step 12:logica\n*-x"), max_size=60), st.lists(st.integers(0, 3), max_size=3))
def test_reading_never_raises_and_never_gives_half_an_answer(text: str, wanted: list[int]) -> None:
    found, status = parse_types(text, wanted)
    assert (
        (len(found) == len(wanted) and all(kind in ERROR_TYPES for kind, _ in found)) if status == "ok" else found == []
    )


def prepared(
    make_run: MakeRun, make_config: MakeConfig, base_url: str, count: int = 20, **rest: Any
) -> tuple[Config, Run]:
    """A run with inserted errors, and a config that has wrong steps sorted."""
    run = make_run(problems=40, per_problem=6)
    plain = make_config(run, base_url).model_dump()
    config = Config(**{**plain, "inserted": {"count": 3 * count}, "error_analysis": {"count": count}})
    inserted(config, run)
    return config, run


def rows_of(run: Run) -> list[dict[str, Any]]:
    return run.artefact("error_types").read().to_pylist()


def test_from_inserted_errors_to_a_confusion_matrix_with_the_real_offline_critic(
    make_run: MakeRun, make_config: MakeConfig
) -> None:
    config, run = prepared(make_run, make_config, "offline", count=60)
    manifest = error_types(config, run)
    validate("error_types", run.artefact("error_types").read())
    rows = rows_of(run)
    assert (manifest.counts["candidates"], manifest.counts["inserted"]) == (60, 60)
    assert {row["critic"] for row in rows} == {MODEL} and len({row["error_id"] for row in rows}) == len(rows)
    labels = {
        row["candidate_id"]: row for name in ("labels", "inserted") for row in run.artefact(name).read().to_pylist()
    }
    steps = Counter(row["candidate_id"] for row in rows)
    assert steps == {name: len(wrong_steps(labels[name]["step_labels"])) for name in steps}
    for row in rows:
        of = labels[row["candidate_id"]]
        assert row["known"] == (of["error_types"][row["step"]] if row["source"] == "inserted" else None)
        assert row["candidate_id"].startswith("miniature-train") and of["step_labels"][row["step"]] == 0
    said = by_critic(rows)
    assert said["accuracy"]["value"] > 0.9 and set(said["by_source"]) == {"candidate", "inserted"}
    truth = [row["type"] == labels[row["candidate_id"]]["error_types"][row["step"]] for row in rows if row["type"]]
    assert sum(truth) > 0.9 * len(rows), "the offline critic answers from the gold chain"
    assert error_types(config, run) == manifest


def test_what_cannot_be_read_is_kept_raw_and_counted_and_nothing_is_bought_twice(
    make_run: MakeRun, make_config: MakeConfig, serve: Serve
) -> None:
    def script(content: str, before: int) -> Reply:
        _, _, labels = read_prompt(content)
        wrong = [k for k, label in enumerate(labels, 1) if label == 0]
        if len(wrong) > 1:
            return Reply(text="I would rather not say.")
        return Reply(text="\n".join(f"Step {k}: other: so it is." for k in wrong))

    server = serve(script)
    config, run = prepared(make_run, make_config, server.url)
    manifest = error_types(config, run)
    rows = rows_of(run)
    unread = [row for row in rows if row["type"] is None]
    assert {row["text"] for row in unread} == {"I would rather not say."}
    assert manifest.dropped["unreadable_line"] == len(unread) > 0
    assert {row["type"] for row in rows if row["status"] == "ok"} == {"other"}
    asked = len(server.seen)
    run.delete("error_types")
    assert error_types(config, run).counts == manifest.counts and len(server.seen) == asked


def test_without_any_wrong_step_the_user_is_told(make_run: MakeRun, make_config: MakeConfig) -> None:
    run = make_run(problems=3, per_problem=0)
    config = Config(**{**make_config(run, "offline").model_dump(), "error_analysis": {"count": 3}})
    with pytest.raises(UserError, match="no wrong train candidate has a labelled wrong step"):
        error_types(config, run)
    assert error_types(make_config(run, "offline"), run) is None


def test_an_answer_that_is_never_right_stops_the_stage(
    make_run: MakeRun, make_config: MakeConfig, serve: Serve
) -> None:
    config, run = prepared(make_run, make_config, serve(lambda *_: Reply(text="no")).url)
    with pytest.raises(UserError, match="no answer could be read"):
        error_types(config, run)


def said(known: str | None, kind: str | None, source: str = "inserted") -> dict[str, Any]:
    return {"source": source, "known": known, "type": kind, "status": "ok" if kind else "empty"}


def test_a_small_matrix_by_hand() -> None:
    rows = [said("logical", "logical"), said("logical", "calculation"), said("calculation", "calculation")]
    rows += [said(None, "other", "candidate"), said("unrelated", None)]
    found = by_critic(rows)
    assert found["confusion"]["logical"] == {**dict.fromkeys(ERROR_TYPES, 0), "logical": 1, "calculation": 1}
    assert found["accuracy"]["steps"] == 3 and found["accuracy"]["value"] == pytest.approx(2 / 3)
    assert found["unread"] == {"empty": 1} and found["by_source"]["candidate"]["other"] == 1
    nothing = by_critic([said(None, "other", "candidate")])
    assert nothing["confusion"] == {} and nothing["accuracy"] is None


@given(st.lists(st.tuples(st.sampled_from(ERROR_TYPES), st.sampled_from(ERROR_TYPES)), min_size=1, max_size=60))
def test_the_matrix_is_that_of_scikit_learn_and_the_interval_that_of_scipy(pairs: list[tuple[str, str]]) -> None:
    from scipy.stats import binomtest
    from sklearn.metrics import accuracy_score, confusion_matrix

    found = by_critic([said(known, kind) for known, kind in pairs])
    known, kinds = zip(*pairs, strict=True)
    ours = [[found["confusion"][a][b] for b in ERROR_TYPES] for a in ERROR_TYPES]
    assert ours == confusion_matrix(known, kinds, labels=list(ERROR_TYPES)).tolist()
    accuracy = found["accuracy"]
    assert accuracy["value"] == pytest.approx(accuracy_score(known, kinds))
    interval = binomtest(sum(a == b for a, b in pairs), len(pairs)).proportion_ci(method="wilson")
    assert (accuracy["ci_low"], accuracy["ci_high"]) == pytest.approx((interval.low, interval.high), abs=1e-12)
