"""JSON of the schema becomes text that the strict parser reads back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.critiques.reply import NotJson, canonical
from minos_ray.steps.critique_text import parse_critique

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


JSON = json.dumps({"steps": [{"explanation": "3 + 4 = 7.", "correct": True}], "final": False}, indent=1)
WRAPPED = ['<think>\n{{"steps": 1? Step 1: no.\n</think>\n{}', "Step 1?</think>{}", "```json\n{}\n```", "```\n{}```"]
WRAPPED += ["Here it is:\n\n```json\n{}\n```\nThat is all.", "<think>\n```json\n1\n```\n</think>\n```json\n{}\n```"]


@pytest.mark.parametrize("form", WRAPPED)
def test_json_behind_thinking_and_in_a_code_fence(form: str) -> None:
    parsed = parse_critique(canonical(form.format(JSON)), 2)
    assert (parsed.status, parsed.step_verdicts) == ("ok", [1, 0])


def test_two_blocks_of_json_and_thinking_alone_are_none() -> None:
    for text in (f"```json\n{JSON}\n```\n" * 2, f"<think>\n{JSON}"):
        with pytest.raises(NotJson):
            canonical(text)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"steps": [{}], "final": true}', '{"steps": [], "final": "yes"}'])
def test_anything_else_is_no_json_of_the_schema(text: str) -> None:
    with pytest.raises(NotJson):
        canonical(text)
