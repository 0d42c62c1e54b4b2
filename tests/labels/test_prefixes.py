"""Where solutions are cut, and that a completer goes on from exactly the text that stood there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.candidates.prompts import chat, plain
from minos_ray.config.schema import Model
from minos_ray.labels.rollouts import ids_after, prefix_id, prefixes
from minos_ray.steps import split as splitters
from minos_ray.store.model_files import load_tokenizer, locate
from minos_ray.store.run import Run
from tests.tiny import tiny_tokenizer
from tests.training.tokenizers_at_hand import TOKENIZERS

QUESTION = "Tom has 3 apples and buys 14 more. How many apples?"
SOLUTION = "Step 1: 3 + 14 = 17\nStep 2: 17 * 2 = 34\nThe answer is: 34"
COMMON = (
    "Step 1: Tom has 3 apples.\nStep 1: Tom has 3 + 14 = 17 apples.\nThe answer is: 17"  # what every tokenizer can say
)
WORDS = st.lists(st.sampled_from(["Step", "1:", "3", "+", "4", "=", "7.", "So", "x"]), min_size=1, max_size=5)
LINES = st.lists(WORDS.map(" ".join), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def miniature() -> object:
    """The tokenizer of the shipped model."""
    return load_tokenizer(locate(Model(model="package:miniature/model"), Run(".")))


def test_a_prefix_ends_behind_the_line_break_of_its_step() -> None:
    assert prefixes(SOLUTION, splitters.lines(SOLUTION)) == (
        ["Step 1: 3 + 14 = 17\n", "Step 1: 3 + 14 = 17\nStep 2: 17 * 2 = 34\n"],
        True,
    )


def test_empty_lines_and_indents_stay_as_the_author_left_them() -> None:
    text = " Step 1: a\n\n  Step 2: b \nThe answer is: 1\n"
    assert prefixes(text, splitters.lines(text)) == ([" Step 1: a\n\n", " Step 1: a\n\n  Step 2: b \n"], True)
    assert prefixes(text, splitters.paragraphs(text)) == ([" Step 1: a\n\n"], True)


def test_between_sentences_the_space_is_left_to_the_completer() -> None:
    text = "First 3. Then 4.\nThe answer is 7."
    assert prefixes(text, splitters.sentences(text)) == (["First 3.", "First 3. Then 4.\n"], True)


def test_a_splitter_that_joins_lines_still_cuts_the_original() -> None:
    text = "Step 1: we add\n  3 and 4\nStep 2: so 7\nThe answer is: 7"
    steps = splitters.markers(text)
    assert steps[0] == "Step 1: we add 3 and 4"
    assert prefixes(text, steps) == (["Step 1: we add\n  3 and 4\n", "Step 1: we add\n  3 and 4\nStep 2: so 7\n"], True)


def test_steps_that_are_not_the_text_are_joined_anew_and_said_to_be() -> None:
    steps = ["Step 1: 3 + 4 = 7", "The answer is: 7"]
    assert prefixes("Step 1: 3 + 4 = <<3+4=7>>7\nThe answer is: 7", steps) == (["Step 1: 3 + 4 = 7\n"], False)
    assert prefixes("Intro. Step 1: 3 + 4 = 7\nThe answer is: 7", steps) == (["Step 1: 3 + 4 = 7\n"], False)


@pytest.mark.parametrize("splitter", ["lines", "paragraphs", "paragraphs_or_lines", "sentences", "markers"])
@given(lines=LINES, breaks=st.lists(st.sampled_from(["\n", "\n\n", " \n", "\r\n", "\n  "]), min_size=5, max_size=5))
def test_every_splitter_gives_beginnings_of_the_text(splitter: str, lines: list[str], breaks: list[str]) -> None:
    text = "".join(line + end for line, end in zip(lines, breaks, strict=False))
    steps = getattr(splitters, splitter)(text)
    cut, exact = prefixes(text, steps)
    assert exact and len(cut) == max(0, len(steps) - 1)
    for k, prefix in enumerate(cut, start=1):
        assert text.startswith(prefix)
        assert prefix.split() == " ".join(steps[:k]).split(), "a prefix holds its steps and nothing else"
        assert not prefix[len(prefix.rstrip()) :].endswith(" "), "no space is left behind"


def test_names_are_of_problem_and_text() -> None:
    names = {prefix_id(problem, text) for problem in ("p", "q") for text in ("a\n", "b\n")}
    assert len(names) == 4 and all(len(name) == 24 for name in names)
    assert prefix_id("p", "a\n") == prefix_id("p", "a\n")


def test_ids_of_a_prefix_are_the_first_ids_of_the_whole_text(miniature: object) -> None:
    prompt = plain(QUESTION, miniature)
    cut, _ = prefixes(SOLUTION, splitters.lines(SOLUTION))
    ((whole, exact),) = ids_after(miniature, prompt, [SOLUTION])
    assert exact
    for ids, exact in ids_after(miniature, prompt, cut):
        assert exact and ids == whole[: len(ids)] and len(ids) < len(whole)


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name not in ("unigram", "word-level")])
def test_prompt_and_ids_read_as_prompt_and_prefix(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    prompt = plain(QUESTION, tokenizer)
    cut, _ = prefixes(COMMON, splitters.lines(COMMON))
    before = tokenizer.decode(prompt)
    for prefix, (ids, exact) in zip(cut, ids_after(tokenizer, prompt, cut), strict=True):
        assert exact
        assert tokenizer.decode([*prompt, *ids]) == before + prefix
        assert not set(ids) & set(tokenizer.all_special_ids)


def test_sentencepiece_gets_no_space_at_the_start() -> None:
    """Alone the text begins with a space of its own, which the model never wrote."""
    tokenizer = TOKENIZERS["sentencepiece-prefix"]()
    prompt = plain(QUESTION, tokenizer)
    alone = tokenizer("Step 1", add_special_tokens=False)["input_ids"]
    ((ids, exact),) = ids_after(tokenizer, prompt, ["Step 1"])
    assert exact and ids != alone
    assert tokenizer.convert_ids_to_tokens(ids)[0] == "Step"


def test_what_no_ids_can_say_is_flagged() -> None:
    tokenizer = TOKENIZERS["sentencepiece-plain"]()
    made = ids_after(tokenizer, plain(QUESTION, tokenizer), ["Zürich\n", "Tom\n"])
    assert [exact for _, exact in made] == [False, True]


def test_behind_a_chat_prompt(tmp_path: object) -> None:
    tiny_tokenizer(tmp_path, chat=True)
    tokenizer = load_tokenizer(str(tmp_path))
    prompt = chat(QUESTION, tokenizer)
    ((ids, exact),) = ids_after(tokenizer, prompt, ["Step 1: 7\n"])
    assert exact and tokenizer.decode([*prompt, *ids]) == tokenizer.decode(prompt) + "Step 1: 7\n"


def test_a_special_token_in_a_solution_is_text() -> None:
    """A completer that reads EOS in the middle would go on with something else."""
    tokenizer = TOKENIZERS["byte-level-bos"]()
    ((ids, exact),) = ids_after(tokenizer, plain(QUESTION, tokenizer), ["Step 1: <s> 7 </s>\n"])
    assert exact and not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(ids)
