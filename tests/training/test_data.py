"""Rows that training reads, from artefacts."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.config.schema import Config
from minos_ray.config.training import Reward, Sft
from minos_ray.errors import UserError
from minos_ray.problems.split import NOT_DRAWN
from minos_ray.rounds.refine import candidates
from minos_ray.steps import encoding
from minos_ray.store.columns import table
from minos_ray.store.run import Run
from minos_ray.training.base import base_tokenizer
from minos_ray.training.data import Data, as_table, require_rows, usable_rows, write_rows
from minos_ray.training.pretrain import right_solutions
from minos_ray.training.reward import labelled, reward_data, reward_rows
from minos_ray.training.sft import critique_data, held_out_problems
from tests.runs import put
from tests.training.world import candidate, world


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Run, Any]:
    """Config, run, tokenizer."""
    config, run = world(tmp_path_factory.mktemp("data"))
    return config, run, base_tokenizer(config, run)


def section(**changes: Any) -> Reward:
    return Reward(**{"eval_rows": 40, "max_length": 256, **changes})


def problems(rows: list[dict[str, Any]]) -> set[str]:
    return {row["problem_id"] for row in rows}


@pytest.mark.parametrize("kind", ["orm", "prm"])
def test_no_problem_is_trained_on_and_held_out(small: tuple[Config, Run, Any], kind: str) -> None:
    _, run, tokenizer = small
    data = reward_data(run, tokenizer, section(), kind)
    assert problems(data.train) and problems(data.held_out)
    assert not problems(data.train) & problems(data.held_out)
    assert max(problems(data.train) | problems(data.held_out)) < "p036"


@pytest.mark.parametrize("kind", ["orm", "prm"])
def test_every_candidate_is_used_or_counted(small: tuple[Config, Run, Any], kind: str) -> None:
    _, run, tokenizer = small
    data = reward_data(run, tokenizer, section(wrong_share=0.4, rows=60), kind)
    assert len(data.train) + len(data.held_out) + sum(data.dropped.values()) == 36 * 8


def test_labels_sit_at_the_ends_of_their_steps(small: tuple[Config, Run, Any]) -> None:
    _, run, tokenizer = small
    label = candidate(3, 1)
    encoded = encoding.encode_solution(tokenizer, "What is the sum of set 3?", label["steps"])
    for kind, positions, targets in (
        ("orm", encoded.positions[-1:], [float(label["correct"])]),
        ("prm", encoded.positions, [float(step) for step in label["step_labels"]]),
    ):
        data = reward_data(run, tokenizer, section(), kind)
        row = next(row for row in data.train + data.held_out if row["ids"] == encoded.ids)
        assert (row["positions"], row["targets"]) == (positions, targets)


def test_the_outcome_at_every_token_of_the_solution(small: tuple[Config, Run, Any]) -> None:
    _, run, tokenizer = small
    last, every = (
        reward_data(run, tokenizer, section(orm_positions=where), "orm") for where in ("last", "every_token")
    )
    assert every.held_out == last.held_out
    for row, one in zip(every.train, last.train, strict=True):
        assert row["ids"] == one["ids"] and row["positions"] == list(range(row["first"], len(row["ids"])))
        assert row["targets"] == one["targets"] * len(row["positions"])
        assert tokenizer.decode(row["ids"][: row["first"]]).endswith("Answer:\n")


def test_soft_labels_are_the_shares_where_there_are_any(small: tuple[Config, Run, Any], tmp_path: Path) -> None:
    _, run, tokenizer = small
    labels = run.artefact("labels").read().to_pylist()
    for row in labels[::2]:
        row["step_scores"] = [0.25, None, 0.75]
    other = Run(str(tmp_path))
    for name, rows in (("problems", run.artefact("problems").read()), ("labels", table("labels", labels))):
        artefact = other.artefact(name)
        artefact.begin({"import": "test"})
        artefact.write_part("all", rows)
        artefact.complete({})
    data = reward_data(other, tokenizer, section(soft_labels=True), "prm")
    targets = {tuple(row["targets"]) for row in data.train}
    assert targets & {(0.25, 0.0, 0.75), (0.25, 1.0, 0.75)} and targets & {
        (0.0, 0.0, 0.0),
        (1.0, 1.0, 1.0),
        (1.0, 0.0, 0.0),
    }
    assert {target for row in data.held_out for target in row["targets"]} <= {0.0, 1.0}


def test_balance_and_nested_sizes(small: tuple[Config, Run, Any]) -> None:
    _, run, tokenizer = small
    few = reward_data(run, tokenizer, section(wrong_share=0.5, rows=40), "orm")
    assert Counter(row["correct"] for row in few.train) == {True: 20, False: 20}
    assert Counter(row["correct"] for row in few.held_out) == {True: 20, False: 20}
    more = reward_data(run, tokenizer, section(rows=80), "orm")
    less = reward_data(run, tokenizer, section(rows=30), "orm")
    assert {tuple(row["ids"]) for row in less.train} < {tuple(row["ids"]) for row in more.train}


def test_same_rows_whatever_the_parts(small: tuple[Config, Run, Any], tmp_path: Path) -> None:
    _, run, tokenizer = small
    other = Run(str(tmp_path))
    for name in ("problems", "labels"):
        rows = run.artefact(name).read().to_pylist()
        artefact = other.artefact(name)
        artefact.begin({"import": "test"})
        for part, first in (("b", 0), ("a", len(rows) // 2)):
            chosen = rows[first:][: len(rows) // 2] if first == 0 else rows[first:]
            artefact.write_part(part, table(name, chosen[::-1]))
        artefact.complete({"rows": len(rows)})
    digests = {
        write_rows(where, "orm", as_table(reward_data(where, tokenizer, section(), "orm").train))
        for where in (run, other)
    }
    assert len(digests) == 1


SECTIONS: list[dict[str, Any]] = [
    {},
    {"rows": 12},
    {"rows": 20, "wrong_share": 0.5},
    {"wrong_share": 0.3, "eval_rows": 25},
    {"loss": "minos_ray.training.verifier_losses:pairwise", "rows": 15},
    {"eval_rows": 1},
]


@pytest.mark.parametrize("kind", ["orm", "prm"])
@pytest.mark.parametrize("changes", SECTIONS, ids=str)
def test_of_too_many_candidates_those_of_some_problems_are_trained_on_and_the_same_ones_held_out(
    small: tuple[Config, Run, Any], monkeypatch: pytest.MonkeyPatch, kind: str, changes: dict[str, Any]
) -> None:
    _, run, tokenizer = small
    whole, apart = reward_data(run, tokenizer, section(**changes), kind), held_out_problems(run, section(**changes))
    train, held_out, _ = reward_rows(run, section(**changes), kind)
    monkeypatch.setattr("minos_ray.training.reward.MOST", 50)
    assert held_out_problems(run, section(**changes)) == apart >= problems(held_out)
    drawn_train, drawn_held_out, dropped = reward_rows(run, section(**changes), kind)
    assert drawn_held_out == held_out, "as without a draw, row by row"
    assert dropped[NOT_DRAWN] > 0 and not problems(drawn_train) & problems(held_out)
    by_id = {row["candidate_id"]: row for row in train}
    chosen = problems(drawn_train)
    assert [{**by_id[row["candidate_id"]], "layer": row["layer"]} for row in drawn_train] == drawn_train
    assert len(drawn_train) == sum(row["problem_id"] in chosen for row in train)
    assert len(drawn_train) <= max(50, 4 * changes.get("rows", 0) * 2)
    data = reward_data(run, tokenizer, section(**changes), kind)
    assert data.held_out == whole.held_out and data.train
    assert len(data.train) + len(data.held_out) + sum(data.dropped.values()) == 36 * 8


@pytest.mark.parametrize("kind", ["orm", "prm"])
@pytest.mark.parametrize("changes", SECTIONS[:1] + SECTIONS[3:5], ids=str)
def test_a_smaller_limit_gives_a_subset_whatever_is_drawn_for_each(
    small: tuple[Config, Run, Any], monkeypatch: pytest.MonkeyPatch, kind: str, changes: dict[str, Any]
) -> None:
    _, run, tokenizer = small
    monkeypatch.setattr("minos_ray.training.reward.MOST", 40)
    before: set[tuple[int, ...]] = set()
    problem_counts = set()
    for limit in (4, 9, 11, 19, 21, 39, 60, 90, 120):
        data = reward_data(run, tokenizer, section(**{**changes, "rows": limit}), kind)
        rows = {tuple(row["ids"]) for row in data.train}
        assert before <= rows and len(rows) <= limit
        before = rows
        problem_counts.add(data.dropped[NOT_DRAWN])
    assert len(problem_counts) >= 3, "drawn from more problems in several steps"


def test_a_prm_is_trained_on_all_labels_where_these_are_few(
    small: tuple[Config, Run, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run, tokenizer = small
    other, labels = Run(str(tmp_path)), run.artefact("labels").read().to_pylist()
    for number, row in enumerate(labels):
        if number % 9:
            row["step_labels"] = [-1] * 3
    put(other, "problems", run.artefact("problems").read().to_pylist())
    put(other, "labels", labels)
    whole = reward_data(other, tokenizer, section(eval_rows=5), "prm")
    monkeypatch.setattr("minos_ray.training.reward.MOST", 50)
    data = reward_data(other, tokenizer, section(eval_rows=5), "prm")
    assert (data.train, data.held_out, data.dropped) == (whole.train, whole.held_out, whole.dropped)


def test_a_corpus_of_right_solutions_counts_what_is_not_drawn(
    small: tuple[Config, Run, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run, _ = small
    dropped: Counter[str] = Counter()
    assert len(list(right_solutions(run, 0, 10, dropped))) == 10 and not dropped
    monkeypatch.setattr("minos_ray.training.reward.MOST", 50)
    rows, reasons = labelled(run)
    list(right_solutions(run, 0, 10, dropped))
    assert (
        dropped == {NOT_DRAWN: reasons[NOT_DRAWN]} and dropped[NOT_DRAWN] == 36 * 8 - len(rows) - reasons["same_text"]
    )


def test_critics_of_rounds_are_measured_on_problems_that_stage_2_holds_out_beyond_the_bound_too(
    small: tuple[Config, Run, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run, _ = small
    config = config.model_copy(update={"refine": config.refine.model_copy(update={"rounds": 1})})
    chosen = candidates(config, run, 0, held_out=True)
    assert chosen[1] == 0 and candidates(config, run, 0, held_out=False)[1] == 0
    monkeypatch.setattr("minos_ray.training.reward.MOST", 100)
    apart = held_out_problems(run, config.reward)
    assert candidates(config, run, 0, held_out=True) == chosen and problems(chosen[0]) <= apart
    rows, not_drawn = candidates(config, run, 0, held_out=False)
    assert rows and not problems(rows) & apart and 0 < not_drawn < 36 * 8


def test_repeated_and_unsure_candidates_are_left_out(small: tuple[Config, Run, Any], tmp_path: Path) -> None:
    _, run, tokenizer = small
    other = Run(str(tmp_path))
    labels = run.artefact("labels").read().to_pylist()
    labels[1] = {**labels[0], "candidate_id": labels[1]["candidate_id"]}
    labels[2]["status"] = "timeout"
    labels[3]["step_labels"] = [1]
    for name, rows in (("problems", run.artefact("problems").read()), ("labels", table("labels", labels))):
        artefact = other.artefact(name)
        artefact.begin({"import": "test"})
        artefact.write_part("all", rows)
        artefact.complete({})
    dropped = reward_data(other, tokenizer, section(), "prm").dropped
    assert dropped["same_text"] == dropped["label_timeout"] == dropped["labels_unlike_steps"] == 1


def test_critic_learns_only_the_critique(small: tuple[Config, Run, Any]) -> None:
    _, run, tokenizer = small
    data = critique_data(run, tokenizer, Sft(max_length=256))
    row = data.train[0]
    learnt = [row["ids"][position + 1] for position in row["positions"]]
    assert learnt[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(learnt[:-1])
    assert text.startswith("Step 1: so it is.") and text.endswith(".")
    before = tokenizer.decode(row["ids"][: row["positions"][0] + 1])
    assert before.endswith("Critique:\n")


def test_no_thinking_is_trained_on(small: tuple[Config, Run, Any], tmp_path: Path) -> None:
    _, run, tokenizer = small
    other = Run(str(tmp_path))
    for name in ("problems", "labels", "critiques"):
        rows = run.artefact(name).read().to_pylist()
        if name == "critiques":
            rows = [{**row, "text": f"Step 1: or not?</think>\n\n{row['text']}"} for row in rows]
        put(other, name, rows)
    assert critique_data(other, tokenizer, Sft(max_length=256)) == critique_data(run, tokenizer, Sft(max_length=256))


def test_disagreeing_critiques_are_left_out_and_sizes_nest(small: tuple[Config, Run, Any]) -> None:
    _, run, tokenizer = small
    data = critique_data(run, tokenizer, Sft(max_length=256))
    assert len(data.train) + len(data.held_out) + sum(data.dropped.values()) == 40 * 8
    assert data.dropped["critique_disagrees"] > 20
    texts = [
        {tuple(row["ids"]) for part in made[:2] for row in part}
        for made in (critique_data(run, tokenizer, Sft(max_length=256), limit) for limit in (20, 50))
    ]
    assert len(texts[0]) == 20 and len(texts[1]) == 50 and texts[0] < texts[1]


def noted(problem: str, index: int) -> dict[str, Any]:
    """An inserted error with its note."""
    steps = [f"{index} + 1 = {index + 2}", f"The answer is: {index + 2}"]
    return {
        "candidate_id": f"{problem}/inserted-{index}",
        "problem_id": problem,
        "source_id": problem,
        "steps": steps,
        "step_labels": [0, 0],
        "correct": False,
        "error_types": ["calculation", "accumulation"],
        "error_step": 0,
        "error_type": "calculation",
        "text": "Step 1: no. This step is incorrect.\nThe final answer is False.",
    }


def test_stage_1_reads_bought_critiques_inserted_errors_or_both(small: tuple[Config, Run, Any], tmp_path: Path) -> None:
    _, run, tokenizer = small
    other = Run(str(tmp_path))
    made = [noted(f"p{k % 30:03}", k) for k in range(60)] + [noted("p039", 99)]
    tables = {name: run.artefact(name).read() for name in ("problems", "labels", "critiques")}
    for name, rows in {**tables, "inserted": table("inserted", made)}.items():
        artefact = other.artefact(name)
        artefact.begin({"import": "test"})
        artefact.write_part("all", rows)
        artefact.complete({})
    bought = critique_data(run, tokenizer, Sft(max_length=256))
    found = {
        source: critique_data(other, tokenizer, Sft(max_length=256, source=source), None, True)
        for source in ("critiques", "inserted", "both")
    }
    sizes = {source: len(data.train) + len(data.held_out) for source, data in found.items()}
    assert found["critiques"].train == bought.train and found["inserted"].sources == {"inserted": 60}
    assert sizes["both"] == sizes["critiques"] + 60 == sum(found["both"].sources.values())
    assert found["both"].dropped["not_of_train_split"] == bought.dropped["not_of_train_split"] + 1
    assert critique_data(other, tokenizer, Sft(max_length=256)).sources == {"critiques": sizes["critiques"]}
    parts = [
        {tuple(row["ids"]) for part in data[:2] for row in part}
        for data in (critique_data(other, tokenizer, Sft(max_length=256), limit, True) for limit in (30, 90))
    ]
    assert len(parts[0]) == 30 and parts[0] < parts[1]


def test_too_long_rows_are_refused_and_counted(small: tuple[Config, Run, Any]) -> None:
    _, run, tokenizer = small
    lengths = [len(row["ids"]) for row in reward_data(run, tokenizer, section(), "orm").train]
    short = reward_data(run, tokenizer, section(max_length=min(lengths)), "orm")
    assert {len(row["ids"]) for row in short.train} == {min(lengths)}
    assert short.dropped["over_max_length"] > 0


def test_nothing_to_train_on_is_said_plainly(small: tuple[Config, Run, Any]) -> None:
    _, run, tokenizer = small
    data = reward_data(run, tokenizer, section(eval_rows=10_000), "orm")
    with pytest.raises(UserError, match=r"reward\.eval_rows"):
        require_rows("reward", data)
    with pytest.raises(UserError, match="3 critique_empty"):
        require_rows("sft", Data([], [], Counter(critique_empty=3)))


@pytest.fixture(scope="module")
def few_labelled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Step labels for one candidate in ten only, as `label.rollouts.candidates` makes; some texts are long."""
    run = Run(str(tmp_path_factory.mktemp("few")))
    asked = [
        {"problem_id": f"p{p:03}", "dataset": "sums", "split": "train", "question": f"Set {p}?"} for p in range(100)
    ]
    labels = [candidate(p, i) for p in range(100) for i in range(20)]
    for number, label in enumerate(labels):
        first = f"Step 0: {number} " + "1 " * (0 if number % 7 else 100)
        label["steps"] = [first, *label["steps"][1:]]
        if number % 10:
            label["step_labels"] = [-1, -1, -1]
        elif label["step_labels"][0] < 0:
            label["step_labels"] = [1, int(label["correct"]), int(label["correct"])]
    put(run, "problems", [{**row, "answer": "1", "solution": None} for row in asked])
    put(run, "labels", labels)
    return run


@pytest.mark.parametrize("wrong_share", [None, 0.4])
def test_limits_count_rows_that_a_prm_can_use(
    small: tuple[Config, Run, Any], few_labelled: Run, wrong_share: float | None
) -> None:
    data = reward_data(few_labelled, small[2], section(rows=60, eval_rows=30, wrong_share=wrong_share), "prm")
    assert len(data.train) == 60 and 24 <= len(data.held_out) <= 30
    assert data.dropped["no_step_labels"] == 1800
    assert len(data.train) + len(data.held_out) + sum(data.dropped.values()) == 2000
    if wrong_share is not None:
        assert sum(not row["correct"] for row in data.train) == 24


def test_stage_1_sees_no_problem_that_a_prm_holds_out(small: tuple[Config, Run, Any], few_labelled: Run) -> None:
    """A PRM has fewer rows of each problem, and so holds out more problems."""
    excluded = held_out_problems(few_labelled, section(eval_rows=30))
    for kind in ("orm", "prm"):
        held_out = problems(reward_data(few_labelled, small[2], section(eval_rows=30), kind).held_out)
        assert held_out and held_out <= excluded


def test_rows_that_are_too_long_do_not_count(small: tuple[Config, Run, Any], few_labelled: Run) -> None:
    data = reward_data(few_labelled, small[2], section(rows=1000, eval_rows=100, max_length=110), "orm")
    assert len(data.train) == 1000 and data.dropped["over_max_length"] > 200


@given(wrong=st.integers(0, 300), right=st.integers(0, 300), share=st.integers(1, 99))
def test_room_is_exact(wrong: int, right: int, share: int) -> None:
    """The largest size of which that share is wrong and there."""
    size = usable_rows([{"correct": False}] * wrong + [{"correct": True}] * right, share / 100)
    assert share * size <= 100 * wrong and (100 - share) * size <= 100 * right
    assert share * (size + 1) > 100 * wrong or (100 - share) * (size + 1) > 100 * right


def test_critiques_that_are_too_long_do_not_count(small: tuple[Config, Run, Any]) -> None:
    """24 asked for are 24, though some are too long."""
    _, run, tokenizer = small
    lengths = sorted(len(row["ids"]) for row in critique_data(run, tokenizer, Sft(max_length=256)).train)
    data = critique_data(run, tokenizer, Sft(max_length=lengths[len(lengths) // 2]), 24)
    assert len(data.train) + len(data.held_out) == 24 == sum(data.sources.values())
    assert data.dropped["over_max_length"] > 0
