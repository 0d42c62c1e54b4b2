"""The worker on a real engine: width 1 samples, every method counts what it takes, and the PRM's scores decide."""

import copy
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from scipy.stats import chi2_contingency

from minos_ray.candidates.engine import Request
from minos_ray.config.resources import Engine, Scoring
from minos_ray.config.schema import Model, Sample, Search
from minos_ray.miniature import load
from minos_ray.search.searcher import Searcher
from minos_ray.steps.split import lines
from tests.tiny import tiny_model

MODEL = Model(model="package:miniature/model")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    """The miniature's generator and a PRM of random weights, which reads other tokens than the generator writes."""
    folder = tmp_path_factory.mktemp("search")
    return Searcher(
        str(folder),
        MODEL,
        Engine(max_model_len=512, dtype="float32", kv_cache_gb=0.2, max_num_seqs=64),
        Sample(max_tokens=120, temperature=1.0),
        Search(temperature=1.0, aggregation="min", n=8, width=4),
        Model(model=tiny_model(folder / "prm", "prm", layers=3)),
        Scoring(),
        "minos_ray.steps.split:lines",
    )


def with_settings(searcher: Searcher, temperature: float = 1.0, **settings: Any) -> Searcher:
    """A searcher with the same engine and PRM."""
    other = copy.copy(searcher)
    other.settings = searcher.settings.model_copy(update={"temperature": temperature, **settings})
    other.sampling = {**searcher.sampling, "temperature": temperature}
    return other


def units(number: int) -> pa.Table:
    """Problems of the miniature."""
    rows = list(load("test", number, 0))
    names = {"unit_id": [f"p{place}" for place in range(number)], "question": [row["question"] for row in rows]}
    return pa.table(names)


def rows_by_id(table: pa.Table) -> dict[str, dict[str, Any]]:
    """Rows by `candidate_id`; each is there once."""
    rows = {row["candidate_id"]: row for row in table.to_pylist()}
    assert len(rows) == table.num_rows
    return rows


def test_greedy_width_1_gives_the_texts_of_greedy_sampling(searcher: Searcher) -> None:
    asked = units(12)
    greedy = with_settings(searcher, 0.0, n=1, width=1)
    rows, stats = greedy(asked)
    prompts = [greedy.prompt(question, greedy.tokenizer) for question in asked["question"].to_pylist()]
    sampled = greedy.generator.generate([Request(prompt, 1) for prompt in prompts], greedy.sampling, "seed")
    by_id = rows_by_id(rows)
    searched = [by_id[f"p{place}/0"] for place in range(12)]
    assert [(row["text"], row["finish_reason"], row["num_tokens"]) for row in searched] == [
        (text.text, text.reason, text.tokens) for [text] in sampled
    ]
    assert len({row["text"] for row in searched}) == 12 and stats["requests"] > 24
    assert all(row["problem_tokens"] == row["num_tokens"] and not row["dropped_tokens"] for row in searched)


def test_width_1_draws_from_the_distribution_of_samples(searcher: Searcher) -> None:
    """Both are seeded, so this passes or fails always."""
    asked, n = units(1), 384
    plain = with_settings(searcher, n=n, width=1)
    rows, _ = plain(asked)
    prompt = plain.prompt(asked["question"][0].as_py(), plain.tokenizer)
    (sampled,) = plain.generator.generate([Request(prompt, n)], plain.sampling, "seed")
    texts = Counter(rows["text"].to_pylist()), Counter(text.text for text in sampled)
    frequent = [text for text, count in (texts[0] + texts[1]).items() if count >= 16]
    table = [[*(of[text] for text in frequent), n - sum(of[text] for text in frequent)] for of in texts]
    assert len(frequent) >= 4
    assert chi2_contingency(table).pvalue > 0.01
    assert len(set(rows["text"].to_pylist())) > 10, "slots draw streams of their own"


@pytest.mark.parametrize("method", ["beam", "dvts", "lookahead", "particles"])
def test_every_index_once_every_token_counted_and_the_same_again(searcher: Searcher, method: str) -> None:
    asked = units(6)
    some = with_settings(searcher, method=method)
    rows, stats = some(asked)
    by_id = rows_by_id(rows)
    assert set(by_id) == {f"p{place}/{index}" for place in range(6) for index in range(8)}
    of_problems = [by_id[f"p{place}/0"] for place in range(6)]
    assert stats["tokens"] == sum(row["problem_tokens"] for row in of_problems)
    assert all(0 < row["dropped_tokens"] < row["problem_tokens"] for row in of_problems)
    assert all(row["finish_reason"] == "stop" and row["num_tokens"] < 120 for row in by_id.values())
    assert some.scorer is not None and not some.scorer.places, "nothing stays in the cache"
    alone, _ = some(asked.slice(2, 1))
    assert {name: row["text"] for name, row in rows_by_id(alone).items()} == {
        name: row["text"] for name, row in by_id.items() if name.startswith("p2/")
    }


def test_what_is_kept_are_the_beams_of_the_highest_scores(searcher: Searcher) -> None:
    """The PRM's scores of the whole texts, computed apart, rank the first steps as the search did."""
    asked = units(4)
    best = with_settings(searcher, n=16, width=16, max_steps=2)
    rows = rows_by_id(best(asked)[0])
    every = with_settings(searcher, n=16, width=1, max_steps=1)
    first = rows_by_id(every(asked)[0])
    assert searcher.scorer is not None
    for place, question in enumerate(asked["question"].to_pylist()):
        texts = sorted({first[f"p{place}/{index}"]["text"] for index in range(16)})
        scores = [scored[0] for scored in searcher.scorer.scorer.score([(question, lines(text)) for text in texts])[0]]
        top = texts[scores.index(max(scores))]
        assert len(texts) > 1
        assert all(rows[f"p{place}/{index}"]["text"].startswith(top) for index in range(16))


def test_a_prompt_that_is_too_long_gives_empty_candidates(searcher: Searcher) -> None:
    long = pa.table({"unit_id": ["long"], "question": ["apples " * 600]})
    rows, stats = searcher(pa.concat_tables([units(1), long]))
    reasons = Counter(row["finish_reason"] for row in rows.to_pylist() if row["problem_id"] == "long")
    assert reasons == {"prompt_too_long": 8} and stats["prompt_too_long"] == 8


def test_a_stop_string_across_two_steps_ends_the_text(searcher: Searcher) -> None:
    """As in `sample.stop`, whose default begins with the line break that ends a step."""
    stopping = with_settings(searcher, 0.0, n=1, width=1)
    whole = rows_by_id(stopping(units(3))[0])["p0/0"]["text"]
    stopping.stops = ["\nStep 2"]
    assert rows_by_id(stopping(units(3))[0])["p0/0"]["text"] == whole[: whole.index("\nStep 2")]
