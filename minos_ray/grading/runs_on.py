"""Texts that run on: a base model writes the next question behind its answer, and answers that too."""

import re

from minos_ray.steps.thinking import without_thinking

# A new turn of a chat, whatever stands before it.
TURN = re.compile(
    r"<\|(?:user|im_start\|>\s*user|start_header_id\|>\s*user|start\|>\s*user)|<start_of_turn>\s*user|\[INST\]"
    r"|\n#{2,}\s*(?:Instruction|Human|User|(?P<question>Question|Problem|Input))s?\s*:"
)
# The next question of a few-shot prompt: these words begin solutions too, so a stated answer must stand before.
WORDS = r"(?:Question|Problem|Exercise|Q|User|Human|Instruction|Input|Example(?=[ \t]*[0-9])|Next (?:question|problem))"
HEAD = rf"(?:[ \t>*_#]*{WORDS}[ \t]*[0-9]*[*_]*[ \t]*:|#+[ \t*_]*(?:Question|Problem|Exercise)[ \t]*[0-9]*[*_ \t]*\n)"
BEGINS = re.compile(r"\s*" + HEAD)
NEXT = re.compile(r"\n" + HEAD + r"(?!\s*$)")
# The end of a text, where the endpoint leaves it in.
ENDED = re.compile(r"<\|(?:endoftext|end_of_text)\|>|<\uff5cend\u2581of\u2581sentence\uff5c>|</s>|<eos>")
STATED = re.compile(
    r"\banswer\s*(?:\*+\s*)?(?:(?:is|are)\b[^\n]{0,60}?[0-9$\\]|(?:is|are)?\s*[:=][\s*]*\S)|####\s*\S"
    r"|\\f?boxed\s*\{?\s*[^\s{}]|^[ \t]*\**A[ \t]*:[ \t]*\S",
    re.IGNORECASE | re.MULTILINE,
)


def is_turn(text: str, turn: re.Match[str]) -> bool:
    """Whether something stands before; before a heading such as `### Problem:` something of a solution, for a model
    may begin with the question."""
    return re.search(r"[0-9$\\]" if turn["question"] else r"\S", text[: turn.start()]) is not None


def own_solution(text: str) -> str:
    """What a reader of a model's text grades: not its thinking, and not the next question with its answer.

    The cut is at a new turn of a chat, and behind a stated answer at the end of a text or at a line that begins with
    `Question:`, `Q:`, `Problem:` or the like; a text that repeats or lists questions before it answers anything is not
    cut.
    """
    text = without_thinking(text)
    # A character is far cheaper to look for than the expression, and stands in few texts.
    if "<" in text or "[" in text or "##" in text:
        text = next((text[: turn.start()] for turn in TURN.finditer(text) if is_turn(text, turn)), text)
        ended = ENDED.search(text)
        text = text[: ended.start()] if ended and STATED.search(text, 0, ended.start()) else text
    following = NEXT.search(text)
    if following is None or BEGINS.match(text) or STATED.search(text, 0, following.start()) is None:
        return text
    return text[: following.start()]
