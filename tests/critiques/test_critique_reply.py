"""What an endpoint may send: each odd reply is one row, with its price, and nothing raises."""

import json
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minos_ray.config.schema import Critique
from minos_ray.critiques.batch import read_lines
from minos_ray.critiques.endpoint import meaning_of
from minos_ray.critiques.reply import (
    BOUGHT,
    Answer,
    BadReply,
    NotJson,
    RowError,
    canonical,
    checked,
    decoded,
    read,
    thought_only,
)
from minos_ray.steps.critique_text import parse_critique

SECTION = Critique(max_tokens=100, usd_per_million_input=1e6, usd_per_million_output=1e6)
STRUCTURED = SECTION.model_copy(update={"structured": True})
MESSAGES = [{"role": "user", "content": "x" * 84}]
MOST = 100 + 100
GOOD = "Step 1: fine. This step is correct.\nThe final answer is True."


def reply(content: Any = GOOD, usage: Any = None, finish: Any = "stop", **message: Any) -> dict[str, Any]:
    """A chat completion."""
    return {
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5} if usage is None else usage,
    }


@pytest.mark.parametrize(
    ("usage", "asked", "written", "cost"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5}, 10, 5, 15),
        ({"prompt_tokens": 10.0, "completion_tokens": 5.0}, 10, 5, 15),
        ({"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}, 0, 0, MOST),
        ({}, 0, 0, MOST),
        ([], 0, 0, MOST),
        ("15", 0, 0, MOST),
        ({"prompt_tokens": 10}, 10, 0, 110),
        ({"completion_tokens": 5}, 0, 5, 105),
        ({"prompt_tokens": -1, "completion_tokens": float("nan")}, 0, 0, MOST),
        ({"prompt_tokens": True, "completion_tokens": 10**40}, 0, 0, MOST),
        ({"prompt_tokens": "10", "completion_tokens": [5]}, 0, 0, MOST),
    ],
)
def test_what_is_not_counted_costs_the_most_that_it_can(usage: Any, asked: int, written: int, cost: float) -> None:
    assert read(SECTION, MESSAGES, reply(usage=usage)) == Answer(GOOD, "answered", asked, written, pytest.approx(cost))


CHUNKS = [{"type": "thinking", "thinking": [{"type": "text", "text": "Is it false?"}]}, {"type": "text", "text": GOOD}]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (CHUNKS, GOOD),
        ({"type": "text", "text": GOOD}, GOOD),
        ([{"type": "reasoning", "text": "Is it false?"}, {"type": "output_text", "text": GOOD}], GOOD),
        (["Step 1: ", {"text": "fine."}], "Step 1: fine."),
        ([{"text": "Is it false?", "thought": True}, {"text": GOOD}], GOOD),
        ([{"reasoningContent": {"reasoningText": {"text": "Is it false?"}}}, {"text": GOOD}], GOOD),
        ([{"type": None, "text": GOOD}], GOOD),
        ([], ""),
        (None, ""),
        (f"<think>\nStep 1: let me see. The final answer is false?\n</think>\n\n{GOOD}", GOOD),
        (f"let me see\n</think>\n{GOOD}", GOOD),
        ("<think>\nStep 1: let me", ""),
        (f"[THINK]hm[/THINK]{GOOD}", GOOD),
        (f"{GOOD}\ud83d", f"{GOOD}\ufffd"),
        ("\ud83d\ude00 and \x00", "\U0001f600 and \x00"),
    ],
)
def test_the_text_that_a_reader_sees(content: Any, text: str) -> None:
    assert read(SECTION, MESSAGES, reply(content)) == Answer(text, "answered", 10, 5, 15)


@pytest.mark.parametrize("wrap", ["{}", "<think>Step 1: no?</think>\n{}"])
def test_json_may_stand_behind_thinking(wrap: str) -> None:
    text = json.dumps({"steps": [{"explanation": "fine \ud83d", "correct": True}], "final": True})
    answer = read(STRUCTURED, MESSAGES, reply(wrap.format(text)))
    assert (answer.text, answer.outcome) == (
        "Step 1: fine \ufffd This step is correct.\nThe final answer is True.",
        "answered",
    )


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        (reply(finish="length"), "truncated"),
        (reply(finish="MAX_TOKENS"), "truncated"),
        (reply(finish="content_filter"), "refused"),
        (reply(None, finish="SAFETY"), "refused"),
        (reply(None, refusal="I cannot"), "refused"),
        (reply(None, refusal=["no"]), "refused"),
        (reply(None, finish="tool_calls", tool_calls=[{"id": "1"}]), "answered"),
        (reply(finish=7), "answered"),
        (reply(finish=None), "answered"),
        ({**reply(), "error": None}, "answered"),
        ({"choices": [{"message": None, "finish_reason": "length"}], "usage": None}, "truncated"),
        ({"choices": {"message": {"content": GOOD}}}, "answered"),
        ({"choices": [{"text": GOOD, "finish_reason": "stop"}]}, "answered"),
        (reply(7), "bad_reply"),
        (reply([7]), "bad_reply"),
        (reply([{"type": "text", "text": None}]), "bad_reply"),
        ({"choices": [{"message": GOOD}]}, "bad_reply"),
        ({"choices": [GOOD]}, "bad_reply"),
        ({"choices": {"0": {}}}, "bad_reply"),
        ({"choices": [], "usage": {"completion_tokens": 9}}, "bad_reply"),
    ],
)
def test_what_was_written_is_bought_however_odd_it_is(value: Any, outcome: str) -> None:
    answer = read(SECTION, MESSAGES, value)
    assert answer.outcome == outcome and outcome in BOUGHT and answer.cost_usd > 0
    assert (answer.outcome == "bad_reply") == answer.text.startswith('{"choices"')


@pytest.mark.parametrize(
    "value", [None, 7, "", [], {}, {"choices": None}, {"choices": []}, {"choices": [{}]}, {"id": 1}]
)
def test_where_nothing_was_written_it_may_be_asked_again(value: Any) -> None:
    with pytest.raises(BadReply, match="no chat completion"):
        read(SECTION, MESSAGES, value)


@pytest.mark.parametrize("content", [b"", b"<html>gateway</html>", b"[" * 100_000, b"\xff", b'{"choices": [{"mess'])
def test_what_is_no_json_is_quoted(content: bytes) -> None:
    with pytest.raises(BadReply, match="no JSON"):
        decoded(content)


SAID = "Rate limit exceeded: free-models-per-day"


@pytest.mark.parametrize(
    ("value", "sorted_as", "told"),
    [
        ({"choices": None, "error": {"message": SAID, "code": 429}}, "again", SAID),
        ({"error": {"message": SAID, "code": "429"}}, "again", SAID),
        ({"error": {"message": "empty", "code": 402}}, "no_quota", "empty"),
        ({"error": {"message": "empty", "code": 429, "type": "insufficient_quota"}}, "no_quota", "empty"),
        ({"error": {"message": "who?", "type": "authentication_error"}}, "no_access", "who?"),
        ({"error": {"message": "flagged", "code": 403}}, "forbidden", "flagged"),
        ({"error": {"message": "too long", "code": 400}}, "bad_request", "too long"),
        ({"object": "error", "message": "too long", "code": 400}, "bad_request", "too long"),
        ({"error": "overloaded"}, "again", "overloaded"),
        (reply(finish="error"), "again", "broken off"),
        (reply(finish="insufficient_system_resource"), "again", "broken off"),
        ({"error": {"message": "filtered", "code": "content_filter"}}, "bad_request", "filtered"),
        ({"error": {"message": "who?", "type": "not_found_error"}}, "bad_request", "who?"),
        ({"error": {"message": ["?"], "code": None}}, "again", '"message": ["?"]'),
        ({"choices": [{"error": {"code": 502, "message": "upstream"}, "finish_reason": "error"}]}, "again", "upstream"),
        (
            {**reply(), "choices": [{"message": {"content": "Step"}, "finish_reason": "error"}], "error": "cut"},
            "again",
            "cut",
        ),
    ],
)
def test_an_error_in_a_reply_of_200_counts_as_itself(value: Any, sorted_as: str, told: str) -> None:
    with pytest.raises(RowError) as error:
        read(SECTION, MESSAGES, value)
    assert meaning_of(error.value) == sorted_as and told in str(error.value)


def test_text_that_is_all_beside_the_content() -> None:
    assert thought_only(reply("", reasoning="Let me see")) and thought_only(reply(None, reasoning_content="x"))
    assert not any(map(thought_only, (reply(), reply(GOOD, reasoning="x"), reply(""), None, {"choices": "x"})))


TEXTS = st.one_of(st.text(max_size=9), st.sampled_from([GOOD, "<think>", "\ud83d", "error", "length", "429"]))
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
WORDS = ["choices", "message", "content", "usage", "error", "code", "type", "text", "finish_reason", "refusal"]
KEYS = st.sampled_from([*WORDS, "object", "prompt_tokens", "completion_tokens", "reasoning"])
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=25,
)
SHAPED = st.builds(
    lambda message, choice, usage, error: {"choices": [{"message": message, **choice}], "usage": usage, "error": error},
    JSON,
    st.dictionaries(KEYS, JSON, max_size=2),
    JSON,
    JSON,
)


@given(st.one_of(JSON, SHAPED), st.sampled_from([SECTION, STRUCTURED]))
@example({"choices": [{"message": {"content": [{"type": ["text"]}]}}]}, SECTION)
def test_any_json_is_an_answer_or_an_error_that_is_known(value: Any, section: Critique) -> None:
    try:
        answer = read(section, MESSAGES, value)
    except (BadReply, RowError) as error:
        str(error).encode()
        assert meaning_of(error) in ("again", "bad_request", "forbidden", "no_access", "no_quota")
        return
    assert answer.outcome in BOUGHT and answer.cost_usd >= 0
    pa.Table.from_pylist([vars(answer)], schema=pa.schema([("text", pa.string()), ("prompt_tokens", pa.int64())]))
    kept = checked(**json.loads(json.dumps(vars(answer))))
    assert replace(kept, text="") == replace(answer, text=""), "what is kept is read again"
    assert isinstance(thought_only(value), bool)


@given(
    st.lists(st.dictionaries(st.sampled_from(["custom_id", "response", "error"]), JSON, max_size=3), max_size=4), SHAPED
)
def test_any_row_of_a_batch_is_an_answer_or_an_error(rows: list[dict[str, Any]], content: Any) -> None:
    rows = [*rows, {"custom_id": "k", "response": {"status_code": 200, "body": content}}]
    for result in read_lines(SECTION, {"k": MESSAGES}, rows).values():
        assert isinstance(result, (Answer, BadReply, RowError))


# No quotation marks and no decoration: a verdict behind those is refused on purpose.
LETTERS = st.characters(categories=("L", "N", "Pd", "Po", "Zs"), exclude_characters="\"'*`_")
EXPLANATIONS = st.text(LETTERS, max_size=30)


@given(st.lists(st.tuples(EXPLANATIONS, st.booleans()), min_size=1, max_size=5), st.booleans())
def test_what_the_json_says_is_what_the_parser_reads(steps: list[tuple[str, bool]], final: bool) -> None:
    value = {"steps": [{"explanation": text, "correct": right} for text, right in steps], "final": final}
    parsed = parse_critique(canonical(json.dumps(value)), len(steps) + 1)
    assert (parsed.status, parsed.step_verdicts, parsed.final_verdict) == ("ok", [*(r for _, r in steps), final], final)


@pytest.mark.parametrize("explanation", ["3 + 4 = 7", "it is right, ", "Step 2: as said. This step is correct.", ""])
def test_explanations_that_end_anyhow(explanation: str) -> None:
    value = {"steps": [{"explanation": explanation, "correct": True}], "final": True}
    assert parse_critique(canonical(json.dumps(value)), 2).status == "ok"


CRITIQUE_JSON = json.dumps({"steps": [{"explanation": "3 + 4 = 7.", "correct": True}], "final": False}, indent=1)
WRAPPED = ['<think>\n{{"steps": 1? Step 1: no.\n</think>\n{}', "Step 1?</think>{}", "```json\n{}\n```", "```\n{}```"]
WRAPPED += ["Here it is:\n\n```json\n{}\n```\nThat is all.", "<think>\n```json\n1\n```\n</think>\n```json\n{}\n```"]


@pytest.mark.parametrize("form", WRAPPED)
def test_json_behind_thinking_and_in_a_code_fence(form: str) -> None:
    parsed = parse_critique(canonical(form.format(CRITIQUE_JSON)), 2)
    assert (parsed.status, parsed.step_verdicts) == ("ok", [1, 0])


def test_two_blocks_of_json_and_thinking_alone_are_none() -> None:
    for text in (f"```json\n{CRITIQUE_JSON}\n```\n" * 2, f"<think>\n{CRITIQUE_JSON}"):
        with pytest.raises(NotJson):
            canonical(text)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"steps": [{}], "final": true}', '{"steps": [], "final": "yes"}'])
def test_anything_else_is_no_json_of_the_schema(text: str) -> None:
    with pytest.raises(NotJson):
        canonical(text)
