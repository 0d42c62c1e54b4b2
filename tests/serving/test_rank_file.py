"""`minos rank`: scores of any file equal those of transformers; groups by brute force; what is torn is gone on with."""

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.cli import main
from minos_ray.serving.rank_file import ranks, weighted_vote
from minos_ray.serving.scorer import SliceScorer
from minos_ray.steps.encoding import encode_solutions
from minos_ray.store.model_files import load_tokenizer
from minos_ray.units import file_slices as slices
from tests.scoring.test_parity import at, padded, saved, whole
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def verifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny ORM and a tiny PRM as training saves them."""
    names = ("orm", "prm", "prm in chat")
    return {name: saved(tmp_path_factory.mktemp(name.replace(" ", "-")), name) for name in names}


def rows(count: int = 40) -> list[dict[str, Any]]:
    """Solutions of four questions, interleaved; some have no text at all."""
    rng = random.Random(0)
    made = []
    for number in range(count):
        steps = [f"Step {k}: {rng.randint(1, 9)} + {k}" for k in range(1, rng.randint(2, 5))]
        text = "\n".join([*steps, f"The answer is: {rng.choice(['5', '5.0', '7', '8'])}"])
        made.append({"id": number, "q": f"Question {number % 4}?", "text": "" if number == 13 else text})
    return made


def write_rows(path: Path, made: list[dict[str, Any]]) -> str:
    """The rows in the format that the name says."""
    table = pa.Table.from_pylist(made)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=7)
    elif path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


def rank(source: str, out: Path, verifier: str, *options: str) -> list[dict[str, Any]]:
    """The rows that the command writes."""
    columns = ["--question", "q", "--text", "text", "--out", str(out), "--verifier", verifier]
    assert main(["rank", source, *columns, *options]) == 0
    return pq.read_table(out).to_pylist()


@pytest.mark.parametrize("name", ["orm", "prm"])
def test_scores_are_those_of_transformers_in_the_order_of_the_file(
    tmp_path: Path, verifiers: dict[str, str], name: str
) -> None:
    made = [row for row in rows() if row["text"]]
    ranked = rank(write_rows(tmp_path / "in.parquet", made), tmp_path / "out.parquet", verifiers[name])
    assert [{key: row[key] for key in made[0]} for row in ranked] == made
    solutions = [(row["q"], row["text"].split("\n")) for row in made]
    encoded = encode_solutions(load_tokenizer(verifiers[name]), solutions)
    with torch.inference_mode():
        expected = at(padded(whole(verifiers[name]), encoded), encoded, name == "prm")
    assert [row["score"] for row in ranked] == pytest.approx([min(scores) for scores in expected], abs=1e-5)
    if name == "prm":
        for row, scores in zip(ranked, expected, strict=True):
            assert row["step_scores"] == pytest.approx(scores, abs=1e-5)


def test_any_format_texts_and_lists_of_steps_give_the_same(tmp_path: Path, verifiers: dict[str, str]) -> None:
    made = rows()
    listed = [{**row, "text": row["text"].split("\n") if row["text"] else []} for row in made]
    files = [write_rows(tmp_path / f"in.{kind}", made) for kind in ("parquet", "csv", "jsonl")]
    files.append(write_rows(tmp_path / "steps.parquet", listed))
    results = [rank(file, tmp_path / "out.parquet", verifiers["prm"]) for file in files]
    for result in results:  # row groups of other sizes are other passes
        assert [int(row["id"]) for row in result if row["score"] is None] == [13]
        scores = [row["score"] or 0 for row in result]
        assert scores == pytest.approx([row["score"] or 0 for row in results[0]], abs=1e-5)


def test_chats_are_scored_as_their_texts(tmp_path: Path, verifiers: dict[str, str]) -> None:
    """By a verifier that reads its own template, whatever turns the file has."""
    made, name = rows(8), "prm in chat"

    def turn(role: str, content: Any) -> dict[str, Any]:
        return {"role": role, "content": content}

    chats = [
        {**row, "q": [turn("system", "Think."), turn("user", row["q"])], "text": [turn("assistant", row["text"])]}
        for row in made
    ]
    whole_chats = [{**row, "q": row["q"] + row["text"], "text": row["q"] + row["text"]} for row in chats]
    parts = [
        {**row, "text": [turn("assistant", [{"type": "text", "text": own["text"]}])]}
        for row, own in zip(chats, made, strict=True)
    ]
    expected = rank(write_rows(tmp_path / "in.jsonl", made), tmp_path / "out.parquet", verifiers[name])
    for form, kind in ((chats, "jsonl"), (whole_chats, "parquet"), (parts, "jsonl")):
        ranked = rank(write_rows(tmp_path / f"chats.{kind}", form), tmp_path / "out.parquet", verifiers[name])
        assert [row["score"] for row in ranked] == pytest.approx([row["score"] for row in expected], abs=1e-5)
        assert ranked[0]["q"] == form[0]["q"]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([{"q": "1?", "text": "2"}, {"q": [{"role": "user", "content": "1?"}], "text": "2"}], "row 2: 'q' is a list"),
        ([{"q": ["1?"], "text": "2"}], "column 'q' holds"),
        ([{"q": [{"role": "assistant", "content": "2"}], "text": "2"}], "no turn of the user"),
        ([{"q": "1?", "text": [{"role": "user", "content": "2"}]}], "no turn of the assistant"),
    ],
)
def test_chats_that_lack_a_turn_are_named(
    tmp_path: Path,
    verifiers: dict[str, str],
    cells: list[dict[str, Any]],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    columns, source = (
        ["--question", "q", "--text", "text", "--out", str(tmp_path / "out.parquet")],
        tmp_path / "in.jsonl",
    )
    source.write_text("".join(json.dumps(row) + "\n" for row in cells))
    assert main(["rank", str(source), *columns, "--verifier", verifiers["prm"]]) == 2
    assert words in capsys.readouterr().err


def test_groups_by_brute_force(tmp_path: Path, verifiers: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    ranked = rank(write_rows(tmp_path / "in.jsonl", rows()), tmp_path / "out.parquet", verifiers["prm"], "--group", "q")
    assert "39 of 40 solutions scored" in capsys.readouterr().out
    for question in {row["q"] for row in ranked}:
        members = [row for row in ranked if row["q"] == question]
        scored = sorted((row for row in members if row["score"] is not None), key=lambda row: -row["score"])
        assert [row["rank"] for row in scored] == list(range(1, len(scored) + 1))
        sums: dict[float, float] = defaultdict(float)
        for row in scored:
            sums[float(row["answer"])] += row["score"]  # 5 and 5.0 vote together
        first, second = sorted(sums.values(), reverse=True)[:2]
        assert {sums[float(row["vote"])] for row in members} == {first}
        margin = pytest.approx((first - second) / sum(sums.values()))
        assert all(row["vote_margin"] == margin for row in members)


@given(
    st.lists(st.tuples(st.one_of(st.none(), st.floats(1e-6, 1)), st.sampled_from([None, "a", "b", "c"])), max_size=9)
)
def test_votes_and_ranks_of_any_group(group: list[tuple[float | None, str | None]]) -> None:
    scores, answers = [score for score, _ in group], [answer for _, answer in group]
    vote = weighted_vote(scores, answers, {name: name for name in "abc"})
    voters = [(score, answer) for score, answer in group if score is not None and answer]
    if not voters:
        assert vote == (None, None)
    else:
        sums = {name: sum(score for score, answer in voters if answer == name) for name in "abc"}
        assert sums[vote.answer] == pytest.approx(max(sums.values())) and 0 <= vote.margin <= 1
    places = ranks(scores)
    assert sorted(place for place in places if place) == list(range(1, len(places) - places.count(None) + 1))


def test_an_interrupted_command_goes_on(
    tmp_path: Path, verifiers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "SLICE_ROWS", 5)
    source, out = write_rows(tmp_path / "in.jsonl", rows()), tmp_path / "out.parquet"
    expected = rank(source, out, verifiers["orm"], "--group", "q")
    first_bytes, original, scored = out.read_bytes(), SliceScorer.__call__, []

    def interrupted(scorer: SliceScorer, part: slices.Slice) -> pa.Table:
        scored.append(part)
        if len(scored) == 4:
            raise KeyboardInterrupt
        return original(scorer, part)

    monkeypatch.setattr(SliceScorer, "__call__", interrupted)
    arguments = ["rank", source, "--question", "q", "--text", "text", "--group", "q", "--out", str(out)]
    assert main([*arguments, "--verifier", verifiers["orm"]]) == 1
    assert out.read_bytes() == first_bytes  # the file before stays until the new one is whole
    assert rank(source, out, verifiers["orm"], "--group", "q") == expected
    assert len(scored) == 4 + 8 - 3 and not Path(f"{out}.parts").exists()
    assert out.read_bytes() == first_bytes


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_of_a_question_that_lie_apart_are_scored_together(
    tmp_path: Path, verifiers: dict[str, str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    scattered = rows()
    together = sorted(scattered, key=lambda row: row["q"])
    expected = rank(write_rows(tmp_path / f"together.{kind}", together), tmp_path / "out.parquet", verifiers["prm"])
    monkeypatch.setattr(slices, "SLICE_ROWS", 10)
    original, questions = SliceScorer.__call__, []

    def noting(scorer: SliceScorer, part: slices.Slice) -> pa.Table:
        questions.append(set(scorer.read(part)["q"].to_pylist()))
        return original(scorer, part)

    monkeypatch.setattr(SliceScorer, "__call__", noting)
    apart = rank(write_rows(tmp_path / f"apart.{kind}", scattered), tmp_path / "out.parquet", verifiers["prm"])
    assert [len(of_slice) for of_slice in questions] == [1, 1, 1, 1]
    assert [row["id"] for row in apart] == list(range(40))
    scores = {row["id"]: row["score"] for row in expected}
    for row in apart:
        assert row["score"] == (None if scores[row["id"]] is None else pytest.approx(scores[row["id"]], abs=1e-5))


def test_stored_slices_of_another_verifier_are_not_gone_on_with(tmp_path: Path, verifiers: dict[str, str]) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", rows()), tmp_path / "out.parquet"
    parts = Path(f"{out}.parts")
    parts.mkdir()
    (parts / "inputs").write_text("of another")
    pq.write_table(pa.table({"score": [0.5]}), parts / "000000.parquet")
    assert len(rank(source, out, verifiers["orm"])) == 40


@pytest.mark.usefixtures("local_ray")
def test_actors_give_what_one_process_gives(
    tmp_path: Path, verifiers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "SLICE_ROWS", 8)
    monkeypatch.setattr("minos_ray.cli.leaving_ray", nullcontext)  # the Ray of the tests stays
    source = write_rows(tmp_path / "in.jsonl", rows())
    expected = rank(source, tmp_path / "here.parquet", verifiers["prm"], "--group", "q")
    there = rank(source, tmp_path / "there.parquet", verifiers["prm"], "--group", "q", "--actors", "2")
    assert [row["id"] for row in there] == list(range(40))
    for ours, theirs in zip(expected, there, strict=True):
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-6) and ours["vote"] == theirs["vote"]


def test_a_published_model_is_named_by_its_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published, source = tiny_model(tmp_path / "published", "orm"), write_rows(tmp_path / "in.jsonl", rows())
    arguments = ["rank", source, "--question", "q", "--text", "text", "--out", str(tmp_path / "out.parquet")]
    assert main([*arguments, "--verifier", published]) == 2
    assert "--kind" in capsys.readouterr().err
    scores = [row["score"] for row in rank(source, tmp_path / "out.parquet", published, "--kind", "sequence")]
    assert scores.count(None) == 1 and len(set(scores)) > 30


def requests(tmp_path: Path) -> Iterator[tuple[dict[str, str], str]]:
    """Options that are wrong, and what is said of each."""
    (tmp_path / "empty.jsonl").write_text("")
    causal = tiny_model(tmp_path / "causal", "causal")
    yield {"file": str(tmp_path / "missing.jsonl")}, "missing.jsonl"
    yield {"file": str(tmp_path / "empty.jsonl")}, "no rows"
    yield {"--question": "nowhere"}, "--question 'nowhere'"
    yield {"--text": "nowhere"}, "--text 'nowhere'"
    yield {"--group": "nowhere"}, "--group 'nowhere'"
    yield {"--verifier": str(tmp_path / "no-model")}, "there is no directory"
    yield {"--verifier": causal}, "--kind"
    yield {"--verifier": causal, "--kind": "sequence"}, "kind 'sequence'"
    yield {"--splitter": "minos_ray.steps.split:nowhere"}, "does not name a function"
    yield {"--out": str(tmp_path)}, "is a folder"


def test_wrong_requests_are_one_line_and_leave_nothing(
    tmp_path: Path, verifiers: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_rows(tmp_path / "in.jsonl", rows())
    right = {
        "--verifier": verifiers["orm"],
        "--question": "q",
        "--text": "text",
        "--out": str(tmp_path / "out.parquet"),
    }
    cases = list(requests(tmp_path))
    before = sorted(tmp_path.iterdir())
    for wrong, words in cases:
        options = {**right, **wrong}
        file = options.pop("file", source)
        capsys.readouterr()
        assert main(["rank", file, *(part for pair in options.items() for part in pair)]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_solution_that_is_too_long_has_no_score_and_the_others_have_one(
    tmp_path: Path, verifiers: dict[str, str]
) -> None:
    made = [*rows(4), {"id": 4, "q": "Long?", "text": "1 + 1 = 2\n" * 300}]
    ranked = rank(
        write_rows(tmp_path / "in.jsonl", made), tmp_path / "o.parquet", verifiers["orm"], "--max-length", "200"
    )
    assert [row["score"] is None for row in ranked] == [False] * 4 + [True]
